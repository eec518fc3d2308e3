# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Rows of a matrix of cells x genes, in memory or in a file."""

import importlib
from typing import Any

import numpy as np

from .sparse_xtrimogene import CellsError, check_indices, check_matrix, check_stored, first_wrong, name_of

SAMPLE_BLOCKS, SAMPLE_ROWS = 32, 64  # a sample of about 2,000 cells


class ChosenColumns:
    """A matrix of cells x columns that returns only some of its columns when rows are read."""

    def __init__(self, matrix: Any, is_read: np.ndarray):
        self._matrix, self._columns = matrix, np.flatnonzero(is_read)
        self.shape, self.dtype = (matrix.shape[0], len(self._columns)), matrix.dtype

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        return stored_rows(self._matrix, rows)[:, self._columns]


def chosen(matrix: Any, is_read: np.ndarray) -> Any:
    """Return a matrix with the columns that are read; the same matrix if all are."""
    return matrix if is_read.all() else ChosenColumns(matrix, is_read)


def readable_by_row(matrix: Any, label: str) -> Any:
    """Return a matrix that can be indexed by rows; raise ValueError or TypeError if it holds no expression.

    >>> readable_by_row(np.array([[3, 0], [1, 2]]), "data").shape
    (2, 2)
    """
    shape = tuple(matrix.shape)
    if len(shape) != 2:
        raise CellsError(
            f"{label} has {len(shape)} dimensions, shape {shape}; it needs 2, cells x genes; for one cell, "
            f"data[None, :]"
        )
    if 0 in shape:
        raise CellsError(f"{label} has {shape[0]} cells and {shape[1]} genes; it needs at least one of each")
    if matrix.dtype.kind == "b":
        raise CellsError(f"{label} holds True and False, which are whether a gene is expressed: give its counts")
    if matrix.dtype.kind not in "uif":
        raise CellsError(f"{label} has dtype {matrix.dtype}; it needs numbers: is a column of text among the genes?")
    if hasattr(matrix, "to_memory"):
        check_stored(matrix.group, shape[0] if matrix.format == "csr" else shape[1], name_of(matrix.group))
        if matrix.format == "csr":
            return matrix
        matrix = matrix.to_memory()
    check_matrix(matrix, label)
    return matrix.tocsr() if hasattr(matrix, "tocsr") else matrix


def read_rows(matrix: Any, rows: slice | np.ndarray) -> Any:
    """Return rows as a canonical CSR matrix. It is a copy, so `matrix`, which is the user's, does not change."""
    block = stored_rows(matrix, rows)
    if block.dtype == np.float16:  # scipy does not compute in it
        block = block.astype(np.float32)
    block = importlib.import_module("scipy.sparse").csr_matrix(block, copy=True)
    block.sum_duplicates()
    block.eliminate_zeros()
    return block


def stored_rows(matrix: Any, rows: slice | np.ndarray) -> Any:
    """Return rows of a matrix as it stores them, and check the indices of a matrix on disk.

    Raises:
        ValueError: If the indices are damaged.
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
    """Return all rows of a small matrix, or blocks of rows spread evenly over a large one."""
    n_rows = matrix.shape[0]
    if n_rows <= SAMPLE_BLOCKS * SAMPLE_ROWS:
        return read_rows(matrix, slice(0, n_rows))
    starts = np.linspace(0, n_rows - SAMPLE_ROWS, SAMPLE_BLOCKS).astype(int)
    blocks = [read_rows(matrix, slice(start, start + SAMPLE_ROWS)) for start in starts]
    return importlib.import_module("scipy.sparse").vstack(blocks, format="csr")
