"""Counts are found, recovered exactly, read in order, or refused with a reason."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from xtrimogene.tokenization.counts_xtrimogene import find_counts

GENES = [f"G{i}" for i in range(40)]


def test_the_slot_order(normalise, adata, counts):
    adata.raw = adata.copy()
    adata.layers["counts"] = counts * 2
    assert find_counts(adata).slot == 'layers["counts"]'
    del adata.layers["counts"]
    normalise(adata)
    source = find_counts(adata)
    assert (source.slot, source.description) == ("raw.X", "counts from raw.X")


def test_counts_further_on_win_over_logarithms_before(normalise, adata, counts):
    raw = normalise(adata.copy())
    adata.raw = raw
    assert find_counts(adata).slot == "X"
    assert find_counts(adata, layer="raw.X").state == "log1p"


def test_a_slot_that_is_passed_over_is_told(adata, counts):
    adata.raw = adata.copy()
    broken = counts.astype(np.float32)
    broken.data[3] = np.nan
    adata.layers["counts"] = broken
    source = find_counts(adata)
    note = 'CAUTION: layers["counts"] is passed over: 1 values are NaN or infinite'
    assert (source.slot, source.description) == ("raw.X", f"counts from raw.X; {note}")


def test_raw_has_names_of_its_own(normalise, adata, counts):
    adata.raw = adata.copy()
    part = normalise(adata)[:, 5:10].copy()
    source = find_counts(part)
    assert (source.n_columns, source.state) == (40, "counts")
    assert list(source.name_candidates) == ["raw.var_names", 'raw.var["gene_ids"]']
    assert source.gene_names == GENES


@pytest.fixture
def variable(normalise, adata):
    """Log-normalised values of all 40 genes in raw, and counts of 9 variable ones in a layer."""
    adata.layers["counts"] = adata.X.copy()
    normalise(adata)
    adata.raw = adata
    return adata[:, 10:19].copy()


def test_counts_of_all_genes_win_over_counts_of_chosen_ones(same, variable, counts, tmp_path):
    source = find_counts(variable)
    assert same(source.rows(0, 30), counts)
    assert source.description.startswith("counts recovered from log1p-normalised raw.X (median total ")
    assert source.description.endswith('); taken before layers["counts"], which holds 9 genes only, and this 40')
    variable.write_h5ad(tmp_path / "a.h5ad")
    with find_counts(tmp_path / "a.h5ad") as backed:
        assert (backed.slot, backed.description) == ("raw.X", source.description)


def test_chosen_genes_are_zeros_elsewhere(same, normalise, adata, counts):
    """Tools that keep the shape of a table set all other genes to 0."""
    chosen = counts.tolil()
    chosen[:, 9:] = 0
    adata.layers["counts"] = chosen.tocsr()
    source = find_counts(normalise(adata))
    assert same(source.rows(0, 30), counts)
    assert 'taken before layers["counts"], which holds 9 genes only' in source.description


def test_a_layer_that_is_asked_for_is_taken_with_a_warning(same, variable, counts):
    source = find_counts(variable, layer="counts")
    assert same(source.rows(0, 30), counts[:, 10:19])
    assert (
        "CAUTION: layer='counts' is asked for, and layers[\"counts\"] holds 9 genes only, raw.X 40"
        in source.description
    )


def test_chosen_genes_are_warned_of_where_counts_of_all_cannot_be_had(same, variable, counts):
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


def test_a_layer_by_name(same, adata, counts):
    adata.layers["spliced"] = counts * 3
    assert same(find_counts(adata, layer="spliced").rows(0, 30), counts * 3)
    assert find_counts(adata).slot == "X"


def test_gene_names_come_from_where_they_are_asked(adata):
    assert list(find_counts(adata).name_candidates) == ["var_names", 'var["gene_ids"]']
    assert find_counts(adata, gene_column="gene_ids").gene_names[0] == "ENSG00000000000"
    assert find_counts(adata, gene_names=GENES[::-1]).gene_names == GENES[::-1]


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


def test_every_slot_inspected_is_reported(normalise, adata):
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


@pytest.mark.parametrize("layer", [None, "X", "raw.X"])
def test_all_slots_of_one_file_agree(same, shared_file, layer):
    path = shared_file("format_fixtures", "h5ad", "variant_dense_lognorm_X_counts_in_layer_60.h5ad")
    with find_counts(path, layer=layer) as source:
        assert same(source.rows(0, 60), anndata.read_h5ad(path).layers["counts"])
