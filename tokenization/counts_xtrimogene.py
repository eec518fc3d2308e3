"""Find the raw counts in whatever the user has, and read them in chunks of cells.

    AnnData | sparse | array | DataFrame | path
        |  columns that count no RNA of genes are left out (columns_xtrimogene)
        |  slots in order: layers["counts"], raw.X, X; the first with counts, else the first to be undone, and before
        |  both one whose counts are of many more genes
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from .columns_xtrimogene import Columns, gene_columns, types_of
from .sparse_xtrimogene import (
    check_indices,
    check_matrix,
    check_starts,
    check_stored,
    check_stored_indices,
    first_wrong,
    name_of,
)

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
    ".h5ad, .zarr, .h5mu (its RNA), 10x .h5, a 10x mtx folder, .csv, .tsv, .npz or .npy"
)
RNA_MODALITIES = ("rna", "gex", "gene expression")  # what MuData files call it, whatever the case
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
MANY_MORE_COLUMNS, MANY_MORE_EXPRESSED = 1.25, 1.1  # see `holds_many_more`

State = Literal["counts", "log1p", "normalized", "given"]


class Finding(NamedTuple):
    """What a slot holds: a state, with the base of its logarithm, or none, and a line that says so.

    Attributes:
        state: See `CountSource`; None if it holds no counts.
        log_base: Base of the logarithm of 1 + x.
        text: A line for people.
        column_sums: Sum of each column over the cells of the sample, `(columns,)`; of counts, where there are any.
        num_measured: Columns with a value in the sample.
        num_expressed: Values of a cell of the sample, on average.
    """

    state: State | None
    log_base: float | None
    text: str
    column_sums: np.ndarray
    num_measured: int
    num_expressed: float


class Slot(NamedTuple):
    """A slot of an AnnData that was looked at: what it is called, whose columns it has, and what it holds."""

    label: str
    owner: Any
    matrix: Any
    names: dict[str, list[str]]
    finding: Finding


@dataclass
class CountSource:
    """Raw counts of all cells of one data set, read when asked for.

    Attributes:
        n_cells: Number of cells.
        n_columns: Number of columns that are read, on the panel or not.
        name_candidates: Names of these columns by where they were found, most likely first.
        cell_names: Names of the cells.
        slot: Where the values were found, such as `layers["counts"]`.
        state: What the slot holds: counts, their log1p after normalisation, or normalised values; `given` where values
            are taken as they are.
        description: One line for people, which also tells what was left out.
        column_sums: Counts of each column in a sample of the cells, `(n_columns,)`.
    """

    n_cells: int
    n_columns: int
    name_candidates: dict[str, list[str]]
    cell_names: list[str]
    slot: str
    state: State
    description: str
    column_sums: np.ndarray = field(repr=False)
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
    is_gene: Callable[[str], bool] | None = None,
) -> CountSource:
    """Find raw counts in `data`, undoing log1p and library size where that can be done exactly.

    A path to .h5ad is opened without reading `X`; its layers are read, as anndata does. A matrix stored by
    columns is read whole, once. Columns that are no RNA of genes are left out, whatever slot and names are asked for;
    see `columns_xtrimogene`.

    Args:
        data: AnnData in memory or backed, scipy sparse matrix, array, tensor, DataFrame (columns = genes) or
            path.
        layer: The slot to take: a layer, `"X"` or `"raw.X"`. Without it, layers named counts, then `raw.X`, then `X`;
            but one whose counts are of many more genes (`holds_many_more`) before one of chosen genes.
        gene_names: Names of the columns, instead of those in `data`. An array needs them.
        gene_column: Column of `var` with the names of the genes.
        as_given: Take the values of `layer`, or of `X`, as they are, whatever they mean.
        is_gene: Tells names of genes, such as `GeneMatcher.knows`; they are never left out for their name.

    Raises:
        FileNotFoundError: If a path does not exist.
        TypeError: If `data` is nothing of the above.
        ValueError: If no slot holds counts; the message says what each holds. If no column is a gene, or a sparse
            matrix is damaged.
    """
    if not isinstance(data, str | os.PathLike):
        label = "DataFrame" if hasattr(data, "to_numpy") else "array"
        return find(data, label, layer, gene_names, gene_column, as_given, is_gene)
    path = Path(data)
    opened = load(path)
    close = opened.file.close if getattr(opened, "isbacked", False) else None
    try:
        source = find(opened, f"file {path.name}", layer, gene_names, gene_column, as_given, is_gene)
    except ValueError as error:
        if close is not None:
            close()
        raise ValueError(str(error) if str(error).startswith(path.name) else f"{path.name}: {error}") from error
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
            return checked_slots(importlib.import_module("anndata").read_zarr(path), path.name)
        if not any(path.glob("matrix.mtx*")):
            held = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
            raise ValueError(f"{path} holds {held} and no matrix.mtx: give a 10x mtx folder, or a file with cells")
        return importlib.import_module("scanpy").read_10x_mtx(path, gex_only=False)
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        separator = "," if name.endswith(".csv") else "\t"
        return with_cell_names(importlib.import_module("pandas").read_csv(path, sep=separator))
    if path.suffix in (".h5ad", ".h5", ".h5mu"):
        check_hdf5(path)
    match path.suffix:
        case ".h5mu":
            with importlib.import_module("h5py").File(path, "r") as file:
                rna = importlib.import_module("anndata").io.read_elem(file[rna_of(file, path.name)])
            return checked_slots(rna, path.name)
        case ".h5ad":
            return checked_slots(importlib.import_module("anndata").read_h5ad(path, backed="r"), path.name)
        case ".h5":
            check_10x_arrays(path)  # scanpy's own selection of columns would follow a damaged index
            return importlib.import_module("scanpy").read_10x_h5(path, gex_only=False)
        case ".npz":
            check_npz_arrays(path)
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
    if path.suffix == ".h5mu":
        if "mod" not in names:
            raise ValueError(
                f"{path.name} holds {held} and no mod, so it is no MuData: if it is AnnData, name it .h5ad"
            )
    elif path.suffix == ".h5ad":
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


def rna_of(file: Any, name: str) -> str:
    """Return where in an opened MuData file its RNA is, such as `mod/rna`.

    Raises:
        ValueError: If no modality, or several, are called so.
    """
    found = [modality for modality in file["mod"] if modality.lower() in RNA_MODALITIES]
    if len(found) != 1:
        raise ValueError(
            f"{name} holds the modalities {', '.join(file['mod']) or 'none'}, and {len(found)} of them are called "
            f'{", ".join(RNA_MODALITIES)}: write the one with genes, mudata.read_h5mu("{name}")["..."].write_h5ad(...)'
        )
    return f"mod/{found[0]}"


def checked_slots(adata: Any, name: str) -> Any:
    """Return an AnnData whose sparse matrices are whole; of those in a file the indices are checked as they are read.

    Raises:
        ValueError: If one is damaged; the message begins with `name`, that of the file.
    """
    for layer in layer_names(adata):
        check_matrix(adata.layers[layer], f"{name}: layers/{layer}")
    for owner, slot in ((adata, "X"), (adata.raw, "raw/X")):
        matrix: Any = None if owner is None else x_of(owner)
        if hasattr(matrix, "group"):
            by_columns = matrix.format == "csc"
            check_stored(matrix.group, matrix.shape[by_columns], f"{name}: {slot}")
            if by_columns:  # is read whole, and to take some of its cells all indices are followed
                check_stored_indices(matrix.group["indices"], matrix.shape[0], f"{name}: {slot}")
        else:
            check_matrix(matrix, f"{name}: {slot}")
    return adata


def check_10x_arrays(path: Path) -> None:
    """Refuse a 10x .h5 whose sparse matrix is damaged.

    Raises:
        ValueError: The message names the file, the array and the place.
    """
    with importlib.import_module("h5py").File(path, "r") as file:
        group = next(file[name] for name in file if f"{name}/barcodes" in file)
        ids = "features/id" if "features" in group else "genes"
        check_stored(group, len(group["barcodes"]), name_of(group))
        check_stored_indices(group["indices"], len(group[ids]), name_of(group))


def check_npz_arrays(path: Path) -> None:
    """Refuse an .npz whose compressed sparse matrix is damaged; other layouts pass.

    Raises:
        ValueError: The message names the file, the array and the place.
    """
    with np.load(path) as arrays:
        layout = arrays["format"].item() if "format" in arrays else ""
        layout = layout.decode() if isinstance(layout, bytes) else layout
        if layout in ("csr", "csc"):
            num_rows, num_columns = arrays["shape"] if layout == "csr" else arrays["shape"][::-1]
            indices, starts = arrays["indices"], arrays["indptr"]
            check_starts(starts, int(num_rows), len(indices), len(arrays["data"]), f"{path.name}: matrix")
            check_indices(indices[: starts[-1]], int(num_columns), f"{path.name}: matrix")


def find(
    data: Any,
    label: str,
    layer: str | None,
    gene_names: Sequence[str] | None,
    gene_column: str | None,
    as_given: bool = False,
    is_gene: Callable[[str], bool] | None = None,
) -> CountSource:
    """Find counts in an object in memory; see `find_counts`."""
    if hasattr(data, "var") and hasattr(data, "obs_names") and "X" in dir(data):
        return find_in_anndata(data, layer, gene_names, gene_column, as_given, is_gene)
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
    names = as_names({"gene_names": gene_names}, matrix, label)
    is_read, note = gene_columns(names, (), is_gene)
    matrix = chosen(matrix, is_read)
    finding = examine(matrix, (), as_given)
    if finding.state is None:
        raise ValueError(f"no counts found. {label}: {finding.text}. To mend it, {FIX}")
    cells = range(matrix.shape[0]) if cells is None else cells
    return make_source(Slot(label, None, matrix, names, finding), is_read, cells, [note])


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
    is_gene: Callable[[str], bool] | None = None,
) -> CountSource:
    """Find counts in the slots of an AnnData; see `find_counts`."""
    present = [*layer_names(adata), *(["raw.X"] if adata.raw is not None else []), "X"]
    if layer is not None and layer not in present:
        raise ValueError(f"layer={layer!r} is not there; slots are {', '.join(present)}")
    usual = [slot for slot in (*COUNT_LAYERS, "raw.X", "X") if slot in present]
    wanted = [layer] if layer else ["X"] if as_given else usual
    base = adata.uns.get("log1p", {}).get("base")
    bases = () if base is None else (float(base),)

    def look(name: str, needs_names: bool = True) -> Slot | str:
        """Return a slot, or a line that says why there is none; without names if it has none of those asked for."""
        is_layer = name in adata.layers
        owner = adata.raw if name == "raw.X" and not is_layer else adata
        values = adata.layers[name] if is_layer else x_of(owner)
        label = f'layers["{name}"]' if is_layer else name
        if values is None:
            return f"{label}: empty"
        matrix = readable_by_row(values, label)
        names: dict[str, list[str]] = {}
        with nullcontext() if needs_names else suppress(ValueError):
            prefix = "raw." if owner is adata.raw else ""
            names = as_names(name_candidates(owner, gene_names, gene_column, prefix), matrix, label)
        if id(owner) not in columns:
            columns[id(owner)] = columns_of(adata, owner, names, is_gene)
        matrix = chosen(matrix, columns[id(owner)].is_read)
        return Slot(label, owner, matrix, names, examine(matrix, bases, as_given))

    columns: dict[int, Columns] = {}  # adata.raw is the same object each time
    slots: dict[str, Slot] = {}
    texts, best = [], None
    for name in wanted:
        slot = look(name)
        texts.append(slot if isinstance(slot, str) else f"{slot.label}: {slot.finding.text}")
        if isinstance(slot, str):
            continue
        slots[name] = slot
        has_counts = slot.finding.state in ("counts", "given")
        if has_counts or (slot.finding.state and best is None):
            best = slot
        if has_counts:
            break
    if best is None:
        raise ValueError(f"no counts found in {len(texts)} slots. {'. '.join(texts)}. To mend it, {FIX}")
    notes = []
    for name in [] if as_given else usual:
        values = None if name in slots else slot_values(adata, name)
        if values is not None and values.shape[1] >= MANY_MORE_COLUMNS * best.finding.num_measured:
            with suppress(ValueError):  # what is no matrix of expression is no better choice
                found = look(name, needs_names=False)
                slots |= {} if isinstance(found, str) else {name: found}
        if name not in slots or not holds_many_more(slots[name].finding, best.finding):
            continue
        other = slots[name]
        few, many = f"{best.finding.num_measured:,}", f"{other.finding.num_measured:,}"
        if other.finding.state is None:
            notes.append(
                f"CAUTION: {best.label} holds {few} genes only and {other.label} {many}, of which counts cannot be had "
                f"({other.finding.text}): totals and values are those of chosen genes"
            )
        elif layer is not None or not other.names:
            asked = f"layer={layer!r} is" if layer is not None else f"names that {other.label} has not are"
            notes.append(
                f"CAUTION: {asked} asked for, and {best.label} holds {few} genes only, {other.label} {many}: totals "
                f"and values are those of chosen genes"
            )
        else:
            notes = [f"taken before {best.label}, which holds {few} genes only, and this {many}"]
            best = other
    is_read, note = columns[id(best.owner)]
    return make_source(best, is_read, adata.obs_names, [*notes, note])


def holds_many_more(one: Finding, other: Finding) -> bool:
    """Return whether a slot holds many more genes than another.

    Many more are a quarter more columns with a value, and a tenth more values in a cell, in the same sample of cells.
    Both are needed: genes that hardly any cell has are often filtered out, up to a third of the columns with less than
    1 % of the counts, and that is no choice of genes; and corrected counts have fewer values in the same columns. A
    choice of 1,000 to 5,000 variable genes leaves a quarter of the columns or less, and half of the values or less.
    """
    return (
        one.num_measured >= MANY_MORE_COLUMNS * other.num_measured
        and one.num_expressed >= MANY_MORE_EXPRESSED * other.num_expressed
    )


def layer_names(adata: Any) -> list[str]:
    """Return the names of the layers. Since anndata 0.13, `adata.layers` also lists X, under the name None."""
    return [name for name in adata.layers if name is not None]


def x_of(owner: Any) -> Any:
    """Return X of an AnnData or of its `raw`, None if there is none: one that is in a file raises then."""
    try:
        return owner.X
    except KeyError:
        return None


def slot_values(adata: Any, name: str) -> Any:
    """Return the values of a slot that is there, None if it is empty."""
    if name in adata.layers:
        return adata.layers[name]
    return x_of(adata.raw if name == "raw.X" else adata)


def columns_of(
    adata: Any, owner: Any, names: Mapping[str, list[str]], is_gene: Callable[[str], bool] | None = None
) -> Columns:
    """Return which columns of an AnnData, or of its `raw`, are RNA of genes.

    All their names are looked at, not only those asked for. What the file says of the columns may stand in one `var`
    alone.
    """
    is_raw = owner is adata.raw
    prefix, other = ("raw.", adata) if is_raw else ("", adata.raw)
    every = name_candidates(owner, None, None, prefix)
    known = {where: [str(name) for name in found] for where, found in every.items()} | dict(names)
    types = types_of(owner.var)
    if not types and other is not None:
        types = types_of(other.var, owner.var_names)
    return gene_columns(known, types, is_gene, f"{prefix}var")


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


def as_names(candidates: Mapping[str, Iterable[Any]], matrix: Any, label: str) -> dict[str, list[str]]:
    """Return lists of names as text, checking that each has one for every column."""
    names = {where: [str(name) for name in found] for where, found in candidates.items()}
    for where, found in names.items():
        if len(found) != matrix.shape[1]:
            raise ValueError(f"{where} has {len(found):,} names, {label} has {matrix.shape[1]:,} columns")
    return names


def make_source(slot: Slot, is_read: np.ndarray, cells: Iterable[Any], notes: Sequence[str]) -> CountSource:
    """Put a source together, with what is said of it in its description."""
    n_cells, n_columns = slot.matrix.shape
    finding = slot.finding
    assert finding.state is not None
    return CountSource(
        n_cells=n_cells,
        n_columns=n_columns,
        name_candidates={where: list(compress(found, is_read)) for where, found in slot.names.items()},
        cell_names=[str(cell) for cell in cells],
        slot=slot.label,
        state=finding.state,
        description="; ".join([finding.text.format(slot=slot.label), *filter(None, notes)]),
        column_sums=finding.column_sums,
        _matrix=slot.matrix,
        _log_base=finding.log_base,
    )


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
