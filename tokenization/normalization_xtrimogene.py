# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Tell what the values of a matrix are: counts, or normalised counts, which can be turned back into counts."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from .rows_xtrimogene import sample_rows

MAX_LOG = 30.0  # log1p of 1e13 counts; larger values are no logarithms
LARGEST_COUNT = 1e9  # reads of a whole sequencing run
LARGEST_SMALLEST_COUNT = 5
# Largest distance of a count from an integer. One in five values that are no counts is as close, so a cell with a
# dozen of them does not pass. Logarithms rounded to three decimals pass, up to counts of about 200.
TOLERANCE = 0.1
ROUNDING = 1e-4  # largest rounding error of counts; logarithms are not this close to integers
SHARE_OF_VALUES, SHARE_OF_CELLS = 0.98, 0.99
State = Literal["counts", "log1p", "normalized", "given"]


class Finding(NamedTuple):
    """What a sample of a slot's rows shows.

    Attributes:
        state: `counts`, their `log1p` after normalisation, `normalized` counts, or `given` if values are taken as they
            are; None if the slot holds no counts.
        log_base: Base of the logarithm of 1 + x; None if there is none.
        text: A line for people.
        column_sums: Sum of each column over the sample, `(columns,)`; sums of counts if there are counts.
        num_measured: Number of columns with a value in the sample.
        num_expressed: Mean number of values of a cell in the sample.
    """

    state: State | None
    log_base: float | None
    text: str
    column_sums: np.ndarray
    num_measured: int
    num_expressed: float


def not_expression(values: np.ndarray) -> str | None:
    """Return why values can be neither counts nor normalised counts, or None if they can be."""
    if n_not_finite := np.count_nonzero(~np.isfinite(values)):
        return f"{n_not_finite:,} values are NaN or infinite"
    if n_negative := np.count_nonzero(values < 0):
        return f"scaled: {n_negative:,} values are negative (smallest {values.min():.3g})"
    if len(values) and values.max() >= LARGEST_COUNT:
        return f"a count of {values.max():.3g} cannot be read exactly, and no gene has so many: the file is damaged"
    return None


def is_integer(values: np.ndarray) -> bool:
    """Return whether all values are whole numbers of any dtype, up to rounding."""
    return values.dtype.kind in "bui" or bool(np.all(np.abs(values - np.rint(values)) <= ROUNDING))


def examine(matrix: Any, log_bases: tuple[float, ...], as_given: bool = False) -> Finding:
    """Return what a sample of a matrix's rows shows.

    Args:
        matrix: Cells x columns, in memory or on disk.
        log_bases: Bases of the logarithm to try before e, 2 and 10.
        as_given: Whether values are taken as they are.

    Example:
        >>> examine(np.array([[3, 0], [1, 2]]), ()).state
        'counts'
    """
    sample = sample_rows(matrix)
    values = sample.data
    num_measured, num_expressed = len(np.unique(sample.indices)), sample.nnz / sample.shape[0]

    def found(state: State | None, log_base: float | None, text: str) -> Finding:
        sums = np.asarray(sample.sum(axis=0, dtype=np.float64)).ravel()
        return Finding(state, log_base, text, sums, num_measured, num_expressed)

    if problem := not_expression(values):
        return found(None, None, problem)
    if as_given:
        return found("given", None, "values of {slot} as given")
    if is_integer(values):
        return found("counts", None, "counts from {slot}")
    if np.mean(values == np.rint(values)) > 0.5:
        return found(None, None, "fractions among whole numbers: round corrected counts (alevin, SoupX) first")
    best = 0.0
    for base in (*log_bases, math.e, 2.0, 10.0, None):
        if base is not None and values.max() * math.log(base) > MAX_LOG:
            continue
        counts, is_exact = undo_normalisation(sample, base)
        best = max(best, is_exact.mean())
        if is_exact.mean() >= SHARE_OF_CELLS:
            sample.data = counts
            total = np.median(np.asarray(sample.sum(axis=1)))
            how = "normalised" if base is None else "log1p-normalised"
            state: State = "normalized" if base is None else "log1p"
            return found(state, base, f"counts recovered from {how} {{slot}} (median total {total:,.0f})")
    return found(
        None,
        None,
        f"fractions up to {values.max():.3g} from which counts cannot be recovered ({best:.0%} of the cells "
        f"are multiples of one value): averaged, imputed, batch-corrected or no counts (TPM)",
    )


def undo_normalisation(block: Any, log_base: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts behind normalised values, and which cells are exact.

    Args:
        block: Canonical CSR matrix of positive values.
        log_base: Base of the logarithm of 1 + x, or None if there was none.

    Returns:
        Counts, one for each stored value; and for each cell with values, whether nearly all its counts are integers.
        The counts of other cells are rounded.
    """
    values = block.data.astype(np.float64)
    scaled = values if log_base is None else np.expm1(values * math.log(log_base))
    lengths = np.diff(block.indptr)
    starts, lengths = block.indptr[:-1][lengths > 0], lengths[lengths > 0]
    smallest = np.minimum.reduceat(scaled, starts)

    counts = np.empty_like(scaled)
    is_exact = np.zeros(len(starts), dtype=bool)
    for smallest_count in range(1, LARGEST_SMALLEST_COUNT + 1):
        ratios = scaled * np.repeat(smallest_count / smallest, lengths)
        integers = np.maximum(np.rint(ratios), 1)
        is_near = np.abs(ratios - integers) <= TOLERANCE
        fits = np.add.reduceat(is_near.astype(np.int64), starts) >= SHARE_OF_VALUES * lengths
        is_new = np.repeat(fits & ~is_exact, lengths) if smallest_count > 1 else slice(None)
        counts[is_new] = integers[is_new]
        is_exact |= fits
        if is_exact.all():
            break
    return counts, is_exact
