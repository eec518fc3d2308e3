"""Quality control: which cells are kept, and by which rule others are left out."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from ...tokenization.counts_xtrimogene import CountSource
from ...tokenization.genes_xtrimogene import GeneMatch
from ...tokenization.panel_xtrimogene import PanelCounts


class QualityControl:
    """Reads cells, counts those it leaves out, and gives the others on the panel.

    It stands between the file and `PanelCounts`, where all genes are seen, also those that are not on the panel.

    Args:
        counts: Counts of a file.
        match: How its columns lie on the panel.
        genes: Names of the panel.
        min_genes: See `convert_files`.
        max_mt_percent: See `convert_files`.
        left_out: Rule -> cells that it left out; counted on.

    Raises:
        ValueError: If a share of mitochondrial counts is asked for and no column is mitochondrial.
    """

    def __init__(
        self,
        counts: CountSource,
        match: GeneMatch,
        genes: Sequence[str],
        min_genes: int,
        max_mt_percent: float | None,
        left_out: dict[str, int],
    ):
        self.counts, self.min_genes, self.max_mt_percent, self.left_out = counts, min_genes, max_mt_percent, left_out
        self.n_cells, self.n_columns = counts.n_cells, counts.n_columns
        self.cell_names, self.description, self.state = counts.cell_names, counts.description, counts.state
        self.column_sums, self.gene_names = counts.column_sums, counts.gene_names
        self.cells = PanelCounts(cast(CountSource, self), match, len(genes))
        if max_mt_percent is not None:
            on_panel = [genes[row] if row >= 0 else "" for row in match.rows.tolist()]
            every = [*counts.name_candidates.values(), on_panel]
            is_mitochondrial = np.array([[name.upper().startswith("MT-") for name in names] for names in every])
            self.is_mitochondrial = is_mitochondrial.any(axis=0).astype(np.float64)
            if not self.is_mitochondrial.any():
                raise ValueError(
                    f"none of {counts.n_columns:,} columns is mitochondrial (MT-...), so their share is unknown: leave "
                    f"--max-mt-percent out"
                )

    def rows(self, start: int, stop: int) -> Any:
        """Return the counts of cells, as `CountSource.rows`, and remember what the rules ask for."""
        columns = self.counts.rows(start, stop)
        self.num_genes = np.diff(columns.indptr)
        if self.max_mt_percent is not None:
            self.mt_counts = columns @ self.is_mitochondrial
        return columns

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Any, np.ndarray]:
        """Return the rows that are kept of cells `start ... stop`, their counts on the panel (CSR) and their totals."""
        cells, totals = self.cells.read(start, stop)
        rules = {f"fewer than {self.min_genes} genes": self.num_genes < self.min_genes}
        if self.max_mt_percent is not None:
            is_over = 100 * self.mt_counts > self.max_mt_percent * totals
            rules[f"more than {self.max_mt_percent:g} % mitochondrial counts"] = is_over
        rules["no counts on the panel"] = np.diff(cells.indptr) == 0
        is_kept = np.ones(stop - start, bool)
        for rule, is_out in rules.items():
            self.left_out[rule] = self.left_out.get(rule, 0) + int((is_kept & is_out).sum())
            is_kept &= ~is_out
        kept = np.flatnonzero(is_kept)
        return kept + start, cells if len(kept) == stop - start else cells[kept], totals[kept]
