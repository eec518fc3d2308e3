"""Files of every format: read as what they hold, in parts, or refused with a reason."""

import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import zarr
from scipy import sparse

from xtrimogene.tokenization.counts_xtrimogene import find_counts
from xtrimogene.tokenization.files_xtrimogene import load, log_base, table_format
from xtrimogene.tokenization.sparse_xtrimogene import CellsError
from xtrimogene.tokenization.stored import open_cells

GENES = [f"G{i}" for i in range(40)]


def test_a_table_of_R_keeps_its_first_gene(same, counts, tmp_path):
    """It has no title above the names of the cells; the first gene has values that are all different."""
    frame = pd.DataFrame(counts.toarray(), columns=GENES, index=[f"cell{i}" for i in range(30)])
    frame["G0"] = np.arange(30)
    frame.to_csv(tmp_path / "cells.csv")
    (tmp_path / "cells.csv").write_text((tmp_path / "cells.csv").read_text().removeprefix(","))
    source = find_counts(tmp_path / "cells.csv")
    assert (source.gene_names, source.cell_names) == (GENES, list(frame.index))
    assert same(source.rows(0, 30), frame.to_numpy())


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_a_zarr_folder(same, adata, counts, tmp_path):
    adata.write_zarr(tmp_path / "cells.zarr")
    assert same(find_counts(tmp_path / "cells.zarr").rows(0, 30), counts)


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("is_logged", [False, True])
def test_backed_reads_as_in_memory(same, normalise, adata, counts, tmp_path, kind, is_logged):
    if is_logged:
        normalise(adata)
    adata.X = {"csr": adata.X, "csc": adata.X.tocsc(), "dense": adata.X.toarray()}[kind]
    adata.raw = adata
    adata.write_h5ad(tmp_path / "a.h5ad")
    with find_counts(tmp_path / "a.h5ad") as source:
        assert same(source.rows(4, 21), counts[4:21])
        assert same(source.rows_at([9, 2, 9]), counts[[9, 2, 9]])
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert same(find_counts(backed).rows(0, 30), counts)
    backed.file.close()


def test_x_of_a_file_is_not_read_before_it_is_asked_for(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    with find_counts(tmp_path / "a.h5ad") as source:
        assert not isinstance(source._matrix, sparse.csr_matrix)
    with pytest.raises(Exception, match=r"(?i)closed|not a location|invalid|unable"):
        source.rows(0, 1)


def test_a_table_without_names_of_cells_keeps_its_first_gene(tmp_path):
    frame = pd.DataFrame({"A1BG": [1, 0, 1], "A1CF": [2, 2, 0], "A2M": [0, 5, 3]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.assign(cell=[7, 9, 8])[["cell", *frame.columns]].to_csv(tmp_path / "numbered.csv", index=False)
    for name in ("a.csv", "numbered.csv"):
        assert list(find_counts(tmp_path / name).gene_names) == ["A1BG", "A1CF", "A2M"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz"])
def test_tables(same, counts, tmp_path, name):
    frame = pd.DataFrame(counts.toarray(), columns=GENES, index=[f"cell{i}" for i in range(30)])
    frame.to_csv(tmp_path / name, sep="," if ".csv" in name else "\t")
    source = find_counts(str(tmp_path / name))
    assert (source.slot, source.gene_names, source.cell_names[29]) == (f"file {name}", GENES, "cell29")
    assert same(source.rows(0, 30), counts)


def test_columns_of_text_in_a_table_are_named(counts, tmp_path):
    frame = pd.DataFrame(counts.toarray(), columns=GENES)
    frame.insert(0, "label", "B")
    frame.assign(day=pd.Timestamp(2024, 3, 1)).to_csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a\.csv has 2 of 42 columns that hold no numbers: label, day; leave"):
        find_counts(tmp_path / "a.csv")


def test_array_files(same, counts, tmp_path):
    np.save(tmp_path / "a.npy", counts.toarray())
    sparse.save_npz(tmp_path / "a.npz", counts)
    for name in ("a.npy", "a.npz"):
        assert same(find_counts(tmp_path / name, gene_names=GENES).rows(0, 30), counts)


def test_files_that_are_refused(adata, tmp_path):
    adata.write_h5ad(tmp_path / "pbmc_3k.h5ad")
    with pytest.raises(FileNotFoundError, match=r"does not exist; similar names there: pbmc_3k\.h5ad"):
        find_counts(tmp_path / "pbmc3k.h5ad")
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(ValueError, match=r"a\.xlsx ends in '\.xlsx'; accepted are AnnData"):
        find_counts(tmp_path / "a.xlsx")
    adata.X = -adata.X
    adata.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(ValueError, match=r"bad\.h5ad: no counts found in 1 slots"):
        find_counts(tmp_path / "bad.h5ad")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.h5ad", {"X": np.ones(3), "var/x": np.ones(3)}, "a.h5ad holds X, var and no obs, so it is no AnnData"),
        ("a.h5ad", {}, "a.h5ad holds nothing and no obs or var"),
        ("a.h5", {"obs/x": np.ones(3)}, "a.h5 holds obs and no barcodes of 10x: if it is AnnData, name it .h5ad"),
        ("a.h5", {"x": np.ones(3)}, "a.h5 holds x and no barcodes of 10x"),
        ("a.h5", None, "a.h5 ends in '.h5' and cannot be read as HDF5"),
    ],
)
def test_hdf5_files_that_are_refused(tmp_path, name, content, message):
    if content is None:
        (tmp_path / name).write_text("<html>404</html>")
    else:
        with h5py.File(tmp_path / name, "w") as file:
            for key, values in content.items():
                file[key] = values
    with pytest.raises(ValueError, match=message):
        find_counts(tmp_path / name)


def test_a_folder_without_a_matrix_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds notes\.txt and no matrix\.mtx: give a 10x mtx folder"):
        find_counts(tmp_path)


@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        (("10x_h5", "real_pbmc_182cells_GRCh38_36601genes.h5"), (182, 36601)),
        (("10x_h5", "cellranger_v1.2.0_hg19_chr21.h5"), (12, 343)),
        (("10x_mtx_v3_scminer",), (100, 500)),
    ],
)
def test_10x_files(shared_file, parts, shape):
    source = find_counts(shared_file("format_fixtures", *parts))
    assert ((source.n_cells, source.n_columns), source.state) == (shape, "counts")
    assert 'var["gene_ids"]' in source.name_candidates


