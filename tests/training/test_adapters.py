"""What learns in parameter-efficient tuning, what stays bit for bit, and what is saved."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from xtrimogene import (
    TxFMConfig,
    TxFMModel,
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
    XTrimoGeneModel,
)
from xtrimogene.modeling_xtrimogene.xpressor_xtrimogene import add_xpressor
from xtrimogene.training.adapters import ADAPTER, freeze_for_tuning, save_tuned, trained_share
from xtrimogene.training.finetuning import classifier_of
from xtrimogene.training.options import NewHead

LATENTS = {"num_latents": 3, "latent_size": 8, "xpressor_layers": 2}


def step(model, batch):
    """Take a step of the optimizer; return the weights before it."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    model.train()(**batch).loss.backward()
    optimizer.step()
    return before


@pytest.mark.parametrize("peft", ["xpressor", "lora", "none"])
@pytest.mark.parametrize("head", ["pretraining", "annotation"])
def test_only_what_learns_changes(tiny_config, make_batch, peft, head):
    torch.manual_seed(0)
    config = tiny_config(num_labels=3, pooling="xpressor", **LATENTS)
    batch = make_batch(config)
    if head == "pretraining":
        model = XTrimoGeneForPreTraining(config)
    else:
        model = XTrimoGeneForSequenceClassification(config)
        batch = {name: batch[name] for name in ("input_ids", "values", "attention_mask")}
        batch["labels"] = torch.tensor([0, 1, 2])
    whole = sum(weight.numel() for weight in model.parameters())
    model, share = freeze_for_tuning(model, peft)
    before = step(model, batch)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) or name in trained, name
    names = {name for name in trained if not torch.equal(dict(model.named_parameters())[name], before[name])}
    of_head = "classifier" if head == "annotation" else "latent_decoder"
    if peft == "none":
        assert share == 1
    elif peft == "xpressor":
        assert share == sum(before[name].numel() for name in trained) / whole
        assert {name.removeprefix("model.").split(".")[0] for name in names} == {"xpressor", of_head}
    else:
        kinds = {"lora" if "lora_" in name else name.split(".")[2] for name in names}
        assert kinds == ({"lora", "classifier"} if head == "annotation" else {"lora"})
        assert 0 < share < 0.5
    assert share == trained_share(model)


def test_masked_genes_are_predicted_as_before_after_an_xpressor_was_trained(tiny_config, make_batch):
    torch.manual_seed(0)
    model = add_xpressor(XTrimoGeneForPreTraining(tiny_config()))
    batch = make_batch(model.config)
    expected = model.eval()(**batch).logits
    freeze_for_tuning(model, "xpressor")
    step(model, batch)
    assert torch.equal(model.eval()(**batch).logits, expected)


def test_an_xpressor_that_is_not_there_cannot_learn(tiny_config):
    with pytest.raises(ValueError, match=r"num_latents of the model is 0, .* add_xpressor"):
        freeze_for_tuning(XTrimoGeneModel(tiny_config()), "xpressor")
    with pytest.raises(ValueError, match="peft is 'xpressor', and this TxFMModel is of the family TxFM, which has no"):
        freeze_for_tuning(TxFMModel(TxFMConfig.preset("txfm-tiny", num_genes=4)), "xpressor")


def test_options_that_both_say_what_learns_are_refused():
    with pytest.raises(ValueError, match="peft is 'lora' and trainable_layers is 1"):
        NewHead(peft="lora", trainable_layers=1)
    with pytest.raises(ValueError, match="peft is 'xpressor' and pooling is 'max'"):
        NewHead(peft="xpressor", pooling="max")
    assert NewHead(peft="xpressor", pooling="xpressor").peft == "xpressor"


class Known:
    """Labels as `read_labelled` gives them."""

    names, ids, train = ["B", "T"], np.array([0, 1, 1]), np.array([0, 1, 2])


@pytest.mark.parametrize("latents", [{}, LATENTS], ids=["without", "with"])
def test_a_classifier_by_latents_takes_those_of_the_checkpoint_or_new_ones(tiny_config, tmp_path, latents):
    torch.manual_seed(0)
    before = XTrimoGeneForPreTraining(tiny_config(pooling="mean", **latents))
    before.save_pretrained(tmp_path)
    model, share = classifier_of(tmp_path, Known(), NewHead(peft="xpressor"))
    assert model.config.pooling == "xpressor"
    assert model.config.num_latents == latents.get("num_latents", 8)
    assert 0 < share < 1
    assert torch.equal(model.model.encoder.layers[0].fc1.weight, before.model.encoder.layers[0].fc1.weight)
    if latents:
        assert torch.equal(model.model.xpressor.latents, before.model.xpressor.latents)


def test_an_anchored_classifier_by_latents_begins_at_the_bag_of_genes(tiny_config, tmp_path):
    config = tiny_config(pooling="mean", anchored=True)
    size = config.encoder_pooled_size // 2
    before = XTrimoGeneForPreTraining(tiny_config(pooling="mean", anchored=True, num_latents=2, latent_size=size))
    torch.nn.init.normal_(before.model.bag.from_encoder.weight)
    before.save_pretrained(tmp_path)  # the latents are as wide as what was pooled, so its weights would fit
    model, _ = classifier_of(tmp_path, Known(), NewHead(peft="xpressor"))
    assert model.model.bag.from_encoder.weight.shape == before.model.bag.from_encoder.weight.shape
    assert not model.model.bag.from_encoder.weight.any()


def test_an_adapter_is_saved_alone_and_within_the_whole_model(tiny_config, make_batch, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    torch.manual_seed(0)
    config = tiny_config(num_labels=3, hidden_dropout_prob=0.0)
    base = XTrimoGeneForSequenceClassification(config)
    base.save_pretrained(tmp_path / "base")
    model, _ = freeze_for_tuning(base, "lora")
    batch = {name: make_batch(config)[name] for name in ("input_ids", "values", "attention_mask")}
    for _ in range(2):  # the first step moves one of the two factors
        step(model, batch | {"labels": torch.tensor([0, 1, 2])})
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        save_tuned(model, tmp_path / "tuned")
        whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
        torch.testing.assert_close(whole(**batch).logits, expected)
        fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        assert not torch.allclose(fresh(**batch).logits, expected, atol=1e-3)
        alone = peft.PeftModel.from_pretrained(fresh, tmp_path / "tuned" / ADAPTER)
        torch.testing.assert_close(alone(**batch).logits, expected)
    settings = json.loads((tmp_path / "tuned" / ADAPTER / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    size = (tmp_path / "tuned" / ADAPTER / "adapter_model.safetensors").stat().st_size
    assert size < (tmp_path / "tuned" / "model.safetensors").stat().st_size
