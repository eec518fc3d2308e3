"""Whole runs: from files of cells to a checkpoint with its card, its pictures and its figures.

Begin with `demo.py`, the whole road on 700 cells; `pretrain.py` and `finetune.py` are its two halves for any files.
`options.py` holds what can be chosen, `studies/` what choices in training do to the result.
"""
