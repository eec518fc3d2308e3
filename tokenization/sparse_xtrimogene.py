# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Check the arrays of a compressed sparse matrix before they are used.

    indptr    where each row begins      starts at 0, ascends, ends within the values     checked as a whole
    indices   the column of each value   0 ... columns - 1, in any order                  checked in each chunk read
    data      the values                 as many as indices

scipy, h5py and scanpy do not check these arrays. A column that does not exist is dropped, read from other memory, or
crashes the process, so a damaged file can give wrong numbers without an error.
"""

from pathlib import Path
from typing import Any

import numpy as np


class CellsError(ValueError):
    """Cells that cannot be read, or numbers that no cells can have.

    Attributes:
        is_named: Whether the message begins with the name of the file or of other cells.
    """

    is_named = False


DAMAGED = "the file or matrix is damaged: copy it again, or make it again"
BLOCK = 1 << 22  # stored indices that are checked at a time


def check_starts(starts: np.ndarray, num_rows: int, num_indices: int, num_values: int, name: str) -> None:
    """Refuse an `indptr` that does not cut the stored values into rows.

    Args:
        starts: The array `indptr`, whose shape must be `(num_rows + 1,)`.
        num_rows: Number of rows of a matrix stored by rows, of columns of one stored by columns.
        num_indices: Number of stored indices.
        num_values: Number of stored values.
        name: Name of the matrix, such as `X` or `raw/X`.

    Raises:
        ValueError: If the array is damaged; the message names the array, the place and the value.
    """
    if num_indices != num_values:
        raise CellsError(f"{name}/indices holds {num_indices:,} numbers for {num_values:,} in data: {DAMAGED}")
    if starts.shape != (num_rows + 1,):
        raise CellsError(
            f"{name}/indptr has {starts.size:,} numbers, and a matrix of {num_rows:,} needs {num_rows + 1:,}: {DAMAGED}"
        )
    is_wrong = (starts < 0) | (starts > num_values)
    is_wrong[0] |= starts[0] != 0
    is_wrong[1:] |= starts[1:] < starts[:-1]
    if is_wrong.any():
        place = int(is_wrong.argmax())
        before = int(starts[place - 1]) if place else 0
        raise CellsError(
            f"{name}/indptr holds {int(starts[place]):,} at place {place:,}, and {before:,} is before it and "
            f"{num_values:,} values are stored: {DAMAGED}"
        )


def check_indices(indices: np.ndarray, size: int, name: str, first: int = 0) -> None:
    """Refuse indices that are not 0 ... `size` - 1.

    Args:
        indices: Part of the stored indices, `(n,)`.
        size: Number of columns of a matrix stored by rows, of rows of one stored by columns.
        name: Name of the matrix.
        first: Place in the file of the first of `indices`.

    Raises:
        ValueError: If an index is out of range; the message names the array, the place and the value.
    """
    place = first_wrong(indices, size)
    if place is not None:
        raise CellsError(
            f"{name}/indices holds {int(indices[place]):,} at place {first + place:,}, and it needs 0 to {size - 1:,}: "
            f"{DAMAGED}"
        )


def first_wrong(indices: np.ndarray, size: int) -> int | None:
    """Return the place of the first index that is not 0 ... `size` - 1, or None."""
    if not len(indices) or 0 <= indices.min() <= indices.max() < size:
        return None
    return int(((indices < 0) | (indices >= size)).argmax())


def check_size(matrix: Any, num_cells: int, num_columns: int, name: str) -> None:
    """Refuse a matrix that is not as large as the tables of its cells and columns: on disk, anndata compares no sizes.

    Raises:
        ValueError: If it is not; the message gives both sizes.

    Example:
        >>> check_size(np.ones((5, 3)), num_cells=4, num_columns=3, name="X")
        Traceback (most recent call last):
        xtrimogene.tokenization.sparse_xtrimogene.CellsError: X is 5 x 3, and its tables are of 4 cells and 3 col...
    """
    if tuple(matrix.shape) != (num_cells, num_columns):
        size = " x ".join(f"{number:,}" for number in matrix.shape)
        raise CellsError(
            f"{name} is {size}, and its tables are of {num_cells:,} cells and {num_columns:,} columns: {DAMAGED}"
        )


def check_matrix(matrix: Any, name: str) -> None:
    """Refuse a compressed scipy matrix in memory whose indices point outside of it; other matrices pass.

    Raises:
        ValueError: If `indptr` or `indices` is damaged; the message names the array, the place and the value.
    """
    layout = getattr(matrix, "format", None)
    if layout in ("csr", "csc") and isinstance(matrix.data, np.ndarray):
        num_rows, num_columns = matrix.shape if layout == "csr" else matrix.shape[::-1]
        check_starts(matrix.indptr, num_rows, len(matrix.indices), len(matrix.data), name)
        check_indices(matrix.indices[: matrix.indptr[-1]], num_columns, name)
    elif layout == "coo":
        for places, size, axis in zip((matrix.row, matrix.col), matrix.shape, ("row", "col"), strict=True):
            check_indices(places, size, f"{name}/{axis}")


def check_stored(group: Any, num_rows: int, name: str) -> np.ndarray:
    """Return the checked `indptr` of a matrix in an HDF5 or zarr group, int64; its indices are not read.

    Raises:
        ValueError: If `indptr` is damaged, or one of the three arrays is missing.
    """
    if missing := [part for part in ("data", "indices", "indptr") if part not in group]:
        raise CellsError(f"{name} has no {' and no '.join(missing)}: {DAMAGED}")
    starts = np.asarray(group["indptr"][:])
    check_starts(starts, num_rows, group["indices"].shape[0], group["data"].shape[0], name)
    return starts.astype(np.int64)


def check_stored_indices(indices: Any, size: int, name: str) -> None:
    """Refuse an array in a file whose indices are not 0 ... `size` - 1; it is read in blocks."""
    for start in range(0, indices.shape[0], BLOCK):
        check_indices(indices[start : start + BLOCK], size, name, start)


def name_of(group: Any) -> str:
    """Return the name of a stored matrix for messages: the name of its file, if it has one, and its path in it."""
    name = group.name.strip("/")
    file = getattr(getattr(group, "file", None), "filename", None)
    return f"{Path(file).name}: {name}" if file else name
