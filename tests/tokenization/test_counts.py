"""Counts are found, recovered exactly, read in order, or refused with a reason."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import torch
from scipy import sparse

from xtrimogene.tokenization.counts_xtrimogene import find_counts

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
GENES = [f"G{i}" for i in range(40)]


def same(left, right) -> bool:
    return left.shape == right.shape and (sparse.csr_matrix(left) != sparse.csr_matrix(right)).nnz == 0


@pytest.fixture
def counts() -> sparse.csr_matrix:
    """30 cells x 40 genes with values up to about 100; the fourth cell is empty."""
    rng = np.random.default_rng(0)
    dense = rng.negative_binomial(0.4, 0.04, size=(30, 40))
    dense[3] = 0
    return sparse.csr_matrix(dense.astype(np.int32))


@pytest.fixture
def adata(counts) -> anndata.AnnData:
    return anndata.AnnData(
        counts.astype(np.float32),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(30)]),
        var=pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(40)]}, index=GENES),
    )


def normalise(adata: anndata.AnnData, base: float | None = None) -> anndata.AnnData:
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata, base=base)
    return adata


@pytest.mark.parametrize(
    "make",
    [
        lambda counts: counts,
        lambda counts: counts.tocsc().astype(np.float64),
        lambda counts: counts.tocoo(),
        lambda counts: sparse.csr_array(counts),
        lambda counts: counts.toarray(),
        lambda counts: counts.toarray().astype(np.float32),
        lambda counts: torch.tensor(counts.toarray()),
        lambda counts: pd.DataFrame(counts.toarray(), columns=GENES),
        lambda counts: anndata.AnnData(counts),
    ],
    ids=["csr", "csc", "coo", "csr_array", "array", "float", "tensor", "frame", "anndata"],
)
def test_every_kind_of_matrix(counts, make):
    source = find_counts(make(counts), gene_names=GENES)
    assert (source.n_cells, source.n_columns, source.state) == (30, 40, "counts")
    assert source.gene_names == GENES
    block = source.rows(2, 11)
    assert isinstance(block, sparse.csr_matrix)
    assert block.dtype == np.float32
    assert same(block, counts[2:11])


def test_rows_are_canonical_and_leave_the_data_alone():
    messy = sparse.csr_matrix(([1.0, 2, 0, 5], [2, 2, 0, 1], [0, 3, 4]), shape=(2, 3))
    block = find_counts(messy, gene_names=list("abc")).rows(0, 2)
    assert (block.indices.tolist(), block.data.tolist()) == ([2, 1], [3, 5])
    assert block.has_canonical_format
    assert messy.data.tolist() == [1, 2, 0, 5]


def test_chunks_and_chosen_rows_keep_the_order(adata, counts):
    source = find_counts(normalise(adata))
    assert same(sparse.vstack([source.rows(start, start + 7) for start in range(0, 30, 7)]), counts)
    chosen = [29, 3, 3, 0]
    assert same(source.rows_at(chosen), counts[chosen])
    assert source.cell_names[:2] == ["cell0", "cell1"]


def test_the_slot_order(adata, counts):
    adata.raw = adata.copy()
    adata.layers["counts"] = counts * 2
    assert find_counts(adata).slot == 'layers["counts"]'
    del adata.layers["counts"]
    normalise(adata)
    source = find_counts(adata)
    assert (source.slot, source.description) == ("raw.X", "counts from raw.X")


def test_counts_further_on_win_over_logarithms_before(adata, counts):
    raw = normalise(adata.copy())
    adata.raw = raw
    assert find_counts(adata).slot == "X"
    assert find_counts(adata, layer="raw.X").state == "log1p"


def test_raw_has_names_of_its_own(adata, counts):
    adata.raw = adata.copy()
    part = normalise(adata)[:, 5:10].copy()
    source = find_counts(part)
    assert (source.n_columns, source.state) == (40, "counts")
    assert list(source.name_candidates) == ["raw.var_names", 'raw.var["gene_ids"]']
    assert source.gene_names == GENES


@pytest.fixture
def variable(adata):
    """Log-normalised values of all 40 genes in raw, and counts of 9 variable ones in a layer."""
    adata.layers["counts"] = adata.X.copy()
    normalise(adata)
    adata.raw = adata
    return adata[:, 10:19].copy()


def test_counts_of_all_genes_win_over_counts_of_chosen_ones(variable, counts, tmp_path):
    source = find_counts(variable)
    assert same(source.rows(0, 30), counts)
    assert source.description.startswith("counts recovered from log1p-normalised raw.X (median total ")
    assert source.description.endswith('); taken before layers["counts"], which holds 9 genes only, and this 40')
    variable.write_h5ad(tmp_path / "a.h5ad")
    with find_counts(tmp_path / "a.h5ad") as backed:
        assert (backed.slot, backed.description) == ("raw.X", source.description)


def test_chosen_genes_are_zeros_elsewhere(adata, counts):
    """Tools that keep the shape of a table set all other genes to 0."""
    chosen = counts.tolil()
    chosen[:, 9:] = 0
    adata.layers["counts"] = chosen.tocsr()
    source = find_counts(normalise(adata))
    assert same(source.rows(0, 30), counts)
    assert 'taken before layers["counts"], which holds 9 genes only' in source.description


def test_a_layer_that_is_asked_for_is_taken_with_a_warning(variable, counts):
    source = find_counts(variable, layer="counts")
    assert same(source.rows(0, 30), counts[:, 10:19])
    assert (
        "CAUTION: layer='counts' is asked for, and layers[\"counts\"] holds 9 genes only, raw.X 40"
        in source.description
    )


def test_chosen_genes_are_warned_of_where_counts_of_all_cannot_be_had(variable, counts):
    smooth = variable.raw.to_adata()
    smooth.X = smooth.X.toarray() + np.roll(smooth.X.toarray(), 7, axis=0)
    variable.raw = smooth
    source = find_counts(variable)
    assert same(source.rows(0, 30), counts[:, 10:19])
    assert (
        'CAUTION: layers["counts"] holds 9 genes only and raw.X 40, of which counts cannot be had' in source.description
    )


def test_names_that_only_chosen_genes_have_keep_them(variable):
    variable.var["mine"] = [f"M{gene}" for gene in variable.var_names]
    source = find_counts(variable, gene_column="mine")
    assert source.slot == 'layers["counts"]'
    assert "CAUTION: names that raw.X has not are asked for" in source.description


@pytest.mark.parametrize("change", ["rare genes left out", "counts corrected"])
def test_a_slot_of_hardly_more_genes_does_not_win(adata, counts, change):
    raw, corrected = adata.copy(), counts.toarray()
    if change == "rare genes left out":  # 20 genes with 1 count each
        rare = np.zeros((30, 20))
        rare[np.arange(20), np.arange(20)] = 1
        raw = anndata.AnnData(np.hstack([adata.X.toarray(), rare]))
        raw.var_names = [*GENES, *(f"R{i}" for i in range(20))]
    else:  # every gene stays in some cell
        corrected[corrected < 5] = 0
    adata.raw = raw
    adata.layers["counts"] = sparse.csr_matrix(corrected)
    source = find_counts(adata)
    assert (source.slot, source.description) == ('layers["counts"]', 'counts from layers["counts"]')


def test_a_table_of_R_keeps_its_first_gene(counts, tmp_path):
    """It has no title above the names of the cells; the first gene has values that are all different."""
    frame = pd.DataFrame(counts.toarray(), columns=GENES, index=[f"cell{i}" for i in range(30)])
    frame["G0"] = np.arange(30)
    frame.to_csv(tmp_path / "cells.csv")
    (tmp_path / "cells.csv").write_text((tmp_path / "cells.csv").read_text().removeprefix(","))
    source = find_counts(tmp_path / "cells.csv")
    assert (source.gene_names, source.cell_names) == (GENES, list(frame.index))
    assert same(source.rows(0, 30), frame.to_numpy())


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_a_zarr_folder(adata, counts, tmp_path):
    adata.write_zarr(tmp_path / "cells.zarr")
    assert same(find_counts(tmp_path / "cells.zarr").rows(0, 30), counts)


def test_a_layer_by_name(adata, counts):
    adata.layers["spliced"] = counts * 3
    assert same(find_counts(adata, layer="spliced").rows(0, 30), counts * 3)
    assert find_counts(adata).slot == "X"


def test_gene_names_come_from_where_they_are_asked(adata):
    assert list(find_counts(adata).name_candidates) == ["var_names", 'var["gene_ids"]']
    assert find_counts(adata, gene_column="gene_ids").gene_names[0] == "ENSG00000000000"
    assert find_counts(adata, gene_names=GENES[::-1]).gene_names == GENES[::-1]


@pytest.mark.parametrize("base", [None, 2, 10])
@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log1p_is_undone(adata, counts, base, is_recorded, dtype):
    adata.X = adata.X.astype(dtype)
    normalise(adata, base)
    if not is_recorded:
        del adata.uns["log1p"]
    source = find_counts(adata)
    assert source.state == "log1p"
    assert source.description.startswith("counts recovered from log1p-normalised X (median total ")
    assert same(source.rows(0, 30), counts)


def test_normalisation_without_logarithm_is_undone(adata, counts):
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    source = find_counts(adata)
    assert source.state == "normalized"
    assert same(source.rows(0, 30), counts)


def test_large_counts_survive_float32():
    counts = np.array([[1, 2, 9999, 10000, 7], [1, 1, 3, 12345, 0]])
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    assert same(find_counts(logged, gene_names=GENES[:5]).rows(0, 2), counts)


def test_a_smallest_count_above_one():
    counts = np.array([[2, 3, 5, 7, 0, 11], [3, 4, 5, 0, 0, 7], [1, 2, 3, 0, 9, 1]])
    logged = np.log1p(counts / 40 * 1e4)
    assert same(find_counts(logged, gene_names=GENES[:6]).rows(0, 3), counts)


def test_rounded_logarithms(adata, counts):
    normalise(adata)
    adata.X.data = adata.X.data.round(3)
    assert same(find_counts(adata).rows(0, 30), counts)


def test_zeros_only_are_counts():
    source = find_counts(np.zeros((2, 3)), gene_names=list("abc"))
    assert source.rows(0, 2).nnz == 0


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("is_logged", [False, True])
def test_backed_reads_as_in_memory(adata, counts, tmp_path, kind, is_logged):
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
def test_tables(counts, tmp_path, name):
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


def test_array_files(counts, tmp_path):
    np.save(tmp_path / "a.npy", counts.toarray())
    sparse.save_npz(tmp_path / "a.npz", counts)
    for name in ("a.npy", "a.npz"):
        assert same(find_counts(tmp_path / name, gene_names=GENES).rows(0, 30), counts)


def with_value(value: float) -> np.ndarray:
    matrix = np.ones((2, 3))
    matrix[0, 1] = value
    return matrix


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones(3), r"array has 1 dimensions, shape \(3,\)"),
        (np.ones((1, 2, 3)), r"array has 3 dimensions, shape \(1, 2, 3\)"),
        (np.ones((0, 3)), "array has 0 cells and 3 genes"),
        (np.ones((3, 0)), "array has 3 cells and 0 genes"),
        (np.array([["a", "b", "c"]]), "dtype <U1"),
        (np.array([[1, None, 2]]), "dtype object"),
        (pd.DataFrame({"a": [1], "b": ["x"], "c": [2]}), "DataFrame has 1 of 3 columns that hold no numbers: b; leave"),
        (np.ones((2, 5)), "gene_names has 3 names, array has 5 columns"),
        (with_value(np.nan), "array: 1 values are NaN or infinite"),
        (with_value(np.inf), "array: 1 values are NaN or infinite"),
        (with_value(-1.5), r"scaled: 1 values are negative \(smallest -1.5\)"),
        (with_value(0.5), "fractions among whole numbers: round corrected counts"),
        (np.random.default_rng(0).gamma(1, 2, (20, 3)), "averaged, imputed, batch-corrected"),
        (np.random.default_rng(0).gamma(1, 900, (20, 3)), r"no counts \(TPM\)"),
    ],
)
def test_matrices_that_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        find_counts(data, gene_names=list("abc"))


def test_an_array_needs_names(counts):
    with pytest.raises(ValueError, match=r"gene_names is needed: array of shape \(30, 40\)"):
        find_counts(counts)


@pytest.mark.parametrize("data", [None, 3, [[1, 2]], {"X": 1}])
def test_other_objects_are_named(data):
    with pytest.raises(TypeError, match=rf"data is a builtins\.{type(data).__name__}; accepted are AnnData"):
        find_counts(data)


def test_arguments_that_need_anndata(counts):
    with pytest.raises(ValueError, match="layer='counts' needs AnnData, data is a csr_matrix"):
        find_counts(counts, gene_names=GENES, layer="counts")


def test_slots_and_columns_that_are_missing(adata):
    with pytest.raises(ValueError, match="layer='spliced' is not there; slots are X"):
        find_counts(adata, layer="spliced")
    with pytest.raises(ValueError, match=r"gene_column='symbol' is not in var; its columns are \['gene_ids'\]"):
        find_counts(adata, gene_column="symbol")


def test_every_slot_inspected_is_reported(adata):
    smoothed = normalise(adata).X.toarray()
    adata.X = smoothed - smoothed.mean(axis=0)
    adata.layers["counts"] = (smoothed + smoothed[::-1] + np.roll(smoothed, 7, axis=0)) / 3
    with pytest.raises(ValueError, match=r'(?s)layers\["counts"\]: fractions.*X: scaled.*adata\.layers\["counts"\] ='):
        find_counts(adata)


def test_bad_values_outside_the_sample_are_caught_on_reading():
    matrix = np.ones((20_000, 2), dtype=np.float32)
    matrix[750, 0] = 0.5
    matrix[950, 0] = np.nan
    source = find_counts(matrix, gene_names=["a", "b"])
    with pytest.raises(ValueError, match="array, cells 710 to 800: fractions"):
        source.rows(710, 800)
    with pytest.raises(ValueError, match="array, cells 800 to 1,000: 1 values are NaN"):
        source.rows(800, 1000)


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


def shared(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path.name} of the shared data is not here")
    return path


def test_pbmc68k_reduced_is_recovered_from_its_rounded_logarithms():
    expected = anndata.read_h5ad(shared("format_fixtures", "h5ad", "pbmc68k_reduced_counts_700x765.h5ad")).X
    source = find_counts(scanpy.datasets.pbmc68k_reduced())
    assert source.description == "counts recovered from log1p-normalised raw.X (median total 653)"
    assert same(source.rows(0, 700), expected)


@pytest.mark.parametrize("layer", [None, "X", "raw.X"])
def test_all_slots_of_one_file_agree(layer):
    path = shared("format_fixtures", "h5ad", "variant_dense_lognorm_X_counts_in_layer_60.h5ad")
    with find_counts(path, layer=layer) as source:
        assert same(source.rows(0, 60), anndata.read_h5ad(path).layers["counts"])


@pytest.mark.parametrize("name", ["pbmc_facs_zheng", "celllines_mixology_dev", "perturbseq_norman_mcfaline500"])
def test_real_counts_survive_log1p(name):
    path = shared(name, f"{name}.h5ad")
    with find_counts(path) as source:
        assert (source.slot, source.state) == ("X", "counts")
        counts = source.rows(0, 600)
        logged = normalise(anndata.AnnData(counts.copy()))
        assert same(find_counts(logged).rows(0, 600), counts)


def test_tpm_is_refused():
    path = shared("format_fixtures", "bulk_gdsc_10lines_19264_scfoundation_demo.csv.gz")
    with pytest.raises(ValueError, match="counts cannot be recovered"):
        find_counts(path)


@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        (("10x_h5", "real_pbmc_182cells_GRCh38_36601genes.h5"), (182, 36601)),
        (("10x_h5", "cellranger_v1.2.0_hg19_chr21.h5"), (12, 343)),
        (("10x_mtx_v3_scminer",), (100, 500)),
    ],
)
def test_10x_files(parts, shape):
    source = find_counts(shared("format_fixtures", *parts))
    assert ((source.n_cells, source.n_columns), source.state) == (shape, "counts")
    assert 'var["gene_ids"]' in source.name_candidates


def test_a_10x_file_of_two_genomes_is_refused_with_what_reads_one(tmp_path):
    path = shared("format_fixtures", "10x_h5", "cellranger_v1.2.0_multiple_genomes.h5")
    with pytest.raises(ValueError, match=r'2 genomes, another_genome, hg19_chr21: .*genome="hg19_chr21"\)'):
        find_counts(path)
    scanpy.read_10x_h5(path, genome="hg19_chr21").write_h5ad(tmp_path / "hg19_chr21.h5ad")
    assert find_counts(tmp_path / "hg19_chr21.h5ad").n_columns == 343
