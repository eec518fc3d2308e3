# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Open files of cells: .h5ad, .h5mu, .zarr, 10x .h5 and mtx folders, tables and arrays."""

import codecs
import csv
import difflib
import gzip
import importlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .sparse_xtrimogene import (
    DAMAGED,
    CellsError,
    check_indices,
    check_matrix,
    check_size,
    check_starts,
    check_stored,
    check_stored_indices,
    name_of,
)

ACCEPTED = (
    "AnnData, a scipy sparse matrix, a 2-D array or tensor, a DataFrame (columns = genes), or a path to "
    ".h5ad, .zarr, .h5mu (its RNA), 10x .h5, a 10x mtx folder, .csv, .tsv, .npz or .npy"
)
ENDINGS = (".h5ad", ".h5mu", ".h5", ".csv", ".tsv", ".npz", ".npy")
RNA_MODALITIES = ("rna", "gex", "gene expression")  # names of the RNA in MuData files, in any case
LONGEST_SAID = 300  # letters of another library's error that are shown
TABLE_LINES = 50  # lines of a table that tell how it is written
MTX_KINDS = [["integer", "general"], ["real", "general"]]
ZARR_FILES = ("zarr.json", ".zgroup")  # present in a folder of zarr 3 and zarr 2, respectively


def load(path: Path) -> Any:
    """Read the cells of a file or folder, in the format that its ending names; an .h5ad stays on disk.

    Raises:
        FileNotFoundError: If it does not exist; the message gives similar names.
        ValueError: If the ending is unknown, or the file is damaged.

    Example:
        >>> import pandas
        >>> from pathlib import Path
        >>> pandas.DataFrame({"CD3D": [3, 0], "NKG7": [0, 2]}, index=["AAAC", "AAAG"]).to_csv("cells.csv")
        >>> load(Path("cells.csv")).shape
        (2, 2)
    """
    check_there(path)
    with about(path.name), readable(path.name):
        return read_folder(path) if path.is_dir() else read_file(path)


def check_there(path: Path) -> None:
    """Refuse a path where nothing is.

    Raises:
        FileNotFoundError: If it does not exist; the message gives similar names.
    """
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        similar = difflib.get_close_matches(path.name, siblings)
        hint = f"; similar names there: {', '.join(similar)}" if similar else ""
        raise FileNotFoundError(f"{path} does not exist{hint}")


