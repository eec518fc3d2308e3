"""How a model learns, with transformers' Trainer.

Begin with `pretraining.py` and `finetuning.py`, then `trainer.py`, which both use. `data/` holds corpora, samplers and
splits; `perturbation/` and `synergy/` train the two heads that have data of their own.
"""
