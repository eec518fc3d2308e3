"""Labels of cells as text: what stands for a missing one, and names that are one but for their blanks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# What tables hold where there is no label, in any case: the texts that pandas reads as missing in a .csv.
MISSING = {"", "nan", "na", "n/a", "#n/a", "#na", "<na>", "none", "null", "nat"}


def label_text(labels: Sequence[Any], key: str) -> np.ndarray:
    """Return labels as text, None where they are missing: not there, blank, or a text for missing such as `nan`.

    Args:
        labels: Of each cell.
        key: What to call them, the column of obs.

    Returns:
        Objects `(cells,)`.

    Raises:
        ValueError: If names differ by blanks only, which would make two classes of one.
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
        raise ValueError(
            f"{key} has {len(several)} names in several spellings that differ by blanks only: {shown} cells: make "
            f"them one, e.g. adata.obs[{key!r}] = adata.obs[{key!r}].str.split().str.join(' ')"
        )
    return np.array([None if names[name].lower() in MISSING else name for name in text], dtype=object)


def every_label(labels: Sequence[Any], key: str, cells: str = "adata") -> np.ndarray:
    """Return the labels as text; see `label_text`.

    Args:
        labels: Of each cell.
        key: What to call them, the column of obs.
        cells: What to call the cells in the advice.

    Raises:
        ValueError: If some are missing; and see `label_text`.
    """
    text = label_text(labels, key)
    is_missing = np.array([name is None for name in text], bool)
    if is_missing.any():
        written = {str(label) for label, missing in zip(labels, is_missing, strict=True) if missing}
        column = f"{cells}.obs[{key!r}]"
        raise ValueError(
            f"{key} has no label for {is_missing.sum():,} of {len(text):,} cells (they hold "
            f"{', '.join(map(repr, sorted(written)))}): keep labelled cells only, e.g. "
            f"{cells}[{column}.notna() & ~{column}.isin({sorted(written)})]"
        )
    return text.astype(str)