@contextmanager
def about(name: str) -> Iterator[None]:
    """Put the name of a file in front of an error about its cells that does not begin with it.

    Raises:
        CellsError: The error, with the name.

    >>> with about("cells.h5ad"):
    ...     raise CellsError("X: 3 values are NaN or infinite")
    Traceback (most recent call last):
    xtrimogene.tokenization.sparse_xtrimogene.CellsError: cells.h5ad: X: 3 values are NaN or infinite
    """
    try:
        yield
    except CellsError as error:
        named = error if error.is_named or str(error).startswith(name) else CellsError(f"{name}: {error}")
        named.is_named = True
        raise named from error.__cause__


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn an error of another library into one that says what cannot be read: damaged files give errors of any kind.

    Args:
        name: What is read, such as the name of a file.

    Raises:
        CellsError: The message gives the entry of the file, where the library says it, and the error.
        MemoryError: If there is not enough memory.
    """
    try:
        yield
    except CellsError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{name} does not fit into memory ({error}); if it is a small file, it is damaged") from error
    except Exception as error:
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__} "
        entries = re.findall(r"key '(.*?)' of .* from (/\S*)", "\n".join(getattr(error, "__notes__", [])))
        where = f" at {'/'.join([entries[0][1].rstrip('/'), entries[0][0]]).strip('/')}" if entries else ""
        said = " ".join(str(error).split())[:LONGEST_SAID]
        raise CellsError(f"{name} cannot be read{where} ({kind}{said}): {DAMAGED}") from error


def ending_of(path: Path) -> str:
    """Return the ending of a file in small letters; that of a table without `.gz`.

    >>> from pathlib import Path
    >>> ending_of(Path("cells.H5AD")), ending_of(Path("cells.csv.gz"))
    ('.h5ad', '.csv')
    """
    of_table = Path(path.name.lower().removesuffix(".gz")).suffix
    return of_table if of_table in (".csv", ".tsv") else path.suffix.lower()


def read_folder(path: Path) -> Any:
    """Read a folder: zarr, or 10x mtx."""
    if any((path / name).exists() for name in ZARR_FILES):
        check_anndata(zarr_group(path), path.name)
        return checked_slots(importlib.import_module("anndata").read_zarr(path), path.name)
    if not any(path.glob("matrix.mtx*")):
        held = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise CellsError(f"{path.name} holds {held} and no matrix.mtx: give a 10x mtx folder, or a file with cells")
    return read_mtx(path)


def read_file(path: Path) -> Any:
    """Read a file, in the format that its ending names; an .h5ad stays on disk."""
    ending = ending_of(path)
    if ending in ENDINGS and path.stat().st_size == 0:
        raise CellsError(f"{path.name} has 0 bytes: copy it again")
    if ending in (".csv", ".tsv"):
        with whole(path):
            return with_cell_names(importlib.import_module("pandas").read_csv(path, **table_format(path)))
    if ending in (".h5ad", ".h5", ".h5mu"):
        check_hdf5(path)
    match ending:
        case ".h5mu":
            with importlib.import_module("h5py").File(path, "r") as file:
                check_listed_columns(file[rna_of(file, path.name)], path.name)
                rna = importlib.import_module("anndata").io.read_elem(file[rna_of(file, path.name)])
            return checked_slots(rna, path.name)
        case ".h5ad":
            with importlib.import_module("h5py").File(path, "r") as file:
                check_listed_columns(file, path.name)
            return checked_slots(importlib.import_module("anndata").read_h5ad(path, backed="r"), path.name)
        case ".h5":
            return read_10x_h5(path)
        case ".npz":
            check_npz_arrays(path)
            return importlib.import_module("scipy.sparse").load_npz(path)
        case ".npy":
            return np.load(path, mmap_mode="r")
    raise CellsError(f"{path.name} ends in {path.suffix!r}; accepted are {ACCEPTED}")


def zarr_group(path: Path) -> Any:
    """Open a zarr folder for reading.

    Raises:
        CellsError: If it is a single array.
    """
    opened = importlib.import_module("zarr").open(path, mode="r")
    if hasattr(opened, "shape"):
        raise CellsError(
            f"{path.name} is one array of zarr, of shape {tuple(opened.shape)}, and names no cells and genes: write an "
            f"AnnData with adata.write_zarr"
        )
    return opened


def check_anndata(group: Any, name: str) -> None:
    """Refuse a stored group that is no AnnData: without `obs` and `var`, or a MuData under a wrong name.

    Raises:
        CellsError: If it is such a group; the message begins with `name`, the name of the file.
    """
    held = list(group)
    if missing := [part for part in ("obs", "var") if part not in held]:
        raise CellsError(
            f"{name} holds {', '.join(held[:5]) or 'nothing'} and no {' or '.join(missing)}, so it is no AnnData: "
            f"write one with adata.write_h5ad"
        )
    if "mod" in held and "X" not in held:
        raise CellsError(
            f"{name} is MuData of {', '.join(group['mod'])}: name it .h5mu, or write the modality with genes as AnnData"
        )


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Turn the error of a text file that is cut off, damaged or in another encoding into one that names the file.

    Raises:
        ValueError: If the file is such a file.
    """
    try:
        yield
    except EOFError as error:
        raise CellsError(f"{path.name} ends too early: the file is cut off; copy it again") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise CellsError(f"{path.name} is damaged ({error}): copy it again") from error
    except UnicodeDecodeError as error:
        raise CellsError(f"{path.name} is no text in {error.encoding} ({error.reason}): save it as UTF-8") from error


