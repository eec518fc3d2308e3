# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Find the raw counts in an AnnData, matrix, table or file, and read them in chunks of cells.

    AnnData | sparse | array | DataFrame | path
        |  columns that count no RNA of genes are left out (columns_xtrimogene)
        |  slots in order: layers["counts"], raw.X, X; taken is the first with counts, else the first whose
        |  normalisation can be undone; but a later slot with counts of many more genes is taken before them
        v
    CountSource.rows(start, stop)       CSR of counts, cells x columns; the order of cells is never changed

Normalisation is undone if that gives integers; otherwise the values are refused. A cell's counts c became
v = log(1 + s c), with one scale s for each cell. So (exp(v) - 1) / s are integers, and the smallest of them is nearly
always 1: dividing by the smallest value gives the counts (as the scFoundation paper does for studies that
published normalised values only). If fractions are left, smallest counts of 2 to 5 are tried.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .columns_xtrimogene import Columns, gene_columns, types_of
from .files_xtrimogene import ACCEPTED, about, frame_values, layer_names, load, log_base, matrix_of, readable
from .normalization_xtrimogene import Finding, State, examine, is_integer, not_expression, undo_normalisation
from .rows_xtrimogene import chosen, read_rows, readable_by_row
from .sparse_xtrimogene import CellsError

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
FIX = (
    'keep the counts before normalising: adata.layers["counts"] = adata.X.copy(); if they are elsewhere, '
    'name the slot: layer="..."'
)
MANY_MORE_COLUMNS, MANY_MORE_EXPRESSED = 1.25, 1.1  # limits of `holds_many_more`


class Slot(NamedTuple):
    """A slot of an AnnData: its name, the owner of its columns (the AnnData or its `raw`), and what it holds."""

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
        state: What the slot holds: `counts`, their `log1p` after normalisation, or `normalized` values; `given` if
            values are taken as they are.
        description: One line for people, which also names the columns that were left out.
        column_sums: Counts of each column in a sample of the cells, `(n_columns,)`.

    Example:
        >>> source = find_counts(np.array([[3, 0], [1, 2]]), gene_names=["CD3D", "NKG7"])
        >>> source.n_cells, source.n_columns, source.state
        (2, 2, 'counts')
        >>> source.rows(0, 1).toarray()
        array([[3., 0.]], dtype=float32)
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
            ValueError: If a value cannot be a count or, with the state `given`, cannot be expression. All cells are
                checked as they are read.
        """
        where = f"cells {start:,} to {stop:,}"
        with readable(f"{self.slot}, {where}"):
            block = read_rows(self._matrix, slice(start, stop))
        return self._to_counts(block, where)

    def rows_at(self, indices: Sequence[int] | np.ndarray) -> Any:
        """Return the counts of the cells at `indices`, in the order given, as `rows` does."""
        # A file can only be read in ascending order.
        ascending, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        where = f"{len(back):,} chosen cells"
        with readable(f"{self.slot}, {where}"):
            block = read_rows(self._matrix, ascending)[back]
        return self._to_counts(block, where)

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
            raise CellsError(f"{self.slot}, {where}: {problem}; {FIX}")
        if self.state == "counts":
            if not is_integer(block.data):
                raise CellsError(f"{self.slot}, {where}: fractions among what had been counts in a sample; {FIX}")
            block.data = np.rint(block.data, dtype=np.float32)  # without dtype, numpy makes float16 of small integers
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
    columns is read whole, once. Columns that count no RNA of genes, such as antibodies or spike-ins, are always left
    out.

    Args:
        data: AnnData in memory or backed, scipy sparse matrix, array, tensor, DataFrame (columns = genes) or
            path.
        layer: The slot to take: a layer, `"X"` or `"raw.X"`. Without it, layers named counts are tried first, then
            `raw.X`, then `X`; but a slot with counts of many more genes (`holds_many_more`) is taken before one with
            chosen genes.
        gene_names: Names of the columns, instead of those in `data`. An array needs them.
        gene_column: Column of `var` with the names of the genes.
        as_given: Take the values of `layer`, or of `X`, as they are, whatever they mean.
        is_gene: Whether a name is a gene's, such as `GeneMatcher.knows`. Columns with such a name are not left out for
            their name.

    Raises:
        FileNotFoundError: If a path does not exist.
        TypeError: If `data` is of another type.
        ValueError: If no slot holds counts; the message says what each holds. If no column is a gene, or a sparse
            matrix is damaged.

    Example:
        >>> source = find_counts(adata)
        >>> source.slot, source.state, source.n_cells
        ('raw.X', 'log1p', 5)
    """
    if not isinstance(data, str | os.PathLike):
        label = "DataFrame" if hasattr(data, "to_numpy") else "array"
        return find(data, label, layer, gene_names, gene_column, as_given, is_gene)
    path = Path(data)
    opened = load(path)
    close = opened.file.close if getattr(opened, "isbacked", False) else None
    try:
        with about(path.name):
            source = find(opened, f"file {path.name}", layer, gene_names, gene_column, as_given, is_gene)
    except ValueError:
        if close is not None:
            close()
        raise
    source._close = close
    return source


