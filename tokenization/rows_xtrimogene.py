# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Rows of a matrix of cells x genes, in memory or in a file."""

import importlib
from typing import Any

import numpy as np

from .sparse_xtrimogene import check_indices, check_matrix, check_stored, first_wrong, name_of

SAMPLE_BLOCKS, SAMPLE_ROWS = 32, 64  # about 2,000 cells decide what a slot holds


class ChosenColumns:
    """Some columns of a matrix, taken as its rows are read: `(cells, columns)`."""

    def __init__(self, matrix: Any, is_read: np.ndarray):
        self._matrix, self._columns = matrix, np.flatnonzero(is_read)
        self.shape, self.dtype = (matrix.shape[0], len(self._columns)), matrix.dtype

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        return stored_rows(self._matrix, rows)[:, self._columns]


def chosen(matrix: Any, is_read: np.ndarray) -> Any:
    """Return the columns of a matrix that are read; itself if all are."""
    return matrix if is_read.all() else ChosenColumns(matrix, is_read)


def readable_by_row(matrix: Any, label: str) -> Any:
    """Return a matrix that gives rows when indexed, or say why it is none of expression."""
    shape = tuple(matrix.shape)
    if len(shape) != 2:
        raise ValueError(
            f"{label} has {len(shape)} dimensions, shape {shape}; it needs 2, cells x genes; for one cell, "
            f"data[None, :]"
        )
    if 0 in shape:
        raise ValueError(f"{label} has {shape[0]} cells and {shape[1]} genes; it needs at least one of each")
    if matrix.dtype.kind not in "buif":
        raise ValueError(f"{label} has dtype {matrix.dtype}; it needs numbers: is a column of text among the genes?")
    if hasattr(matrix, "to_memory"):
        check_stored(matrix.group, shape[0] if matrix.format == "csr" else shape[1], name_of(matrix.group))
        if matrix.format == "csr":
            return matrix
        matrix = matrix.to_memory()
    check_matrix(matrix, label)
    return matrix.tocsr() if hasattr(matrix, "tocsr") else matrix


def read_rows(matrix: Any, rows: slice | np.ndarray) -> Any:
    """Return rows as a canonical CSR matrix of their own: `matrix` is the user's and stays as it is."""
    block = stored_rows(matrix, rows)
    if block.dtype.kind == "b" or block.dtype == np.float16:  # scipy computes in neither
        block = block.astype(np.float32)
    block = importlib.import_module("scipy.sparse").csr_matrix(block, copy=True)
    block.sum_duplicates()
    block.eliminate_zeros()
    return block


def stored_rows(matrix: Any, rows: slice | np.ndarray) -> Any:
    """Return rows of a matrix as it gives them; of one in a file the indices are checked, as nobody has yet.

    Raises:
        ValueError: If they are damaged.
    """
    block = matrix[rows]
    wrong = first_wrong(block.indices, matrix.shape[1]) if hasattr(matrix, "group") else None
    if wrong is not None:
        row = int(np.searchsorted(block.indptr, wrong, side="right")) - 1
        start = int(matrix.group["indptr"][np.arange(matrix.shape[0])[rows][row]])
        first = start + wrong - int(block.indptr[row])  # place in the file
        check_indices(block.indices[wrong:], matrix.shape[1], name_of(matrix.group), first)
    return block


def sample_rows(matrix: Any) -> Any:
    """Return all rows of a small matrix, and blocks spread evenly over a large one."""
    n_rows = matrix.shape[0]
    if n_rows <= SAMPLE_BLOCKS * SAMPLE_ROWS:
        return read_rows(matrix, slice(0, n_rows))
    starts = np.linspace(0, n_rows - SAMPLE_ROWS, SAMPLE_BLOCKS).astype(int)
    blocks = [read_rows(matrix, slice(start, start + SAMPLE_ROWS)) for start in starts]
    return importlib.import_module("scipy.sparse").vstack(blocks, format="csr")
