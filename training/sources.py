"""Open files of cells without reading them: matrices stay on disk and give rows when sliced.

    .h5ad, .zarr            sparse by rows, or dense: read where they lie
    10x .h5                 genes x cells by columns is cells x genes by rows: the same
    Parquet, `datasets`     lists of gene ids and counts, one row a cell
    sparse by columns, 10x mtx, .csv, .tsv    rewritten by rows into a temporary folder, in bounded memory

`open_cells` gives the parts of AnnData that `find_counts` looks at, so counts are found the same way everywhere.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..tokenization.counts_xtrimogene import ZARR_FILES, check_hdf5, load, rna_of
from ..tokenization.sparse_xtrimogene import check_indices, check_stored, name_of

BUCKET_ROWS = 4096  # rows of a temporary file, so that one of dense cells still fits in memory
FINGERPRINT_BLOCK = 1 << 16  # bytes
BLOCK = 1 << 22  # values read at a time where the size of a row is unknown
TRIPLET = np.dtype([("row", np.int64), ("column", np.int32), ("value", np.float64)])
CLS_VALUE = -2  # where Tahoe-100M puts the token <cls>, before the genes of a cell
SIDE_FILES = ("gene_metadata.parquet", "genes.txt")  # names of the ids of Parquet files
# Columns of gene ids and of their counts: Tahoe-100M, then ours and what is common elsewhere.
LIST_COLUMNS = (("genes", "expressions"), ("input_ids", "counts"), ("input_ids", "values"))
READABLE = (
    ".h5ad, .zarr, .h5mu, 10x .h5, a 10x mtx folder, .csv, .tsv (also .gz), a Parquet file or folder, or a folder "
    "of datasets' save_to_disk"
)


class StoredCells:
    """What `find_counts` needs of AnnData, with matrices that are opened when they are looked at.

    Args:
        matrix: Opens `X`, or gives None.
        obs: Columns of the cells, with their names as index.
        var: Columns of the genes, with their names as index.
        layers: Further matrices by name, as they are stored.
        raw: Cells of the same rows and other columns.
        uns: Of it only `log1p` counts.
    """

    def __init__(
        self,
        matrix: Callable[[], Any],
        obs: Any,
        var: Any,
        layers: Mapping[str, Any] | None = None,
        raw: Any = None,
        uns: Mapping[str, Any] | None = None,
    ):
        self._matrix = matrix
        self.obs, self.var, self.raw = obs, var, raw
        self.layers, self.uns = layers or {}, uns or {}

    @cached_property
    def X(self) -> Any:
        """The main matrix."""
        return self._matrix()

    @property
    def obs_names(self) -> Any:
        """Names of the cells."""
        return self.obs.index

    @property
    def var_names(self) -> Any:
        """Names of the columns."""
        return self.var.index


class OpenedWhenAsked(Mapping[str, Any]):
    """Matrices by name, opened when they are asked for."""

    def __init__(self, group: Any, read: Callable[[Any], Any]):
        self._group, self._read = group, read

    def __getitem__(self, name: str) -> Any:
        return self._read(self._group[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)


class StoredRows:
    """Sparse rows on disk, `(cells, columns)`, read by slices.

    Args:
        read: Gives rows `start ... stop` as CSR.
        shape: Shape.
        dtype: Of the values.
    """

    def __init__(self, read: Callable[[int, int], Any], shape: tuple[int, int], dtype: Any):
        self._read, self.shape, self.dtype = read, shape, np.dtype(dtype)

    def __getitem__(self, rows: slice) -> Any:
        start, stop, _ = rows.indices(self.shape[0])
        return self._read(start, stop)


@contextmanager
def open_cells(path: Path, obs: Sequence[str] = ()) -> Iterator[StoredCells]:
    """Open a file or folder of cells.

    Args:
        path: Anything of `READABLE`.
        obs: Columns of `obs` to read.

    Raises:
        ValueError: If it is none of them, or has no such column; the message names those it has.
    """
    with ExitStack() as stack:
        yield opener(path)(path, tuple(obs), stack)


def opener(path: Path) -> Callable[[Path, tuple[str, ...], ExitStack], StoredCells]:
    """Return what opens a path."""
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
    if path.name.removesuffix(".gz").endswith((".csv", ".tsv")):
        return open_table
    openers = {".h5ad": open_anndata, ".h5mu": open_anndata, ".h5": open_10x_h5, ".parquet": open_lists}
    if path.suffix not in openers:
        raise ValueError(f"{path.name} ends in {path.suffix!r}; readable are {READABLE}")
    return openers[path.suffix]


def missing_columns(path: Path, wanted: Sequence[str], present: Iterable[str]) -> None:
    """Refuse columns of obs that are not there."""
    present = list(present)
    if missing := [name for name in wanted if name not in present]:
        raise ValueError(
            f"obs column {', '.join(map(repr, missing))} is not in {path.name}; its columns are "
            f"{', '.join(present) or '(none)'}"
        )


# -- AnnData ----------------------------------------------------------------------------------------------------------


def open_anndata(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open .h5ad, .zarr, or the RNA of .h5mu."""
    import pandas as pd
    from anndata.io import read_elem

    if path.is_dir():
        import zarr

        group: Any = zarr.open_group(path, mode="r")
        if missing := [name for name in ("obs", "var") if name not in group]:
            raise ValueError(f"{path.name} holds {', '.join(group) or 'nothing'} and no {' or '.join(missing)}")
    else:
        import h5py

        check_hdf5(path)
        group = stack.enter_context(h5py.File(path, "r"))
        group = group[rna_of(group, path.name)] if path.suffix == ".h5mu" else group
        if not isinstance(group["obs"], h5py.Group):  # written before anndata 0.7
            adata = load(path)
            stack.callback(adata.file.close)
            missing_columns(path, obs, adata.obs.columns)
            return adata

    stored = group["obs"]
    missing_columns(path, obs, [str(name) for name in stored.attrs["column-order"]])
    if "__categories" in stored:  # before anndata 0.8, columns cannot be read one by one
        frame = read_elem(stored)[list(obs)]
    else:
        names = read_elem(stored[stored.attrs["_index"]])
        frame = pd.DataFrame({name: read_elem(stored[name]) for name in obs}, index=pd.Index(names))

    def matrix(stored: Any) -> Any:
        return matrix_by_rows(stored, stack)

    raw = group["raw"] if "raw/var" in group else None  # without one, zarr holds a null
    return StoredCells(
        lambda: matrix(group["X"]) if "X" in group else None,
        frame,
        read_elem(group["var"]),
        OpenedWhenAsked(group["layers"], matrix) if "layers" in group else None,
        StoredCells(lambda: matrix(raw["X"]), frame, read_elem(raw["var"])) if raw is not None else None,
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

    check_hdf5(path)
    missing_columns(path, obs, ())
    file = stack.enter_context(h5py.File(path, "r"))
    group = next(file[name] for name in file if f"{name}/barcodes" in file)
    has_features = "features" in group
    ids = group["features/id" if has_features else "genes"].asstr()[:]
    names = group["features/name" if has_features else "gene_names"].asstr()[:]
    kinds = group["features/feature_type"].asstr()[:] if has_features else None
    barcodes, name = group["barcodes"].asstr()[:], name_of(group)
    starts = check_stored(group, len(barcodes), name)

    def read(start: int, stop: int) -> Any:
        from scipy.sparse import csr_matrix

        begin, end = starts[start], starts[stop]
        columns = group["indices"][begin:end]
        check_indices(columns, len(ids), name, int(begin))
        parts = group["data"][begin:end], columns, starts[start : stop + 1] - begin
        return csr_matrix(parts, shape=(stop - start, len(ids)))

    return tenx_cells(read, group["data"].dtype, barcodes, ids, names, kinds)


def open_mtx(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open a 10x mtx folder, whose entries may stand in any order."""
    import pandas as pd

    missing_columns(path, obs, ())
    tables = {}
    for kind in ("barcodes", "features", "genes"):
        if found := sorted(path.glob(f"{kind}.tsv*")):
            tables[kind] = pd.read_csv(found[0], sep="\t", header=None, dtype=str, keep_default_na=False)
    features = tables.get("features", tables.get("genes"))
    if features is None or "barcodes" not in tables:
        held = ", ".join(sorted(file.name for file in path.iterdir()))
        raise ValueError(
            f"{path.name} holds {held}: a 10x folder needs barcodes.tsv and features.tsv beside the matrix"
        )

    file = sorted(path.glob("matrix.mtx*"))[0]
    reader = stack.enter_context(open_text(file))
    banner, line = reader.readline().lower().split(), "%"
    while line.startswith("%"):
        line = reader.readline()
    num_genes, num_cells, num_entries = map(int, line.split())
    if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[-1] != "general":
        raise ValueError(f"{file.name} begins with {' '.join(banner)!r}: it is no sparse matrix of 10x")
    if (num_genes, num_cells) != (len(features), len(tables["barcodes"])):
        raise ValueError(
            f"{file.name} is {num_genes:,} x {num_cells:,}, and beside it are {len(features):,} genes and "
            f"{len(tables['barcodes']):,} barcodes: they do not belong together"
        )

    def triplets() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        num_read = 0
        for chunk in pd.read_csv(reader, sep=r"\s+", header=None, chunksize=BLOCK, engine="c") if num_entries else ():
            num_read += len(chunk)
            yield chunk[1].to_numpy() - 1, chunk[0].to_numpy() - 1, chunk[2].to_numpy()
        if num_read != num_entries:
            raise ValueError(f"{file.name} has {num_read:,} of its {num_entries:,} entries: it is cut off")

    ids, names = features[0].to_numpy(), features[1 if features.shape[1] > 1 else 0].to_numpy()
    rows = rewritten_by_rows(triplets(), (num_cells, num_genes), np.float64, stack)
    kinds = features[2].to_numpy() if features.shape[1] > 2 else None
    return tenx_cells(rows._read, rows.dtype, tables["barcodes"][0].to_numpy(), ids, names, kinds)


def tenx_cells(
    read: Callable[[int, int], Any],
    dtype: Any,
    barcodes: np.ndarray,
    ids: np.ndarray,
    names: np.ndarray,
    kinds: np.ndarray | None,
) -> StoredCells:
    """Return cells of 10x, with what the file says of the columns as scanpy names it."""
    import pandas as pd

    rows = StoredRows(read, (len(barcodes), len(ids)), dtype)
    var = pd.DataFrame({"gene_ids": ids}, index=pd.Index(names))
    if kinds is not None:
        var["feature_types"] = kinds
    return StoredCells(lambda: rows, pd.DataFrame(index=pd.Index(barcodes)), var)


# -- tables -----------------------------------------------------------------------------------------------------------


def open_table(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open .csv or .tsv with cells as rows."""
    import pandas as pd

    from ..tokenization.counts_xtrimogene import frame_values, with_cell_names

    missing_columns(path, obs, ())
    separator = "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"
    header = pd.read_csv(path, sep=separator, nrows=2)
    if isinstance(header.index, pd.RangeIndex):
        # Whether the first column is names shows in the whole column only; another keeps it from being all there is.
        named = with_cell_names(pd.read_csv(path, sep=separator, usecols=[0]).assign(gene=0))
        cells, first = named.index, 2 - named.shape[1]
    else:  # R writes no title above the names, and pandas takes them for the index
        cells, first = pd.read_csv(path, sep=separator, header=None, skiprows=1, usecols=[0], index_col=0).index, 0
    genes = header.columns[first:]

    def triplets() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        start, size = 0, max(BLOCK // max(header.shape[1], 1), 1)
        for chunk in pd.read_csv(path, sep=separator, chunksize=size):
            values = frame_values(chunk.iloc[:, first:], path.name)
            rows, columns = np.nonzero(values)
            yield rows + start, columns, values[rows, columns]
            start += len(values)

    rows = rewritten_by_rows(triplets(), (len(cells), len(genes)), np.float64, stack)
    return StoredCells(lambda: rows, pd.DataFrame(index=cells), pd.DataFrame(index=genes))


# -- lists of ids and counts ------------------------------------------------------------------------------------------


def parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files of cells of a path: itself, in it, or in its folder `data`."""
    if path.is_file():
        return [path]
    for folder in (path, path / "data"):
        if found := sorted(file for file in folder.glob("*.parquet") if file.name not in SIDE_FILES):
            return found
    return []


def open_lists(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open Parquet, or a folder of `datasets`, whose rows are lists of gene ids and of counts."""
    import pandas as pd

    read, schema, num_cells = arrow_rows(path)
    present = {name for name in schema.names if "list" in str(schema.field(name).type)}
    columns = next((pair for pair in LIST_COLUMNS if present.issuperset(pair)), None)
    if columns is None and "input_ids" in present:
        raise ValueError(
            f"{path.name} holds input_ids and no values (columns {', '.join(schema.names)}), as Geneformer's rank "
            f"tokens: ranks do not tell counts; convert the counts they were made of"
        )
    if columns is None:
        raise ValueError(
            f"{path.name} has the columns {', '.join(schema.names)}: lists of gene ids and of counts are needed, "
            f"{' or '.join(' and '.join(pair) for pair in LIST_COLUMNS)}"
        )
    var, place_of_id = names_of_ids(path)
    scalars = [name for name in schema.names if name not in present]
    missing_columns(path, obs, scalars)
    labels = next((name for name in ("cell_name", "BARCODE_SUB_LIB_ID", "barcode", "cell_id") if name in scalars), None)
    cells = pd.Index(read(0, num_cells, [labels]).column(labels).to_pandas() if labels else range(num_cells)).astype(
        str
    )
    frame = pd.DataFrame({name: read(0, num_cells, [name]).column(name).to_numpy() for name in obs}, index=cells)

    def rows(start: int, stop: int) -> Any:
        from scipy.sparse import csr_matrix

        table = read(start, stop, list(columns))
        ids, counts = (packed_lists(table.column(name)) for name in columns)
        if not np.array_equal(ids[1], counts[1]):
            raise ValueError(f"{path.name}, cells {start:,} to {stop:,}: {' and '.join(columns)} differ in length")
        lengths, tokens, values = ids[1], ids[0], counts[0]
        firsts = (np.cumsum(lengths) - lengths)[lengths > 0]
        is_gene = np.ones(len(tokens), bool)
        is_gene[firsts[values[firsts] == CLS_VALUE]] = False
        per_cell = np.add.reduceat(np.append(~is_gene, 0), np.cumsum(lengths) - lengths) * (lengths > 0)
        tokens, values, lengths = tokens[is_gene], values[is_gene], lengths - per_cell
        is_known = (tokens >= 0) & (tokens < len(place_of_id))
        places = np.where(is_known, place_of_id[np.where(is_known, tokens, 0)], -1)
        if (places < 0).any():
            raise ValueError(
                f"{path.name}, cells {start:,} to {stop:,}: gene id {tokens[places < 0][0]} has no name in the "
                f"{len(var):,} genes beside it"
            )
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return csr_matrix((values, places, starts), shape=(stop - start, len(var)))

    matrix = StoredRows(rows, (num_cells, len(var)), np.float64)
    return StoredCells(lambda: matrix, frame, var)


def packed_lists(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column of lists, and the length of each."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column).to_numpy()
    if column.null_count:
        raise ValueError(f"{column.null_count:,} cells have no list of genes")
    return pc.list_flatten(column).to_numpy(), lengths.astype(np.int64)


def arrow_rows(path: Path) -> tuple[Callable[[int, int, list[str]], Any], Any, int]:
    """Return what reads rows `start ... stop` of some columns as an Arrow table, the schema and the number of rows."""
    if path.is_dir() and (path / "state.json").exists():
        import datasets

        data = datasets.load_from_disk(str(path))
        if not isinstance(data, datasets.Dataset):
            raise ValueError(f"{path.name} holds the splits {', '.join(data)}: give the folder of one")
        # Through `datasets`, not its table: rows may have been selected or shuffled before they were saved.
        return (
            lambda start, stop, names: data.with_format("arrow", columns=names)[start:stop],
            data.features.arrow_schema,
            len(data),
        )
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [pq.ParquetFile(file) for file in parquet_files(path)]
    groups = [(file, index) for file in files for index in range(file.num_row_groups)]
    bounds = [0, *np.cumsum([file.metadata.row_group(index).num_rows for file, index in groups]).tolist()]
    schema = files[0].schema_arrow

    @lru_cache(maxsize=1)  # a group is read in several steps, one after another
    def group(number: int, names: tuple[str, ...]) -> Any:
        file, index = groups[number]
        return file.read_row_group(index, columns=list(names))

    def read(start: int, stop: int, names: list[str]) -> Any:
        parts = [
            group(number, tuple(names)).slice(max(start - first, 0), min(stop, last) - max(start, first))
            for number, (first, last) in enumerate(pairwise(bounds))
            if first < stop and last > start
        ]
        return pa.concat_tables(parts) if parts else schema.empty_table().select(names)

    return read, schema, bounds[-1]


def names_of_ids(path: Path) -> tuple[Any, np.ndarray]:
    """Return the genes that lie beside a Parquet file, and the place among them of each id, -1 where it has none."""
    import pandas as pd

    folders = [path, path.parent, path.parent.parent] if path.is_file() else [path, path.parent]
    beside = [folder / part for folder in folders for part in (".", "metadata")]
    found = next((folder / name for folder in beside for name in SIDE_FILES if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{path.name} holds gene ids, and neither {' nor '.join(SIDE_FILES)} lies beside it to tell their names: "
            f"put it there (columns gene_symbol, ensembl_id and token_id)"
        )
    if found.suffix == ".txt":
        names = found.read_text(encoding="utf-8").split()
        return pd.DataFrame(index=pd.Index(names)), np.arange(len(names))
    genes = pd.read_parquet(found)
    missing_columns(found, ["gene_symbol", "token_id"], genes.columns)
    place_of_id = np.full(int(genes["token_id"].max()) + 1, -1)
    place_of_id[genes["token_id"]] = np.arange(len(genes))
    symbols = genes["gene_symbol"].astype(str)
    columns = {}
    if "ensembl_id" in genes:  # some genes have none, and an empty name is refused
        columns["ensembl_id"] = genes["ensembl_id"].where(genes["ensembl_id"].astype(bool), symbols).to_numpy()
    return pd.DataFrame(columns, index=pd.Index(symbols)), place_of_id


# -- from any order to rows -------------------------------------------------------------------------------------------


def rewritten_by_rows(
    triplets: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    shape: tuple[int, int],
    dtype: Any,
    stack: ExitStack,
) -> StoredRows:
    """Write entries that come in any order into one temporary file for every few thousand rows.

    Args:
        triplets: Blocks of rows, columns and values.
        shape: Shape.
        dtype: Of the values.
        stack: Takes the temporary folder away in the end; it needs 20 bytes an entry.
    """
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="xtrimogene-")))
    for rows, columns, values in triplets:
        if not len(rows):
            continue
        entries = np.empty(len(rows), TRIPLET)
        entries["row"], entries["column"], entries["value"] = rows, columns, values
        inside = [0 <= places.min() <= places.max() < size for places, size in zip((rows, columns), shape, strict=True)]
        if not all(inside):
            raise ValueError(f"an entry lies outside of {shape[0]:,} cells x {shape[1]:,} genes")
        buckets = rows // BUCKET_ROWS
        order = np.argsort(buckets, kind="stable")
        entries, buckets = entries[order], buckets[order]
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        for start, stop in pairwise([*starts.tolist(), len(entries)]):
            with (folder / str(buckets[start])).open("ab") as file:
                entries[start:stop].tofile(file)

    last: dict[int, Any] = {}

    def bucket(index: int) -> Any:
        from scipy.sparse import csr_matrix

        if index not in last:
            last.clear()
            file = folder / str(index)
            entries = np.fromfile(file, TRIPLET) if file.exists() else np.empty(0, TRIPLET)
            first = index * BUCKET_ROWS
            size = min(BUCKET_ROWS, shape[0] - first)
            where = entries["row"] - first, entries["column"]
            last[index] = csr_matrix((entries["value"], where), shape=(size, shape[1]))
        return last[index]

    def read(start: int, stop: int) -> Any:
        from scipy.sparse import vstack

        parts = []
        for index in range(start // BUCKET_ROWS, (max(stop, start + 1) - 1) // BUCKET_ROWS + 1):
            first = index * BUCKET_ROWS
            parts.append(bucket(index)[max(start - first, 0) : max(stop - first, 0)])
        return vstack(parts, format="csr")

    return StoredRows(read, shape, dtype)


def open_text(path: Path) -> Any:
    """Open a text file, compressed or not."""
    import gzip

    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files of a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def fingerprint_of(path: Path) -> str:
    """Return a hash of 64 blocks spread evenly over a file, or over the files of a folder: quick at any size."""
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
