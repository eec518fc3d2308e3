"""Contributions of genes: exact on the linear path, right to first order beside it, and known markers on real cells."""

import numpy as np
import pytest
import torch

import xtrimogene
from xtrimogene import TxFMConfig, TxFMForSequenceClassification, TxFMTokenizer, XTrimoGeneConfig
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.explanation import explained
from xtrimogene.inference.options import Running
from xtrimogene.tokenization.reading import CellInput

CPU = Running(device="cpu")


@pytest.fixture(scope="module")
def all_genes(pbmc, blood_annotator):
    return xtrimogene.tl.explain(pbmc[:50].copy(), blood_annotator, num_genes=0, cells_per_type=3, device="cpu")


def test_contributions_and_intercept_sum_to_the_regression_on_the_linear_path(pbmc, blood_annotator):
    loaded, cells = CellModel.load(blood_annotator, CPU, task="classify"), pbmc[:40].copy()
    ids = np.arange(40) % loaded.model.config.num_labels
    found = explained(loaded, cells, ids, CellInput(), 100, CPU)
    values, _ = loaded.tokenizer.cell_values(loaded.read(cells))
    anchor = loaded.model.classifier.anchor
    logits = values @ anchor.weight.numpy() + anchor.bias.numpy()
    scores = (logits - logits.mean(1, keepdims=True))[np.arange(40), ids]
    sums = found.linear.sum(1) + found.intercepts
    for index in np.unique(ids):
        assert sums[index] == pytest.approx(scores[ids == index].mean(), abs=1e-4)
    assert np.abs(scores).mean() > 0.1


def test_all_contributions_together_are_the_slope_of_the_score(pbmc, blood_annotator):
    """If the values of some genes grow by a small share, the score changes by that share of their contributions."""
    loaded, cells = CellModel.load(blood_annotator, CPU, task="classify"), pbmc[:6].copy()
    found = explained(loaded, cells, np.zeros(6, int), CellInput(), 100, CPU)
    values, depths = loaded.tokenizer.cell_values(loaded.read(cells))
    half = np.arange(loaded.tokenizer.num_genes) < loaded.tokenizer.num_genes // 2
    model = loaded.model.double()

    def score(share):
        batch = dict(loaded.tokenizer.tokenize_values(values.multiply(1 + share * half).tocsr(), depths, None))
        batch["values"] = batch["values"].double()
        logits = model.classify(model.base_model(**batch).pooler_output, **batch)
        return float((logits[:, 0] - logits.mean(1)).mean())

    with torch.no_grad():
        slope = (score(0.003) - score(-0.003)) / 0.006
    assert (found.linear + found.encoder)[0, half].sum() == pytest.approx(slope, rel=0.05)
    assert abs(found.encoder[0, half].sum()) > 0.1 * abs(slope)  # the network has a part in it


@torch.no_grad()
def test_genes_that_are_shown_to_a_txfm_and_not_expressed_add_nothing(pbmc, tmp_path, measured_genes):
    genes = measured_genes(pbmc.raw.var_names)[:60]
    tokenizer = TxFMTokenizer.from_genes(genes, tmp_path)
    torch.manual_seed(0)
    sizes = {"num_genes": 60, "num_visible": 20, "inference_passes": 2, "layerscale_value": 1.0}
    model = TxFMForSequenceClassification(TxFMConfig.preset("txfm-tiny", **sizes, classifier_anchored=True)).eval()
    anchor = model.classifier.anchor
    for weight in (anchor.weight, model.model.bag.from_encoder.weight, *model.classifier.parameters()):
        weight.normal_()
    loaded, cells, ids = CellModel(model, tokenizer), pbmc[:8].copy(), np.arange(8) % 2
    found = explained(loaded, cells, ids, CellInput(), 100, CPU)
    values, _ = tokenizer.cell_values(loaded.read(cells))
    values = values.toarray()
    for index in range(2):
        own = values[ids == index]
        is_zero = ~own.any(0)
        assert 0 < is_zero.sum() < 60
        assert not found.linear[index, is_zero].any()
        assert not found.encoder[index, is_zero].any()
        assert np.abs(found.encoder[index, ~is_zero]).max() > 1e-3
        weights = anchor.weight.numpy()
        expected = own.mean(0) * (weights[:, index] - weights.mean(1))
        np.testing.assert_allclose(found.linear[index], expected, atol=1e-4)


def test_known_markers_of_blood_are_among_the_first_genes(pbmc, blood_annotator):
    table = xtrimogene.tl.explain(pbmc[:200].copy(), blood_annotator, num_genes=10, cells_per_type=10, device="cpu")
    genes = {name: set(part["gene"]) for name, part in table.groupby("type")}
    assert {"CD79A", "CD79B", "CD74"} <= genes["CD19+ B"]
    assert {"GNLY", "NKG7"} <= genes["CD56+ NK"]
    assert {"TYROBP", "FCN1"} <= genes["CD14+ Monocyte"]
    assert "CD8B" in genes["CD8+/CD45RA+ Naive Cytotoxic"]
    higher = table[table["gene"].isin(["CD79A", "GNLY", "FCN1"])]
    assert (higher["mean_value"] > higher["mean_value_of_others"]).all()


def test_a_table_names_the_types_that_the_model_named_and_of_how_many_cells(pbmc, blood_annotator, all_genes):
    cells = pbmc[:50].copy()
    xtrimogene.tl.annotate(cells, blood_annotator, device="cpu")
    named = cells.obs["xtrimogene_label"].astype(str).value_counts()
    numbers = all_genes.groupby("type")["cells"].first()
    assert numbers.to_dict() == {name: min(count, 3) for name, count in named.items()}
    for _, part in all_genes.groupby("type"):
        assert part["contribution"].is_monotonic_decreasing
        np.testing.assert_allclose(part["linear"] + part["encoder"], part["contribution"], atol=1e-9)
    assert set(all_genes.attrs["intercepts"]) == set(pbmc.obs["bulk_labels"])


def test_neither_the_batch_nor_cells_without_counts_change_it(pbmc, blood_annotator):
    cells = pbmc.raw.to_adata()[:25].copy()
    cells.X.data[cells.X.indptr[3] : cells.X.indptr[4]] = 0
    cells.X.eliminate_zeros()
    model = CellModel.load(blood_annotator, CPU, task="classify").model.train()
    options = {"num_genes": 0, "device": "cpu"}
    whole = xtrimogene.tl.explain(cells, model, **options, batch_size=64)
    alone = xtrimogene.tl.explain(cells, model, **options, batch_size=1)
    assert model.training
    assert whole["cells"].groupby(whole["type"]).first().sum() == 24
    both = whole.merge(alone, on=["type", "gene"])
    assert len(both) == len(whole)
    np.testing.assert_allclose(both["contribution_x"], both["contribution_y"], atol=1e-5)


def test_models_that_name_no_types_are_refused(pbmc, tmp_path, blood_annotator):
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_pretrained(blood_annotator)
    config = XTrimoGeneConfig.preset("tiny", num_genes=tokenizer.num_genes, num_labels=1, num_hidden_layers=1)
    xtrimogene.XTrimoGeneForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="predicts one number, and types are explained by the difference"):
        xtrimogene.tl.explain(pbmc[:5].copy(), tmp_path, device="cpu")