def table_format(path: Path) -> dict[str, str]:
    r"""Return how a table is written, as arguments of `pandas.read_csv`: `sep`, `encoding` and `decimal`.

    >>> from pathlib import Path
    >>> _ = Path("cells.csv").write_text("cell;CD3D;NKG7\nAAAC;3,5;0\n")
    >>> table_format(Path("cells.csv"))
    {'sep': ';', 'encoding': 'utf-8', 'decimal': ','}
    """
    opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    with whole(path), opened as file:
        start = b"".join(islice(file, TABLE_LINES))
    encoding = "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)  # the last letter may be cut
    except UnicodeDecodeError:
        encoding, text = "latin-1", start.decode("latin-1")
    header, *rows = text.splitlines() or [""]
    if not header.strip():
        raise CellsError(f"{path.name} has no names in its first line: a table begins with the names of the genes")
    usual = "\t" if ending_of(path) == ".tsv" else ","
    separator = max((usual, ",", "\t", ";"), key=header.count)
    # Only with semicolons may a comma be that of decimals. Elsewhere it may divide thousands.
    numbers = [number for row in rows for number in row.split(";")[1:]] if separator == ";" else []
    has_commas = any(re.fullmatch(r"\d+,\d+", number.strip()) for number in numbers)
    decimal = "," if has_commas and not any("." in number for number in numbers) else "."
    return {"sep": separator, "encoding": encoding, "decimal": decimal}


def mtx_tables(path: Path) -> tuple[Path, Any, Any]:
    """Return the matrix file, the barcodes `(N,)` and the table of genes of a 10x mtx folder.

    The table has the columns 0, ids, and, where the file has them, 1, names, and 2, kinds of features. The files may be
    called `features` or `genes`, and be compressed or not.

    Raises:
        ValueError: If a file is missing.
    """
    pandas, tables = importlib.import_module("pandas"), {}
    for kind in ("barcodes", "features", "genes"):
        if found := sorted(path.glob(f"{kind}.tsv*")):
            with whole(found[0]):
                tables[kind] = pandas.read_csv(
                    found[0], sep="\t", header=None, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE
                )
    features = tables.get("features", tables.get("genes"))
    if features is None or "barcodes" not in tables:
        held = ", ".join(sorted(file.name for file in path.iterdir()))
        raise CellsError(
            f"{path.name} holds {held}: a 10x folder needs barcodes.tsv and features.tsv beside the matrix"
        )
    return sorted(path.glob("matrix.mtx*"))[0], tables["barcodes"][0].to_numpy(), features


def check_mtx_banner(file: Path, banner: str) -> None:
    """Refuse a matrix whose first line is not that of a sparse matrix of numbers.

    Raises:
        ValueError: If it is another line.
    """
    words = banner.lower().split()
    if words[:3] != ["%%matrixmarket", "matrix", "coordinate"] or words[3:] not in MTX_KINDS:
        raise CellsError(f"{file.name} begins with {' '.join(words)!r}: it is no sparse matrix of 10x")


def check_mtx_shape(file: Path, shape: tuple[int, int], num_genes: int, num_cells: int) -> None:
    """Refuse a matrix that is not of the shape `(genes, cells)` of the tables beside it.

    Raises:
        ValueError: If it is of another.
    """
    if shape != (num_genes, num_cells):
        raise CellsError(
            f"{file.name} is {shape[0]:,} x {shape[1]:,}, and beside it are {num_genes:,} genes and "
            f"{num_cells:,} barcodes: they do not belong together"
        )


def features_of(features: Any) -> Any:
    """Return the table of genes of a 10x folder (`mtx_tables`) as `var` of an AnnData, with scanpy's names."""
    pandas = importlib.import_module("pandas")
    names = features[1 if features.shape[1] > 1 else 0]
    var = pandas.DataFrame({"gene_ids": features[0].to_numpy()}, index=pandas.Index(names.to_numpy()))
    if features.shape[1] > 2:
        var["feature_types"] = features[2].to_numpy()
    return var


def read_mtx(path: Path) -> Any:
    """Read a 10x mtx folder as AnnData.

    Raises:
        ValueError: If a file is missing or cut off, or the files do not belong together.
    """
    file, barcodes, features = mtx_tables(path)
    opened: Any = gzip.open(file, "rt") if file.suffix == ".gz" else file.open()
    with whole(file), opened as text:
        check_mtx_banner(file, text.readline())
    with whole(file):
        try:
            matrix = importlib.import_module("scipy.io").mmread(file)
        except ValueError as error:
            raise CellsError(f"{file.name} is damaged or cut off ({error}): copy it again") from error
    check_mtx_shape(file, matrix.shape, len(features), len(barcodes))
    obs = importlib.import_module("pandas").DataFrame(index=barcodes)
    adata = importlib.import_module("anndata").AnnData(matrix.T.tocsr().astype(np.float32), obs, features_of(features))
    adata.var_names_make_unique()
    return adata


