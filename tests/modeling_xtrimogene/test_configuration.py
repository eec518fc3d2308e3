"""What a configuration accepts, and what it refuses with a reason."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
)

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining

SAVED_BY_0_1 = Path(__file__).parents[1] / "data" / "saved_by_0_1"


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_attention_heads": 0}, "num_attention_heads is 0 and must be at least 1"),
    ({"hidden_size": -16}, "hidden_size is -16 and must be at least 1"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1 and must be at least 0"),
    ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers is 0 and must be at least 1"),
    ({"decoder_head_dim": 0}, "decoder_head_dim is 0 and must be at least 1"),
    ({"classifier_hidden_size": -1}, "classifier_hidden_size is -1 and must be at least 1"),
    ({"num_latents": -1}, "num_latents is -1 and must be at least 0"),
    ({"latent_size": 0}, "latent_size is 0 and must be at least 1"),
    ({"criss_cross_latents": 0}, "criss_cross_latents is 0 and must be at least 1"),
    ({"kl_weight": -1}, "kl_weight is -1 and must not be negative"),
    ({"max_value": 0}, "max_value is 0 and must be above 0"),
    ({"layer_norm_eps": -1e-5}, "layer_norm_eps is -1e-05 and must be above 0"),
    ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5 and must be a share from 0 to below 1"),
    ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1 and must be a share"),
    ({"classifier_dropout": float("nan")}, "classifier_dropout is nan and must be a share"),
    ({"favor_redraw_interval": -1}, "favor_redraw_interval is -1 and must not be negative"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(tiny_config, changes, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**changes)


def test_class_weights_may_be_whole_numbers(tiny_config, tmp_path):
    config = tiny_config(num_labels=3, class_weights=[1, 2.5, 0])
    assert [type(weight) for weight in config.class_weights] == [float] * 3
    config.save_pretrained(tmp_path)
    assert XTrimoGeneConfig.from_pretrained(tmp_path).class_weights == [1.0, 2.5, 0.0]


@pytest.mark.parametrize("name", ["pretrained", "depth", "classifier", "released_classifier"])
def test_fields_of_heads_that_0_1_saved_with_every_model_are_left_out(name, tmp_path):
    before = json.loads((SAVED_BY_0_1 / name / "config.json").read_text())
    assert len([field for field in before if field.startswith(("synergy_", "perturbation_"))]) == 14
    config = AutoConfig.from_pretrained(SAVED_BY_0_1 / name)
    config.save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert not [field for field in [*after, *vars(config)] if field.startswith(("synergy_", "perturbation_"))]
    kept = before.keys() & XTrimoGeneConfig.__annotations__.keys()
    assert {field: after[field] for field in kept} == {field: before[field] for field in kept}


@pytest.mark.parametrize(("field", "value", "head"), [
    ("synergy_hidden_size", 16, "XTrimoGeneForDrugSynergy"),
    ("perturbation_num_nodes", 3, "XTrimoGeneForPerturbationPrediction"),
])  # fmt: skip
def test_fields_of_heads_are_refused_with_the_name_of_the_head(tiny_config, field, value, head):
    with pytest.raises(ValueError, match=f"{field} is {value}, .*configuration of {head}, without its prefix"):
        tiny_config(**{field: value})


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
    ({"pooling": "S"}, "pooling 'S' needs depth tokens and this model has none"),
    ({"pooling": "xpressor"}, "pooling 'xpressor' needs latents and num_latents is 0"),
    ({"encoder_attention": "criss_cross", "num_hidden_layers": 0}, "'criss_cross' and num_hidden_layers is 0"),
    (
        {"encoder_attention": "criss_cross", "num_latents": 2, "xpressor_decoder": "shared"},
        "xpressor_decoder is 'shared' and encoder_attention is 'criss_cross', whose layers do not decode",
    ),
    ({"vocab_size": 40}, "vocab_size 40 has no room for 50 positions and padding"),
    ({"decoder_head_dim": 1}, "decoder_head_dim 1 gives no random features"),
    ({"num_genes": 0}, "num_genes 0 must be at least 1"),
    ({"value_embedding": "spline"}, "value_embedding"),
])  # fmt: skip
def test_config_rejects_what_cannot_be_built(tiny_config, changes, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**changes)


def test_presets():
    sizes = {"3M": (3.5e6, 4.0e6), "10M": (9.5e6, 9.9e6), "100M": (119.2e6, 119.3e6)}
    for name, (least, most) in sizes.items():
        with torch.device("meta"):
            model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset(name, depth_tokens=True))
        assert least < model.num_parameters() < most
    with pytest.raises(ValueError, match="no preset '7B'; there are"):
        XTrimoGeneConfig.preset("7B")
