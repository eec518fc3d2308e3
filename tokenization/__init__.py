"""From files of cells to batches.

Begin with `expression_xtrimogene.py`, what every tokenizer of expression does, and `tokenization_xtrimogene.py`, what
xTrimoGene adds. `counts_`, `genes_` and `panel_xtrimogene.py` find the counts, match gene names and bring both
together; `collators.py` and `masking.py` make batches for training; `reading.py` and `stored.py` open files. Files
named `..._xtrimogene.py` are saved beside every tokenizer: they import only each other and what transformers needs.
"""
