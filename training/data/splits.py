"""Which cells are trained on and which are held out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tokenization.labels import numbered_labels
from .corpus import Corpus


def split_corpus(
    corpus: Corpus, validation_share: float, by: str | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells to train on and which to hold out, both ascending.

    Args:
        corpus: The corpus.
        validation_share: Approximate share of the cells to hold out.
        by: Column of groups (donor, study, `source`); no group is on both sides. Groups are taken in random order and
            held out if they fit into the share; if none fits, the smallest group is held out. Unless given, the split
            is by cell.
        seed: Seed of the split.

    Raises:
        ValueError: If a side would be empty, or the corpus has no such column.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> counts.to_csv("cells.csv")
        >>> from xtrimogene.training.data.convert import convert_files
        >>> _ = convert_files(["cells.csv"], "corpus", tokenizer=tokenizer, min_genes=1, say=lambda line: None)
        >>> from xtrimogene.training.data.corpus import read_corpus
        >>> train, held_out = split_corpus(read_corpus("corpus", tokenizer, cache_dir="cache"), validation_share=0.25)
        >>> len(train), len(held_out)
        (3, 1)
    """
    if by is None:
        groups = np.arange(len(corpus))
    else:
        if by not in corpus.dataset.column_names:
            raise ValueError(f"by is {by!r}, and the corpus has the columns {', '.join(corpus.dataset.column_names)}")
        groups = np.unique(corpus[by].astype(str), return_inverse=True)[1]
    sizes = np.bincount(groups)
    room, chosen = validation_share * len(corpus), []
    for group in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if sizes[group] <= room:
            chosen.append(group)
            room -= sizes[group]
    chosen = chosen or [int(sizes.argmin())]
    if len(chosen) == len(sizes):
        raise ValueError(
            f"{len(sizes)} {by or 'cell'}s and a validation_share of {validation_share} leave nothing to train on: "
            f"split by another column, or hold out less"
        )
    is_held_out = np.isin(groups, chosen)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def encode_labels(labels: Sequence[Any], label_key: str = "labels") -> tuple[np.ndarray, list[str]]:
    """Return the class id of each cell, and the class names in alphabetical order.

    Args:
        labels: Label of each cell.
        label_key: Name of their column, for errors.

    Raises:
        ValueError: If labels are missing (also blank, or the text `nan`), differ only by blanks, or are all the same.

    Example:
        >>> ids, names = encode_labels(["T", "B", "T"])
        >>> ids.tolist(), names
        ([1, 0, 1], ['B', 'T'])
    """
    ids, names = numbered_labels(labels, label_key)
    if len(names) < 2:
        raise ValueError(
            f"{label_key} has {len(names)} class in {len(ids)} cells ({', '.join(names)}): "
            f"annotation needs at least 2; is this the right column?"
        )
    return ids, names


def stratified_split(
    labels: Sequence[Any] | np.ndarray, test_share: float, seed: int, groups: Sequence[Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells to train on and those to test on, ascending.

    Args:
        labels: Class of each cell.
        test_share: Share of the cells to test on.
        seed: Seed of the split.
        groups: Donor or study of each cell. If given, no group is on both sides, and classes are not balanced.

    Raises:
        ValueError: If a class has a single cell, or all cells are of one group.

    Example:
        >>> train, test = stratified_split(["B", "B", "T", "T"], test_share=0.5, seed=0)
        >>> len(train), len(test)
        (2, 2)
    """
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    every = np.arange(len(labels))
    if groups is not None:
        if len(set(groups)) < 2:
            raise ValueError(
                f"all {len(labels)} cells are of one group ({next(iter(groups), 'none')}): a split by group needs "
                f"at least 2; split by cell instead"
            )
        splitter = GroupShuffleSplit(n_splits=1, test_size=test_share, random_state=seed)
        train, test = next(splitter.split(every, labels, groups))
    else:
        classes, counts = np.unique(labels, return_counts=True)
        if counts.min() < 2:
            raise ValueError(
                f"{classes[counts.argmin()]} has 1 cell of {len(labels)}: a stratified split needs at least 2 of "
                f"each; leave that class out or merge it with another"
            )
        train, test = train_test_split(every, test_size=test_share, random_state=seed, stratify=labels)
    return np.sort(train), np.sort(test)
