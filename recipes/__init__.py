"""Whole runs: from files of cells to a checkpoint with its card, its pictures and its figures.

Begin with `demo.py`, which runs all steps on 700 cells; `pretrain.py` and `finetune.py` do its two halves for any
files. `options.py` holds the options, and `studies/` compares choices in training.
"""
