"""Outputs equal those of the reference implementation with the same (small, random) weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from xtrimogene import XTrimoGeneConfig
from xtrimogene.modeling_xtrimogene.convert_scfoundation import convert_config, convert_state_dict
from xtrimogene.modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining

MODES = ["sc_F_t4", "sc_F_f2", "sc_F_a5", "sc_T_t4", "sc_A_f1", "bulk_F", "bulk_T"]


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "scfoundation" / "tiny" / "seed7"
    files = {
        name: load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs", "intermediates", "state")
    }
    return files | {"config": json.loads((folder / "meta.json").read_text())["config"]}


@pytest.fixture
def load(golden):
    """Build the model with the reference's weights; keyword arguments change the configuration."""

    def build(dtype=torch.float32, **changes):
        model = XTrimoGeneForPreTraining(convert_config(golden["config"], **changes))
        missing = model.load_state_dict(convert_state_dict(golden["state"]))
        assert not missing.missing_keys
        assert not missing.unexpected_keys
        return model.eval().to(dtype)

    return build


def tokens(rows, pad_id):
    """The reference's rows [genes, T, S] as a padded batch of what is above zero."""
    lengths = (rows > 0).sum(1)
    input_ids = torch.full((len(rows), int(lengths.max())), pad_id)
    values = torch.zeros(input_ids.shape, dtype=rows.dtype)
    attention_mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    input_ids[attention_mask] = (rows > 0).nonzero()[:, 1]
    values[attention_mask] = rows[rows > 0]
    return {"input_ids": input_ids, "values": values, "attention_mask": attention_mask.long()}


def assert_equal(ours, reference, atol=1e-5):
    torch.testing.assert_close(ours, reference, atol=atol, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pooling", ["all", "max"])
def test_cell_embeddings_of_padded_batches_equal_one_cell_at_a_time(golden, load, mode, pooling):
    model = load(pooling=pooling).model
    batch = tokens(golden["inputs"][f"x_{mode}"], model.config.pad_token_id)
    assert (batch["attention_mask"] == 0).any()  # the reference ran without padding
    assert_equal(model(**batch).pooler_output, golden["outputs"][f"cell_{pooling}.{mode}"])


@torch.no_grad()
def test_float64_agrees_to_1e_10(golden, load):
    rows = golden["inputs"]["x_sc_F_t4"].double()
    for pooling in ("all", "max"):
        model = load(torch.float64, pooling=pooling)
        batch = tokens(rows, model.config.pad_token_id)
        pooled = model.model(**batch).pooler_output
        assert_equal(pooled, golden["outputs"][f"cell_{pooling}.sc_F_t4.f64"], atol=1e-10)
    genes = model.model.contextual_gene_embeddings(**batch)
    assert_equal(genes, golden["outputs"]["gene.sc_F_t4.f64"], atol=1e-10)
    assert_equal(model(**batch).logits, golden["outputs"]["gene_expression.sc_F_t4.f64"], atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["sc_F_t4", "sc_A_f1"])
@pytest.mark.parametrize(("stabilizer", "suffix"), [("cell", ""), ("batch", "_batch")])
def test_gene_embeddings_and_expression(golden, load, mode, stabilizer, suffix):
    model = load(favor_stabilizer=stabilizer)
    batch = tokens(golden["inputs"][f"x_{mode}"], model.config.pad_token_id)
    assert_equal(model.model.contextual_gene_embeddings(**batch), golden["outputs"][f"gene{suffix}.{mode}"])
    assert_equal(model(**batch).logits, golden["outputs"][f"gene_expression{suffix}.{mode}"])


@torch.no_grad()
def test_masked_forward(golden, load):
    rows, visible = golden["inputs"]["masked_forward.x"], golden["inputs"]["masked_forward.visible"].bool()
    model = load(favor_stabilizer="batch")
    batch = tokens(rows.masked_fill(~visible, 0), model.config.pad_token_id)
    masked = [(row == 102).nonzero().flatten() for row in rows]
    masked_ids = torch.nn.utils.rnn.pad_sequence(masked, batch_first=True, padding_value=model.config.pad_token_id)
    encoded = model.model(**batch).last_hidden_state
    states = model.model.decode(encoded, batch["input_ids"], batch["attention_mask"], masked_ids)
    assert_equal(model.head(states).squeeze(-1), golden["outputs"]["masked_forward"])


@torch.no_grad()
def test_strict_parity_reads_mask_and_padding_from_the_values(golden, load):
    for pooling in ("all", "max"):
        model = load(pooling=pooling, sentinel_values=True).model
        batch = tokens(golden["inputs"]["x_collision"], model.config.pad_token_id)
        assert_equal(model(**batch).pooler_output, golden["outputs"][f"cell_{pooling}.collision"])
        explicit = load(pooling=pooling).model(**batch).pooler_output
        assert (explicit - golden["outputs"][f"cell_{pooling}.collision"]).abs().max() > 1e-3


@torch.no_grad()
def test_finetuning_pool_over_padding(golden, load):
    positions, is_padding = golden["intermediates"]["finetune.pos"], golden["intermediates"]["finetune.pad"].bool()
    rows = golden["inputs"]["x_sc_F_t4"][:, : golden["config"]["seq_len"] - 2]
    batch = {
        "input_ids": positions,
        "values": rows.gather(1, positions).masked_fill(is_padding, 0),
        "attention_mask": (~is_padding).long(),
    }
    pooled = load(pooling="max", pool_includes_padding=True).model(**batch).pooler_output
    assert_equal(pooled, golden["outputs"]["finetune_max"])
    assert (load(pooling="max").model(**batch).pooler_output - pooled).abs().max() > 1e-3


@torch.no_grad()
def test_every_intermediate_of_a_batch(golden, load):
    model = load(favor_stabilizer="batch")
    expected = golden["intermediates"]
    batch = tokens(golden["inputs"]["x_sc_F_t4"], model.config.pad_token_id)
    torch.testing.assert_close(batch["input_ids"], expected["batch.enc_pos"], rtol=0, atol=0)
    is_token = batch["attention_mask"].bool()
    out = model.model(**batch, output_hidden_states=True)
    for layer in range(model.config.num_hidden_layers - 1):
        hidden = out.hidden_states[layer + 1]
        assert_equal(hidden[is_token], expected[f"batch.encoder.layer{layer}"][is_token])
    assert_equal(out.last_hidden_state[is_token], expected["batch.encoder.norm"][is_token])
    assert_equal(out.hidden_states[0][0, : is_token[0].sum()], expected["cell0.enc_input"][0])
    seen = {}
    model.model.decoder.norm.register_forward_hook(lambda module, args, output: seen.update(norm=output))
    states = model.model.decode(out.last_hidden_state, batch["input_ids"], batch["attention_mask"])
    assert_equal(seen["norm"], expected["batch.decoder.norm"])
    assert_equal(states, expected["batch.norm"])


def test_100m_preset_has_the_released_keys_shapes_and_parameters(shared):
    keys = json.loads((shared / "golden" / "scfoundation" / "keys_100M.json").read_text())
    with torch.device("meta"):
        model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("100M", depth_tokens=True))
        converted = convert_state_dict({name: torch.empty(shape) for name, (shape, _) in keys.items()})
    ours = model.state_dict()
    assert {name: tensor.shape for name, tensor in converted.items()} == {name: ours[name].shape for name in ours}
    assert sum(parameter.numel() for parameter in model.parameters()) == 119_252_285
