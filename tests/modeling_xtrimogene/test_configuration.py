"""What a configuration accepts, and what it refuses with a reason."""

import pytest

from xtrimogene import XTrimoGeneConfig


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_attention_heads": 0}, "num_attention_heads is 0 and must be at least 1"),
    ({"hidden_size": -16}, "hidden_size is -16 and must be at least 1"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1 and must be at least 0"),
    ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers is 0 and must be at least 1"),
    ({"decoder_head_dim": 0}, "decoder_head_dim is 0 and must be at least 1"),
    ({"classifier_hidden_size": -1}, "classifier_hidden_size is -1 and must be at least 1"),
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
