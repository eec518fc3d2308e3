# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Counts of cells on the panel of a tokenizer, and the input types that their numbers can have.

    input type   the file holds                            values of the tokens             S, source depth
    counts       raw counts                                log1p(1e4 count / total)         log10 of the total
    log          log1p of counts per 10,000                as given                         log10 of the sum of values
    log-total    the same, and the total of each cell      as given                         log10 of the total
    bulk         counts or TPM of bulk samples             log1p(median total x / total)    log10 of the sum of values
    bulk-log     their logarithms                          as given                         sum of the values

The target depth T of a cell is 4 for `t4`, S + log10(2) for `f2`, S + 1 for `a1`, and S unless given. T of a bulk
sample is always S. For `log` and `bulk-log`, S comes from a sum of logarithms, as in the released scFoundation script,
because its models have seen such depths.

Source: scFoundation (get_embedding), the five combinations of `input_type` and `pre_normalized`.
"""

import importlib
import math
from typing import Any, Literal, get_args

import numpy as np

from .counts_xtrimogene import CountSource
from .genes_xtrimogene import GeneMatch
from .normalization_xtrimogene import LARGEST_SMALLEST_COUNT, examine
from .sparse_xtrimogene import CellsError

InputType = Literal["counts", "log", "log-total", "bulk", "bulk-log"]
INPUT_TYPES: tuple[str, ...] = get_args(InputType)
WHOLE_TRANSCRIPTOME = 8_000  # columns; with fewer, such as variable genes only, totals are too low and values too high
# A larger share of counts in columns off the panel is warned of: at 40 % all values per 10,000 are 1.7 times too low.
# In 16 of 17 real data sets the share is 0.1 to 14 %; it is 31 % in nuclei with half of their counts in MALAT1.
LARGE_SHARE_OFF_PANEL = 0.4
CHUNK = 2048  # samples read at a time for the median of their totals
LARGEST_LOG_OF_BULK = 30.0  # larger values are no logarithms: 2^30 is a billion
LARGEST_DEPTH = 12.0  # log10 of a total; a larger number is a total itself, given by mistake
CHECKED = 256  # cells in which the scale of log values is checked
SCALE_TOLERANCE, COUNT_TOLERANCE, LEAST_SHARE_OF_COUNTS = 0.01, 0.1, 0.9


class PanelCounts:
    """Raw counts of cells on the panel of a tokenizer, read in chunks; `tokenizer.read_counts` makes one.

    Args:
        source: Counts in the columns of the data set.
        match: Match of these columns to the panel.
        num_genes: Number of genes `G` of the panel.
        panel_totals: Whether the total of a cell is the sum over the panel's genes only, as in the scFoundation script,
            and not over all columns.

    Attributes:
        input_type: What the numbers mean.
        n_cells: Number of cells; every cell of the source, in its order.
        match: How the columns were matched to the panel.
        measured: Whether a column measures each gene of the panel, bool `(G,)`; None if that is not known.
        description: Where the counts were found, one line.
        cell_names: Names of the cells.

    Example:
        >>> cells = xtrimogene.XTrimoGeneTokenizer.default().read_counts(adata)
        >>> cells.n_cells, cells.input_type, int(cells.measured.sum())
        (5, 'counts', 738)
    """

    input_type: InputType = "counts"

    def __init__(self, source: CountSource, match: GeneMatch, num_genes: int, panel_totals: bool = False):
        self.source = source
        self.match = match
        self.measured: np.ndarray | None = match.measured
        self.n_cells = source.n_cells
        self.cell_names = source.cell_names
        self.panel_totals = panel_totals
        self.description = source.description
        if panel_totals and source.state != "given":
            self.description += "; the sum over the genes of the panel is taken for the cell's total"
        elif source.n_columns < WHOLE_TRANSCRIPTOME and source.state != "given":
            self.description += f"; of {source.n_columns:,} columns only, whose sum is taken for the cell's total"
        is_matched = match.rows >= 0
        if not panel_totals:
            self.description += f"; {off_panel(source, is_matched)}"
        sparse = importlib.import_module("scipy.sparse")
        # A 0/1 matrix from columns to panel; the product sums the columns of one gene.
        self._to_panel = sparse.csr_matrix(
            (np.ones(is_matched.sum(), np.float32), (np.flatnonzero(is_matched), match.rows[is_matched])),
            shape=(source.n_columns, num_genes),
        )

    def read(self, start: int = 0, stop: int | None = None) -> tuple[Any, np.ndarray]:
        """Return the counts of cells `start ... stop` and their totals.

        Returns:
            Counts as CSR float32 `(cells, G)` with sorted indices and no stored zeros, and the total count of each
            cell, float64 `(cells,)`. Totals include columns off the panel, unless `panel_totals` is set.

        Example:
            >>> counts, totals = xtrimogene.XTrimoGeneTokenizer.default().read_counts(adata).read(0, 2)
            >>> counts.shape, totals.shape
            ((2, 19264), (2,))
        """
        columns = self.source.rows(start, self.n_cells if stop is None else min(stop, self.n_cells))
        counts = self._on_panel(columns)
        totals = counts if self.panel_totals else columns
        return counts, np.asarray(totals.sum(axis=1, dtype=np.float64)).ravel()

    def _on_panel(self, columns: Any) -> Any:
        """Return counts on the panel; columns of the same gene are summed."""
        counts = columns.astype(np.float32) @ self._to_panel
        counts.sum_duplicates()
        counts.eliminate_zeros()
        return counts

    def values(self, target_sum: float, start: int = 0, stop: int | None = None) -> tuple[Any, np.ndarray]:
        """Return the values of the tokens of cells `start ... stop` and the source depth S of each.

        Args:
            target_sum: Counts are normalised to this total before log1p.
            start: First cell.
            stop: One after the last cell; all cells unless given.

        Returns:
            Values as CSR float32 `(cells, G)`, and S, float64 `(cells,)`, NaN for a cell without counts.
        """
        counts, totals = self.read(start, stop)
        counts.data = normalize(counts.data, np.repeat(totals, np.diff(counts.indptr)), target_sum)
        return counts, log_depths(totals)


class InMemory(PanelCounts):
    """Raw counts that are on the panel already, such as some rows that another `read` returned.

    Args:
        counts: CSR `(cells, G)`.
        measured: Whether each gene of the panel was measured, bool `(G,)`; None if that is not known.

    Example:
        >>> from scipy.sparse import csr_matrix
        >>> counts, totals = InMemory(csr_matrix([[3, 0, 1], [0, 2, 0]])).read()
        >>> totals
        array([4., 2.])
    """

    def __init__(self, counts: Any, measured: np.ndarray | None = None):
        self.counts, self.measured = counts, measured
        self.n_cells = counts.shape[0]
        self.description = "counts in memory"
        self.cell_names = [str(cell) for cell in range(self.n_cells)]

    def read(self, start: int = 0, stop: int | None = None) -> tuple[Any, np.ndarray]:
        """Return the counts of cells `start ... stop`, CSR `(cells, G)`, and their totals `(cells,)`."""
        rows = self.counts[start:stop]
        return rows, np.asarray(rows.sum(axis=1, dtype=np.float64)).ravel()


class PanelValues(PanelCounts):
    """Values of cells or bulk samples on the panel, which mean what `input_type` says.

    Args:
        source: Values in the columns of the data set.
        match: Match of these columns to the panel.
        num_genes: Number of genes `G` of the panel.
        input_type: Meaning of the values: any but `counts`.
        totals: For `log-total` the total count of each cell, `(cells,)`.
        target_sum: Total to which cells were normalised before log1p.
        parity: Do not check the values, as the scFoundation script does not.

    Raises:
        ValueError: If totals are missing, too many, or no total counts; if log values are of another scale; or, while
            reading, if values cannot be of the input type.
    """

    def __init__(
        self,
        source: CountSource,
        match: GeneMatch,
        num_genes: int,
        input_type: InputType,
        totals: np.ndarray | None = None,
        target_sum: float = 1e4,
        parity: bool = False,
    ):
        super().__init__(source, match, num_genes, panel_totals=True)
        self.input_type, self.parity = input_type, parity
        is_of_cells = input_type.startswith("log")
        largest: dict[str, float] = {"bulk": np.inf, "bulk-log": LARGEST_LOG_OF_BULK}
        self.largest = largest.get(input_type, float(np.log1p(target_sum)))
        if (totals is None) == (input_type == "log-total"):
            raise ValueError(
                f"input_type is {input_type!r} and {'no' if totals is None else f'{len(totals):,}'} totals are given: "
                f"'log-total', and nothing else, needs the total count of every cell (total_key, --total-key)"
            )
        if totals is not None:
            totals = np.asarray(totals, np.float64).ravel()
            if len(totals) != self.n_cells or not (np.isfinite(totals).all() and (totals >= 0).all()):
                raise CellsError(
                    f"{len(totals):,} totals for {self.n_cells:,} cells, {np.count_nonzero(~(totals >= 0)):,} of them "
                    f"negative or missing: each cell needs its total count"
                )
        self.totals = totals
        what = {
            "log": "log values of {}; S is log10 of their sum, as in scFoundation, and no total count",
            "log-total": "log values of {} and total counts as given",
            "bulk": "bulk samples of {}, brought to their median total of {:,.0f}: values depend on the other samples",
            "bulk-log": "log values of bulk samples of {}; S and T are their sum, as in scFoundation",
        }[input_type]
        self.median_total = self._median_total() if input_type == "bulk" else 0.0
        self.description = what.format(source.slot, self.median_total)
        if source.n_columns < WHOLE_TRANSCRIPTOME:
            self.description += f"; of {source.n_columns:,} columns only"
        finding = examine(source._matrix, ()) if is_of_cells else None
        if finding and not parity:
            self._check_scale(target_sum, finding.log_base)
        if finding and input_type == "log" and finding.state == "log1p":
            self.description += "; counts can be recovered from them: input type counts does it"

    def _on_panel(self, columns: Any) -> Any:
        if not self.match.n_summed or not self.input_type.endswith(("log", "total")):
            return super()._on_panel(columns)
        columns.data = np.expm1(columns.data)  # columns of one gene are summed before the logarithm
        values = super()._on_panel(columns)
        values.data = np.log1p(values.data)
        return values

    def _check_scale(self, target_sum: float, base: float | None) -> None:
        """Refuse log values if the first cells show that they are not log1p of counts per `target_sum`.

        `base` is the base of the logarithm from which counts can be recovered; None if they cannot.
        """
        columns = self.source.rows(0, min(CHECKED, self.n_cells))
        self._check(columns.data)
        tens = np.asarray((columns * math.log(10)).expm1().sum(axis=1, dtype=np.float64)).ravel()
        tens = tens[tens > 0]
        is_of_tens = len(tens) and abs(np.median(tens) / target_sum - 1) < SCALE_TOLERANCE
        if is_of_tens or base not in (None, math.e):
            raise CellsError(
                f"{self.source.slot} looks like logarithms to the base {10 if is_of_tens else base:g}, and log1p, the "
                f"natural one, is needed: multiply by the natural logarithm of the base, or give raw counts"
            )
        columns.data = np.expm1(columns.data.astype(np.float64))
        sums = np.asarray(columns.sum(axis=1)).ravel()
        sums, is_there = sums[sums > 0], sums > 0
        if not len(sums):
            return
        middle = float(np.median(sums))
        is_constant = len(sums) > 1 and sums.std() < SCALE_TOLERANCE * middle
        low, high = target_sum * (1 - SCALE_TOLERANCE), target_sum * (1 + SCALE_TOLERANCE)
        if sums.max() > high or (is_constant and middle < low):
            raise CellsError(
                f"{self.source.slot}: without the logarithm a cell sums to {middle:,.0f} (median, largest "
                f"{sums.max():,.0f}), and log1p of counts per {target_sum:,.0f} to that or, of some genes, less: give "
                f"raw counts, or normalise by scanpy.pp.normalize_total(adata, target_sum=1e4) and log1p"
            )
        if self.totals is None:
            return
        totals = self.totals[: len(is_there)]
        counts = columns.data * np.repeat(totals / target_sum, np.diff(columns.indptr))
        share = float(np.mean((np.abs(counts - np.rint(counts)) < COUNT_TOLERANCE) & (counts > 0.5)))
        smallest = np.minimum.reduceat(counts, columns.indptr[:-1][np.diff(columns.indptr) > 0])
        if share < LEAST_SHARE_OF_COUNTS or np.median(smallest) > LARGEST_SMALLEST_COUNT + 0.5:
            raise CellsError(
                f"{self.source.slot}: by the totals given (median {np.median(totals):,.4g}) {share:.0%} of the values "
                f"are those of counts: these are not the totals of before normalising, or the values are not log1p of "
                f"counts per {target_sum:,.0f}"
            )

    def _median_total(self) -> float:
        """Return the median total on the panel, of samples with counts, as scanpy's normalize_total does."""
        totals = np.concatenate([self.read(start, start + CHUNK)[1] for start in range(0, self.n_cells, CHUNK)])
        return float(np.median(totals[totals > 0])) if (totals > 0).any() else 0.0

    def values(self, target_sum: float, start: int = 0, stop: int | None = None) -> tuple[Any, np.ndarray]:
        """Return the values of cells `start ... stop`, CSR float32 `(cells, G)`, and their depths S, `(cells,)`."""
        values, sums = self.read(start, stop)
        self._check(values.data)
        num_expressed = np.diff(values.indptr)
        if self.input_type == "bulk-log":
            return values, sums
        if self.input_type == "bulk":
            values.data = normalize(values.data, np.repeat(sums, num_expressed), self.median_total)
            sums = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
        elif self.totals is not None:
            sums = self.totals[start:stop]
        return values, log_depths(sums)

    def _check(self, values: np.ndarray) -> None:
        """Refuse values that cannot be of the input type."""
        if not len(values) or self.parity:
            return
        largest, are_whole = float(values.max()), bool((values == np.rint(values)).all())
        if self.input_type == "bulk":
            if largest < LARGEST_LOG_OF_BULK and not are_whole:
                raise CellsError(
                    f"{self.source.slot}: values up to {largest:.3g} look like logarithms; give input type bulk-log"
                )
        elif are_whole:
            raise CellsError(
                f"{self.source.slot}: {len(values):,} whole numbers up to {largest:,.0f} are no logarithms; give input "
                f"type {'bulk' if self.input_type == 'bulk-log' else 'counts'}"
            )
        elif self.input_type == "bulk-log" and largest > self.largest:
            raise CellsError(f"{self.source.slot}: values up to {largest:.4g} are no logarithms; give input type bulk")
        elif largest > self.largest * (1 + 1e-4):
            raise CellsError(
                f"{self.source.slot}: values up to {largest:.4g}, and log1p of counts per 10,000 is at most "
                f"{self.largest:.4g}: of counts give input type counts; other logarithms need log1p (the natural one) "
                f"after scanpy.pp.normalize_total(adata, target_sum=1e4)"
            )