def find(
    data: Any,
    label: str,
    layer: str | None,
    gene_names: Sequence[str] | None,
    gene_column: str | None,
    as_given: bool = False,
    is_gene: Callable[[str], bool] | None = None,
) -> CountSource:
    """Find counts in an object in memory; arguments as in `find_counts`, and `label` names the object."""
    if hasattr(data, "var") and hasattr(data, "obs_names") and "X" in dir(data):
        return find_in_anndata(data, layer, gene_names, gene_column, as_given, is_gene)
    cells: Iterable[Any] | None = None
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        gene_names = data.columns if gene_names is None else gene_names
        data, cells = frame_values(data, label), data.index
    elif hasattr(data, "detach"):  # a tensor
        data = data.detach().cpu().numpy()
    if not (isinstance(data, np.ndarray) or hasattr(data, "tocsr")):
        raise TypeError(f"data is a {type(data).__module__}.{type(data).__name__}; accepted are {ACCEPTED}")
    for name, value in (("layer", layer), ("gene_column", gene_column)):
        if value is not None:
            raise CellsError(f"{name}={value!r} needs AnnData, data is a {type(data).__name__}")
    matrix = readable_by_row(data, label)
    if gene_names is None:
        raise CellsError(
            f"gene_names is needed: {label} of shape {matrix.shape} does not name its columns; pass them, or save "
            f"AnnData with var_names as .h5ad"
        )
    names = as_names({"gene_names": gene_names}, matrix, label)
    is_read, note = gene_columns(names, (), is_gene)
    matrix = chosen(matrix, is_read)
    finding = examine(matrix, (), as_given)
    if finding.state is None:
        raise CellsError(f"no counts found. {label}: {finding.text}. To mend it, {FIX}")
    cells = range(matrix.shape[0]) if cells is None else cells
    return make_source(Slot(label, None, matrix, names, finding), is_read, cells, [note])


def find_in_anndata(
    adata: Any,
    layer: str | None,
    gene_names: Sequence[str] | None,
    gene_column: str | None,
    as_given: bool,
    is_gene: Callable[[str], bool] | None = None,
) -> CountSource:
    """Find counts in the slots of an AnnData; arguments as in `find_counts`."""
    present = [*layer_names(adata), *(["raw.X"] if adata.raw is not None else []), "X"]
    if layer is not None and layer not in present:
        raise CellsError(f"layer={layer!r} is not there; slots are {', '.join(present)}")
    usual = [slot for slot in (*COUNT_LAYERS, "raw.X", "X") if slot in present]
    wanted = [layer] if layer else ["X"] if as_given else usual
    base = log_base(adata)
    bases = () if base is None else (base,)

    def look(name: str, needs_names: bool = True) -> Slot | str:
        """Return a slot, or why it cannot be read. Without `needs_names` it may lack the names that are asked for."""
        is_layer = name in adata.layers
        owner = adata.raw if name == "raw.X" and not is_layer else adata
        values = adata.layers[name] if is_layer else matrix_of(owner)
        label = f'layers["{name}"]' if is_layer else name
        if values is None:
            return f"{label}: empty"
        with readable(label):
            matrix = readable_by_row(values, label)
        names: dict[str, list[str]] = {}
        with nullcontext() if needs_names else suppress(ValueError):
            prefix = "raw." if owner is adata.raw else ""
            names = as_names(name_candidates(owner, gene_names, gene_column, prefix), matrix, label)
        if id(owner) not in columns:
            columns[id(owner)] = columns_of(adata, owner, names, is_gene)
        matrix = chosen(matrix, columns[id(owner)].is_read)
        with readable(label):
            finding = examine(matrix, bases, as_given)
        return Slot(label, owner, matrix, names, finding)

    columns: dict[int, Columns] = {}  # adata.raw is the same object each time
    slots: dict[str, Slot] = {}
    passed: dict[str, str] = {}  # slot before the one with counts -> a note that it was passed over
    texts, best = [], None
    for name in wanted:
        slot = look(name)
        texts.append(slot if isinstance(slot, str) else f"{slot.label}: {slot.finding.text}")
        if isinstance(slot, str):
            continue
        slots[name] = slot
        if slot.finding.state is None and best is None:
            passed[name] = f"CAUTION: {slot.label} is passed over: {slot.finding.text}"
        has_counts = slot.finding.state in ("counts", "given")
        if has_counts or (slot.finding.state and best is None):
            best = slot
        if has_counts:
            break
    if best is None:
        raise CellsError(f"no counts found in {len(texts)} slots. {'. '.join(texts)}. To mend it, {FIX}")
    notes: list[str] = []
    for name in [] if as_given else usual:
        values = None if name in slots else slot_values(adata, name)
        if values is not None and values.shape[1] >= MANY_MORE_COLUMNS * best.finding.num_measured:
            with suppress(ValueError):  # a slot that is no matrix of expression is no better
                found = look(name, needs_names=False)
                slots |= {} if isinstance(found, str) else {name: found}
        if name in slots and holds_many_more(slots[name].finding, best.finding):
            if slots[name].finding.state is None:
                passed.pop(name, None)  # the note on its many genes says why
            best, notes = fuller(best, slots[name], layer, notes)
    is_read, note = columns[id(best.owner)]
    return make_source(best, is_read, adata.obs_names, [*passed.values(), *notes, note])


