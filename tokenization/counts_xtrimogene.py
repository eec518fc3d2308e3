"""Find the raw counts in whatever the user has, and read them in chunks of cells.

    AnnData | sparse | array | DataFrame | path
        |  slots in order: layers["counts"], raw.X, X; the first with counts, else the first that can be undone
        v
    CountSource.rows(start, stop)       CSR of counts, cells x columns; the order of cells is never changed

Normalised values are undone exactly or not at all. A cell's counts c became v = log(1 + s c) with one scale s a
cell, so (exp(v) - 1) / s are integers, and the smallest of them is nearly always 1: dividing by the smallest value
gives the counts (as the scFoundation paper does for studies that published normalised values only). Where that
leaves fractions, the smallest count may have been 2 ... 5.
"""

import difflib
import importlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

COUNT_LAYERS = ("counts", "raw_counts", "count")
GENE_COLUMNS = (
    "gene_ids",
    "ensembl_id",
    "feature_id",
    "gene_id",
    "gene_symbols",
    "gene_symbol",
    "feature_name",
    "gene_name",
    "symbol",
    "index",
)
ACCEPTED = (
    "AnnData, a scipy sparse matrix, a 2-D array or tensor, a DataFrame (columns = genes), or a path to "
    ".h5ad, 10x .h5, a 10x mtx folder, .csv, .tsv, .npz or .npy"
)
FIX = (
    'keep the counts before normalising: adata.layers["counts"] = adata.X.copy(); '
    'if they are elsewhere, name the slot: layer="..."'
)

SAMPLE_BLOCKS, SAMPLE_ROWS = 32, 64  # about 2,000 cells decide what a slot holds
MAX_LOG = 30.0  # log1p of a count of 1e13: larger values are no logarithms
LARGEST_SMALLEST_COUNT = 5
# Distance from an integer, in counts. A value that is no count is this close in one case of five, so that a cell of
# a dozen of them cannot pass; logarithms rounded to three decimals do up to counts of about 200.
TOLERANCE = 0.1
SHARE_OF_VALUES, SHARE_OF_CELLS = 0.98, 0.99

State = Literal["counts", "log1p", "normalized"]


@dataclass
class CountSource:
    """Raw counts of all cells of one data set, read when asked for.

    Attributes:
        n_cells: Number of cells.
        n_columns: Number of columns, genes or not.
        name_candidates: Names of the columns by where they were found, most likely first.
        cell_names: Names of the cells.
        slot: Where the values were found, such as `layers["counts"]`.
        state: What the slot holds: counts, their log1p after normalisation, or normalised values.
        description: One line for people.
    """

    n_cells: int
    n_columns: int
    name_candidates: dict[str, list[str]]
    cell_names: list[str]
    slot: str
    state: State
    description: str
    _matrix: Any = field(repr=False)
    _log_base: float | None = field(repr=False)
    _close: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def gene_names(self) -> list[str]:
        """The most likely names of the columns."""
        return next(iter(self.name_candidates.values()))

    def rows(self, start: int, stop: int) -> Any:
        """Return the counts of cells `start ... stop`.

        Returns:
            CSR matrix, float32 `(stop - start, n_columns)`, with sorted indices, duplicates summed and no stored
            zeros.

        Raises:
            ValueError: If a value cannot be a count: the whole data set is checked, as it is read.
        """
        return self._to_counts(read_rows(self._matrix, slice(start, stop)), f"cells {start:,} to {stop:,}")

    def rows_at(self, indices: Sequence[int] | np.ndarray) -> Any:
        """Return the counts of some cells, in the order given; see `rows`."""
        # A file can only be read in ascending order.
        ascending, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        block = read_rows(self._matrix, ascending)[back]
        return self._to_counts(block, f"{len(back):,} chosen cells")

    def close(self) -> None:
        """Close the file, if `find_counts` opened one."""
        if self._close is not None:
            self._close()

    def __enter__(self) -> "CountSource":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _to_counts(self, block: Any, where: str) -> Any:
        if problem := not_expression(block.data):
            raise ValueError(f"{self.slot}, {where}: {problem}; {FIX}")
        if self.state == "counts":
            if not is_integer(block.data):
                raise ValueError(f"{self.slot}, {where}: fractions among what had been counts in a sample; {FIX}")
        elif block.nnz:
            block.data, _ = undo_normalisation(block, self._log_base)
        return block.astype(np.float32)


