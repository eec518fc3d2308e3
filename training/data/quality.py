"""Quality control: which cells are kept, and by which rule the others are excluded."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from ...tokenization.counts_xtrimogene import CountSource
from ...tokenization.genes_xtrimogene import GeneMatch
from ...tokenization.panel_xtrimogene import PanelCounts


class QualityControl:
    """Read cells of a file, exclude those that break a rule, and return the others on the panel.

    Its method `rows` takes the place of the file's in `PanelCounts`, since the rules need all columns of the file, also
    those that are not on the panel.

    Args:
        counts: Counts of a file.
        match: Match of its columns to the panel.
        genes: Gene names of the panel.
        min_genes: Exclude cells with fewer expressed genes.
        max_mt_percent: Exclude cells with a larger share of mitochondrial counts, in per cent; None keeps them.
        left_out: Rule -> number of cells that it excluded; `read` adds to it.

    Raises:
        ValueError: If `max_mt_percent` is given and no column is a mitochondrial gene.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> cells = tokenizer.read_counts(counts)
        >>> control = QualityControl(cells.source, cells.match, tokenizer.genes, 3, max_mt_percent=None, left_out={})
        >>> control.read(0, 4)[0].tolist(), control.left_out["fewer than 3 genes"]
        ([3], 3)
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
        """Return the counts of cells `start ... stop`, and note their expressed genes and mitochondrial counts."""
        columns = self.counts.rows(start, stop)
        self.num_genes = np.diff(columns.indptr)
        if self.max_mt_percent is not None:
            self.mt_counts = columns @ self.is_mitochondrial
        return columns

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Any, np.ndarray]:
        """Return the kept rows among cells `start ... stop`, their counts on the panel (CSR) and their total counts."""
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
