"""Damaged sparse matrices are refused before anything follows their indices, which could end the process."""

import shutil

import anndata
import h5py
import numpy as np
import pytest
import scanpy as sc
import zarr
from scipy import sparse

from xtrimogene.tokenization import reading as runs
from xtrimogene.tokenization.counts_xtrimogene import find_counts
from xtrimogene.tokenization.reading import cells_of
from xtrimogene.tokenization.sparse_xtrimogene import check_indices, check_starts
from xtrimogene.training.data.convert import convert_files

DAMAGES = {
    "negative": ("indices", 5, -4, "indices holds -4 at place 5, and it needs 0 to "),
    "too large": ("indices", 5, 10**6, "indices holds 1,000,000 at place 5, and it needs 0 to "),
    "beyond": ("indptr", 3, 10**7, "indptr holds 10,000,000 at place 3"),
    "descending": ("indptr", 3, 1, "indptr holds 1 at place 3"),
    "first": ("indptr", 0, 2, "indptr holds 2 at place 0"),
    "last": ("indptr", -1, 10**7, "indptr holds 10,000,000 at place "),
    "short indptr": ("indptr", slice(None, -3), None, "indptr has "),
    "short data": ("data", slice(None, -7), None, "indices holds "),
    "short indices": ("indices", slice(None, -7), None, "indices holds "),
}
SLOTS = {"X": "X", "raw/X": "raw.X", "layers/counts": "counts"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """30 real cells in every format that holds compressed sparse matrices, by name of the file."""
    folder = tmp_path_factory.mktemp("whole")
    cells = sc.datasets.pbmc68k_reduced()[:30]
    counts = find_counts(cells).rows(0, 30)
    for layout in ("csr", "csc"):
        matrix = counts.asformat(layout)
        adata = anndata.AnnData(matrix, var=cells.raw.var[[]], layers={"counts": matrix.copy()})
        adata.raw = adata
        adata.write_h5ad(folder / f"{layout}.h5ad")
        adata.write_zarr(folder / f"{layout}.zarr")
        sparse.save_npz(folder / f"{layout}.npz", matrix)
    with h5py.File(folder / "tenx.h5", "w") as file:
        texts = {"id": adata.var_names, "name": adata.var_names, "feature_type": ["Gene Expression"] * adata.n_vars}
        for name, values in {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr}.items():
            file[f"matrix/{name}"] = values.astype(np.int64)
        file["matrix/shape"] = np.array(counts.shape[::-1])
        file["matrix/barcodes"] = np.array(adata.obs_names, "S")
        for name, values in texts.items():
            file[f"matrix/features/{name}"] = np.array(values, "S")
    return folder


def damage(path, slot, array, place, value):
    """Change a value of an array of a file, or cut the array."""

    def changed(values):
        if value is None:
            return values[place]
        values[place] = value
        return values

    if path.suffix == ".npz":
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **{**arrays, array: changed(arrays[array])})
    elif path.suffix == ".zarr":
        group = zarr.open_group(path, mode="r+")[slot]
        group.create_array(array, data=changed(group[array][:]), overwrite=True)
        zarr.consolidate_metadata(path)  # which holds the old length
    else:
        with h5py.File(path, "r+") as file:
            values = changed(file[slot][array][:])
            del file[slot][array]
            file[slot][array] = values


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["csr.h5ad", "csc.h5ad", "csr.zarr", "csc.zarr", "csr.npz", "csc.npz", "tenx.h5"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning", "ignore:Variable names:UserWarning")
def test_every_format_names_the_file_the_array_and_the_place(whole, tmp_path, tokenizer, name, kind):
    array, place, value, message = DAMAGES[kind]
    is_npz, is_anndata = name.endswith(".npz"), not name.startswith("tenx") and not name.endswith(".npz")
    for slot, layer in SLOTS.items() if is_anndata else [("matrix", None)]:
        path = tmp_path / f"{slot.replace('/', ' ')} {name}"
        (shutil.copytree if path.suffix == ".zarr" else shutil.copyfile)(whole / name, path)
        damage(path, slot, array, place, value)
        names = {"gene_names": ["TP53"] * 765} if is_npz else {}
        expected = f"^{path.name}: {slot}/{message}"
        with pytest.raises(ValueError, match=expected), find_counts(path, layer=layer, **names) as source:
            source.rows(0, 30)
        if is_npz:
            continue
        options = {"tokenizer": tokenizer, "min_genes": 0, "strict": True, "layer": layer, "say": lambda line: None}
        with pytest.raises(ValueError, match=expected):
            convert_files([path], tmp_path / f"corpus {slot.replace('/', ' ')}", **options)
        with pytest.raises(ValueError, match=f"^{path.name}: {slot}/"):
            runs.read_cells(path)
        if is_anndata:
            with pytest.raises(ValueError, match=f"^{path.name}: {slot}/"):
                cells_of(path, max_cells=20)


@pytest.mark.parametrize("kind", ["negative", "too large", "beyond", "descending", "last"])
@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_matrices_in_memory(kind, layout):
    array, place, value, message = DAMAGES[kind]
    matrix = sparse.random(30, 40, 0.3, format=layout, random_state=0)
    matrix.data = np.ceil(matrix.data * 9)
    getattr(matrix, array)[place] = value
    adata = anndata.AnnData(np.ones((30, 40), np.float32), layers={"counts": matrix})
    with pytest.raises(ValueError, match=f"array/{message}"):
        find_counts(matrix, gene_names=[f"G{i}" for i in range(40)])
    with pytest.raises(ValueError, match=rf'layers\["counts"\]/{message}'):
        find_counts(adata)


def test_coordinates_in_memory():
    matrix = sparse.random(30, 40, 0.3, format="coo", random_state=0)
    matrix.col[7] = 40
    with pytest.raises(ValueError, match="array/col/indices holds 40 at place 7, and it needs 0 to 39"):
        find_counts(matrix, gene_names=[f"G{i}" for i in range(40)])


def test_the_place_is_that_in_the_file_for_every_part_that_is_read(tmp_path):
    """Cells behind the sample are checked when they are read, whichever are asked for."""
    matrix = sparse.csr_matrix(np.ones((20_000, 2), np.float32))
    anndata.AnnData(matrix).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["X/indices"][2 * 750 + 1] = 2
    with find_counts(tmp_path / "a.h5ad") as source:
        assert source.rows(0, 700).nnz == 1_400
        for read in (lambda: source.rows(710, 800), lambda: source.rows_at([9, 750, 3])):
            with pytest.raises(ValueError, match=r"^a\.h5ad: X/indices holds 2 at place 1,501, and it needs 0 to 1"):
                read()


def test_unsorted_indices_are_fine():
    matrix = sparse.csr_matrix(([1, 2, 3], [2, 0, 1], [0, 2, 3]), shape=(2, 3))
    found = find_counts(matrix, gene_names=list("abc")).rows(0, 2)
    np.testing.assert_array_equal(found.toarray(), [[2, 0, 1], [0, 3, 0]])


def test_limits():
    check_starts(np.array([0, 0, 3, 3]), 3, 3, 3, "X")
    check_indices(np.array([0, 4, 2]), 5, "X")
    check_indices(np.array([], int), 5, "X")
    with pytest.raises(ValueError, match="X/indices holds 5 at place 12, and it needs 0 to 4"):
        check_indices(np.array([0, 4, 5]), 5, "X", 10)
    with pytest.raises(ValueError, match="X/indptr holds 4 at place 3, and 3 is before it and 3 values are stored"):
        check_starts(np.array([0, 0, 3, 4]), 3, 3, 3, "X")
