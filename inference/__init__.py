"""A model over cells: what a checkpoint gives for each of them. `tl.py` and the commands lead here.

Begin with `cell_model.py`, a checkpoint and its tokenizer on a device, and `running.py`, the loop over batches.
`embedding.py`, `genes.py` and `annotation.py` are what users ask for; `calibration.py` says how far labels can be
trusted. `options.py` holds what can be chosen.
"""
