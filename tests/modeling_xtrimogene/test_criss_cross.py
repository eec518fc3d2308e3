"""Criss-cross attention: the equations, who learns of whom, and padding."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification, XTrimoGeneModel
from xtrimogene.modeling_xtrimogene.criss_cross_xtrimogene import CrissCrossLayer
from xtrimogene.modeling_xtrimogene.flops_xtrimogene import criss_cross_flops, encoder_flops, step_flops

CRISS_CROSS = {
    "encoder_attention": "criss_cross", "criss_cross_latents": 5, "criss_cross_size": 6, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def encoder_inputs(batch):
    return {key: batch[key] for key in ("input_ids", "values", "attention_mask")}


def softmax_attention(query, key, value, num_heads, is_key=None):
    """Attention as written, head by head."""
    found = []
    for q, k, v in zip(query.chunk(num_heads, -1), key.chunk(num_heads, -1), value.chunk(num_heads, -1), strict=True):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if is_key is not None:
            scores = scores.masked_fill(~is_key.unsqueeze(1), -torch.inf)
        found.append(scores.softmax(-1) @ v)
    return torch.cat(found, -1)


@torch.no_grad()
@pytest.mark.parametrize("is_last", [False, True])
def test_a_layer_is_the_equations(tiny_config, is_last):
    torch.manual_seed(0)
    layer = CrissCrossLayer(tiny_config(**CRISS_CROSS), is_last)
    genes, latents = torch.randn(2, 7, 16), torch.randn(2, 5, 6)
    is_key = torch.arange(7) < torch.tensor([[7], [4]])
    found_genes, found_latents = layer(genes, latents, is_key)
    x, v = layer.norm1(genes), layer.latent_norm(latents)
    read = softmax_attention(layer.q_proj(x), layer.latent_k_proj(v), layer.latent_v_proj(v), 2)
    expected = genes + layer.o_proj(read)
    expected = expected + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.norm2(expected))))
    torch.testing.assert_close(found_genes, expected)
    if is_last:
        assert torch.equal(found_latents, latents)
        assert not hasattr(layer, "latent_o_proj")
        return
    written = softmax_attention(layer.latent_q_proj(v), layer.k_proj(x), layer.v_proj(x), 2, is_key)
    torch.testing.assert_close(found_latents, latents + layer.latent_o_proj(written))


@torch.no_grad()
@pytest.mark.parametrize(("num_layers", "changed"), [(1, [3]), (2, list(range(9)))])
def test_one_layer_is_local_and_two_mix_all_genes(tiny_config, num_layers, changed):
    torch.manual_seed(0)
    model = XTrimoGeneModel(tiny_config(num_hidden_layers=num_layers, **CRISS_CROSS)).eval()
    ids, values = torch.arange(9).unsqueeze(0), torch.rand(1, 9)
    before = model(ids, values).last_hidden_state
    values[0, 3] += 1
    after = model(ids, values).last_hidden_state
    is_changed = (before - after).abs().amax(-1)[0] > 1e-5  # other genes may be rounded otherwise
    assert is_changed.nonzero().flatten().tolist() == changed


@torch.no_grad()
def test_a_cell_does_not_depend_on_padding_or_batch(tiny_config, make_batch):
    torch.manual_seed(0)
    config = tiny_config(pooling="all", **CRISS_CROSS)
    model = XTrimoGeneModel(config).eval()
    inputs = encoder_inputs(make_batch(config, lengths=(9, 20, 4)))
    pooled = model(**inputs).pooler_output
    alone = model(**{name: rows[2:, :4] for name, rows in inputs.items()}).pooler_output
    torch.testing.assert_close(alone, pooled[2:])
    padding = {"input_ids": config.pad_token_id, "values": 5.0, "attention_mask": 0}
    padded = {name: torch.nn.functional.pad(rows, (0, 7), value=padding[name]) for name, rows in inputs.items()}
    torch.testing.assert_close(model(**padded).pooler_output, pooled)
    inputs["attention_mask"][1] = 0
    emptied = model(**inputs).pooler_output
    assert emptied.isnan().any(1).tolist() == [False, True, False]
    torch.testing.assert_close(emptied[[0, 2]], pooled[[0, 2]])


def test_all_parameters_are_trained(tiny_config, make_batch):
    """No latent of the last layer is computed, so that no process waits for its gradient."""
    torch.manual_seed(0)
    model = XTrimoGeneForPreTraining(tiny_config(**CRISS_CROSS)).train()
    batch = make_batch(model.config)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        if name != "model.embeddings.padding_vector":
            assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_states_are_given_and_maps_refused(tiny_config, make_batch, tmp_path):
    model = XTrimoGeneForSequenceClassification(tiny_config(num_labels=2, **CRISS_CROSS)).eval()
    inputs = encoder_inputs(make_batch(model.config))
    output = model(**inputs, output_hidden_states=True)
    assert [rows.shape for rows in output.hidden_states] == [(3, 13, 16)] * 3
    with pytest.raises(ValueError, match="criss-cross attention has no map of genes by genes"):
        model(**inputs, output_attentions=True)
    model.freeze_encoder(1)
    assert not model.model.encoder.latents.requires_grad
    model.save_pretrained(tmp_path)
    again = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.model.encoder.latents.dtype is torch.float32
    assert again.model.encoder.layers[0].latent_norm.weight.dtype is torch.float32
    assert again.model.encoder.layers[0].latent_k_proj.weight.dtype is torch.bfloat16
    torch.testing.assert_close(again(**inputs).logits, output.logits, atol=0.05, rtol=0.05)


def test_work_is_linear_in_the_number_of_genes_and_follows_the_formula(tiny_config):
    """By torch's counter: twice the genes need twice of the FLOPs, where full attention needs more."""
    from xtrimogene.eval.cost.flops import count_flops

    def flops(length, config):
        model = XTrimoGeneModel(config).eval().requires_grad_(False)
        model.set_attn_implementation("eager")
        ids = torch.arange(length).unsqueeze(0)
        with sdpa_kernel(SDPBackend.MATH):  # torch counts no fused attention
            return count_flops(lambda: model(ids, torch.ones(1, length)))

    linear, full = (tiny_config(num_genes=4000, num_bins=2, num_hidden_layers=3, **form) for form in (CRISS_CROSS, {}))
    counted = [flops(length, linear) for length in (1000, 2000)]
    assert counted[1] / counted[0] < 2.01
    assert flops(2000, full) / flops(1000, full) > 3
    assert counted[1] == pytest.approx(criss_cross_flops(linear, 2000), rel=0.03)
    assert step_flops(linear, 2000, 0) - step_flops(full, 2000, 0) == 3 * (
        criss_cross_flops(linear, 2000) - encoder_flops(2000, 16, 3)
    )
