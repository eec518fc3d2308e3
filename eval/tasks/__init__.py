"""Evaluation tasks, one in each file: cells and checkpoints in, a `TaskResult` out.

Begin with `embedding.py`, which scores the embeddings of a checkpoint without training. `eval/evaluate.py` lists the
tasks by name.
"""
