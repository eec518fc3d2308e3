"""What is done to go fast changes no result: packing, distinct values, rows of zero genes shared by cells, chunks."""

import pytest
import torch

from xtrimogene import TxFMConfig, TxFMModel, XTrimoGeneForPreTraining, XTrimoGeneModel
from xtrimogene.modeling_xtrimogene import modeling_xtrimogene
from xtrimogene.modeling_xtrimogene import packed_xtrimogene as packed


@pytest.fixture
def real_batch(pbmc, tokenizer):
    """Twelve blood cells, of 70 to 180 expressed genes, of the full panel."""
    return tokenizer(pbmc[::60])


def padded(model, batch):
    """The output of the plain path: states that are asked for and have gradients are not packed."""
    with torch.enable_grad():
        return model(**batch, output_hidden_states=True)


@pytest.mark.parametrize("depth_tokens", [False, True])
def test_packing_changes_no_output_and_no_gradient(tiny_config, make_batch, depth_tokens):
    torch.manual_seed(0)
    config = tiny_config(depth_tokens=depth_tokens, pooling="all", attention_probs_dropout_prob=0.0)
    model = XTrimoGeneModel(config).double().eval()
    batch = {name: make_batch(config)[name] for name in ("input_ids", "values", "attention_mask")}
    batch["values"] = batch["values"].double()
    assert model.packs(batch["input_ids"].device)
    results = []
    for run in (model, lambda **inputs: padded(model, inputs)):
        model.zero_grad()
        out = run(**batch)
        out.pooler_output.square().sum().backward()
        gradients = [part.grad for part in model.encoder.parameters()]
        is_token = batch["attention_mask"].bool()
        results.append([out.pooler_output, out.last_hidden_state[is_token], *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("has_tiles", [False, True])  # in bfloat16, processors with and without AMX go separate ways
def test_packing_is_exact_on_real_cells(tiny_config, real_batch, tokenizer, monkeypatch, has_tiles):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    torch.manual_seed(0)
    model = XTrimoGeneModel(tiny_config(num_genes=tokenizer.num_genes, hidden_size=128, pooling="all")).eval()
    with torch.no_grad():
        fast, plain = model(**real_batch).pooler_output, padded(model, real_batch).pooler_output
        half = model.bfloat16()(**real_batch).pooler_output
    assert len(set(real_batch["attention_mask"].sum(1).tolist())) > 5
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    assert torch.nn.functional.cosine_similarity(half.float(), plain, dim=-1).min() > 0.999


def test_packing_leaves_an_empty_cell_out(tiny_config, make_batch):
    config = tiny_config(pooling="all")
    model = XTrimoGeneModel(config).eval()
    batch = {name: make_batch(config)[name] for name in ("input_ids", "values", "attention_mask")}
    batch["attention_mask"][1] = 0
    out = model(**batch).pooler_output
    assert out[1].isnan().all()
    torch.testing.assert_close(out[[0, 2]], padded(model, batch).pooler_output[[0, 2]], atol=1e-5, rtol=0)


def test_blocked_attention_is_attention(monkeypatch):
    monkeypatch.setattr(packed, "QUERY_ROWS", 7)
    query, key, value = (torch.randn(1, 3, 20, 8, dtype=torch.float64) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.3)
    torch.testing.assert_close(packed.blocked_attention(query, key, value, 0.3), expected)


def test_attention_with_dropout_has_the_gradients_of_its_draw_and_keeps_no_weights(monkeypatch):
    monkeypatch.setattr(packed, "QUERY_ROWS", 7)
    length, kept = 20, []
    tensors = [torch.randn(1, 3, length, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved
    ):
        out = packed.attention_with_dropout(*tensors, dropout_p=0.3, scale=0.3)
    found = torch.autograd.grad(out.square().sum(), tensors)
    assert max(kept, default=0) < 7 * length  # not even one block's weights

    torch.manual_seed(0)
    query, key, value = tensors
    weights = [(block @ key.mT * 0.3).softmax(-1) for block in query.split(7, dim=2)]
    plain = torch.cat([torch.nn.functional.dropout(block, 0.3) @ value for block in weights], dim=2)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(found, torch.autograd.grad(plain.square().sum(), tensors))


def test_distinct_values_are_embedded_once_and_alike(tiny_config):
    torch.manual_seed(0)
    embedding = XTrimoGeneModel(tiny_config()).embeddings.value_embedding
    values = torch.tensor([[1.5, 0.0, 1.5, 2.5], [2.5, 1.5, 0.0, 1.5]])
    seen = []
    embedding.mixing.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    fast = embedding(values)
    assert seen == [(3, 7)]
    torch.testing.assert_close(fast, embedding.mixture(values), atol=1e-7, rtol=0)
    results = [torch.autograd.grad(out.square().sum(), embedding.bins)[0] for out in (fast, embedding.mixture(values))]
    torch.testing.assert_close(*results)


def test_adapters_with_dropout_in_the_decoder_get_the_gradients_of_their_own_draw(tiny_config, make_batch, monkeypatch):
    peft = pytest.importorskip("peft", reason="needs peft")
    config = tiny_config()
    lora = peft.LoraConfig(target_modules=["fc2"], lora_dropout=0.5, init_lora_weights=False)
    results = []
    for run in (modeling_xtrimogene.checkpoint, lambda function, rows, **options: function(rows)):
        monkeypatch.setattr(modeling_xtrimogene, "checkpoint", run)
        torch.manual_seed(0)
        model = peft.get_peft_model(XTrimoGeneForPreTraining(config), lora).train()
        torch.manual_seed(1)
        model(**make_batch(config)).loss.backward()
        results.append([part.grad for name, part in model.named_parameters() if "decoder" in name and "lora" in name])
    assert results[0]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_hidden_states_asked_for_by_the_configuration_have_the_shape_of_the_batch(tiny_config, make_batch):
    model = XTrimoGeneModel(tiny_config(output_hidden_states=True)).eval()
    batch = {name: make_batch(model.config)[name] for name in ("input_ids", "values", "attention_mask")}
    assert {state.shape[:2] for state in model(**batch).hidden_states} == {batch["input_ids"].shape}


def test_values_may_have_gradients(tiny_config, make_batch):
    model = XTrimoGeneModel(tiny_config()).eval()
    batch = {name: make_batch(model.config)[name] for name in ("input_ids", "values", "attention_mask")}
    values = batch["values"].requires_grad_()
    pooled = model(**batch).pooler_output
    (pooled * torch.randn_like(pooled)).sum().backward()  # features that LayerNorm gives sum to 0, whatever the values
    assert values.grad[batch["attention_mask"].bool()].abs().min() > 0


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["XTrimoGene", "TxFM"])
def test_states_of_all_layers_are_packed_too_and_given_back_padded(tiny_config, make_batch, family, implementation):
    torch.manual_seed(0)
    sizes = {"num_genes": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = tiny_config() if family == "XTrimoGene" else TxFMConfig(**sizes)
    model = (XTrimoGeneModel if family == "XTrimoGene" else TxFMModel)(config).eval()
    model.set_attn_implementation(implementation)
    made = make_batch(tiny_config())
    batch = {name: made[name] for name in ("input_ids", "values", "attention_mask")}
    seen = []
    layer = model.encoder.layers[0] if family == "XTrimoGene" else model.layers[0]
    layer.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    found = model(**batch, output_hidden_states=True)
    assert seen == [1]
    is_token = batch["attention_mask"].bool()
    if family == "TxFM":
        is_token = torch.nn.functional.pad(is_token, (1, 0), value=True)
    with torch.enable_grad():  # states that gradients flow through are not packed
        expected = model(**batch, output_hidden_states=True)
    assert seen == [1, 3]
    assert len(found.hidden_states) == len(expected.hidden_states) == 3
    for own, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(own[is_token], other[is_token], atol=1e-6, rtol=1e-5)
        assert not own[~is_token].any()
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    as_tuple = model(**batch, output_hidden_states=[0], return_dict=False)
    assert torch.equal(as_tuple[2][0], found.hidden_states[0])
    assert as_tuple[2][1] is None


def test_lengths_that_are_not_those_of_the_batch_change_nothing_on_a_cpu(tiny_config, make_batch):
    model = XTrimoGeneModel(tiny_config()).eval()
    batch = make_batch(model.config, lengths=(5, 2, 7))
    with torch.no_grad():
        expected = model(batch["input_ids"], batch["values"], batch["attention_mask"]).pooler_output
        for lengths in ([7, 2, 5], [1, 1, 1], [7, 7, 7], [5, 2]):
            given = model(batch["input_ids"], batch["values"], batch["attention_mask"], lengths=lengths).pooler_output
            assert torch.equal(given, expected)


def test_the_form_of_the_output_is_that_of_the_configuration_unless_given(tiny_config, make_batch):
    model = XTrimoGeneModel(tiny_config()).eval()
    batch = make_batch(model.config, lengths=(5, 2))
    inputs = batch["input_ids"], batch["values"], batch["attention_mask"]
    assert torch.equal(model(*inputs, return_dict=None).pooler_output, model(*inputs, return_dict=False)[1])