@pytest.mark.parametrize(
    ("array", "told"),
    [("id", "names no features"), ("name", "features/name has 1 of 36,601 names with a zero byte")],
)
def test_features_of_a_10x_file_without_ids_and_with_blanked_names_are_refused(shared_file, tmp_path, array, told):
    source = shared_file("format_fixtures", "10x_h5", "real_pbmc_182cells_GRCh38_36601genes.h5")
    path = tmp_path / "cells.h5"
    shutil.copyfile(source, path)
    with h5py.File(path, "r+") as file:
        features = file["matrix/features"]
        names = features[array][:].astype("S20")
        del features[array]
        if array == "name":
            names[7] = b"CD\x003D"
            features[array] = names
    with pytest.raises(ValueError, match=f"cells.h5.*{told}"):
        find_counts(path)


def test_a_10x_file_of_two_genomes_is_refused_with_what_reads_one(shared_file, tmp_path):
    path = shared_file("format_fixtures", "10x_h5", "cellranger_v1.2.0_multiple_genomes.h5")
    with pytest.raises(ValueError, match=r'2 genomes, another_genome, hg19_chr21: .*genome="hg19_chr21"\)'):
        find_counts(path)
    scanpy.read_10x_h5(path, genome="hg19_chr21").write_h5ad(tmp_path / "hg19_chr21.h5ad")
    assert find_counts(tmp_path / "hg19_chr21.h5ad").n_columns == 343


@pytest.mark.parametrize(
    ("name", "text", "decimal"),
    [
        ("a.csv", "cell;" + ";".join(f"GENE{gene}" for gene in range(12_000)) + "\nA;1;0\nB;2,25;3\n", ","),
        ("a.csv", "cell;CD3D;LYZ\nA1,2;1.5;0\n", "."),
        ("a.tsv", "cell\tCD3D\tLYZ\nA1,2\t1,234\t0\n", "."),  # thousands
        ("a.csv", "cell,CD3D,LYZ\nA;B,1,2\n", "."),
    ],
)
def test_decimal_commas_are_those_of_numbers_between_semicolons(tmp_path, name, text, decimal):
    (tmp_path / name).write_text(text)
    assert table_format(tmp_path / name)["decimal"] == decimal