def off_panel(source: CountSource, is_matched: np.ndarray) -> str:
    """Return a note on the share of counts in columns off the panel, which count in the total of a cell.

    Args:
        source: Counts in the columns of the data set.
        is_matched: Whether each column is a gene of the panel, `(columns,)`.
    """
    total, sums = source.column_sums.sum(), np.where(is_matched, 0, source.column_sums)
    share = float(sums.sum() / total) if total else 0.0
    text = f"{share:.1%} of the counts are in columns off the panel"
    if share < LARGE_SHARE_OFF_PANEL:
        return text
    return (
        f"CAUTION: {text}, {sums.max() / total:.1%} in {source.gene_names[int(sums.argmax())]}, and make all values "
        f"low: leave out columns that are no genes of these cells, or take a model whose panel has them"
    )


def normalize(counts: np.ndarray, totals: np.ndarray, target_sum: float) -> np.ndarray:
    """Return log1p of counts per `target_sum`, float32, computed in float64.

    >>> normalize(np.array([3, 1]), np.array([4_000, 4_000]), 1e4).round(2)
    array([2.14, 1.25], dtype=float32)
    """
    scaled = np.divide(target_sum, totals, dtype=np.float64)
    scaled *= counts
    return np.log1p(scaled, out=scaled).astype(np.float32)


