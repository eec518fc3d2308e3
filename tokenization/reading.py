"""Read a file of cells as AnnData, in memory or on disk: all cells, or those with given values in `obs`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ..options import Option, Options, group
from .files_xtrimogene import check_there, checked_slots, ending_of, frame_values, load, matrix_of, readable
from .panel_xtrimogene import InputType

if TYPE_CHECKING:
    from anndata import AnnData

    from .panel_xtrimogene import PanelCounts

CHUNK = 4096  # cells read at a time


@group
class CellInput(Options):
    """Where the counts of cells are, and the names of the genes.

    >>> CellInput(layer="counts").layer
    'counts'
    """

    layer: Annotated[str | None, Option("Layer with the counts, if they are not found.")] = None
    gene_column: Annotated[str | None, Option("Column of var with the gene names.")] = None


@group
class TrainingInput(CellInput):
    """Where the counts of cells to learn from are.

    >>> TrainingInput(drop_empty=True).drop_empty
    True
    """

    drop_empty: Annotated[bool, Option("Leave out cells without counts instead of stopping.")] = False


@group
class ModelInput(CellInput):
    """Where the values of cells for a model are, and what they mean.

    >>> ModelInput(input_type="log").input_type
    'log'
    """

    gene_names: Annotated[
        Sequence[str] | None,
        Option("Names of the columns, if the cells do not hold them.", is_python_only=True),
    ] = None
    input_type: Annotated[
        InputType,
        Option("What the numbers mean: counts (or log1p of them, which is undone), or see docs/inputs.md."),
    ] = "counts"
    total_key: Annotated[
        str | None,
        Option("Column of obs with the total counts, for log-total.", default="a table's last column"),
    ] = None


def read_cells(path: str | Path, gene_names: Sequence[str] | None = None, total_key: str | None = None) -> "AnnData":
    """Read any file of cells as AnnData in memory.

    Args:
        path: The file.
        gene_names: Names of the columns of an array, which does not hold them.
        total_key: Move the last column of a table or array to `obs`, under this name.

    Raises:
        ValueError: If the file does not name its genes and `gene_names` does not either, or both do; or if a column
            holds no numbers.

    Example:
        >>> import pandas
        >>> pandas.DataFrame({"CD3D": [3, 0], "NKG7": [0, 2]}, index=["AAAC", "AAAG"]).to_csv("cells.csv")
        >>> cells = read_cells("cells.csv")
        >>> list(cells.obs_names), list(cells.var_names)
        (['AAAC', 'AAAG'], ['CD3D', 'NKG7'])
    """
    path = Path(path)
    check_there(path)  # before anything is imported that takes long

    import anndata
    from scipy.sparse import csr_matrix

    data = load(path)
    if isinstance(data, anndata.AnnData):
        if gene_names is not None:
            raise ValueError(f"{path.name} names its genes itself: leave the gene names out")
        with readable(path.name):
            return checked_slots(in_memory(data), path.name) if data.isbacked else data
    is_table = hasattr(data, "columns")
    if is_table == (gene_names is not None):
        raise ValueError(
            f"{path.name} names its genes itself: leave the gene names out"
            if is_table
            else f"{path.name} does not name its genes: give --gene-names, a file with one name a line, or 'panel' if "
            f"its columns are the genes of the model in their order; or save it as .h5ad"
        )
    matrix = csr_matrix(frame_values(data, path.name) if is_table else data)
    names = data.columns.astype(str) if is_table else list(gene_names or ())
    totals = None
    if total_key is not None:
        totals, matrix = matrix[:, [-1]].toarray().ravel(), matrix[:, :-1]
        names = names[:-1] if is_table else names
    if len(names) != matrix.shape[1]:
        hint = "; if the last column is the total of each cell, give input type log-total" if total_key is None else ""
        raise ValueError(
            f"{path.name} has {matrix.shape[1]:,} columns of genes, and {len(names):,} names are given{hint}"
        )
    adata = anndata.AnnData(matrix)
    adata.var_names = names
    if is_table:
        adata.obs_names = data.index.astype(str)
    if totals is not None:
        adata.obs[total_key] = totals
    return adata


def in_memory(adata: "AnnData") -> "AnnData":
    """Return cells that are backed by a file in memory. anndata's own `to_memory` needs an X."""
    import anndata

    if not adata.isbacked or matrix_of(adata) is not None:
        return adata.to_memory()
    return anndata.read_h5ad(adata.filename)