def mtx_folder(folder, matrix):
    folder.mkdir()
    (folder / "matrix.mtx").write_text(matrix)
    (folder / "barcodes.tsv").write_text("A-1\nB-1\n")
    (folder / "features.tsv").write_text('ENSG1\tCD3D\nENSG2\t5"-gene\nENSG3\tCD3D\n')
    return folder


WHOLE = "%%MatrixMarket matrix coordinate integer general\n3 2 3\n1 1 4\n3 1 2\n2 2 7\n"


def test_a_10x_folder_with_a_quote_in_a_name_is_read_by_both_readers(tmp_path):
    folder = mtx_folder(tmp_path / "tenx", WHOLE)
    adata = load(folder)
    assert list(adata.var_names) == ["CD3D", '5"-gene', "CD3D-1"]
    assert adata.X.toarray().tolist() == [[4, 0, 2], [0, 7, 0]]
    with open_cells(folder) as cells:
        assert cells.X[0:2].toarray().tolist() == [[4, 0, 2], [0, 7, 0]]


@pytest.mark.parametrize(
    "matrix",
    [
        WHOLE[:-6], WHOLE[:49], WHOLE[:-6] + "2 2 x\n", WHOLE.replace("coordinate", "array"),
        WHOLE.replace("integer", "pattern"),
    ],
    ids=["cut off", "no sizes", "text", "dense", "without values"],
)  # fmt: skip
def test_a_damaged_matrix_is_named_by_both_readers(tmp_path, matrix):
    folder = mtx_folder(tmp_path / "tenx", matrix)
    with pytest.raises(ValueError, match=r"matrix\.mtx"):
        load(folder)
    with pytest.raises(ValueError, match=r"matrix\.mtx"), open_cells(folder) as cells:
        cells.X[0:2]


@pytest.mark.parametrize("table", ["obs", "var"])
def test_a_column_that_is_listed_and_not_there_is_named_by_both_readers(adata, tmp_path, table):
    frame = getattr(adata, table)
    frame["kind"] = "a"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file[table]["kind"]
    with pytest.raises(ValueError, match=f"cells.h5ad: {table} lists the column 'kind' and does not hold it"):
        load(tmp_path / "cells.h5ad")
    with (
        pytest.raises(ValueError, match=f"cells.h5ad: {table} lists the column 'kind' and does not hold it"),
        open_cells(tmp_path / "cells.h5ad", ["kind"] if table == "obs" else []),
    ):
        pass


@pytest.mark.parametrize(
    ("said", "base"),
    [({"base": 2.0}, 2.0), ({"base": np.array([10])}, 10.0), ({"base": "e"}, None), ({}, None), ("log", None)],
)
def test_the_base_of_the_logarithm_is_a_number_or_not_known(adata, said, base):
    adata.uns["log1p"] = said
    assert log_base(adata) == base


# -- files that other programs wrote, or that were damaged ------------------------------------------------------------


def tenx_h5(path, matrix, **features):
    with h5py.File(path, "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(matrix, name)
        file["matrix/barcodes"] = np.array([b"A-1", b"B-1"])
        for name, values in features.items():
            file[f"matrix/{name}" if name == "shape" else f"matrix/features/{name}"] = values


def test_a_10x_file_without_kinds_of_features_and_shape_is_read_by_both_readers(tmp_path):
    matrix = sparse.csr_matrix([[4, 0, 2], [0, 7, 0]])
    tenx_h5(tmp_path / "a.h5", matrix, id=["ENSG1", "ENSG2", "ENSG3"], name=["CD3D", "LYZ", "CD3D"])
    adata = load(tmp_path / "a.h5")
    assert list(adata.var_names) == ["CD3D", "LYZ", "CD3D"]
    assert list(adata.var["gene_ids"]) == ["ENSG1", "ENSG2", "ENSG3"]
    with open_cells(tmp_path / "a.h5") as cells:
        assert cells.X[0:2].toarray().tolist() == adata.X.toarray().tolist() == matrix.toarray().tolist()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, r"a\.h5: matrix names no features"),
        ({"id": ["E1", "E2", "E3"], "name": ["CD3D"]}, r"a\.h5: matrix names 3 and 1 features"),
        ({"id": ["E1", "E2", "E3"], "shape": [9, 2]}, r"a\.h5: matrix/shape is \[9, 2\], and there are 3 features"),
    ],
)
def test_a_10x_file_whose_parts_differ_is_refused_by_both_readers(tmp_path, features, message):
    features = {name: np.array(each, int if name == "shape" else "S") for name, each in features.items()}
    tenx_h5(tmp_path / "a.h5", sparse.csr_matrix([[4, 0, 2], [0, 7, 0]]), **features)
    with pytest.raises(CellsError, match=message):
        load(tmp_path / "a.h5")
    with pytest.raises(CellsError, match=message), open_cells(tmp_path / "a.h5"):
        pass