def fuller(best: Slot, other: Slot, layer: str | None, notes: list[str]) -> tuple[Slot, list[str]]:
    """Return which of two slots is read, and what is said of it; the second holds many more genes.

    Args:
        best: The slot that would be read.
        other: The slot with more genes. It is read if it can be: it has counts and the names that are asked for.
        layer: The slot that is asked for, if one is.
        notes: What is said of `best`.
    """
    few, many = f"{best.finding.num_measured:,}", f"{other.finding.num_measured:,}"
    if other.finding.state is None:
        note = (
            f"CAUTION: {best.label} holds {few} genes only and {other.label} {many}, of which counts cannot be had "
            f"({other.finding.text}): totals and values are those of chosen genes"
        )
        return best, [*notes, note]
    if layer is not None or not other.names:
        asked = f"layer={layer!r} is" if layer is not None else f"names that {other.label} has not are"
        note = (
            f"CAUTION: {asked} asked for, and {best.label} holds {few} genes only, {other.label} {many}: totals "
            f"and values are those of chosen genes"
        )
        return best, [*notes, note]
    return other, [f"taken before {best.label}, which holds {few} genes only, and this {many}"]


def holds_many_more(one: Finding, other: Finding) -> bool:
    """Return whether a slot holds many more genes than another.

    That is 25 % more columns with a value, and 10 % more values in a cell, in the same sample of cells. Both are
    needed. Filtering out genes that hardly any cell expresses can drop a third of the columns, but less than 1 % of the
    counts. Correcting counts leaves fewer values in the same columns. Choosing 1,000 to 5,000 variable genes leaves at
    most a quarter of the columns and half of the values.
    """
    return (
        one.num_measured >= MANY_MORE_COLUMNS * other.num_measured
        and one.num_expressed >= MANY_MORE_EXPRESSED * other.num_expressed
    )


def slot_values(adata: Any, name: str) -> Any:
    """Return the values of a slot; None if it is empty."""
    if name in adata.layers:
        return adata.layers[name]
    return matrix_of(adata.raw if name == "raw.X" else adata)


def columns_of(
    adata: Any, owner: Any, names: Mapping[str, list[str]], is_gene: Callable[[str], bool] | None = None
) -> Columns:
    """Return which columns of an AnnData, or of its `raw`, are RNA of genes.

    All names of the columns are looked at, not only those asked for. If the `var` of `owner` has no types, the types
    are taken from the other `var`.
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
    """Return the names of the columns of an AnnData, or of its `raw`, by where they were found."""
    if gene_names is not None:
        return {"gene_names": gene_names}
    columns = list(owner.var.columns)
    if gene_column is not None and gene_column not in columns:
        raise CellsError(f"gene_column={gene_column!r} is not in {prefix}var; its columns are {columns}")
    chosen = [gene_column] if gene_column else [column for column in GENE_COLUMNS if column in columns]
    candidates = {f'{prefix}var["{column}"]': owner.var[column] for column in chosen}
    return candidates if gene_column else {f"{prefix}var_names": owner.var_names} | candidates


def as_names(candidates: Mapping[str, Iterable[Any]], matrix: Any, label: str) -> dict[str, list[str]]:
    """Return lists of names as text; raise ValueError if one has not a name for every column."""
    names = {where: [str(name) for name in found] for where, found in candidates.items()}
    for where, found in names.items():
        if len(found) != matrix.shape[1]:
            raise CellsError(f"{where} has {len(found):,} names, {label} has {matrix.shape[1]:,} columns")
    return names


def make_source(slot: Slot, is_read: np.ndarray, cells: Iterable[Any], notes: Sequence[str]) -> CountSource:
    """Return the source of a slot, with `notes` in its description."""
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