def find_counts(
    data: Any,
    *,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    gene_column: str | None = None,
) -> CountSource:
    """Find raw counts in `data`, undoing log1p and library size where that can be done exactly.

    A path to .h5ad is opened without reading `X`; its layers are read, as anndata does. A matrix stored by columns is
    read whole, once.

    Args:
        data: AnnData in memory or backed, scipy sparse matrix, array, tensor, DataFrame with genes as columns, or path.
        layer: The only slot to look in: a layer, `"X"` or `"raw.X"`. Without it, layers named counts, then `raw.X`,
            then `X`.
        gene_names: Names of the columns, instead of those in `data`. An array needs them.
        gene_column: Column of `var` with the names of the genes.

    Raises:
        FileNotFoundError: If a path does not exist.
        TypeError: If `data` is nothing of the above.
        ValueError: If no slot holds counts; the message says what each holds.
    """
    if isinstance(data, str | os.PathLike):
        return open_counts(Path(data), layer, gene_names, gene_column)
    if hasattr(data, "var") and hasattr(data, "obs_names") and hasattr(data, "X"):
        return find_in_anndata(data, layer, gene_names, gene_column)
    for name, value in (("layer", layer), ("gene_column", gene_column)):
        if value is not None:
            raise ValueError(f"{name}={value!r} needs AnnData, data is a {type(data).__name__}")
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        names = data.columns if gene_names is None else gene_names
        cells = [str(name) for name in data.index]
        return from_matrix(data.to_numpy(), "DataFrame", names, cells)
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu().numpy()
    if not (isinstance(data, np.ndarray) or hasattr(data, "tocsr")):
        raise TypeError(f"data is a {type(data).__module__}.{type(data).__name__}; accepted are {ACCEPTED}")
    if gene_names is None:
        raise ValueError(f"gene_names is needed for a {type(data).__name__} of shape {data.shape}: it names no columns")
    return from_matrix(data, "array", gene_names, None)


def open_counts(
    path: Path, layer: str | None, gene_names: Sequence[str] | None, gene_column: str | None
) -> CountSource:
    """Open a file and find its counts; see `find_counts`."""
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        similar = difflib.get_close_matches(path.name, siblings)
        hint = f"; similar names there: {', '.join(similar)}" if similar else ""
        raise FileNotFoundError(f"{path} does not exist{hint}")
    kind = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if path.is_dir():
        data = importlib.import_module("scanpy").read_10x_mtx(path)
    elif kind == ".h5ad":
        data = importlib.import_module("anndata").read_h5ad(path, backed="r")
    elif kind == ".h5":
        data = importlib.import_module("scanpy").read_10x_h5(path)
    elif kind in (".csv", ".tsv", ".csv.gz", ".tsv.gz"):
        separator = "," if kind.startswith(".csv") else "\t"
        data = importlib.import_module("pandas").read_csv(path, sep=separator, index_col=0)
    elif kind == ".npz":
        data = importlib.import_module("scipy.sparse").load_npz(path)
    elif kind == ".npy":
        data = np.load(path, mmap_mode="r")
    else:
        raise ValueError(f"{path.name} ends in {kind!r}; accepted are {ACCEPTED}")
    close = data.file.close if kind == ".h5ad" else None
    try:
        source = find_counts(data, layer=layer, gene_names=gene_names, gene_column=gene_column)
    except ValueError as error:
        if close is not None:
            close()
        raise ValueError(f"{path.name}: {error}") from error
    source._close = close
    if not hasattr(data, "obs_names"):
        source.slot = f"file {path.name}"
        source.description = describe(source.slot, source.state, source._matrix, source._log_base)
    return source
