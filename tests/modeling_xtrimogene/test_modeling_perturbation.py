"""The perturbation model against plain loops, what it must not depend on, and that it travels whole."""

import doctest

import numpy as np
import pytest
import torch

from xtrimogene import XTrimoGenePerturbationConfig
from xtrimogene.modeling_xtrimogene import modeling_perturbation
from xtrimogene.modeling_xtrimogene.modeling_perturbation import XTrimoGeneForPerturbationPrediction

GENES, NODES, MEASURED, FEATURES, WIDTH = 50, 11, 7, 5, 4
PAD = GENES


def make(features="pretrained", seed=0, **changes):
    """Return a model whose every number is random."""
    config = XTrimoGenePerturbationConfig(
        pad_token_id=PAD,
        num_nodes=NODES,
        num_measured=MEASURED,
        feature_size=FEATURES,
        features=features,
        num_expression_edges=6,
        num_relation_edges=9,
        hidden_size=WIDTH,
        **changes,
    )
    generator = torch.Generator().manual_seed(seed)
    model = XTrimoGeneForPerturbationPrediction(config).eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
    model.gene_ids.copy_(torch.randperm(GENES, generator=torch.Generator().manual_seed(seed))[:NODES])
    for name, nodes in (("expression", MEASURED), ("relation", NODES)):
        edges = getattr(model, f"{name}_edges")
        edges.copy_(torch.randint(nodes, edges.shape, generator=generator))
        edges.copy_(edges[:, edges[0].argsort()])
    return model


@pytest.mark.parametrize("changes", [{}, {"anchored": True, "num_anchor_changes": 2}])
def test_what_training_fills_begins_the_same_in_memory_that_was_used_before(changes):
    config = make(**changes).config
    fresh, used = XTrimoGeneForPerturbationPrediction(config), make(**changes)
    used.gene_ids.fill_(9)
    for module in used.modules():
        module._is_hf_initialized = False
    for tensor in [*used.parameters(), *used.buffers()]:
        tensor._is_hf_initialized = False
    used.init_weights()
    for (name, buffer), other in zip(fresh.named_buffers(), used.buffers(), strict=True):
        assert torch.equal(buffer, other), name


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    model = make()
    ids = torch.full((4, 3), PAD)
    for row, nodes in enumerate([[0], [8, 2], [1, 9, 10], []]):
        ids[row, : len(nodes)] = model.gene_ids[nodes]
    return {
        "perturbation_ids": ids,
        "control_values": torch.rand(4, MEASURED, generator=generator),
        "labels": torch.rand(4, MEASURED, generator=generator),
    }


def by_loops(model, genes, control):
    """Prediction for one set of genes, a number at a time, in numpy."""
    state = {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}

    def states(name):
        projected = state["features"] @ state[f"{name}_graph.input_proj.weight"].T
        projected += state[f"{name}_graph.input_proj.bias"]
        messages = np.zeros_like(projected)
        edges, weights = state[f"{name}_edges"].astype(int), state[f"{name}_weights"]
        for (to, source), weight in zip(edges.T, weights, strict=True):
            messages[to] += weight * projected[source]
        return projected + messages @ state[f"{name}_graph.neighbour_proj.weight"].T

    if not genes:
        return control
    ids = state["gene_ids"].astype(int).tolist()
    total = sum(states("relation")[ids.index(gene)] for gene in genes)
    hidden = np.maximum(state["set_in.weight"] @ total + state["set_in.bias"], 0)
    embedded = state["set_out.weight"] @ hidden + state["set_out.bias"]
    measured = states("expression")
    base = state.get("mean_change")
    if base is None:
        base = sum(state["anchor.weights"][ids.index(gene)] for gene in genes) @ state["anchor.changes"]
    predicted = []
    for gene in range(MEASURED):
        match = float(embedded @ (measured[gene] + state["gene_weight"][gene])) / WIDTH**0.5
        predicted.append(control[gene] + base[gene] + match * state["change_scale"][gene])
    return np.array(predicted)


ANCHORED = {"anchored": True, "num_anchor_changes": 3}


@pytest.mark.parametrize("changes", [{}, ANCHORED])
@pytest.mark.parametrize("features", ["pretrained", "learned"])
def test_predictions_are_those_of_plain_loops(features, changes, inputs):
    model = make(features, **changes)
    predicted = model(**inputs).logits.detach().numpy()
    for row, control in enumerate(inputs["control_values"].double().numpy()):
        genes = [gene for gene in inputs["perturbation_ids"][row].tolist() if gene != PAD]
        np.testing.assert_allclose(predicted[row], by_loops(model, genes, control), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, ANCHORED])
def test_order_and_padding_do_not_matter_and_no_perturbation_changes_nothing(changes, inputs):
    model = make(**changes)
    predicted = model(**inputs).logits
    turned = {**inputs, "perturbation_ids": inputs["perturbation_ids"].flip(1)}
    torch.testing.assert_close(model(**turned).logits, predicted)
    wider = {**inputs, "perturbation_ids": torch.nn.functional.pad(inputs["perturbation_ids"], (2, 3), value=PAD)}
    torch.testing.assert_close(model(**wider).logits, predicted)
    assert torch.equal(predicted[3], inputs["control_values"][3])


