"""Find the raw counts in whatever the user has, and read them in chunks of cells.

    AnnData | sparse | array | DataFrame | path
        |  slots in order: layers["counts"], raw.X, X; the first with counts, else the first to be undone
        v
    CountSource.rows(start, stop)       CSR of counts, cells x columns; the order of cells is never changed

Normalised values are undone where that gives integers, and refused otherwise. A cell's counts c became
v = log(1 + s c) with one scale s a cell, so (exp(v) - 1) / s are integers, and the smallest of them is nearly
always 1: dividing by the smallest value gives the counts (as the scFoundation paper does for studies that
published normalised values only). Where that leaves fractions, the smallest count may have been 2 ... 5.
"""

import difflib
import importlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
    ".h5ad, .zarr, 10x .h5, a 10x mtx folder, .csv, .tsv, .npz or .npy"
)
ZARR_FILES = ("zarr.json", ".zgroup")  # one of them tells a folder of zarr, of version 3 or 2
FIX = (
    'keep the counts before normalising: adata.layers["counts"] = adata.X.copy(); if they are elsewhere, '
    'name the slot: layer="..."'
)

SAMPLE_BLOCKS, SAMPLE_ROWS = 32, 64  # about 2,000 cells decide what a slot holds
MAX_LOG = 30.0  # log1p of a count of 1e13: larger values are no logarithms
LARGEST_SMALLEST_COUNT = 5
# Distance from an integer, in counts. A value that is no count is this close in one case of five, so that a
# cell of a dozen of them cannot pass; logarithms rounded to three decimals do, up to counts of about 200.
TOLERANCE = 0.1
ROUNDING = 1e-4  # of counts that went through other units; no cell of logarithms is as close to integers
SHARE_OF_VALUES, SHARE_OF_CELLS = 0.98, 0.99

State = Literal["counts", "log1p", "normalized", "given"]


class Finding(NamedTuple):
    """What a slot holds: a state, with the base of its logarithm, or none, and a line that says so."""

    state: State | None
    log_base: float | None
    text: str


