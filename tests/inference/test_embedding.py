"""Embeddings of real cells: every cell, in order, whatever the batches, and with a trace of where they came from."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoTokenizer

import xtrimogene
from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification, XTrimoGeneModel
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.devices import pick_device
from xtrimogene.inference.neighbors import label_probabilities
from xtrimogene.inference.options import Running

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 1,
    "decoder_head_dim": 8,
    "pooling": "all",
}


@pytest.fixture(scope="module", params=[False, True], ids=["genes only", "depth tokens"])
def checkpoint(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    XTrimoGeneModel(XTrimoGeneConfig(depth_tokens=request.param, **SIZES)).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.default(depth_tokens=request.param).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def real_cells(shared):
    """Sorted blood cells with 200 to 2,000 expressed genes, one of them emptied."""
    import anndata

    adata = anndata.read_h5ad(shared / "data" / "pbmc_facs_zheng" / "pbmc_facs_zheng.h5ad")[::100].copy()
    counts = adata.X.tolil()
    counts[11] = 0
    adata.X = counts.tocsr()
    return adata


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


def test_provenance_is_written_and_survives_h5ad(checkpoint, real_cells, tmp_path):
    import anndata

    adata = xtrimogene.tl.embed(real_cells, checkpoint, device="cpu", copy=True)
    adata.write_h5ad(tmp_path / "out.h5ad")
    trace = anndata.read_h5ad(tmp_path / "out.h5ad").uns["X_xtrimogene"]
    assert trace["model"] == str(checkpoint)
    assert trace["counts"].startswith("counts from X; ")
    assert trace["genes"]["n_matched"] > 13_000
    assert "X_xtrimogene" not in real_cells.obsm  # copy=True left the input alone


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


def test_a_loaded_model_is_used_and_left_as_it_is(checkpoint, real_cells):
    model = XTrimoGeneModel.from_pretrained(checkpoint)
    np.testing.assert_array_equal(embedding(real_cells, model), embedding(real_cells, checkpoint))
    pooled = embedding(real_cells, model, pooling="mean")
    assert pooled.shape[1] == model.config.hidden_size
    assert model.config.pooling == "all"
    model.train()
    embedding(real_cells[:5].copy(), model)
    assert all(module.training for module in model.modules())
    classifier = XTrimoGeneForSequenceClassification.from_pretrained(checkpoint)
    np.testing.assert_array_equal(embedding(real_cells, classifier), embedding(real_cells, checkpoint))
    with pytest.raises(ValueError, match="this XTrimoGeneModel was not loaded from a folder"):
        xtrimogene.tl.embed(real_cells.copy(), XTrimoGeneModel(model.config.__class__(**SIZES)))


def test_a_run_that_fails_leaves_the_training_mode(checkpoint, pbmc, monkeypatch):
    loaded = CellModel.load(checkpoint, Running(device="cpu"))
    model = loaded.model.train()
    model.embeddings.eval()

    def broken(**batch):
        assert not model.training
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "forward", broken)
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="broken"):
        loaded.embed(loaded.read(pbmc[:3].copy()))
    assert [module.training for module in model.modules()] == before


def test_adapters_of_peft_take_part(checkpoint, real_cells):
    from peft import LoraConfig, get_peft_model

    base = XTrimoGeneModel.from_pretrained(checkpoint)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    cells = real_cells[:5].copy()
    assert np.abs(embedding(cells, adapted) - embedding(cells, checkpoint)).max() > 1e-4
    assert embedding(cells, adapted, pooling="mean").shape[1] == base.config.hidden_size


def test_model_and_tokenizer_of_different_panels_are_refused(checkpoint, real_cells, tmp_path):
    XTrimoGeneModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.from_genes(["CD3D", "LYZ"], tmp_path)
    xtrimogene.XTrimoGeneTokenizer.from_genes(["CD3D", "LYZ"], tmp_path).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not belong together: the model has"):
        xtrimogene.tl.embed(real_cells.copy(), tmp_path, device="cpu")


def test_running_out_of_memory_halves_the_batch(checkpoint, real_cells, monkeypatch):
    loaded = CellModel.load(checkpoint, Running(device="cpu"))
    cells = loaded.read(real_cells)
    expected = loaded.embed(cells)
    forward, sizes = loaded.model.forward, []

    def small_memory(**batch):
        sizes.append(len(batch["input_ids"]))
        if batch["input_ids"].numel() > 4000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**batch)

    monkeypatch.setattr(loaded.model, "forward", small_memory)
    np.testing.assert_allclose(loaded.embed(cells), expected, atol=1e-5, rtol=0)
    assert max(sizes) > 3
    with pytest.raises(torch.OutOfMemoryError):  # a size that was asked for is not changed behind one's back
        loaded.embed(cells, Running(batch_size=64))


def test_annotate_with_a_reference_needs_no_labels_in_the_query(checkpoint, real_cells):
    query = real_cells[::2].copy()
    del query.obs
    xtrimogene.tl.annotate(query, checkpoint, reference=real_cells, label_key="cell_type", n_neighbors=1, device="cpu")
    is_empty = np.arange(len(query)) * 2 == 11
    expected = real_cells.obs["cell_type"][::2].astype(str).to_numpy()
    assert (query.obs["xtrimogene_label"].astype(str)[~is_empty] == expected[~is_empty]).all()  # each finds itself
    # One neighbour gives the same certainty for all: how often it is right in the reference. The second label is that
    # of the next nearest type.
    second = query.obs["xtrimogene_second_label"].astype(str).to_numpy()
    assert (
        query.obs["xtrimogene_second_label"].isna().to_numpy().nonzero()[0].tolist() == is_empty.nonzero()[0].tolist()
    )
    assert (second != expected)[~is_empty].all()
    assert np.ptp(query.obs["xtrimogene_probability"][~is_empty]) < 1e-6
    about = query.uns["xtrimogene"]["unknown"]
    assert about["calibrated on"] == "38 reference cells, cross-fitted in 5 folds"
    assert query.obs["xtrimogene_unknown"].mean() < 0.3


def test_cells_of_a_type_that_the_reference_lacks_are_unknown_and_keep_a_label(checkpoint, pbmc):
    labels = pbmc.obs["bulk_labels"]
    is_held = (labels == "CD34+").to_numpy()
    is_reference = (np.arange(pbmc.n_obs) % 2 == 0) & ~is_held
    reference, query = pbmc[is_reference].copy(), pbmc[~is_reference].copy()
    options = {"reference": reference, "label_key": "bulk_labels", "device": "cpu"}
    xtrimogene.tl.annotate(query, checkpoint, **options, unknown_threshold=0.1)
    obs, is_held = query.obs, is_held[~is_reference]
    assert obs["xtrimogene_unknown"].dtype == bool
    assert obs["xtrimogene_unknown"][is_held].mean() > 2 * obs["xtrimogene_unknown"][~is_held].mean()
    assert obs["xtrimogene_unknown"][~is_held].mean() < 0.2
    assert obs["xtrimogene_label"].notna().all()
    assert (obs["xtrimogene_label"].astype(str) != obs["xtrimogene_second_label"].astype(str)).all()
    some = query[:20].copy()
    xtrimogene.tl.annotate(some, checkpoint, **options, unknown_threshold=0, key_added="never")
    assert not some.obs["never_unknown"].any()
    np.testing.assert_allclose(some.obs["never_probability"], some.obs["xtrimogene_probability"], atol=1e-3)
    few = options | {"reference": reference[:9].copy()}
    xtrimogene.tl.annotate(some, checkpoint, **few)
    assert "xtrimogene_unknown" not in some.obs  # nor that of the first call
    assert some.uns["xtrimogene"]["unknown"]["note"] == "no calibration: the reference has 9 cells with counts"


def test_annotate_with_a_classifier(tmp_path, real_cells):
    torch.manual_seed(0)
    config = XTrimoGeneConfig(**SIZES, id2label={0: "B", 1: "T", 2: "NK"})
    XTrimoGeneForSequenceClassification(config).save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.default().save_pretrained(tmp_path)
    query = real_cells.copy()
    xtrimogene.tl.annotate(query, tmp_path, device="cpu")
    assert query.obs["xtrimogene_label"].isna().to_numpy().nonzero()[0].tolist() == [11]
    assert set(query.obs["xtrimogene_label"].cat.categories) == {"B", "T", "NK"}
    probability = query.obs["xtrimogene_probability"].drop(query.obs_names[11])
    assert probability.between(1 / 3, 1).all()
    second = query.obs["xtrimogene_second_label"].astype(str)
    assert (second != query.obs["xtrimogene_label"].astype(str)).drop(query.obs_names[11]).all()
    # A folder of an older version: no column rather than a wrong one.
    assert "xtrimogene_unknown" not in query.obs
    note = query.uns["xtrimogene"]["unknown"]["note"]
    assert "has no calibration.safetensors; `xtrimogene finetune` writes one" in note


def test_annotate_says_what_speaks_against_its_labels(checkpoint, real_cells):
    """Labels at random are learned by nobody; of a reference of 39 cells little can be said."""
    reference, query = real_cells.copy(), real_cells.copy()
    reference.obs["cell_type"] = np.random.default_rng(0).choice(["a", "b", "c"], reference.n_obs)
    with pytest.warns(UserWarning, match=r"Only \d+% of the calibration cells .* are named right: do not trust"):
        xtrimogene.tl.annotate(query, checkpoint, reference=reference, label_key="cell_type", device="cpu")
    about = query.uns["xtrimogene"]["unknown"]
    assert about["accuracy on these cells"] < 0.6
    assert about["doubts"][0].startswith("Only 38 cells calibrate")
    assert len(about["doubts"]) == 2


def test_a_calibration_of_other_labels_is_refused(tmp_path, real_cells):
    from xtrimogene.inference.calibration import Calibration

    torch.manual_seed(0)
    config = XTrimoGeneConfig(**SIZES, id2label={0: "B", 1: "T", 2: "NK"})
    XTrimoGeneForSequenceClassification(config).save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.default().save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    known, ids = rng.normal(size=(30, config.pooled_size)), np.arange(30) % 3
    even = np.full((30, 3), 1 / 3)
    Calibration.fit(even, ids, known, known, ids, ["B", "T", "Mono"]).save(tmp_path)
    with pytest.raises(ValueError, match="is for the labels B, T, Mono, and the model has B, T, NK"):
        xtrimogene.tl.annotate(real_cells.copy(), tmp_path, device="cpu")
    Calibration.fit(even, ids, known[:, 1:], known[:, 1:], ids, ["B", "T", "NK"]).save(tmp_path)
    with pytest.raises(ValueError, match="this calibration is of another annotator; fine-tune again"):
        xtrimogene.tl.annotate(real_cells.copy(), tmp_path, device="cpu")


def test_nearest_labels_ignore_scale_and_empty_references():
    reference = np.array([[0.0, 0], [0, 1000], [np.nan, np.nan], [1, 0]])
    probabilities, names = label_probabilities(
        reference, ["a", "a", "b", "c"], np.array([[0.9, 10], [np.nan, 0]]), n_neighbors=1
    )
    assert names == ["a", "c"]
    assert probabilities[0].tolist() == [0.0, 1.0]
    assert np.isnan(probabilities[1]).all()


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


def test_reference_without_all_labels_is_refused(checkpoint, real_cells):
    reference = real_cells.copy()
    reference.obs.loc[reference.obs_names[:5], "cell_type"] = np.nan
    with pytest.raises(ValueError, match="has no label for 5 of"):
        xtrimogene.tl.annotate(real_cells.copy(), checkpoint, reference=reference, label_key="cell_type")


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, real_cells):
    with pytest.raises(ValueError, match=r"has no config.json, it holds nothing"):
        xtrimogene.tl.embed(real_cells.copy(), tmp_path)


def test_device_auto_finds_one():
    assert pick_device("auto").type in {"cpu", "cuda", "mps"}


def test_bfloat16_is_close_and_said(tmp_path, pbmc, tokenizer):
    torch.manual_seed(0)
    XTrimoGeneModel(XTrimoGeneConfig(**SIZES)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    cells = pbmc[:40].copy()
    exact = embedding(cells, tmp_path)
    half = xtrimogene.tl.embed(cells, tmp_path, device="cpu", dtype="bfloat16", copy=True)
    assert half.uns["X_xtrimogene"]["dtype"] == "bfloat16"
    rows = torch.from_numpy(exact), torch.from_numpy(half.obsm["X_xtrimogene"])
    assert torch.nn.functional.cosine_similarity(*rows).min() > 0.999
    assert not torch.equal(*rows)
    assert xtrimogene.tl.embed(cells, tmp_path, device="cpu", copy=True).uns["X_xtrimogene"]["dtype"] == "float32"
    with torch.autocast("cpu", torch.bfloat16):
        mixed = xtrimogene.tl.embed(cells, tmp_path, device="cpu", copy=True)
    assert mixed.uns["X_xtrimogene"]["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype is 'float8': give auto, float32 or bfloat16"):
        embedding(cells, tmp_path, dtype="float8")


# -- genes and expression ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["genes only", "depth tokens"])
def pretrained(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    XTrimoGeneForPreTraining(XTrimoGeneConfig(depth_tokens=request.param, **SIZES)).save_pretrained(folder)
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
        ValueError, match=r"39 x 19,264 x 16 numbers are 0.0 GiB, and .* has 0.0 GiB free: choose genes"
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
    with pytest.raises(ValueError, match=r"3 cells x .* GiB of memory, and 0\.0 GiB are free: .*embed_genes"):
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
    with pytest.raises(ValueError, match="pooling is 'avg': give all, max, mean, S or T"):
        xtrimogene.tl.embed(cells, pretrained, pooling="avg")
    done = xtrimogene.tl.embed(cells, pretrained, parity=True, gene_column="gene_symbol", copy=True)
    made_by = done.uns["X_xtrimogene"]
    assert (made_by["parity"], made_by["input_type"], made_by["target_depth"]) == (True, "counts", "t4")
    assert "the sum over the genes of the panel" in made_by["counts"]
