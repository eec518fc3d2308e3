import doctest

import pytest
import torch
from transformers import Trainer

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneModel, XTrimoGeneSynergyConfig
from xtrimogene.modeling_xtrimogene import modeling_synergy
from xtrimogene.modeling_xtrimogene.modeling_synergy import XTrimoGeneForDrugSynergy
from xtrimogene.training.arguments import CellTrainingArguments

DRUG_FEATURES = ["MolWt", "morgan2_1", "morgan2_2", "morgan2_3", "morgan2_4"]
CLASSES = {"problem_type": "single_label_classification", "num_labels": 2}


@pytest.fixture
def make_model(tiny_config):
    """Make a model with standardised inputs; keyword arguments change its configuration."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        encoder_config = None if changes.get("cell_features") else tiny_config(pooling="all")
        settings = {"problem_type": "regression", "num_labels": 1, "drug_features": DRUG_FEATURES}
        settings |= {"hidden_size": 14, "encoder_config": encoder_config, **changes}
        model = XTrimoGeneForDrugSynergy(XTrimoGeneSynergyConfig(**settings)).eval()
        width = model.synergy.cell.in_features
        scores = 20 * torch.randn(9) + 5 if settings["problem_type"] == "regression" else None
        model.fit_inputs(3 * torch.rand(7, 5), torch.randn(6, width), scores)
        return model

    return make


def pairs(model, size=11, seed=1):
    generator = torch.Generator().manual_seed(seed)
    drug_a, drug_b = 3 * torch.rand(2, size, 5, generator=generator)
    return drug_a, drug_b, torch.randn(size, model.synergy.cell.in_features, generator=generator)


@pytest.mark.parametrize("changes", [{}, CLASSES, {"hidden_size": 300}])
@pytest.mark.parametrize("size", [1, 2, 11, 257])
def test_the_order_of_the_drugs_changes_no_bit(make_model, changes, size):
    model = make_model(**changes)
    drug_a, drug_b, cells = pairs(model, size)
    one, other = model(drug_a, drug_b, cells).logits, model(drug_b, drug_a, cells).logits
    assert torch.equal(one, other)
    # ... of a function that does tell two drugs from one of them twice.
    assert not torch.allclose(one, model(drug_a, drug_a, cells).logits)


def test_network_is_deepsynergys_averaged_over_both_orders(make_model):
    model = make_model()
    drug_a, drug_b, cells = pairs(model)
    net = model.synergy

    def tanh_standard(x, part):
        return torch.tanh((x - part.mean) * part.scale)

    def deepsynergy(first, second):
        inputs = [tanh_standard(first, net.drug_input), tanh_standard(second, net.drug_input)]
        inputs = torch.cat([*inputs, tanh_standard(cells, net.cell_input)], dim=1)
        both, difference = net.drug_sum.weight, net.drug_difference.weight
        weight = torch.cat([both + difference, both - difference, net.cell.weight], dim=1)
        hidden = torch.relu(inputs @ weight.T + net.cell.bias)
        return net.out_proj(torch.relu(net.dense(hidden)))

    standard = (deepsynergy(drug_a, drug_b) + deepsynergy(drug_b, drug_a)) / 2
    expected = standard * net.score_scale + net.score_mean
    torch.testing.assert_close(model(drug_a, drug_b, cells).logits, expected, rtol=1e-5, atol=1e-5)


def test_inputs_are_standardised_and_constant_ones_left_out(make_model):
    model = make_model()
    drugs = torch.tensor([[1.0, 7, 0, 2, 300.1], [2, 7, 0, 4, 300.1], [6, 7, 0, 9, 300.1]])
    cells = torch.randn(4, model.config.cell_size)
    model.fit_inputs(drugs, cells, torch.tensor([1.0, 3, 8]))
    standard = model.synergy.drug_input(drugs).atanh()
    assert torch.equal(standard[:, [1, 2, 4]], torch.zeros(3, 3))
    torch.testing.assert_close(standard[:, [0, 3]].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard[:, [0, 3]].std(0, correction=0), torch.ones(2))
    # A feature that no training drug varies in says nothing of others either.
    other = drugs + torch.tensor([0, 5, 1, 0, 0])
    assert torch.equal(model(drugs, drugs, cells[:3]).logits, model(other, other, cells[:3]).logits)
    assert model.synergy.score_mean == 4
    assert model.synergy.score_scale == pytest.approx(torch.tensor([1.0, 3, 8]).std(correction=0).item())


def test_encoder_inside_gives_what_ready_made_embeddings_give(make_model, make_batch):
    model = make_model()
    batch = {key: value for key, value in make_batch(model.model.config).items() if key in ("input_ids", "values")}
    mask = make_batch(model.model.config)["attention_mask"]
    drug_a, drug_b, _ = pairs(model, 3)
    with torch.no_grad():
        ready_made = model.model(**batch, attention_mask=mask).pooler_output
        inside = model(drug_a, drug_b, **batch, attention_mask=mask).logits
        assert torch.equal(inside, model(drug_a, drug_b, ready_made).logits)
        assert torch.equal(inside, model(drug_a, drug_b, **batch).logits)  # padding is known by its id


@pytest.mark.parametrize("changes", [{}, CLASSES, {"cell_features": 9}])
def test_a_saved_folder_is_the_same_predictor(make_model, tmp_path, changes):
    model = make_model(**changes)
    model.save_pretrained(tmp_path)
    again, report = XTrimoGeneForDrugSynergy.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.drug_features == DRUG_FEATURES
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    inputs = pairs(model)
    assert torch.equal(model(*inputs).logits, again.eval()(*inputs).logits)


def test_a_pretrained_encoder_is_taken_over_and_the_rest_is_fresh(tiny_config, tmp_path):
    pretrained = XTrimoGeneForPreTraining(tiny_config())
    pretrained.save_pretrained(tmp_path)
    settings = {"problem_type": "regression", "num_labels": 1, "drug_features": DRUG_FEATURES}
    model, report = XTrimoGeneForDrugSynergy.from_pretrained(tmp_path, output_loading_info=True, **settings)
    assert model.model.decoder is None
    assert not report["unexpected_keys"]
    assert all(key.startswith("synergy.") for key in report["missing_keys"])
    encoder = pretrained.model.state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in model.model.state_dict().items())
    # Nothing that stood in memory by chance: inputs pass as they are until they are fitted.
    network = model.synergy
    for part in (network.drug_input, network.cell_input):
        assert torch.equal(part.mean, torch.zeros_like(part.mean))
        assert torch.equal(part.scale, torch.ones_like(part.scale))
    assert (network.score_mean, network.score_scale) == (0, 1)
    assert torch.equal(network.out_proj.bias, torch.zeros(1))
    limit = (6 / (5 + model.config.hidden_size)) ** 0.5  # Glorot
    assert 0.9 * limit < network.drug_difference.weight.abs().max() <= limit


def test_losses_are_means_that_accumulation_does_not_change(make_model):
    model = make_model()
    drug_a, drug_b, cells = pairs(model, 6)
    labels = torch.tensor([-326.0, -100, 0, 5, 12.5, 179])  # -100 is a score like any other
    out = model(drug_a, drug_b, cells, labels=labels)
    expected = ((out.logits[:, 0] - labels) / model.synergy.score_scale).square()
    torch.testing.assert_close(out.loss, expected.mean())
    halves = [
        model(drug_a[rows], drug_b[rows], cells[rows], labels=labels[rows], num_items_in_batch=6).loss
        for rows in (slice(2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(halves), out.loss)

    classifier = make_model(**CLASSES)
    classes = torch.tensor([0, 1, 1, 0, 0, 1])
    out = classifier(*pairs(classifier, 6), labels=classes)
    torch.testing.assert_close(out.loss, -out.logits.log_softmax(-1).gather(1, classes[:, None]).mean())


def test_transformers_trainer_trains_it(make_model, tmp_path):
    model = make_model(dropout=0.0)
    drug_a, drug_b, cells = pairs(model, 24)
    labels = 30 * (drug_a[:, 0] * drug_b[:, 0] - 2)
    rows = [
        {"drug_a": a, "drug_b": b, "cell_embeddings": cell, "labels": label}
        for a, b, cell, label in zip(drug_a, drug_b, cells, labels, strict=True)
    ]
    arguments = CellTrainingArguments(
        tmp_path, num_train_epochs=40, per_device_train_batch_size=8, learning_rate=1e-2, disable_tqdm=True
    )
    before = model(drug_a, drug_b, cells, labels=labels).loss.item()
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.1 * before
    assert trainer.predict(rows).predictions.shape == (24, 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"drug_features": None}, "drug_features is empty"),
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"num_labels": 3}, "num_labels is 3"),
    ],
)
def test_impossible_models_are_refused(make_model, changes, named):
    with pytest.raises(Exception, match=named):
        make_model(**changes)


def test_wrong_inputs_are_refused(make_model, make_batch):
    model = make_model()
    drug_a, drug_b, cells = pairs(model, 3)
    tokens = {key: value for key, value in make_batch(model.model.config).items() if key in ("input_ids", "values")}
    with pytest.raises(ValueError, match="neither came"):
        model(drug_a, drug_b)
    with pytest.raises(ValueError, match="both came"):
        model(drug_a, drug_b, cells, **tokens)
    with pytest.raises(ValueError, match=r"drug_a \(3, 4\)"):
        model(drug_a[:, 1:], drug_b[:, 1:], cells)
    with pytest.raises(ValueError, match=r"drug_b \(2, 5\)"):
        model(drug_a, drug_b[:2], cells)
    with pytest.raises(ValueError, match="no encoder, it takes 9 features"):
        make_model(cell_features=9)(drug_a, drug_b, **tokens)


def test_the_encoder_of_a_saved_folder_loads_alone_and_has_no_decoder(make_model, make_batch, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    encoder = XTrimoGeneModel.from_pretrained(tmp_path).eval()
    assert encoder.decoder is None
    batch = {key: make_batch(encoder.config)[key] for key in ("input_ids", "values", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(encoder(**batch).pooler_output, model.model(**batch).pooler_output)


def test_examples_in_docstrings_run():
    assert doctest.testmod(modeling_synergy).failed == 0
    assert doctest.testmod(modeling_synergy).attempted > 0
