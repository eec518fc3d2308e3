"""Read labelled cells and split them: file -> counts on the panel, label ids, cells to train on, cells to test on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...tokenization.files_xtrimogene import about
from ...tokenization.labels import every_label
from ...tokenization.reading import TrainingInput, cells_with_counts, read_cells
from ..options import LabelledSplit
from .splits import encode_labels, stratified_split

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class LabelledCells:
    """Labelled cells, and how they are split.

    Attributes:
        cells: Their counts on the panel.
        ids: Label of each cell, a place in `names`.
        names: The labels.
        train: Rows to train on.
        test: Rows held out.
    """

    cells: Any
    ids: np.ndarray
    names: list[str]
    train: np.ndarray
    test: np.ndarray

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels of some cells as text."""
        return np.array(self.names)[self.ids[rows]]


def read_labelled(
    file: Path,
    tokenizer: Any,
    split: LabelledSplit,
    source: TrainingInput,
    seed: int,
    say: Callable[[str], None] = print,
) -> LabelledCells:
    """Read labelled cells and split them.

    Args:
        file: Anything that `read_cells` reads, with `obs`.
        tokenizer: Of the model.
        split: Which column has the labels, and which cells are held out.
        source: Where the counts are.
        seed: Seed of the split.
        say: Called with one line for each step.

    Raises:
        ValueError: If there is no such column, labels are missing, or cells without counts are there and `drop_empty`
            is not set.
    """
    adata = read_cells(file)
    check_keys(adata, file, split)
    group_key = split.group_key
    with about(file.name):
        cells = tokenizer.read_counts(adata, layer=source.layer, gene_column=source.gene_column)
        is_there = cells_with_counts(cells, file.name, source.drop_empty, say)
        if not is_there.all():
            adata = adata[is_there].copy()
            cells = tokenizer.read_counts(adata, layer=source.layer, gene_column=source.gene_column)
        ids, names = encode_labels(adata.obs[split.label_key], split.label_key)
        groups = None if group_key is None else every_label(adata.obs[group_key], group_key).tolist()
    labels = np.array(names)[ids]
    train, test = stratified_split(labels, split.test_share, seed, groups)
    say(
        f"{file.name}: {cells.n_cells:,} cells, {len(names)} types, {len(test):,} cells held out by "
        f"{group_key or 'cell'}; {cells.description}; {cells.match.summary()}"
    )
    for purpose, rows in {"train on": train, "test on": test}.items():
        if absent := sorted(set(names) - set(labels[rows])):
            say(f"no cells to {purpose} of {', '.join(absent)}: scores count them as they are")
    return LabelledCells(cells, ids, names, train, test)


def check_keys(adata: "AnnData", file: Path, split: LabelledSplit) -> None:
    """Refuse names of columns that obs does not have.

    Raises:
        ValueError: Naming those there are.
    """
    for name, key in {"label_key": split.label_key, "group_key": split.group_key}.items():
        if key is not None and key not in adata.obs:
            there = ", ".join(adata.obs.columns) or "(none)"
            raise ValueError(f"{name} is {key!r}, and obs of {file.name} has the columns {there}")
