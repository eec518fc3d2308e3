"""From files of cells to batches.

Begin with `expression_xtrimogene.py`, the base class of expression tokenizers, and `tokenization_xtrimogene.py`, the
tokenizer of xTrimoGene. `counts_xtrimogene.py` finds the counts, `genes_xtrimogene.py` matches gene names, and
`panel_xtrimogene.py` puts the counts on the panel; `collators.py` and `masking.py` make batches for training;
`reading.py` and `stored.py` open files. Files named `..._xtrimogene.py` are saved beside every tokenizer: they import
only each other and what transformers needs.
"""
