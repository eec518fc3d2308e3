"""The cells that a model learns from: corpora on disk, datasets in memory, batches, splits.

Begin with `corpus.py`, which reads a corpus, and `manifest.py`, which says what is in it. `convert.py` makes one from
files. `docs/corpus.md` describes the format.
"""
