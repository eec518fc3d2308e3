"""Open files of cells without reading them: matrices stay on disk and give rows when sliced.

    .h5ad, .zarr            sparse by rows, or dense: read where they lie
    10x .h5                 genes x cells by columns is cells x genes by rows: the same
    Parquet, `datasets`     lists of gene ids and counts, one row a cell
    sparse by columns, 10x mtx, .csv, .tsv    rewritten by rows into a temporary folder, in bounded memory

`open_cells` returns the parts of AnnData that `find_counts` needs, so counts are found as in AnnData.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from .files_xtrimogene import (
    ZARR_FILES,
    check_anndata,
    check_hdf5,
    check_listed_columns,
    check_mtx_banner,
    check_mtx_shape,
    ending_of,
    features_of,
    frame_values,
    load,
    mtx_tables,
    rna_of,
    table_format,
    tables_of_10x,
    whole,
    with_cell_names,
    zarr_group,
)
from .sparse_xtrimogene import check_indices, check_size, check_stored, name_of
from .stored_cells import BLOCK, OpenedWhenAsked, StoredCells, StoredRows, missing_columns, open_text, rewritten_by_rows
from .stored_lists import open_lists, parquet_files

FINGERPRINT_BLOCK = 1 << 16  # bytes
READABLE = (
    ".h5ad, .zarr, .h5mu, 10x .h5, a 10x mtx folder, .csv, .tsv (also .gz), a Parquet file or folder, or a folder "
    "of datasets' save_to_disk"
)


@contextmanager
def open_cells(path: Path, obs: Sequence[str] = ()) -> Iterator[StoredCells]:
    """Open a file or folder of cells.

    Args:
        path: A file or folder in one of the formats above.
        obs: Columns of `obs` to read.

    Raises:
        ValueError: If the format is another one, or a column is missing; the message names the columns there are.

    Example:
        >>> from pathlib import Path
        >>> adata.write_h5ad("cells.h5ad")
        >>> with open_cells(Path("cells.h5ad"), obs=["bulk_labels"]) as cells:
        ...     cells.obs.shape
        (5, 1)
    """
    with ExitStack() as stack:
        yield opener(path)(path, tuple(obs), stack)


def says_what_was_measured(path: Path) -> bool:
    """Return whether a file names all genes that were measured; lists of ids name only the genes with counts.

    >>> from pathlib import Path
    >>> adata.write_h5ad("cells.h5ad")
    >>> says_what_was_measured(Path("cells.h5ad"))
    True
    """
    return opener(path) is not open_lists


def opener(path: Path) -> Callable[[Path, tuple[str, ...], ExitStack], StoredCells]:
    """Return the function that opens a path."""
    if path.is_dir():
        if any((path / name).exists() for name in ZARR_FILES):
            return open_anndata
        if any(path.glob("matrix.mtx*")):
            return open_mtx
        if (path / "state.json").exists() or parquet_files(path):
            return open_lists
        held = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise ValueError(f"{path.name} holds {held}, and no cells; readable are {READABLE}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} has 0 bytes: copy it again")
    openers = {
        ".csv": open_table,
        ".tsv": open_table,
        ".h5ad": open_anndata,
        ".h5mu": open_anndata,
        ".h5": open_10x_h5,
        ".parquet": open_lists,
    }
    if ending_of(path) not in openers:
        raise ValueError(f"{path.name} ends in {path.suffix!r}; readable are {READABLE}")
    return openers[ending_of(path)]


# -- AnnData ----------------------------------------------------------------------------------------------------------


def open_anndata(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open .h5ad, .zarr, or the RNA of .h5mu."""
    import pandas as pd
    from anndata.io import read_elem

    if path.is_dir():
        group = zarr_group(path)
        check_anndata(group, path.name)
    else:
        import h5py

        check_hdf5(path)
        group = stack.enter_context(h5py.File(path, "r"))
        group = group[rna_of(group, path.name)] if ending_of(path) == ".h5mu" else group
        if not isinstance(group["obs"], h5py.Group):  # written before anndata 0.7
            adata = load(path)
            stack.callback(adata.file.close)
            missing_columns(path, obs, adata.obs.columns)
            return adata

    stored = group["obs"]
    missing_columns(path, obs, [str(name) for name in stored.attrs["column-order"]])
    is_whole = all(name in stored for name in obs)  # other columns are not read
    check_listed_columns(group, path.name, ("var", "raw/var") if is_whole else ("obs", "var", "raw/var"))
    if "__categories" in stored:  # before anndata 0.8, columns cannot be read one by one
        frame = read_elem(stored)[list(obs)]
    else:
        names = read_elem(stored[stored.attrs["_index"]])
        frame = pd.DataFrame({name: read_elem(stored[name]) for name in obs}, index=pd.Index(names))

    def matrix(stored: Any, table: Any) -> Any:
        opened = matrix_by_rows(stored, stack)
        check_size(opened, len(frame), len(table), name_of(stored))
        return opened

    var = read_elem(group["var"])
    raw = group["raw"] if "raw/var" in group else None  # without one, zarr holds a null
    raw_var = None if raw is None else read_elem(raw["var"])
    return StoredCells(
        lambda: matrix(group["X"], var) if "X" in group else None,
        frame,
        var,
        OpenedWhenAsked(group["layers"], lambda layer: matrix(layer, var)) if "layers" in group else None,
        None if raw is None else StoredCells(lambda: matrix(raw["X"], raw_var), frame, raw_var),
        {"log1p": read_elem(group["uns/log1p"])} if "uns/log1p" in group else None,
    )