def open_cells(path: str | Path, gene_names: Sequence[str] | None = None, total_key: str | None = None) -> "AnnData":
    """Open any file of cells as AnnData: an .h5ad stays on disk, others are read into memory.

    Args:
        path: The file.
        gene_names: Names of the columns of an array, which does not hold them.
        total_key: Move the last column of a table or array to `obs`, under this name.

    Raises:
        ValueError: If the file does not name its genes and `gene_names` does not either, or both do; or if a column
            holds no numbers.

    Example:
        >>> adata.write_h5ad("cells.h5ad")
        >>> open_cells("cells.h5ad").isbacked
        True
    """
    if ending_of(Path(path)) == ".h5ad" and gene_names is None:
        return load(Path(path))
    return read_cells(path, gene_names, total_key)


def cells_with_counts(
    cells: "PanelCounts", name: str, drop_empty: bool, say: Callable[[str], None] = print
) -> np.ndarray:
    """Return whether each cell has counts on the panel, bool `(cells,)`, and report how many have none.

    Args:
        cells: Counts on the panel.
        name: Name of the file, for messages.
        drop_empty: Whether to leave out cells without counts, and not to stop.
        say: Called with a line on the cells that are left out.

    Raises:
        ValueError: If a cell has no counts and `drop_empty` is not set.

    Example:
        >>> cells = xtrimogene.XTrimoGeneTokenizer.default().read_counts(adata)
        >>> cells_with_counts(cells, "adata", drop_empty=False)
        array([ True,  True,  True,  True,  True])
    """
    lengths = [np.diff(cells.read(start, start + CHUNK)[0].indptr) for start in range(0, cells.n_cells, CHUNK)]
    is_there = np.concatenate(lengths) > 0
    say_empty(int((~is_there).sum()), cells.n_cells, name, drop_empty, say)
    return is_there


def say_empty(num_empty: int, num_cells: int, name: str, drop_empty: bool, say: Callable[[str], None]) -> None:
    """Report how many cells of a file have no counts on the panel, if there are any.

    Raises:
        ValueError: If there are such cells and `drop_empty` is not set.
    """
    text = f"{name}: {num_empty:,} of {num_cells:,} cells have no counts on the panel"
    if num_empty and not drop_empty:
        raise ValueError(f"{text}, and nothing can be learned from them; leave them out with --drop-empty")
    if num_empty:
        say(f"{text} and are left out")


def annotated(path: str | Path) -> "AnnData":
    """Return the AnnData of a file; an .h5ad stays on disk.

    Raises:
        ValueError: If the file holds no AnnData.

    Example:
        >>> adata.write_h5ad("cells.h5ad")
        >>> annotated("cells.h5ad").n_obs
        5
    """
    adata = load(Path(path))
    if not hasattr(adata, "obs"):
        raise ValueError(f"{path} holds no obs with labels: give an .h5ad or .zarr file")
    return adata


def check_columns(path: str | Path, adata: "AnnData", names: Sequence[str]) -> None:
    """Refuse names of columns that obs does not have.

    Raises:
        ValueError: If there is such a name; the message gives the columns of obs.

    Example:
        >>> check_columns("cells.h5ad", adata, ["bulk_labels"])
    """
    if absent := [name for name in names if name not in adata.obs]:
        raise ValueError(f"{path} has no column {absent[0]!r} in obs, only {', '.join(map(str, adata.obs)) or 'none'}")


def cells_of(path: str | Path, where: Mapping[str, Any] | None = None, max_cells: int | None = None) -> "AnnData":
    """Return the cells of a file with given values in obs, in the order of the file.

    Args:
        path: The file.
        where: Column of obs -> value of the cells to return; all cells unless given.
        max_cells: Number of cells to draw with seed 0 if there are more; all unless given.

    Raises:
        ValueError: If the file holds no AnnData, or no cell has these values.

    Example:
        >>> adata.write_h5ad("cells.h5ad")
        >>> cells_of("cells.h5ad", max_cells=2).n_obs
        2
    """
    adata = annotated(path)
    keep = np.ones(adata.n_obs, bool)
    for key, value in (where or {}).items():
        check_columns(path, adata, [key])
        keep &= (adata.obs[key].astype(str) == str(value)).to_numpy()
    if not keep.any():
        raise ValueError(f"{path}: no cell has {', '.join(f'{key} = {value}' for key, value in (where or {}).items())}")
    rows = np.flatnonzero(keep)
    if max_cells is not None and len(rows) > max_cells:
        rows = np.sort(np.random.default_rng(0).choice(rows, max_cells, replace=False))
    with readable(Path(path).name):
        chosen = (adata if matrix_of(adata) is not None else in_memory(adata))[rows]
        return checked_slots(chosen.to_memory() if chosen.isbacked else chosen.copy(), Path(path).name)