def check_listed_columns(stored: Any, label: str, tables: Sequence[str] = ("obs", "var", "raw/var")) -> None:
    """Refuse a stored AnnData of which a table lists a column that is not there, since anndata cannot read it.

    Raises:
        ValueError: The message begins with `label`, the name of the file, and names the column.
    """
    for name in tables:
        for column in stored[name].attrs.get("column-order", ()) if name in stored else ():
            if column not in stored[name]:
                raise CellsError(
                    f"{label}: {name} lists the column {column!r} and does not hold it: the file was written in part "
                    f"or changed; write it again, or take the name out of the attribute column-order"
                )


def with_cell_names(table: Any) -> Any:
    """Return a table whose first column became the index, if that column holds the names of the cells.

    It does if it has no title, is not numeric, or has no value twice. A first column of counts stays a gene.
    """
    if type(table.index).__name__ != "RangeIndex":  # R writes no title for names, and pandas then makes them the index
        return table
    first = table.iloc[:, 0]
    is_untitled = str(table.columns[0]).startswith("Unnamed: ")
    return (
        table.set_index(table.columns[0]) if is_untitled or first.is_unique or first.dtype.kind not in "iuf" else table
    )


def check_hdf5(path: Path) -> None:
    """Refuse an HDF5 file that is not in the format its ending names, or that holds several genomes.

    Raises:
        ValueError: If it is such a file.
    """
    h5py, ending = importlib.import_module("h5py"), ending_of(path)
    if not h5py.is_hdf5(path):
        raise CellsError(f"{path.name} ends in {path.suffix!r} and cannot be read as HDF5: is it whole?")
    with h5py.File(path, "r") as file:
        names = list(file)
        # Since Cell Ranger 3 there is one group, `matrix`; before, there was one for each genome.
        genomes = [name for name in names if f"{name}/barcodes" in file]
        if ending == ".h5ad":
            check_anndata(file, path.name)
    held = ", ".join(names[:5]) or "nothing"
    if ending == ".h5mu":
        if "mod" not in names:
            raise CellsError(
                f"{path.name} holds {held} and no mod, so it is no MuData: if it is AnnData, name it .h5ad"
            )
    elif ending == ".h5ad":
        return
    elif not genomes:
        raise CellsError(f"{path.name} holds {held} and no barcodes of 10x: if it is AnnData, name it .h5ad")
    elif len(genomes) > 1:
        human = max(genomes, key=lambda name: name.startswith(("GRCh", "hg")))
        raise CellsError(
            f"{path.name} holds {len(genomes)} genomes, {', '.join(genomes)}: take the human one, "
            f'scanpy.read_10x_h5("{path.name}", genome="{human}").write_h5ad("{human}.h5ad")'
        )


def rna_of(file: Any, name: str) -> str:
    """Return the path of the RNA in an opened MuData file, such as `mod/rna`.

    Raises:
        ValueError: If no modality, or more than one, has a name of RNA.
    """
    found = [modality for modality in file["mod"] if modality.lower() in RNA_MODALITIES]
    if len(found) != 1:
        raise CellsError(
            f"{name} holds the modalities {', '.join(file['mod']) or 'none'}, and {len(found)} of them are called "
            f'{", ".join(RNA_MODALITIES)}: write the one with genes, mudata.read_h5mu("{name}")["..."].write_h5ad(...)'
        )
    return f"mod/{found[0]}"


def checked_slots(adata: Any, name: str) -> Any:
    """Return `adata` after checking that its matrices are as large as its tables, and the sparse ones not damaged.

    The indices of a matrix on disk are checked later, as they are read.

    Raises:
        ValueError: If one is damaged; the message begins with `name`, the name of the file.
    """
    for layer in layer_names(adata):
        check_matrix(adata.layers[layer], f"{name}: layers/{layer}")
    for owner, slot in ((adata, "X"), (adata.raw, "raw/X")):
        matrix: Any = None if owner is None else matrix_of(owner)
        if matrix is not None:
            check_size(matrix, adata.n_obs, owner.n_vars, f"{name}: {slot}")
        if hasattr(matrix, "group"):
            by_columns = matrix.format == "csc"
            check_stored(matrix.group, matrix.shape[by_columns], f"{name}: {slot}")
            if by_columns:  # rows of such a matrix need all its indices, so all are checked now
                check_stored_indices(matrix.group["indices"], matrix.shape[0], f"{name}: {slot}")
        else:
            check_matrix(matrix, f"{name}: {slot}")
    return adata