@dataclass
class CountSource:
    """Raw counts of all cells of one data set, read when asked for.

    Attributes:
        n_cells: Number of cells.
        n_columns: Number of columns, genes or not.
        name_candidates: Names of the columns by where they were found, most likely first.
        cell_names: Names of the cells.
        slot: Where the values were found, such as `layers["counts"]`.
        state: What the slot holds: counts, their log1p after normalisation, or normalised values; `given` where values
            are taken as they are.
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
            CSR matrix, float32 `(stop - start, n_columns)`, with sorted indices, duplicates summed and no
            stored zeros.

        Raises:
            ValueError: If a value cannot be a count (`given`: no expression): the whole data set is checked, as it is
                read.
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
            block.data = np.rint(block.data, dtype=np.float32)  # of small integers it would make float16
            block.eliminate_zeros()
        elif self.state != "given" and block.nnz:
            block.data, _ = undo_normalisation(block, self._log_base)
        return block.astype(np.float32)


def find_counts(
    data: Any,
    *,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    gene_column: str | None = None,
    as_given: bool = False,
) -> CountSource:
    """Find raw counts in `data`, undoing log1p and library size where that can be done exactly.

    A path to .h5ad is opened without reading `X`; its layers are read, as anndata does. A matrix stored by
    columns is read whole, once.

    Args:
        data: AnnData in memory or backed, scipy sparse matrix, array, tensor, DataFrame (columns = genes) or
            path.
        layer: The only slot to look in: a layer, `"X"` or `"raw.X"`. Without it, layers named counts, then
            `raw.X`, then `X`.
        gene_names: Names of the columns, instead of those in `data`. An array needs them.
        gene_column: Column of `var` with the names of the genes.
        as_given: Take the values of `layer`, or of `X`, as they are, whatever they mean.

    Raises:
        FileNotFoundError: If a path does not exist.
        TypeError: If `data` is nothing of the above.
        ValueError: If no slot holds counts; the message says what each holds.
    """
    if not isinstance(data, str | os.PathLike):
        label = "DataFrame" if hasattr(data, "to_numpy") else "array"
        return find(data, label, layer, gene_names, gene_column, as_given)
    path = Path(data)
    opened = load(path)
    close = opened.file.close if getattr(opened, "isbacked", False) else None
    try:
        source = find(opened, f"file {path.name}", layer, gene_names, gene_column, as_given)
    except ValueError as error:
        if close is not None:
            close()
        raise ValueError(f"{path.name}: {error}") from error
    source._close = close
    return source


def load(path: Path) -> Any:
    """Open a file as what its ending says."""
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        similar = difflib.get_close_matches(path.name, siblings)
        hint = f"; similar names there: {', '.join(similar)}" if similar else ""
        raise FileNotFoundError(f"{path} does not exist{hint}")
    if path.is_dir():
        if any((path / name).exists() for name in ZARR_FILES):
            return importlib.import_module("anndata").read_zarr(path)
        if not any(path.glob("matrix.mtx*")):
            held = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
            raise ValueError(f"{path} holds {held} and no matrix.mtx: give a 10x mtx folder, or a file with cells")
        return importlib.import_module("scanpy").read_10x_mtx(path)
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        separator = "," if name.endswith(".csv") else "\t"
        return with_cell_names(importlib.import_module("pandas").read_csv(path, sep=separator))
    if path.suffix in (".h5ad", ".h5"):
        check_hdf5(path)
    match path.suffix:
        case ".h5ad":
            return importlib.import_module("anndata").read_h5ad(path, backed="r")
        case ".h5":
            return importlib.import_module("scanpy").read_10x_h5(path)
        case ".npz":
            return importlib.import_module("scipy.sparse").load_npz(path)
        case ".npy":
            return np.load(path, mmap_mode="r")
    raise ValueError(f"{path.name} ends in {path.suffix!r}; accepted are {ACCEPTED}")


def with_cell_names(table: Any) -> Any:
    """Return a table with its first column as names of the cells, if it is one: it has no title, or no two alike.

    A first column of counts stays: genes are not lost because nobody wrote names of cells.
    """
    if type(table.index).__name__ != "RangeIndex":  # R writes no title above the names, and pandas has taken them
        return table
    first = table.iloc[:, 0]
    is_untitled = str(table.columns[0]).startswith("Unnamed: ")
    return (
        table.set_index(table.columns[0]) if is_untitled or first.is_unique or first.dtype.kind not in "iuf" else table
    )


def check_hdf5(path: Path) -> None:
    """Refuse an HDF5 file in which the reader for its ending would fail, or have to choose.

    Raises:
        ValueError: If it is not of the format its ending says, or an old 10x file of several genomes.
    """
    h5py = importlib.import_module("h5py")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path.name} ends in {path.suffix!r} and cannot be read as HDF5: is it whole?")
    with h5py.File(path, "r") as file:
        names = list(file)
        # One group, `matrix`, since Cell Ranger 3; before, one for each genome.
        genomes = [name for name in names if f"{name}/barcodes" in file]
    held = ", ".join(names[:5]) or "nothing"
    if path.suffix == ".h5ad":
        if missing := [name for name in ("obs", "var") if name not in names]:
            raise ValueError(
                f"{path.name} holds {held} and no {' or '.join(missing)}, so it is no AnnData: write one with "
                f"adata.write_h5ad"
            )
    elif not genomes:
        raise ValueError(f"{path.name} holds {held} and no barcodes of 10x: if it is AnnData, name it .h5ad")
    elif len(genomes) > 1:
        human = max(genomes, key=lambda name: name.startswith(("GRCh", "hg")))
        raise ValueError(
            f"{path.name} holds {len(genomes)} genomes, {', '.join(genomes)}: take the human one, "
            f'scanpy.read_10x_h5("{path.name}", genome="{human}").write_h5ad("{human}.h5ad")'
        )


def find(
    data: Any,
    label: str,
    layer: str | None,
    gene_names: Sequence[str] | None,
    gene_column: str | None,
    as_given: bool = False,
) -> CountSource:
    """Find counts in an object in memory; see `find_counts`."""
    if hasattr(data, "var") and hasattr(data, "obs_names") and "X" in dir(data):
        return find_in_anndata(data, layer, gene_names, gene_column, as_given)
    cells: Iterable[Any] | None = None
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        gene_names = data.columns if gene_names is None else gene_names
        data, cells = frame_values(data, label), data.index
    elif isinstance(data, torch.Tensor):
        data = data.detach().cpu().numpy()
    if not (isinstance(data, np.ndarray) or hasattr(data, "tocsr")):
        raise TypeError(f"data is a {type(data).__module__}.{type(data).__name__}; accepted are {ACCEPTED}")
    for name, value in (("layer", layer), ("gene_column", gene_column)):
        if value is not None:
            raise ValueError(f"{name}={value!r} needs AnnData, data is a {type(data).__name__}")
    matrix = readable_by_row(data, label)
    if gene_names is None:
        raise ValueError(
            f"gene_names is needed: {label} of shape {matrix.shape} does not name its columns; pass them, or save "
            f"AnnData with var_names as .h5ad"
        )
    finding = examine(matrix, (), as_given)
    if finding.state is None:
        raise ValueError(f"no counts found. {label}: {finding.text}. To mend it, {FIX}")
    cells = range(matrix.shape[0]) if cells is None else cells
    return make_source(matrix, label, finding, {"gene_names": gene_names}, cells)


def frame_values(frame: Any, label: str) -> np.ndarray:
    """Return the values of a DataFrame of numbers, or say which columns are none."""
    others = [str(name) for name, dtype in frame.dtypes.items() if dtype.kind not in "buif"]
    if others:
        more = ", ..." if len(others) > 5 else ""
        raise ValueError(
            f"{label} has {len(others):,} of {frame.shape[1]:,} columns that hold no numbers: {', '.join(others[:5])}"
            f"{more}; leave them out, frame.drop(columns=[...]), or keep them in obs of an .h5ad"
        )
    return frame.to_numpy()


def find_in_anndata(
    adata: Any,
    layer: str | None,
    gene_names: Sequence[str] | None,
    gene_column: str | None,
    as_given: bool,
) -> CountSource:
    """Find counts in the slots of an AnnData; see `find_counts`."""
    present = [*adata.layers, *(["raw.X"] if adata.raw is not None else []), "X"]
    if layer is not None and layer not in present:
        raise ValueError(f"layer={layer!r} is not there; slots are {', '.join(present)}")
    usual = ("X",) if as_given else (*COUNT_LAYERS, "raw.X", "X")
    slots = [layer] if layer else [slot for slot in usual if slot in present]
    base = adata.uns.get("log1p", {}).get("base")

    texts, fallback = [], None
    for slot in slots:
        is_layer = slot in adata.layers
        owner = adata.raw if slot == "raw.X" and not is_layer else adata
        values = adata.layers[slot] if is_layer else x_of(owner)
        label = f'layers["{slot}"]' if is_layer else slot
        if values is None:
            texts.append(f"{label}: empty")
            continue
        matrix = readable_by_row(values, label)
        finding = examine(matrix, () if base is None else (float(base),), as_given)
        texts.append(f"{label}: {finding.text}")
        if finding.state in ("counts", "given") or (finding.state and fallback is None):
            fallback = matrix, label, finding, owner
        if finding.state in ("counts", "given"):
            break
    if fallback is None:
        raise ValueError(f"no counts found in {len(texts)} slots. {'. '.join(texts)}. To mend it, {FIX}")
    matrix, label, finding, owner = fallback
    candidates = name_candidates(owner, gene_names, gene_column, "raw." if owner is adata.raw else "")
    return make_source(matrix, label, finding, candidates, adata.obs_names)


def x_of(owner: Any) -> Any:
    """Return X of an AnnData or of its `raw`, None if there is none: one that is in a file raises then."""
    try:
        return owner.X
    except KeyError:
        return None


def name_candidates(
    owner: Any, gene_names: Sequence[str] | None, gene_column: str | None, prefix: str
) -> dict[str, Iterable[Any]]:
    """Return the names of the columns of an AnnData, or of its `raw`, by where they are."""
    if gene_names is not None:
        return {"gene_names": gene_names}
    columns = list(owner.var.columns)
    if gene_column is not None and gene_column not in columns:
        raise ValueError(f"gene_column={gene_column!r} is not in {prefix}var; its columns are {columns}")
    chosen = [gene_column] if gene_column else [column for column in GENE_COLUMNS if column in columns]
    candidates = {f'{prefix}var["{column}"]': owner.var[column] for column in chosen}
    return candidates if gene_column else {f"{prefix}var_names": owner.var_names} | candidates


def make_source(
    matrix: Any, label: str, finding: Finding, candidates: dict[str, Iterable[Any]], cells: Iterable[Any]
) -> CountSource:
    """Put a source together, checking that each list of names has one for every column."""
    n_cells, n_columns = matrix.shape
    names = {where: [str(name) for name in found] for where, found in candidates.items()}
    for where, found in names.items():
        if len(found) != n_columns:
            raise ValueError(f"{where} has {len(found):,} names, {label} has {n_columns:,} columns")
    assert finding.state is not None
    return CountSource(
        n_cells=n_cells,
        n_columns=n_columns,
        name_candidates=names,
        cell_names=[str(cell) for cell in cells],
        slot=label,
        state=finding.state,
        description=finding.text.format(slot=label),
        _matrix=matrix,
        _log_base=finding.log_base,
    )


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
    if hasattr(matrix, "to_memory") and matrix.format == "csc":
        matrix = matrix.to_memory()
    return matrix.tocsr() if hasattr(matrix, "tocsr") else matrix


def read_rows(matrix: Any, rows: slice | np.ndarray) -> Any:
    """Return rows as a canonical CSR matrix of their own: `matrix` is the user's and stays as it is."""
    block = matrix[rows]
    if block.dtype.kind == "b" or block.dtype == np.float16:  # scipy computes in neither
        block = block.astype(np.float32)
    block = importlib.import_module("scipy.sparse").csr_matrix(block, copy=True)
    block.sum_duplicates()
    block.eliminate_zeros()
    return block


