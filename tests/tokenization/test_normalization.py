"""Counts are recovered from what was normalised, or refused."""

import anndata
import numpy as np
import pytest
import scanpy

from xtrimogene.tokenization.counts_xtrimogene import find_counts

GENES = [f"G{i}" for i in range(40)]


@pytest.mark.parametrize("base", [None, 2, 10])
@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log1p_is_undone(same, normalise, adata, counts, base, is_recorded, dtype):
    adata.X = adata.X.astype(dtype)
    normalise(adata, base)
    if not is_recorded:
        del adata.uns["log1p"]
    source = find_counts(adata)
    assert source.state == "log1p"
    assert source.description.startswith("counts recovered from log1p-normalised X (median total ")
    assert same(source.rows(0, 30), counts)


def test_normalisation_without_logarithm_is_undone(same, adata, counts):
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    source = find_counts(adata)
    assert source.state == "normalized"
    assert same(source.rows(0, 30), counts)


def test_large_counts_survive_float32(same):
    counts = np.array([[1, 2, 9999, 10000, 7], [1, 1, 3, 12345, 0]])
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    assert same(find_counts(logged, gene_names=GENES[:5]).rows(0, 2), counts)


def test_a_smallest_count_above_one(same):
    counts = np.array([[2, 3, 5, 7, 0, 11], [3, 4, 5, 0, 0, 7], [1, 2, 3, 0, 9, 1]])
    logged = np.log1p(counts / 40 * 1e4)
    assert same(find_counts(logged, gene_names=GENES[:6]).rows(0, 3), counts)


def test_rounded_logarithms(same, normalise, adata, counts):
    normalise(adata)
    adata.X.data = adata.X.data.round(3)
    assert same(find_counts(adata).rows(0, 30), counts)


def test_zeros_only_are_counts():
    source = find_counts(np.zeros((2, 3)), gene_names=list("abc"))
    assert source.rows(0, 2).nnz == 0


def test_pbmc68k_reduced_is_recovered_from_its_rounded_logarithms(same, shared_file):
    expected = anndata.read_h5ad(shared_file("format_fixtures", "h5ad", "pbmc68k_reduced_counts_700x765.h5ad")).X
    source = find_counts(scanpy.datasets.pbmc68k_reduced())
    assert source.description == "counts recovered from log1p-normalised raw.X (median total 653)"
    assert same(source.rows(0, 700), expected)


@pytest.mark.parametrize("name", ["pbmc_facs_zheng", "celllines_mixology_dev", "perturbseq_norman_mcfaline500"])
def test_real_counts_survive_log1p(same, normalise, shared_file, name):
    path = shared_file(name, f"{name}.h5ad")
    with find_counts(path) as source:
        assert (source.slot, source.state) == ("X", "counts")
        counts = source.rows(0, 600)
        logged = normalise(anndata.AnnData(counts.copy()))
        assert same(find_counts(logged).rows(0, 600), counts)


def test_tpm_is_refused(shared_file):
    path = shared_file("format_fixtures", "bulk_gdsc_10lines_19264_scfoundation_demo.csv.gz")
    with pytest.raises(ValueError, match="counts cannot be recovered"):
        find_counts(path)
