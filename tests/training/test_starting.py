"""The model that a pre-training begins with."""

import pytest

from xtrimogene import (
    TxFMConfig,
    TxFMForPreTraining,
    TxFMTokenizer,
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
    XTrimoGeneTokenizer,
)
from xtrimogene.training.options import FirstModel
from xtrimogene.training.starting import first_model, pretraining_rate, size_of


def test_a_new_model_is_of_its_size_with_what_was_chosen():
    chosen = FirstModel(config="tiny", dropout=0.3, depth_tokens=True, decoder_context="all")
    model, tokenizer = first_model(chosen, "cpu")
    config = model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.3, 0.3)
    assert (config.decoder_context, config.depth_tokens, tokenizer.depth_tokens) == ("all", True, True)
    assert config.num_genes == tokenizer.num_genes


def test_size_and_learning_rate_follow_from_the_device_unless_they_are_given():
    assert [size_of(FirstModel(), device) for device in ("cpu", "cuda")] == ["tiny", "3M"]
    assert size_of(FirstModel(config="10M"), "cpu") == "10M"
    assert [pretraining_rate(FirstModel(), device) for device in ("cpu", "cuda")] == [2e-3, 1e-4]
    assert pretraining_rate(FirstModel(checkpoint="there"), "cpu") == 1e-4
    assert [pretraining_rate(FirstModel(config=size), "cpu") for size in ("100M", "txfm-tiny", "txfm-S")] == [
        1e-4, 3e-3, 1e-3,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "message"),
    [({"depth_tokens": True}, "depth_tokens is True"), ({"num_latents": 4}, "num_latents is 4"),
     ({"decoder_context": "all"}, "decoder_context is 'all'")],
)  # fmt: skip
def test_options_that_a_family_does_not_have_are_refused(option, message):
    with pytest.raises(ValueError, match=f"{message}, and models of the size txfm-tiny have no such option"):
        first_model(FirstModel(config="txfm-tiny", **option), "cpu")


def test_latents_are_not_added_to_a_checkpoint_of_a_family_without(tmp_path):
    TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=3)).save_pretrained(tmp_path)
    TxFMTokenizer.from_genes(["CD3E", "MS4A1", "LYZ"], tmp_path / "panel").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"num_latents is 4, and .* is a TxFMForPreTraining, which has no latents"):
        first_model(FirstModel(checkpoint=str(tmp_path), num_latents=4), "cpu")
    with pytest.raises(
        ValueError, match=r"mixing_weight is 3.0, and .* is a TxFMForPreTraining, whose batches are not"
    ):
        first_model(FirstModel(checkpoint=str(tmp_path), mixing_weight=3.0), "cpu")
    model, tokenizer = first_model(FirstModel(checkpoint=str(tmp_path)), "cpu")
    assert (type(model), type(tokenizer)) == (TxFMForPreTraining, TxFMTokenizer)


def test_a_classifier_has_no_decoder_to_train(tmp_path, tiny_config):
    XTrimoGeneForSequenceClassification(tiny_config(num_labels=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a classifier and has no decoder to train: give a pre-trained checkpoint"):
        first_model(FirstModel(checkpoint=str(tmp_path)), "cpu")


def test_the_weight_of_mixing_is_that_of_a_new_model_or_of_a_checkpoint_that_can_mix(tmp_path, tiny_config):
    assert first_model(FirstModel(config="tiny", mixing_weight=3), "cpu")[0].config.mixing_weight == 3
    XTrimoGeneForPreTraining(tiny_config(num_genes=3, anchored=True)).save_pretrained(tmp_path)
    XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "LYZ"], tmp_path / "panel").save_pretrained(tmp_path)
    assert first_model(FirstModel(checkpoint=str(tmp_path), mixing_weight=2), "cpu")[0].config.mixing_weight == 2
    with pytest.raises(Exception, match=r"mixing_weight is 1.* no latents.*: set num_latents"):
        first_model(FirstModel(config="3M", mixing_weight=1), "cpu")


def test_latents_are_of_a_new_model_or_added_to_a_checkpoint(tmp_path, tiny_config):
    XTrimoGeneForPreTraining(tiny_config(num_genes=3)).save_pretrained(tmp_path)
    XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "LYZ"], tmp_path / "panel").save_pretrained(tmp_path)
    for first in (FirstModel(config="tiny", num_latents=4), FirstModel(checkpoint=str(tmp_path), num_latents=4)):
        model, _ = first_model(first, "cpu")
        assert model.config.pooling == "xpressor"
        assert len(model.model.xpressor.latents) == 4
        assert model.latent_decoder is not None
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the model has 4 latents already"):
        first_model(first, "cpu")
