"""Cells as a `datasets.Dataset`: one row a cell, raw counts, zeros left out."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from datasets.table import InMemoryTable

from ...tokenization.collators import packed
from ...tokenization.expression_xtrimogene import ExpressionTokenizer
from ...tokenization.panel_xtrimogene import PanelCounts

CHUNK = 4096  # cells read at a time
SOURCE = "source"  # column with the file of each cell: its name in a corpus, its number in other datasets
BATCH = 16  # cells of a batch of `run_dataset`
COLUMNS = {
    "input_ids": List(Value("int32")),
    "counts": List(Value("float32")),
    "total": Value("float64"),
    "cell_index": Value("int64"),
    "length": Value("int32"),
    "measured": Value("binary"),
}


def cells_dataset(
    cells: PanelCounts,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    batches: np.ndarray | None = None,
    sources: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    empty: Literal["refuse", "drop"] = "refuse",
    first_index: int = 0,
) -> Dataset:
    """Return cells as a dataset of `input_ids`, `counts`, `total`, `cell_index` and `length`.

    It also has a column `measured`, packed bits as in `measured.py`, if `cells` knows which genes were measured, and a
    column `labels`, `batch` or `source` if labels, batches or sources are given.

    Args:
        cells: Raw counts on the panel; read chunk by chunk.
        labels: Class id of each cell, also of cells without counts.
        batches: Number of the batch (data set, donor, chemistry) of each cell, also of cells without counts.
        sources: Number of the file of each cell, also of cells without counts.
        keep: Whether to take each cell, bool `(cells,)`; all unless given. The others take no memory.
        empty: Whether cells without counts on the panel raise an error or are dropped.
        first_index: `cell_index` of the first cell of the dataset. Masks are drawn from the `cell_index`, so cells of
            several files need different ones.

    Raises:
        ValueError: If labels, batches or sources and cells differ in number, or if there are cells without counts and
            `empty` is `refuse`.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> dataset = cells_dataset(tokenizer.read_counts(counts), labels=[0, 1, 0, 1])
        >>> dataset[0]["input_ids"].tolist(), dataset[0]["counts"].tolist(), int(dataset[0]["labels"])
        ([0, 2], [5.0, 1.0], 0)
    """
    given = numbers_of_cells(cells.n_cells, labels, batches, sources)
    bits = None if cells.measured is None else np.packbits(cells.measured).tobytes()
    chunks: list[Any] = []
    num_cells, left_out = 0, []
    for start in range(0, cells.n_cells, CHUNK):
        counts, totals = cells.read(start, start + CHUNK)
        rows = start + np.arange(len(totals))
        is_there = np.diff(counts.indptr) > 0
        is_asked = np.ones(len(rows), bool) if keep is None else keep[rows]
        left_out.extend(rows[is_asked & ~is_there])
        is_there &= is_asked
        if not is_there.all():
            counts, totals, rows = counts[is_there], totals[is_there], rows[is_there]
        lengths = np.diff(counts.indptr)
        offsets = pa.array(counts.indptr.astype(np.int32))
        columns = {
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(counts.indices.astype(np.int32))),
            "counts": pa.ListArray.from_arrays(offsets, pa.array(counts.data)),
            "total": pa.array(totals),
            "cell_index": pa.array(first_index + num_cells + np.arange(len(totals))),
            "length": pa.array(lengths.astype(np.int32)),
        }
        if bits is not None:
            columns["measured"] = pa.array([bits] * len(totals), pa.binary())
        columns |= {name: pa.array(numbers[rows]) for name, numbers in given.items()}
        chunks.append(pa.table(columns))
        num_cells += len(totals)
    if left_out and empty == "refuse":
        raise ValueError(
            f"{len(left_out)} of {cells.n_cells} cells have no counts on the panel (cell {left_out[0]} first), "
            f"{cells.description}: remove them before training, e.g. scanpy.pp.filter_cells(adata, min_counts=1)"
        )
    features: dict[str, Any] = {**COLUMNS, **{name: Value("int64") for name in given}}
    if bits is None:
        del features["measured"]
    table = InMemoryTable(pa.concat_tables(chunks))
    return Dataset(table.cast(Features(features).arrow_schema)).with_format("numpy")


def numbers_of_cells(
    num_cells: int,
    labels: Sequence[int] | np.ndarray | None,
    batches: np.ndarray | None,
    sources: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Return the columns `labels`, `batch` and `source`, int64 `(cells,)`, as far as they are given.

    Raises:
        ValueError: If there is not one number for each cell.
    """
    found = {}
    for column, one, several, given in (
        ("labels", "label", "labels", labels),
        ("batch", "batch", "batches", batches),
        (SOURCE, "source", "sources", sources),
    ):
        if given is None:
            continue
        if len(given) != num_cells:
            raise ValueError(
                f"{len(given)} {several} for {num_cells} cells: give one {one} for each cell, in their order"
            )
        found[column] = np.asarray(given, np.int64)
    return found


def expression(dataset: Any, tokenizer: ExpressionTokenizer) -> Any:
    """Return the input values of the model for all cells, as of its tokenizer, CSR `(cells, G)`.

    Args:
        dataset: Cells, from `cells_dataset` or `read_corpus`.
        tokenizer: The model's tokenizer.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> values = expression(cells_dataset(tokenizer.read_counts(counts)), tokenizer)
        >>> values[0].toarray().round(1).tolist()  # log1p of 10,000 x 5/6 and of 10,000 x 1/6
        [[9.0, 0.0, 7.4..., 0.0]]
    """
    from scipy.sparse import csr_matrix

    ids, counts, lengths, totals = packed(dataset.__getitems__(list(range(len(dataset)))))
    values = tokenizer.packed_values(counts, lengths, totals)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((values, ids, starts), shape=(len(lengths), tokenizer.num_genes))


@torch.inference_mode()
def run_dataset(
    dataset: Any,
    collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    device: torch.device,
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
) -> torch.Tensor:
    """Return `forward(batch)` for every cell, in the order of the cells, `(cells, ...)`, without gradients.

    Cells of like length are in one batch, so that there is little padding.

    Args:
        dataset: Cells, from `cells_dataset` or `read_corpus`; labels are left out of the batches.
        collator: Makes a batch of cells, such as `DataCollatorForExpression(tokenizer)`.
        device: Device of the batches.
        forward: Function of a batch on the device that returns one row for each cell.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 2], [0, 3, 0, 0], [4, 1, 0, 0]], columns=tokenizer.genes)
        >>> dataset = cells_dataset(tokenizer.read_counts(counts))
        >>> from xtrimogene.tokenization.collators import DataCollatorForExpression
        >>> collator = DataCollatorForExpression(tokenizer)
        >>> run_dataset(dataset, collator, torch.device("cpu"), lambda batch: batch["attention_mask"].sum(1))
        tensor([3, 1, 2])
    """
    parts = []
    by_length = np.argsort(np.asarray(dataset["length"][:]), kind="stable")
    for start in range(0, len(by_length), BATCH):
        batch = collator(dataset.__getitems__(by_length[start : start + BATCH].tolist()))
        batch.pop("labels", None)
        parts.append(forward({name: part.to(device) for name, part in batch.items()}))
    return torch.cat(parts)[torch.from_numpy(np.argsort(by_length)).to(device)]