def matrix_by_rows(stored: Any, stack: ExitStack) -> Any:
    """Return a stored matrix that can be sliced by rows."""
    from anndata.io import sparse_dataset

    if hasattr(stored, "shape"):
        return stored
    opened = sparse_dataset(stored)
    if opened.format == "csr":
        return opened
    name, num_rows = name_of(stored), opened.shape[0]
    starts = check_stored(stored, opened.shape[1], name)

    def triplets() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, int(starts[-1]), BLOCK):
            stop = min(start + BLOCK, int(starts[-1]))
            columns = np.searchsorted(starts, np.arange(start, stop), side="right") - 1
            rows = stored["indices"][start:stop]
            check_indices(rows, num_rows, name, start)
            yield rows, columns, stored["data"][start:stop]

    return rewritten_by_rows(triplets(), tuple(opened.shape), opened.dtype, stack)


# -- 10x --------------------------------------------------------------------------------------------------------------


def open_10x_h5(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open a 10x .h5 of Cell Ranger 1 to 9."""
    import h5py
    import pandas as pd

    check_hdf5(path)
    missing_columns(path, obs, ())
    file = stack.enter_context(h5py.File(path, "r"))
    group, barcodes, features = tables_of_10x(file)
    name = name_of(group)
    starts = check_stored(group, len(barcodes), name)

    def read(start: int, stop: int) -> Any:
        from scipy.sparse import csr_matrix

        begin, end = starts[start], starts[stop]
        columns = group["indices"][begin:end]
        check_indices(columns, len(features), name, int(begin))
        parts = group["data"][begin:end], columns, starts[start : stop + 1] - begin
        return csr_matrix(parts, shape=(stop - start, len(features)))

    rows = StoredRows(read, (len(barcodes), len(features)), group["data"].dtype)
    return StoredCells(lambda: rows, pd.DataFrame(index=pd.Index(barcodes)), features_of(features))


def open_mtx(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open a 10x mtx folder, whose entries may stand in any order."""
    import pandas as pd

    missing_columns(path, obs, ())
    file, barcodes, features = mtx_tables(path)
    reader = stack.enter_context(open_text(file))
    check_mtx_banner(file, reader.readline())
    line = "%"
    while line.startswith("%"):
        line = reader.readline()
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
        raise ValueError(f"{file.name} has {line.strip()!r} where its sizes should be: it is damaged or cut off")
    num_genes, num_cells, num_entries = map(int, sizes)
    check_mtx_shape(file, (num_genes, num_cells), len(features), len(barcodes))

    def triplets() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        num_read = 0
        with whole(file):
            chunks = pd.read_csv(reader, sep=r"\s+", header=None, chunksize=BLOCK, engine="c") if num_entries else ()
            for chunk in chunks:
                num_read += len(chunk)
                if chunk.shape[1] != 3 or any(dtype.kind not in "iuf" for dtype in chunk.dtypes):
                    raise ValueError(f"{file.name} has a line that is not three numbers: the file is damaged")
                yield chunk[1].to_numpy() - 1, chunk[0].to_numpy() - 1, chunk[2].to_numpy()
        if num_read != num_entries:
            raise ValueError(f"{file.name} has {num_read:,} of its {num_entries:,} entries: it is cut off")

    rows = rewritten_by_rows(triplets(), (num_cells, num_genes), np.float64, stack)
    return StoredCells(lambda: rows, pd.DataFrame(index=pd.Index(barcodes)), features_of(features))


# -- tables -----------------------------------------------------------------------------------------------------------


def open_table(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open .csv or .tsv with cells as rows."""
    import pandas as pd

    missing_columns(path, obs, ())
    written: dict[str, Any] = table_format(path)
    with whole(path):
        header = pd.read_csv(path, **written, nrows=2)
        if isinstance(header.index, pd.RangeIndex):
            # The whole first column shows whether it holds names; a second column keeps it a table.
            named = with_cell_names(pd.read_csv(path, **written, usecols=[0]).assign(gene=0))
            cells, first = named.index, 2 - named.shape[1]
        else:  # R writes no title for names, and pandas then makes them the index
            cells, first = pd.read_csv(path, **written, header=None, skiprows=1, usecols=[0], index_col=0).index, 0
    genes = header.columns[first:]

    def triplets() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        start, size = 0, max(BLOCK // max(header.shape[1], 1), 1)
        for chunk in pd.read_csv(path, **written, chunksize=size):
            values = frame_values(chunk.iloc[:, first:], path.name)
            rows, columns = np.nonzero(values)
            yield rows + start, columns, values[rows, columns]
            start += len(values)

    rows = rewritten_by_rows(triplets(), (len(cells), len(genes)), np.float64, stack)
    return StoredCells(lambda: rows, pd.DataFrame(index=cells), pd.DataFrame(index=genes))


def size_of(path: Path) -> int:
    """Return the size of a file, or of all files of a folder, in bytes.

    >>> from pathlib import Path
    >>> _ = Path("cells.csv").write_text("cell,CD3D")
    >>> size_of(Path("cells.csv"))
    9
    """
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def fingerprint_of(path: Path) -> str:
    """Return a hash of 64 blocks spread evenly over a file, or over the files of a folder; it is quick at any size.

    >>> from pathlib import Path
    >>> _ = Path("cells.csv").write_text("cell,CD3D")
    >>> fingerprint_of(Path("cells.csv")) == fingerprint_of(Path("cells.csv"))
    True
    """
    found = sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    num_blocks = max(64 // max(len(files), 1), 1)
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.relative_to(path) if path.is_dir() else ''} {size}".encode())
        with file.open("rb") as stream:
            for start in np.linspace(0, max(size - FINGERPRINT_BLOCK, 0), num_blocks).astype(int).tolist():
                stream.seek(start)
                found.update(stream.read(FINGERPRINT_BLOCK))
    return found.hexdigest()[:32]
