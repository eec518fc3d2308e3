"""Half precision: what stays in float32, where a model is loaded in it, cast to it, and under autocast."""

import pytest
import torch
from torch import nn

from xtrimogene import (
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
    XTrimoGeneModel,
    XTrimoGenePerturbationConfig,
    XTrimoGeneSynergyConfig,
)
from xtrimogene.modeling_xtrimogene import modeling_xtrimogene
from xtrimogene.modeling_xtrimogene import precision_xtrimogene as precision
from xtrimogene.modeling_xtrimogene.attention_xtrimogene import XTrimoGeneEncoderLayer
from xtrimogene.modeling_xtrimogene.modeling_perturbation import XTrimoGeneForPerturbationPrediction
from xtrimogene.modeling_xtrimogene.modeling_synergy import XTrimoGeneForDrugSynergy
from xtrimogene.modeling_xtrimogene.precision_xtrimogene import LayerNorm, for_products, in_float32

HALF = torch.bfloat16
IN_HALF = {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}
SYNERGY = {"drug_features": ["a", "b"], "problem_type": "regression", "num_labels": 1}
PERTURBATION = {
    "num_nodes": 5,
    "num_measured": 3,
    "feature_size": 2,
    "num_expression_edges": 4,
    "num_relation_edges": 4,
}


def encoder_inputs(batch):
    return {name: batch[name] for name in ("input_ids", "values", "attention_mask")}


@pytest.mark.parametrize(("cls", "config_of"), [
    (XTrimoGeneForPreTraining, lambda tiny: tiny()),
    (XTrimoGeneForSequenceClassification, lambda tiny: tiny(num_labels=3)),
    (XTrimoGeneForDrugSynergy, lambda tiny: XTrimoGeneSynergyConfig(encoder_config=tiny(), **SYNERGY)),
    (XTrimoGeneForPerturbationPrediction, lambda tiny: XTrimoGenePerturbationConfig(**PERTURBATION)),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_products_of_layers_are_loaded_in_half_precision(tiny_config, tmp_path, cls, config_of, dtype):
    cls(config_of(tiny_config)).save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path, dtype=dtype)
    in_half = {name for name, tensor in loaded.state_dict().items() if tensor.dtype is dtype}
    expected = {name for name in loaded.state_dict() if "layers" in name and name.split(".")[-2] in IN_HALF}
    assert in_half == expected
    others = {tensor.dtype for name, tensor in loaded.state_dict().items() if name not in expected}
    assert others <= {torch.float32, torch.int64}


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_states_between_layers_are_in_float32(tiny_config, make_batch, tmp_path, packed):
    model = XTrimoGeneModel(tiny_config(pooling="all"))
    model.save_pretrained(tmp_path)
    batch = encoder_inputs(make_batch(model.config))
    seen = []

    def look(module, args, out):
        if isinstance(module, nn.Linear):
            assert out.dtype is HALF
        else:
            seen.extend([args[0].dtype, out.dtype])

    for half in (XTrimoGeneModel.from_pretrained(tmp_path, dtype=HALF), model.bfloat16().eval()):
        for name, module in half.named_modules():
            if isinstance(module, XTrimoGeneEncoderLayer | LayerNorm) or name.split(".")[-1] in IN_HALF:
                module.register_forward_hook(look)
        with torch.set_grad_enabled(not packed):  # states that are asked for and have gradients are not packed
            out = half(**batch, output_hidden_states=not packed)
        genes = half.decode(out.last_hidden_state, batch["input_ids"], batch["attention_mask"])
        assert len(seen) > 20
        assert {*seen, out.last_hidden_state.dtype, out.pooler_output.dtype, genes.dtype} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["all", "mean", "max"])
