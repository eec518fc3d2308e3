"""Run a model over cells: embeddings, predicted expression and cell types. `tl.py` and the commands call these modules.

Begin with `cell_model.py`, a checkpoint and its tokenizer on a device, and `running.py`, the loop over batches.
`embedding.py`, `genes.py` and `annotation.py` hold the functions for users; `calibration.py` computes how far labels
can be trusted. `options.py` holds the options.
"""