def test_zarr_that_is_no_anndata_is_named_by_both_readers(tmp_path):
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    zarr.save_array(tmp_path / "array.zarr", np.ones((3, 2)))
    for name, message in {"empty": "holds nothing and no obs or var", "array": r"is one array of zarr"}.items():
        with pytest.raises(CellsError, match=rf"{name}\.zarr {message}"):
            load(tmp_path / f"{name}.zarr")
        with pytest.raises(CellsError, match=rf"{name}\.zarr {message}"), open_cells(tmp_path / f"{name}.zarr"):
            pass


def test_mudata_under_the_name_of_anndata_is_named_by_both_readers(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        del file["X"]
        file.create_group("mod/rna")
        file.create_group("mod/prot")
    with pytest.raises(CellsError, match=r"a\.h5ad is MuData of prot, rna: name it \.h5mu"):
        load(tmp_path / "a.h5ad")
    with pytest.raises(CellsError, match=r"a\.h5ad is MuData of prot, rna"), open_cells(tmp_path / "a.h5ad"):
        pass


def test_endings_may_be_in_capitals(same, adata, counts, tmp_path):
    adata.write_h5ad(tmp_path / "A.H5AD")
    assert same(find_counts(tmp_path / "A.H5AD").rows(0, 30), counts)
    with open_cells(tmp_path / "A.H5AD") as cells:
        assert same(cells.X[0:30], counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X.astype(bool), r"a\.h5ad: X holds True and False"),
        (lambda X: X * np.float32(1e30), r"a\.h5ad: .*no gene has so many: the file is damaged"),
    ],
    ids=["true and false", "too large"],
)
def test_values_that_no_cell_has_are_refused(adata, tmp_path, change, message):
    adata.X = change(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(CellsError, match=message):
        find_counts(tmp_path / "a.h5ad")


def test_an_error_of_another_library_becomes_one_that_names_file_and_entry(adata, tmp_path):
    adata.obs["kind"] = pd.Categorical(["a", "b"] * 15)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        del file["obs/kind/codes"]
    with pytest.raises(CellsError, match=r"^a\.h5ad cannot be read at obs/kind .*: the file or matrix is damaged"):
        load(tmp_path / "a.h5ad")


def test_a_matrix_that_cannot_be_unpacked_is_named(adata, tmp_path):
    path = tmp_path / "a.h5ad"
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        place = file["X/data"].id.get_chunk_info(0).byte_offset
    held = bytearray(path.read_bytes())
    held[place : place + 8] = bytes(8)
    path.write_bytes(held)
    with pytest.raises(CellsError, match=r"^a\.h5ad: X cannot be read .*: the file or matrix is damaged"):
        find_counts(path)


def test_a_table_without_lines_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("\n\n")
    with pytest.raises(CellsError, match=r"a\.csv has no names in its first line"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize("slot", ["X", "raw/X"])
def test_a_matrix_of_other_cells_than_its_tables_is_named_by_both_readers(adata, tmp_path, slot):
    """anndata does not compare them where the matrix stays on disk."""
    adata.X = adata.X.toarray()
    adata.raw = adata
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        values, attributes = file[slot][...], dict(file[slot].attrs)
        del file[slot]
        file[slot] = np.concatenate([values, values[:2]])
        file[slot].attrs.update(attributes)
    message = rf"a\.h5ad: {slot} is 32 x 40, and its tables are of 30 cells and 40 columns"
    with pytest.raises(CellsError, match=message):
        load(tmp_path / "a.h5ad")
    with pytest.raises(CellsError, match=message), open_cells(tmp_path / "a.h5ad") as cells:
        _ = cells.X, cells.raw.X