def sample_rows(matrix: Any) -> Any:
    """Return all rows of a small matrix, and blocks spread evenly over a large one."""
    n_rows = matrix.shape[0]
    if n_rows <= SAMPLE_BLOCKS * SAMPLE_ROWS:
        return read_rows(matrix, slice(0, n_rows))
    starts = np.linspace(0, n_rows - SAMPLE_ROWS, SAMPLE_BLOCKS).astype(int)
    blocks = [read_rows(matrix, slice(start, start + SAMPLE_ROWS)) for start in starts]
    return importlib.import_module("scipy.sparse").vstack(blocks, format="csr")


def not_expression(values: np.ndarray) -> str | None:
    """Say why values can be neither counts nor normalised counts, or return None."""
    if n_not_finite := np.count_nonzero(~np.isfinite(values)):
        return f"{n_not_finite:,} values are NaN or infinite"
    if n_negative := np.count_nonzero(values < 0):
        return f"scaled: {n_negative:,} values are negative (smallest {values.min():.3g})"
    return None


def is_integer(values: np.ndarray) -> bool:
    """Return whether all values are whole numbers, of whatever dtype and but for rounding."""
    return values.dtype.kind in "bui" or bool(np.all(np.abs(values - np.rint(values)) <= ROUNDING))


def examine(matrix: Any, log_bases: tuple[float, ...], as_given: bool = False) -> Finding:
    """Return what a matrix holds, from a sample of its rows; `log_bases` are tried before the usual ones."""
    sample = sample_rows(matrix)
    values = sample.data
    if problem := not_expression(values):
        return Finding(None, None, problem)
    if as_given:
        return Finding("given", None, "values of {slot} as given")
    if is_integer(values):
        return Finding("counts", None, "counts from {slot}")
    if np.mean(values == np.rint(values)) > 0.5:
        return Finding(None, None, "fractions among whole numbers: round corrected counts (alevin, SoupX) first")
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
            return Finding(state, base, f"counts recovered from {how} {{slot}} (median total {total:,.0f})")
    return Finding(
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
        Counts, one for each stored value, and for each cell with values whether nearly all lie on integers. A
        cell where they do not gets the nearest integers.
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
