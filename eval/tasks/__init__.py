"""One file for each protocol: cells and checkpoints in, a `TaskResult` out.

Begin with `embedding.py`, which scores a checkpoint as it is. `eval/evaluate.py` lists the tasks by name.
"""
