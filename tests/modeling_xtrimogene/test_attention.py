"""Attention and the layer around it."""

import pytest
import torch

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneModel
from xtrimogene.modeling_xtrimogene import attention_xtrimogene


def encoder_inputs(batch):
    return {key: batch[key] for key in ("input_ids", "values", "attention_mask")}


@torch.no_grad()
def test_eager_and_sdpa_agree_and_eager_returns_attention(tiny_config, make_batch):
    config = tiny_config()
    model = XTrimoGeneModel(config).eval()
    batch = encoder_inputs(make_batch(config))
    fast = model(**batch, output_hidden_states=True)
    assert len(fast.hidden_states) == config.num_hidden_layers + 1
    model.set_attn_implementation("eager")
    slow = model(**batch, output_attentions=True)
    is_token = batch["attention_mask"].bool()
    torch.testing.assert_close(slow.last_hidden_state[is_token], fast.last_hidden_state[is_token], atol=1e-5, rtol=0)
    assert len(slow.attentions) == config.num_hidden_layers
    weights = slow.attentions[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert weights[0, :, :, 1:].abs().max() == 0  # cell 0 has one gene: nothing attends to its padding


@pytest.mark.parametrize("is_half", [False, True])
def test_parts_of_the_feed_forward_layer_change_nothing(monkeypatch, tiny_config, make_batch, is_half):
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = XTrimoGeneForPreTraining(config).train()
    batch = make_batch(config)
    results = []
    for rows in (10_000, 3):
        monkeypatch.setattr(attention_xtrimogene, "FEED_FORWARD_ROWS", rows)
        with torch.no_grad():
            predicted = model.eval()(**batch).logits
        model.train().zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):  # parts would add up gradients in bfloat16
            model(**batch).loss.backward()
        results.append([predicted, *(part.grad for part in model.parameters())])
    for one, other in zip(*results, strict=True):  # gradients of a weight are added up in another order
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
