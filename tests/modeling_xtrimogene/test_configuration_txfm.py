"""The configuration of TxFM: sizes, checks, and what a file holds."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig

from xtrimogene import TxFMConfig, TxFMForPreTraining


@pytest.mark.parametrize(("size", "millions"), [("txfm-S", 56.7), ("txfm-B", 158.5), ("txfm-L", 402.6)])
def test_sizes_have_the_parameters_that_were_published(size, millions):
    with torch.device("meta"):
        model = TxFMForPreTraining(TxFMConfig.preset(size, num_genes=44_349))  # the genes of the paper's corpus
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_printed_depth_of_the_small_size_has_fewer_parameters_than_were_published():
    with torch.device("meta"):
        model = TxFMForPreTraining(TxFMConfig.preset("txfm-S", num_genes=44_349, num_hidden_layers=6))
    assert model.num_parameters() / 1e6 == pytest.approx(46, abs=0.1)


def test_a_file_gives_the_same_configuration(tmp_path):
    config = TxFMConfig.preset("txfm-tiny", num_genes=9, loss="nb", class_weights=[1, 2])
    config.save_pretrained(tmp_path)
    again = TxFMConfig.from_pretrained(tmp_path)
    assert (again.loss, again.class_weights, again.vocab_size, again.pad_token_id) == ("nb", [1.0, 2.0], 10, 9)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "txfm"
    assert (again.anchored, again.count_activation) == (config.anchored, config.count_activation)


@pytest.mark.parametrize("size", ["txfm-S", "txfm-B", "txfm-L"])
def test_sizes_of_the_paper_are_not_anchored_and_an_anchored_model_tells_shares(size):
    assert (TxFMConfig.preset(size).anchored, TxFMConfig.preset(size).count_activation) == (False, "rectified_tanh")
    config = TxFMConfig.preset(size, anchored=True)
    assert (config.count_activation, config.pooled_size) == ("softmax", config.embedding_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 10, "num_attention_heads": 3}, "hidden_size 10 is not a multiple of num_attention_heads 3"),
        ({"hidden_size": 1, "num_attention_heads": 1}, "a token holds at least one number, and the value"),
        ({"num_visible": 0}, "num_visible is 0 and must be at least 1"),
        ({"inference_passes": -1}, "inference_passes is -1 and must be at least 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0 and must be a share"),
        ({"activation_scale": 0.0}, "activation_scale is 0.0 and must be above 0"),
        ({"layerscale_value": -1.0}, "layerscale_value is -1.0 and must not be negative"),
        ({"embedding_size": 0}, "embedding_size is 0 and must be at least 1"),
        ({"num_batches": -1}, "num_batches is -1 and must be at least 0"),
        ({"anchored": True, "count_activation": "relu"}, "anchored is True and count_activation 'relu': the bag of"),
        ({"vocab_size": 50}, "vocab_size 50 has no room for 50 genes and padding"),
    ],
)
def test_what_no_model_can_have_is_refused(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=re.escape(message)):
        TxFMConfig(**{"num_genes": 50, **changes})


@pytest.mark.parametrize("changes", [{"loss": "hinge"}, {"count_activation": "tanh"}, {"pooling": "mean"}])
def test_unknown_choices_are_refused(changes):
    with pytest.raises(StrictDataclassFieldValidationError):
        TxFMConfig(**changes)


def test_an_anchored_model_of_unknown_units_is_refused_and_other_old_files_are_read(tmp_path):
    """Of an earlier version, whose bag of genes read counts per 100,000; a plain model may get a new anchor."""
    for anchored in (True, False):
        TxFMConfig.preset("txfm-tiny", num_genes=9, anchored=anchored).save_pretrained(tmp_path / str(anchored))
        path = tmp_path / str(anchored) / "config.json"
        saved = json.loads(path.read_text())
        assert saved.pop("anchor_library_size") == 1e4
        path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="anchored TxFM and has no anchor_library_size: an earlier version saved it"):
        AutoConfig.from_pretrained(tmp_path / "True")
    assert not TxFMConfig.from_pretrained(tmp_path / "True", anchored=False, count_activation=None).anchored
    assert TxFMConfig.from_pretrained(tmp_path / "True", anchor_library_size=1e5).anchor_scale == 1
    again = TxFMConfig.from_pretrained(tmp_path / "False", anchored=True, count_activation="softmax")
    assert again.anchor_scale == pytest.approx(0.1)


def test_an_unknown_size_is_named():
    with pytest.raises(ValueError, match="no preset 'tiny'; there are txfm-micro, txfm-tiny, txfm-S, txfm-B, txfm-L"):
        TxFMConfig.preset("tiny")