def test_autocast_changes_nothing_after_the_encoder(tiny_config, make_batch, pooling):
    torch.manual_seed(0)
    model = XTrimoGeneForSequenceClassification(tiny_config(num_labels=3, pooling=pooling)).eval()
    batch = make_batch(model.config)
    states = torch.randn(*batch["input_ids"].shape, model.config.hidden_size)
    pooled = model.model.pool(states, batch["input_ids"], batch["attention_mask"])
    tokens = batch["input_ids"], torch.ones_like(batch["input_ids"], dtype=torch.float), batch["attention_mask"].bool()
    logits = model.classifier(pooled, *tokens)
    with torch.autocast("cpu", HALF):
        assert torch.equal(model.model.pool(states, batch["input_ids"], batch["attention_mask"]), pooled)
        assert torch.equal(in_float32(model.classifier, pooled, *tokens), logits)
        assert not torch.equal(model.classifier(pooled, *tokens), logits)
        output = model(**encoder_inputs(batch))
    encoded = model.model.with_pooled(states, *tokens)
    assert encoded.pooler_output.dtype is output.logits.dtype is torch.float32


@torch.no_grad()
def test_synergy_and_perturbation_are_in_float32_under_autocast(tiny_config):
    torch.manual_seed(0)
    synergy_config = XTrimoGeneSynergyConfig(encoder_config=tiny_config(pooling="mean"), **SYNERGY)
    synergy = XTrimoGeneForDrugSynergy(synergy_config).eval()
    drugs = *torch.rand(2, 4, 2), torch.rand(4, synergy.config.cell_size)
    perturbation = XTrimoGeneForPerturbationPrediction(XTrimoGenePerturbationConfig(**PERTURBATION)).eval()
    for tensor in [*perturbation.parameters(), *perturbation.buffers()]:
        if tensor.is_floating_point():
            nn.init.normal_(tensor, std=1) if tensor.ndim else tensor
    perturbation.gene_ids.copy_(torch.arange(5))
    profiles = torch.tensor([[0], [3]]), torch.rand(2, 3)
    exact = synergy(*drugs).logits, perturbation(*profiles).logits
    with torch.autocast("cpu", HALF):
        found = synergy(*drugs).logits, perturbation(*profiles).logits
    for one, other in zip(exact, found, strict=True):
        assert torch.equal(one, other)


def test_for_products_leaves_quantised_and_whole_weights_alone():
    states, layer = torch.rand(2, 4), nn.Linear(4, 4)
    assert for_products(layer, states) is states
    assert for_products(layer.bfloat16(), states).dtype is HALF
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    assert for_products(layer, states) is states
    dynamic = torch.ao.nn.quantized.dynamic.Linear(4, 4)  # its weight is a method
    assert for_products(dynamic, states) is states


@torch.no_grad()
def test_a_model_in_half_precision_is_saved_and_loaded_as_one(tiny_config, make_batch, tmp_path):
    XTrimoGeneForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "whole")
    model = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path / "whole", dtype=HALF).eval()
    assert model.dtype is HALF
    model.save_pretrained(tmp_path / "half")
    loaded = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path / "half").eval()
    assert loaded.dtype is HALF
    batch = encoder_inputs(make_batch(model.config))
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_differences_in_float64_are_taken_where_it_is_fast(monkeypatch):
    times = {torch.float32: 1.0, torch.float64: 2.0}
    asked = []
    monkeypatch.setattr(precision, "time_of_product", lambda device, dtype: asked.append(dtype) or times[dtype])
    monkeypatch.setattr(precision, "FLOAT64_TIMES", {})
    assert precision.float64_is_fast(torch.device("cpu"))
    assert not precision.float64_is_fast(torch.device("mps"))
    assert precision.float64_is_fast(torch.device("cuda", 0))
    times[torch.float64] = 64.0
    assert not precision.float64_is_fast(torch.device("cuda", 1))
    assert precision.float64_is_fast(torch.device("cuda", 0))
    assert len(asked) == 4  # each device is measured once


def test_where_float64_is_slow_all_rows_are_written_out_and_the_results_are_the_same(
    tiny_config, make_batch, monkeypatch
):
    config = tiny_config()
    torch.manual_seed(0)
    model = XTrimoGeneForPreTraining(config).eval()
    batch = make_batch(config, lengths=(4, 9, 13, 2))
    expected = model(**batch)
    monkeypatch.setattr(modeling_xtrimogene, "float64_is_fast", lambda device: False)
    monkeypatch.setattr(torch.Tensor, "double", lambda part: pytest.fail("float64 is slow"))
    found = model(**batch)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, expected.loss)
