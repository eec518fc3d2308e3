"""Embeddings of real cells: every cell, in order, whatever the batches, and with a trace of where they came from."""

import numpy as np
import pytest

import xtrimogene


def embedding(adata, checkpoint, **options):
    return xtrimogene.tl.embed(adata, checkpoint, device="cpu", copy=True, **options).obsm["X_xtrimogene"]


def test_embeddings_do_not_depend_on_batches_or_order(checkpoint, real_cells):
    whole = embedding(real_cells, checkpoint)
    assert whole.shape[0] == real_cells.n_obs
    for batch_size in (1, 7, 64):
        other = embedding(real_cells, checkpoint, batch_size=batch_size)
        np.testing.assert_allclose(other, whole, atol=1e-5, rtol=0)
    order = np.random.default_rng(0).permutation(real_cells.n_obs)
    shuffled = embedding(real_cells[order].copy(), checkpoint, batch_size=16)
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-5, rtol=0)
    alone = embedding(real_cells[3:4].copy(), checkpoint)
    np.testing.assert_allclose(alone, whole[3:4], atol=1e-5, rtol=0)


def test_an_empty_cell_keeps_its_place_with_a_flag(checkpoint, real_cells):
    adata = xtrimogene.tl.embed(real_cells, checkpoint, device="cpu", copy=True)
    is_nan = np.isnan(adata.obsm["X_xtrimogene"]).all(axis=1)
    assert np.flatnonzero(is_nan).tolist() == [11]
    np.testing.assert_array_equal(adata.obs["X_xtrimogene_empty"], is_nan)
    assert list(adata.obs_names) == list(real_cells.obs_names)


def test_backed_and_in_memory_agree(checkpoint, real_cells, tmp_path):
    import anndata

    real_cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    xtrimogene.tl.embed(backed, checkpoint, device="cpu")
    np.testing.assert_allclose(backed.obsm["X_xtrimogene"], embedding(real_cells, checkpoint), atol=1e-6, rtol=0)


def test_log_normalised_cells_embed_as_their_counts(checkpoint, real_cells):
    import scanpy as sc

    logged = real_cells.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    np.testing.assert_allclose(embedding(logged, checkpoint), embedding(real_cells, checkpoint), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("call", "message"), [
    (lambda a, c: xtrimogene.tl.embed(a, c / "nothing"), "nothing"),
    (lambda a, c: xtrimogene.tl.embed(a, c, device="tpu"), "device 'tpu' is not on this machine"),
    (lambda a, c: xtrimogene.tl.embed(a, c, layer="raw"), "layer='raw' is not there"),
    (lambda a, c: xtrimogene.tl.embed(a, c, gene_column="ids"), "gene_column='ids' is not in var"),
    (lambda a, c: xtrimogene.tl.embed("cells.h5ad", c), "adata is a str: read it first"),
    (lambda a, c: xtrimogene.tl.embed(a, c, batch_size=0), "batch_size is 0: give at least 1, or 'auto'"),
    (lambda a, c: xtrimogene.tl.annotate(a, c, label_key="cell_type"), "there is no reference to take labels from"),
    (lambda a, c: xtrimogene.tl.annotate(a, c, unknown_threshold=1), "unknown_threshold is 1: give at least 0 and"),
    (lambda a, c: xtrimogene.tl.annotate(a, c), "knows no cell types"),
    (lambda a, c: xtrimogene.tl.annotate(a, c, reference=a), "label_key is None, and the reference has the columns"),
    (lambda a, c: xtrimogene.tl.annotate(a, c, reference=a, label_key="typ"), "label_key is 'typ'"),
])  # fmt: skip
def test_bad_calls_are_refused_with_a_reason(checkpoint, real_cells, call, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        call(real_cells.copy(), checkpoint)
