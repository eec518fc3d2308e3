"""Cells as a `datasets.Dataset`: one row a cell, raw counts, zeros left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.table import InMemoryTable

from ...tokenization.collators import packed
from ...tokenization.panel_xtrimogene import PanelCounts
from ...tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

CHUNK = 4096  # cells read at a time


def cells_dataset(cells: PanelCounts, labels: Sequence[int] | np.ndarray | None = None) -> Dataset:
    """Return all cells as a dataset of `input_ids`, `counts`, `total`, `cell_index` and `length`.

    There are also `measured`, the bits of which genes were measured (`measured.py`), if `cells` knows it, and `labels`,
    if they are given.

    Args:
        cells: Raw counts on the panel; read chunk by chunk.
        labels: One class id a cell.

    Raises:
        ValueError: If labels and cells differ in number, or cells without counts are among them.
    """
    import pyarrow as pa

    if labels is not None and len(labels) != cells.n_cells:
        raise ValueError(
            f"{len(labels)} labels for {cells.n_cells} cells: give one label for each cell, in their order"
        )
    bits = None if cells.measured is None else np.packbits(cells.measured).tobytes()
    chunks: list[Any] = []
    empty: list[int] = []
    for start in range(0, cells.n_cells, CHUNK):
        counts, totals = cells.read(start, start + CHUNK)
        lengths = np.diff(counts.indptr)
        empty.extend(start + np.flatnonzero(lengths == 0))
        offsets = pa.array(counts.indptr.astype(np.int32))
        columns = {
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(counts.indices.astype(np.int32))),
            "counts": pa.ListArray.from_arrays(offsets, pa.array(counts.data)),
            "total": pa.array(totals),
            "cell_index": pa.array(np.arange(start, start + len(totals))),
            "length": pa.array(lengths.astype(np.int32)),
        }
        if bits is not None:
            columns["measured"] = pa.array([bits] * len(totals), pa.binary())
        if labels is not None:
            columns["labels"] = pa.array(np.asarray(labels[start : start + len(totals)], np.int64))
        chunks.append(pa.table(columns))
    if empty:
        raise ValueError(
            f"{len(empty)} of {cells.n_cells} cells have no counts on the panel (cell {empty[0]} first), "
            f"{cells.description}: remove them before training, e.g. scanpy.pp.filter_cells(adata, min_counts=1)"
        )
    features: dict[str, Any] = {
        "input_ids": List(Value("int32")),
        "counts": List(Value("float32")),
        "total": Value("float64"),
        "cell_index": Value("int64"),
        "length": Value("int32"),
    }
    if bits is not None:
        features["measured"] = Value("binary")
    if labels is not None:
        features["labels"] = Value("int64")
    table = InMemoryTable(pa.concat_tables(chunks))
    return Dataset(table.cast(Features(features).arrow_schema)).with_format("numpy")


def expression(dataset: Any, tokenizer: XTrimoGeneTokenizer) -> Any:
    """Return the values of cells as the model sees them, `log1p` of counts per 10,000, CSR `(cells, G)`.

    Args:
        dataset: From `cells_dataset`, or a corpus.
        tokenizer: Of the model.
    """
    from scipy.sparse import csr_matrix

    ids, counts, lengths, totals = packed(dataset.__getitems__(list(range(len(dataset)))))
    values = tokenizer.normalize(counts, np.repeat(totals, lengths))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((values, ids, starts), shape=(len(lengths), tokenizer.num_genes))
