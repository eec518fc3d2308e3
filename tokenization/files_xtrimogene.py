# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Open files of cells: .h5ad, .h5mu, .zarr, 10x .h5 and mtx folders, tables and arrays."""

import difflib
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from .sparse_xtrimogene import check_indices, check_matrix, check_starts, check_stored, check_stored_indices, name_of

ACCEPTED = (
    "AnnData, a scipy sparse matrix, a 2-D array or tensor, a DataFrame (columns = genes), or a path to "
    ".h5ad, .zarr, .h5mu (its RNA), 10x .h5, a 10x mtx folder, .csv, .tsv, .npz or .npy"
)
RNA_MODALITIES = ("rna", "gex", "gene expression")  # names of the RNA in MuData files, in any case
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
            check_10x_arrays(path)  # scanpy selects columns without checking the indices
            return importlib.import_module("scanpy").read_10x_h5(path, gex_only=False)
        case ".npz":
            check_npz_arrays(path)
            return importlib.import_module("scipy.sparse").load_npz(path)
        case ".npy":
            return np.load(path, mmap_mode="r")
    raise ValueError(f"{path.name} ends in {path.suffix!r}; accepted are {ACCEPTED}")


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
    h5py = importlib.import_module("h5py")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path.name} ends in {path.suffix!r} and cannot be read as HDF5: is it whole?")
    with h5py.File(path, "r") as file:
        names = list(file)
        # Since Cell Ranger 3 there is one group, `matrix`; before, there was one for each genome.
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
    """Return the path of the RNA in an opened MuData file, such as `mod/rna`.

    Raises:
        ValueError: If no modality, or more than one, has a name of RNA.
    """
    found = [modality for modality in file["mod"] if modality.lower() in RNA_MODALITIES]
    if len(found) != 1:
        raise ValueError(
            f"{name} holds the modalities {', '.join(file['mod']) or 'none'}, and {len(found)} of them are called "
            f'{", ".join(RNA_MODALITIES)}: write the one with genes, mudata.read_h5mu("{name}")["..."].write_h5ad(...)'
        )
    return f"mod/{found[0]}"


def checked_slots(adata: Any, name: str) -> Any:
    """Return `adata` after checking that its sparse matrices are not damaged.

    The indices of a matrix on disk are checked later, as they are read.

    Raises:
        ValueError: If one is damaged; the message begins with `name`, the name of the file.
    """
    for layer in layer_names(adata):
        check_matrix(adata.layers[layer], f"{name}: layers/{layer}")
    for owner, slot in ((adata, "X"), (adata.raw, "raw/X")):
        matrix: Any = None if owner is None else matrix_of(owner)
        if hasattr(matrix, "group"):
            by_columns = matrix.format == "csc"
            check_stored(matrix.group, matrix.shape[by_columns], f"{name}: {slot}")
            if by_columns:  # rows of such a matrix need all its indices, so all are checked now
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


def frame_values(frame: Any, label: str) -> np.ndarray:
    """Return the values of a DataFrame of numbers; raise ValueError naming columns that hold none."""
    others = [str(name) for name, dtype in frame.dtypes.items() if dtype.kind not in "buif"]
    if others:
        more = ", ..." if len(others) > 5 else ""
        raise ValueError(
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
