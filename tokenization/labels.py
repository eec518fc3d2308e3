"""Labels of cells as text: recognise missing labels, and refuse names that differ only by blanks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .sparse_xtrimogene import CellsError

# Texts for a missing label, in any case: those that pandas reads as missing in a .csv.
MISSING = {"", "nan", "na", "n/a", "#n/a", "#na", "<na>", "none", "null", "nat"}


def label_text(labels: Sequence[Any], key: str) -> np.ndarray:
    """Return labels as text, and None for those that are missing, blank, or a text for missing such as `nan`.

    Args:
        labels: Label of each cell.
        key: Column of obs with the labels, for messages.

    Returns:
        Objects `(cells,)`.

    Raises:
        ValueError: If names differ only by blanks; they would become two classes.

    Example:
        >>> label_text(["B cell", "nan", None], "cell_type")
        array(['B cell', None, None], dtype=object)
    """
    import pandas as pd

    column = pd.Series(list(labels), dtype=object)
    text = column.where(column.notna(), "").astype(str)
    names = {name: " ".join(name.split()) for name in text.unique()}
    spellings: dict[str, list[str]] = {}
    for name, bare in names.items():
        if bare.lower() not in MISSING:
            spellings.setdefault(bare, []).append(name)
    if several := [written for written in spellings.values() if len(written) > 1]:
        numbers = text.value_counts()
        shown = "; ".join(" and ".join(f"{name!r} ({numbers[name]:,})" for name in written) for written in several[:3])
        raise CellsError(
            f"{key} has {len(several)} names in several spellings that differ by blanks only: {shown} cells: make "
            f"them one, e.g. adata.obs[{key!r}] = adata.obs[{key!r}].str.split().str.join(' ')"
        )
    return np.array([None if names[name].lower() in MISSING else name for name in text], dtype=object)


def numbered_labels(labels: Sequence[Any], key: str, cells: str = "adata") -> tuple[np.ndarray, list[str]]:
    """Return the number of each cell's label in the alphabetical order of the labels, `(cells,)`, and their names.

    Args:
        labels: Label of each cell.
        key: Column of obs with the labels, for messages.
        cells: Name of the AnnData, for messages.

    Raises:
        ValueError: If a label is missing, as in `every_label`.

    Example:
        >>> numbers, names = numbered_labels(["T", "B", "T"], "cell_type")
        >>> numbers.tolist(), names
        ([1, 0, 1], ['B', 'T'])
    """
    names, numbers = np.unique(every_label(labels, key, cells), return_inverse=True)
    return numbers, [str(name) for name in names]


def every_label(labels: Sequence[Any], key: str, cells: str = "adata") -> np.ndarray:
    """Return the labels of all cells as text.

    Args:
        labels: Label of each cell.
        key: Column of obs with the labels, for messages.
        cells: Name of the AnnData, for messages.

    Raises:
        ValueError: If a label is missing, blank, or a text for missing such as `nan`, or names differ only by blanks.

    Example:
        >>> every_label(["B cell", "T cell"], "cell_type").tolist()
        ['B cell', 'T cell']
    """
    text = label_text(labels, key)
    is_missing = np.array([name is None for name in text], bool)
    if is_missing.any():
        written = {str(label) for label, missing in zip(labels, is_missing, strict=True) if missing}
        column = f"{cells}.obs[{key!r}]"
        raise CellsError(
            f"{key} has no label for {is_missing.sum():,} of {len(text):,} cells (they hold "
            f"{', '.join(map(repr, sorted(written)))}): keep labelled cells only, e.g. "
            f"{cells}[{column}.notna() & ~{column}.isin({sorted(written)})]"
        )
    return text.astype(str)