def test_a_new_model_predicts_the_mean_change(inputs):
    config = make().config
    model = XTrimoGeneForPerturbationPrediction(config).eval()
    model.gene_ids.copy_(make().gene_ids)
    model.mean_change.copy_(torch.linspace(-1, 1, MEASURED))
    expected = inputs["control_values"][:3] + torch.linspace(-1, 1, MEASURED)
    torch.testing.assert_close(model(**inputs).logits[:3], expected)


def test_a_new_anchored_model_predicts_what_its_anchor_does(inputs):
    trained = make(**ANCHORED)
    model = XTrimoGeneForPerturbationPrediction(trained.config).eval()
    model.gene_ids.copy_(trained.gene_ids)
    model.anchor.set_regression(trained.anchor.weights, trained.anchor.changes)
    is_node = model.find_nodes(inputs["perturbation_ids"])
    torch.testing.assert_close(model(**inputs).logits, inputs["control_values"] + model.anchor(is_node))
    effects = trained.anchor.weights @ trained.anchor.changes
    torch.testing.assert_close(model.anchor(is_node)[1], effects[8] + effects[2])
    assert not dict(model.anchor.named_parameters())  # other training leaves it as it is


def test_a_model_that_is_not_anchored_has_the_weights_that_it_had():
    names = make().state_dict().keys()
    assert "mean_change" in names
    assert not [name for name in names if name.startswith("anchor")]
    assert "mean_change" not in make(**ANCHORED).state_dict()


@pytest.mark.parametrize(("focus", "direction"), [(0.0, 0.0), (1.5, 0.0), (0.0, 0.7)])
def test_loss_is_that_of_plain_loops(focus, direction, inputs):
    model = make(focus=focus, direction_weight=direction)
    out = model(**inputs)
    total = 0.0
    for row in range(4):
        for gene in range(MEASURED):
            control = inputs["control_values"][row, gene].item()
            change, true = out.logits[row, gene].item() - control, inputs["labels"][row, gene].item() - control
            total += abs(change - true) ** (2 + focus)
            total += direction * (abs(change * true) if change * true < 0 else 0)
    assert out.loss.item() == pytest.approx(total / (4 * MEASURED), rel=1e-4)
    # Parts of a batch that is accumulated add up to the whole.
    halves = [{name: part[rows] for name, part in inputs.items()} for rows in (slice(1), slice(1, None))]
    parts = [model(**half, num_items_in_batch=4 * MEASURED).loss.item() for half in halves]
    assert sum(parts) == pytest.approx(out.loss.item(), rel=1e-5)


def test_direction_loss_pulls_only_where_the_direction_is_wrong():
    model = make(direction_weight=1.0)
    change = torch.tensor([[0.5, 0.5, -0.5]], requires_grad=True)
    true = torch.tensor([[-1.0, 1.0, -1.0]])
    (model.loss(change, true) * 3 - (change - true).square().sum()).backward()
    assert change.grad.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("changes", [{}, ANCHORED])
def test_gradients_reach_all_weights_and_only_learned_features(changes, inputs):
    for features in ("pretrained", "learned"):
        model = make(features, dropout=0.0, **changes).train()  # dropout may leave a small width nothing
        model(**inputs).loss.backward()
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
        assert ("features" in dict(model.named_parameters())) == (features == "learned")


@pytest.mark.parametrize("changes", [{}, ANCHORED])
@pytest.mark.parametrize("features", ["pretrained", "learned"])
def test_saved_and_loaded_it_is_the_same(features, changes, inputs, tmp_path):
    model = make(features, **changes)
    model.save_pretrained(tmp_path)
    loaded = XTrimoGeneForPerturbationPrediction.from_pretrained(tmp_path)
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    # To rounding: some processors add up in another order where memory is aligned otherwise, as loaded weights are.
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_graphs_without_edges_work_and_travel(inputs, tmp_path):
    config = make().config
    config.num_expression_edges = config.num_relation_edges = 0
    model = XTrimoGeneForPerturbationPrediction(config).eval()
    model.gene_ids.copy_(make().gene_ids)
    model.save_pretrained(tmp_path)
    loaded = XTrimoGeneForPerturbationPrediction.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_impossible_inputs_are_refused(inputs):
    model = make()
    stranger = next(gene for gene in range(GENES) if gene not in model.gene_ids.tolist())
    with pytest.raises(ValueError, match=rf"1 genes that are not among the 11 .*ids {stranger}.*further_genes"):
        model(**{**inputs, "perturbation_ids": torch.full((4, 1), stranger)})
    with pytest.raises(ValueError, match=r"control_values \(4, 6\) must be \(4, 7\)"):
        model(**{**inputs, "control_values": inputs["control_values"][:, 1:]})
    with pytest.raises(ValueError, match=r"labels \(3, 7\) must be \(4, 7\)"):
        model(**{**inputs, "labels": inputs["labels"][1:]})
    with pytest.raises(ValueError, match="no measured genes, and 0 in the graphs"):
        XTrimoGeneForPerturbationPrediction(XTrimoGenePerturbationConfig())


def test_examples_in_docstrings_run():
    assert doctest.testmod(modeling_perturbation).failed == 0
    assert doctest.testmod(modeling_perturbation).attempted > 0