def log_depths(totals: np.ndarray) -> np.ndarray:
    """Return log10 of the totals `(cells,)`, NaN for cells without counts.

    >>> log_depths(np.array([1_000.0, 0.0]))
    array([ 3., nan])
    """
    return np.log10(totals, out=np.full(len(totals), np.nan), where=totals > 0)


def target_depths(source_depths: np.ndarray, target_depth: float | str | None) -> np.ndarray:
    """Return the target depth T of each cell, log10 of a total count.

    Args:
        source_depths: S of each cell, `(cells,)`.
        target_depth: 4 or `t4` for T = 4; `f2` for twice the cell's total count, `a1` for ten times; None for T = S.

    Raises:
        ValueError: If it is none of these, or T is no log10 of a total.

    Source: scFoundation, `tgthighres`.

    Example:
        >>> target_depths(np.array([3.0, 3.5]), "a1")
        array([4. , 4.5])
    """
    if target_depth is None:
        return source_depths
    depths = _target_depths(source_depths, target_depth)
    known = depths[~np.isnan(depths)]
    if len(known) and not (0 <= known.min() and known.max() <= LARGEST_DEPTH):
        raise ValueError(
            f"target_depth is {target_depth!r}, which makes log10 of a total {known.max():,.6g}: 10,000 counts are t4"
        )
    return depths


def _target_depths(source_depths: np.ndarray, target_depth: float | str) -> np.ndarray:
    kind, number = "t", target_depth
    if isinstance(target_depth, str) and target_depth[:1] in ("t", "f", "a"):
        kind, number = target_depth[0], target_depth[1:]
    try:
        amount = np.nan if isinstance(number, bool) else float(number)
    except ValueError:
        amount = np.nan
    if not np.isfinite(amount) or (kind == "f" and amount <= 0):
        raise ValueError(
            f"target_depth is {target_depth!r}: give log10 of a total count such as 4 or t4, f2 for twice the depth of "
            f"each cell, or a1 for its log10 plus 1"
        )
    if kind == "t":
        return np.full_like(source_depths, amount)
    return source_depths + (np.log10(amount) if kind == "f" else amount)
