"""Adaptation: what is gained, what stays, and cells that it cannot take."""

import copy

import numpy as np
import pytest
import torch

from xtrimogene import (
    TxFMConfig,
    TxFMForPreTraining,
    TxFMTokenizer,
    XTrimoGeneConfig,
    XTrimoGeneForPreTraining,
    XTrimoGeneTokenizer,
)
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.training import adapting
from xtrimogene.training.adapting import adapt_model, nats
from xtrimogene.training.anchoring import begin_anchor
from xtrimogene.training.data.dataset import cells_dataset

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "decoder_hidden_size": 16}


@pytest.fixture(scope="module")
def blood(pbmc, tmp_path_factory, measured_genes):
    """A model that has seen lymphocytes, and a data set of monocytes and dendritic cells in two batches."""
    tokenizer = XTrimoGeneTokenizer.from_genes(measured_genes(pbmc.raw.var_names), tmp_path_factory.mktemp("panel"))
    is_new = pbmc.obs["bulk_labels"].isin(["CD14+ Monocyte", "Dendritic"]).to_numpy()
    known = cells_dataset(tokenizer.read_counts(pbmc[~is_new].copy()))
    new = cells_dataset(tokenizer.read_counts(pbmc[is_new].copy()), batches=np.arange(is_new.sum()) % 2)
    torch.manual_seed(0)
    model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=tokenizer.num_genes, **SIZES))
    begin_anchor(model, tokenizer, known)
    with torch.no_grad():
        model.model.bag.from_encoder.weight.normal_(std=0.01)
    return model, tokenizer, new


@pytest.fixture
def model(blood):
    fresh = XTrimoGeneForPreTraining(copy.deepcopy(blood[0].config))
    fresh.load_state_dict(blood[0].state_dict())
    return fresh


def test_held_out_cells_become_likelier_and_the_encoder_stays(blood, model, monkeypatch):
    monkeypatch.setattr(adapting, "MOST_STEPS", 25)
    _, tokenizer, new = blood
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    told = []
    gained = adapt_model(model, tokenizer, new, tell=told.append)
    assert told == [0.0, 1.0]
    assert gained["nats of a count after"] < gained["nats of a count before"] - 0.05
    assert sum(gained["cells"].values()) == len(new)
    assert gained["cells"]["held out"] == round(len(new) / 10)
    assert gained["steps"] == 25
    assert gained["new components"]
    assert model.config.num_batches == 2
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before.get(name, weight))}
    assert changed
    assert all(name.startswith(("model.bag.", "cell_decoder.")) for name in changed)


def test_a_txfm_is_adapted_in_the_same_way(blood, pbmc, monkeypatch, tmp_path):
    monkeypatch.setattr(adapting, "LEAST_STEPS", 25)
    new, tokenizer = blood[2], TxFMTokenizer.from_genes(blood[1].genes, tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_genes": tokenizer.num_genes}
    model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", anchored=True, **sizes))
    is_known = ~pbmc.obs["bulk_labels"].isin(["CD14+ Monocyte", "Dendritic"]).to_numpy()
    begin_anchor(model, tokenizer, cells_dataset(tokenizer.read_counts(pbmc[is_known].copy())))
    torch.nn.init.normal_(model.model.bag.from_encoder.weight, std=0.01)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    gained = adapt_model(model, tokenizer, new)
    assert gained["nats of a count after"] < gained["nats of a count before"] - 0.05
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before.get(name, weight))}
    assert all(name.startswith(("model.bag.", "cell_decoder.")) for name in changed)
    adapted = CellModel(model.model.eval(), tokenizer)
    assert not adapted.needs_encoder
    assert np.isfinite(adapted.embed(adapted.read(pbmc[:8].copy()))).all()


def test_the_weights_with_the_best_likelihood_are_kept(blood, model, monkeypatch):
    _, tokenizer, new = blood
    monkeypatch.setattr(adapting, "LEAST_STEPS", 100)
    monkeypatch.setattr(adapting, "EVERY", 5)
    monkeypatch.setattr(adapting, "LEARNING_RATE", 10.0)  # learning that only spoils
    gained = adapt_model(model, tokenizer, new)
    assert gained["steps"] < 100
    assert gained["nats of a count after"] < gained["nats of a count before"]  # the biases of the batches helped
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_components_of_the_checkpoint_stay_where_too_few_cells_say_what_is_better(blood, model, monkeypatch):
    _, tokenizer, new = blood
    monkeypatch.setattr(adapting, "LEAST_STEPS", 25)
    monkeypatch.setattr(adapting, "LEARNING_RATE", 0.0)  # a new reconstruction that learns nothing
    before = model.model.bag.components.clone()
    gained = adapt_model(model, tokenizer, new)
    assert torch.equal(model.model.bag.components, before)
    assert not gained["new components"]


def test_the_likelihood_counts_genes_that_a_batch_does_not_express(blood, model):
    """Else a batch of few cells would seem well explained, because most of its genes are left out in training."""
    _, tokenizer, new = blood
    model.set_num_batches(2)
    every = nats(model, tokenizer, new)
    model.cell_decoder.is_expressed[:, ::2] = False
    assert nats(model, tokenizer, new) == every == nats(model, tokenizer, new, knows_batches=False)
    model.cell_decoder.batch_bias.weight.data[0] += torch.randn(tokenizer.num_genes)
    assert nats(model, tokenizer, new) > every


def test_an_adapted_embedding_needs_no_encoder(blood, model, monkeypatch, pbmc):
    monkeypatch.setattr(adapting, "LEAST_STEPS", 25)
    _, tokenizer, new = blood
    assert CellModel(model.model, tokenizer).needs_encoder
    adapt_model(model, tokenizer, new)
    adapted = CellModel(model.model.eval(), tokenizer)
    assert not adapted.needs_encoder
    cells = adapted.read(pbmc[:8].copy())
    monkeypatch.setattr(CellModel, "needs_encoder", True)
    with_encoder = adapted.embed(cells)
    monkeypatch.undo()
    np.testing.assert_array_equal(adapted.embed(cells), with_encoder)


def test_no_cell_of_a_batch_without_training_cells_is_held_out(blood, model, monkeypatch):
    _, tokenizer, new = blood
    monkeypatch.setattr(adapting, "LEAST_STEPS", 2)
    alone = np.arange(40)  # each cell is a batch of its own
    small = new.select(range(40)).remove_columns("batch").add_column("batch", alone.tolist()).with_format("numpy")
    with pytest.raises(ValueError, match="of 40 cells none can be held out"):
        adapt_model(model, tokenizer, small)


def test_models_and_cells_that_cannot_be_adapted_are_refused(blood, model):
    _, tokenizer, new = blood
    plain = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=tokenizer.num_genes, anchored=False))
    of_txfm = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=tokenizer.num_genes, anchored=False))
    for each in (plain, of_txfm):
        with pytest.raises(ValueError, match="is not anchored"):
            adapt_model(each, tokenizer, new)
    with pytest.raises(ValueError, match="19 cells are too few"):
        adapt_model(model, tokenizer, new.select(range(19)))
