"""Embeddings and predictions of genes."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoTokenizer

import xtrimogene
from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining


@pytest.fixture(scope="module", params=[False, True], ids=["genes only", "depth tokens"])
def pretrained(sizes, request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    XTrimoGeneForPreTraining(XTrimoGeneConfig(depth_tokens=request.param, **sizes)).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.default(depth_tokens=request.param).save_pretrained(folder)
    return folder


def by_hand(adata, folder):
    """Genes, expression and cell embeddings of one cell after the other, by the model itself."""
    model = AutoModelForPreTraining.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.inference_mode():
        for cell in range(adata.n_obs):
            batch = tokenizer(adata[[cell]].copy())
            rows.append(
                (model.model.contextual_gene_embeddings(**batch), model(**batch).logits, model.model(**batch)[1])
            )
    return [torch.cat(parts).numpy() for parts in zip(*rows, strict=True)]


def test_genes_and_expression_go_to_a_zarr_folder_cell_by_cell(pretrained, real_cells, tmp_path):
    cells = real_cells[[3, 11, 30, 5]].copy()  # the second is empty
    genes, expression, _ = by_hand(cells[[0, 2, 3]].copy(), pretrained)
    made_by = xtrimogene.tl.embed_genes(cells, pretrained, tmp_path / "genes.zarr", batch_size=3)
    assert made_by["shape"] == [4, 19_264, 16]
    group = zarr.open(tmp_path / "genes.zarr", mode="r")
    assert group["embedding"].chunks == (1, 19_264, 16)
    np.testing.assert_allclose(group["embedding"][:][[0, 2, 3]], genes, atol=1e-5, rtol=0)
    assert np.isnan(group["embedding"][1]).all()
    assert list(group["cells"][:]) == list(cells.obs_names)
    assert list(group["genes"][:]) == xtrimogene.XTrimoGeneTokenizer.default().genes
    assert group.attrs["xtrimogene"]["genes"]["n_matched"] > 13_000
    xtrimogene.tl.embed_genes(cells, pretrained, tmp_path / "values.zarr", what="expression")
    found = zarr.open(tmp_path / "values.zarr", mode="r")["expression"][:]
    np.testing.assert_allclose(found[[0, 2, 3]], expression, atol=1e-5, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genes.zarr", "values.zarr"]


def test_chosen_genes_are_those_of_all(pretrained, real_cells, tmp_path):
    cells = real_cells[[3, 30]].copy()
    names = ["CD3D", "ENSG00000141510", "LYZ"]  # TP53 by its Ensembl id
    ids = xtrimogene.XTrimoGeneTokenizer.default().convert_tokens_to_ids(["CD3D", "TP53", "LYZ"])
    for what, array, whole in zip(
        ("gene", "expression"), ("embedding", "expression"), by_hand(cells, pretrained)[:2], strict=True
    ):
        xtrimogene.tl.embed_genes(cells, pretrained, tmp_path / what, what=what, genes=names)
        group = zarr.open(tmp_path / what, mode="r")
        np.testing.assert_allclose(group[array][:], whole[:, ids], atol=1e-5, rtol=0)
        assert list(group["genes"][:]) == names


def test_a_run_that_stops_leaves_what_was_there(pretrained, real_cells, tmp_path):
    def interrupt(cells):
        raise KeyboardInterrupt

    cells = real_cells[[3, 30]].copy()
    xtrimogene.tl.embed_genes(cells, pretrained, tmp_path / "genes.zarr", genes=["LYZ"])
    with pytest.raises(KeyboardInterrupt):
        xtrimogene.tl.embed_genes(cells, pretrained, tmp_path / "genes.zarr", genes=["CD3D"], progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["genes.zarr"]
    assert list(zarr.open(tmp_path / "genes.zarr", mode="r")["genes"][:]) == ["LYZ"]


def test_what_cannot_be_decoded_is_refused(pretrained, real_cells, tmp_path, monkeypatch):
    output = tmp_path / "genes.zarr"
    with pytest.raises(ValueError, match="2 of 3 genes asked for are not among the 19,264 of the panel: MT-X, <pad>"):
        xtrimogene.tl.embed_genes(real_cells, pretrained, output, genes=["LYZ", "MT-X", "<pad>"])
    with pytest.raises(ValueError, match="is a XTrimoGeneModel, and genes are predicted by pre-trained models"):
        xtrimogene.tl.embed_genes(real_cells, AutoModel.from_pretrained(pretrained), output)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10**6))
    with pytest.raises(
        ValueError, match=r"will hold 39 x 19,264 x 16 numbers, 45.9 MiB, and its disk has 976.6 KiB free: choose genes"
    ):
        xtrimogene.tl.embed_genes(real_cells, pretrained, output)
    assert not any(tmp_path.iterdir())


def test_enhanced_cells_hold_a_prediction_for_every_gene_and_an_embedding(pretrained, real_cells):
    cells = real_cells[[3, 11, 30]].copy()
    _, expression, pooled = by_hand(cells[[0, 2]].copy(), pretrained)
    done = xtrimogene.tl.enhance(cells, pretrained, copy=True)
    assert "enhanced" not in cells.layers
    rows = xtrimogene.XTrimoGeneTokenizer.default().read_counts(cells).match.rows
    layer = done.layers["enhanced"]
    assert layer.shape == cells.shape
    np.testing.assert_allclose(layer[[0, 2]][:, rows >= 0], expression[:, rows[rows >= 0]], atol=1e-5, rtol=0)
    assert np.isnan(layer[:, rows < 0]).all()
    assert np.isnan(layer[1]).all()
    assert list(done.obs["X_enhanced_empty"]) == [False, True, False]
    np.testing.assert_allclose(done.obsm["X_enhanced"][[0, 2]], pooled, atol=1e-5, rtol=0)


def test_a_layer_that_does_not_fit_into_memory_is_refused_before_anything_is_computed(
    pretrained, real_cells, monkeypatch
):
    cells = real_cells[:3].copy()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ValueError, match=r"3 cells x .* of memory, and .* are free: .*embed_genes"):
        xtrimogene.tl.enhance(cells, pretrained)
    assert not cells.layers


def test_a_target_depth_changes_the_prediction_where_the_model_has_depths(pretrained, real_cells):
    cells = real_cells[[3, 30]].copy()
    if not AutoConfig.from_pretrained(pretrained).depth_tokens:
        with pytest.raises(ValueError, match="has no depth tokens and cannot use it"):
            xtrimogene.tl.enhance(cells, pretrained, target_depth="f4")
        return
    plain, same, deeper = (
        xtrimogene.tl.enhance(cells, pretrained, target_depth=depth, copy=True) for depth in (None, "f1", "f4")
    )
    np.testing.assert_allclose(plain.layers["enhanced"], same.layers["enhanced"], atol=1e-6)
    assert np.nanmax(np.abs(plain.layers["enhanced"] - deeper.layers["enhanced"])) > 1e-3
    assert deeper.uns["X_enhanced"]["target_depth"] == "f4"


def test_counts_in_raw_come_out_under_the_genes_of_the_layer(pretrained, real_cells):
    """Of raw, other columns in another order: as many, and only some of them."""
    cells = real_cells[[3, 30]].copy()
    expected = xtrimogene.tl.enhance(cells, pretrained, copy=True)
    scaled = cells.copy()
    scaled.raw = cells
    scaled.X = scaled.X.toarray() - 0.5  # no counts
    order = np.random.default_rng(0).permutation(cells.n_vars)
    for chosen in (order, order[:500]):
        done = xtrimogene.tl.enhance(scaled[:, chosen].copy(), pretrained, copy=True)
        np.testing.assert_allclose(done.layers["enhanced"], expected.layers["enhanced"][:, chosen], atol=1e-5)


def test_folders_of_others_are_not_replaced(pretrained, real_cells, tmp_path):
    cells = real_cells[[3, 30]].copy()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").touch()
    cells.write_zarr(tmp_path / "cells.zarr")
    (tmp_path / "file").touch()
    for name in ("thesis", "cells.zarr", "file"):
        with pytest.raises(ValueError, match=f"{name} exists and is no folder of gene embeddings"):
            xtrimogene.tl.embed_genes(cells, pretrained, tmp_path / name, genes="LYZ")
    assert (tmp_path / "thesis" / "thesis.txt").exists()
    made_by = xtrimogene.tl.embed_genes(cells, pretrained, tmp_path / "new.zarr", genes=["LYZ", "OR4F5"])
    assert made_by["genes_without_column"] == ["OR4F5"]


def test_parity_is_said_and_is_that_of_float32(pretrained, real_cells):
    cells = real_cells[[3, 30]].copy()
    if not AutoConfig.from_pretrained(pretrained).depth_tokens:
        with pytest.raises(ValueError, match=r"whose models have depth tokens, and .* has none"):
            xtrimogene.tl.embed(cells, pretrained, parity=True, gene_column="gene_symbol")
        return
    with pytest.raises(ValueError, match="parity is that of float32"):
        xtrimogene.tl.embed(cells, pretrained, parity=True, dtype="bfloat16")
    with pytest.raises(ValueError, match="With parity, symbols match only as they are written"):
        xtrimogene.tl.embed(cells, pretrained, parity=True, gene_names=[f"{name}.1" for name in cells.var_names])
    with pytest.raises(ValueError, match="pooling is 'avg': give 'all', 'max', 'mean', 'S', 'T'"):
        xtrimogene.tl.embed(cells, pretrained, pooling="avg")
    done = xtrimogene.tl.embed(cells, pretrained, parity=True, gene_column="gene_symbol", copy=True)
    made_by = done.uns["X_xtrimogene"]
    assert (made_by["parity"], made_by["input_type"], made_by["target_depth"]) == (True, "counts", "t4")
    assert "the sum over the genes of the panel" in made_by["counts"]