def tables_of_10x(file: Any) -> tuple[Any, Any, Any]:
    """Return the matrix, the barcodes `(N,)` and the table of genes (as `mtx_tables` does) of an opened 10x .h5.

    Cell Ranger 1 and 2 write `genes` and `gene_names`, later ones `features`. Names and kinds may be absent.

    Raises:
        CellsError: If there are no ids of genes, lists of different lengths, or names with zero bytes.
    """
    group = next(file[name] for name in file if f"{name}/barcodes" in file)
    ids = [array for array in ("genes", "features/id") if array in group]
    beside = [array for array in ("gene_names", "features/name", "features/feature_type") if array in group]
    lists = [texts_of(group[array]) for array in (*ids, *beside)] if ids else []
    name = name_of(group)
    if not lists or len({len(each) for each in lists}) > 1:
        raise CellsError(f"{name} names {' and '.join(f'{len(each):,}' for each in lists) or 'no'} features: {DAMAGED}")
    stated, held = group["shape"][:].tolist() if "shape" in group else None, [len(lists[0]), len(group["barcodes"])]
    if stated not in (None, held):
        raise CellsError(
            f"{name}/shape is {stated}, and there are {held[0]:,} features and {held[1]:,} barcodes: {DAMAGED}"
        )
    features = importlib.import_module("pandas").DataFrame(dict(enumerate(lists)))
    return group, np.array(texts_of(group["barcodes"]), object), features


def texts_of(array: Any) -> list[str]:
    """Return the texts of an array of a 10x .h5.

    Raises:
        CellsError: If one has a zero byte, as blanked files do.
    """
    texts = array.asstr()[:].tolist()
    if damaged := sum("\0" in text for text in texts):
        raise CellsError(f"{name_of(array)} has {damaged:,} of {len(texts):,} names with a zero byte: {DAMAGED}")
    return texts


def read_10x_h5(path: Path) -> Any:
    """Read a 10x .h5 as AnnData.

    Raises:
        CellsError: If it is damaged; the message names the file, the array and the place.
    """
    sparse, pandas = importlib.import_module("scipy.sparse"), importlib.import_module("pandas")
    with importlib.import_module("h5py").File(path, "r") as file:
        group, barcodes, features = tables_of_10x(file)
        starts = check_stored(group, len(barcodes), name_of(group))
        check_stored_indices(group["indices"], len(features), name_of(group))
        values = group["data"][:]
        values = values.astype(np.float32) if values.dtype.kind == "i" else values
        matrix = sparse.csr_matrix((values, group["indices"][:], starts), shape=(len(barcodes), len(features)))
    return importlib.import_module("anndata").AnnData(matrix, pandas.DataFrame(index=barcodes), features_of(features))


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


def frame_values(frame: Any, label: str) -> np.ndarray:
    """Return the values of a DataFrame of numbers; raise ValueError naming columns that hold none."""
    others = [str(name) for name, dtype in frame.dtypes.items() if dtype.kind not in "buif"]
    if others:
        more = ", ..." if len(others) > 5 else ""
        raise CellsError(
            f"{label} has {len(others):,} of {frame.shape[1]:,} columns that hold no numbers: {', '.join(others[:5])}"
            f"{more}; leave them out, frame.drop(columns=[...]), or keep them in obs of an .h5ad"
        )
    return frame.to_numpy()


def layer_names(adata: Any) -> list[str]:
    """Return the names of the layers, without None, under which anndata 0.13 and later list X.

    >>> layer_names(adata)
    []
    """
    return [name for name in adata.layers if name is not None]


def matrix_of(owner: Any) -> Any:
    """Return X of an AnnData or of its `raw`; None if there is none, where an AnnData on disk raises an error."""
    try:
        return owner.X
    except KeyError:
        return None


def log_base(adata: Any) -> float | None:
    """Return the base of the logarithm that `uns["log1p"]` names; None if it names none.

    >>> log_base(adata) is None
    True
    """
    said = adata.uns.get("log1p")
    named: Any = said.get("base") if isinstance(said, Mapping) else None
    base = np.ravel(named)
    return float(base[0]) if len(base) == 1 and base.dtype.kind in "iuf" else None
