"""Heads on a cell embedding."""

import json

import torch

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification


def encoder_inputs(batch):
    return {key: batch[key] for key in ("input_ids", "values", "attention_mask")}


def test_classifier_trains_on_a_batch_of_one_cell(tiny_config, make_batch):
    for norm in ("features", "batch"):
        model = XTrimoGeneForSequenceClassification(tiny_config(num_labels=3, classifier_norm=norm)).train()
        batch = encoder_inputs(make_batch(model.config, lengths=(5,)))
        model(**batch, labels=torch.tensor([1])).loss.backward()


@torch.no_grad()
def test_features_are_standardised_by_statistics_that_stay(tiny_config, make_batch, tmp_path):
    model = XTrimoGeneForSequenceClassification(tiny_config(num_labels=3)).train()
    norm = model.classifier.norm
    features = torch.randn(50, model.config.pooled_size) * 0.01 + 3
    features[:, 0] = 2.0  # one that does not vary
    torch.testing.assert_close(norm(features), features)
    assert not norm.is_set
    norm.set_statistics(features)
    assert norm.is_set
    normed = norm(features)
    torch.testing.assert_close(normed[:, 1:].std(0, correction=0), torch.ones(model.config.pooled_size - 1))
    assert not normed[:, 0].any()
    torch.testing.assert_close(norm(features[:3]), normed[:3])  # whatever the batch
    model.save_pretrained(tmp_path)
    loaded = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.classifier.norm(features), normed)


@torch.no_grad()
def test_a_classifier_saved_before_there_was_a_choice_keeps_its_batch_norm(tiny_config, make_batch, tmp_path):
    model = XTrimoGeneForSequenceClassification(tiny_config(num_labels=3, classifier_norm="batch")).train()
    batch = encoder_inputs(make_batch(model.config))
    model(**batch)  # moves the running statistics
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["classifier_norm"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.classifier_norm == "batch"
    torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits)
    # A pre-trained checkpoint of that time has no head: a new one gets today's.
    XTrimoGeneForPreTraining(tiny_config()).save_pretrained(tmp_path / "pretrained")
    config = json.loads((tmp_path / "pretrained" / "config.json").read_text())
    del config["classifier_norm"]
    (tmp_path / "pretrained" / "config.json").write_text(json.dumps(config))
    fresh = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path / "pretrained", num_labels=3)
    assert fresh.config.classifier_norm == "features"
    assert (fresh.classifier.norm.mean == 0).all()
    assert (fresh.classifier.norm.std == 1).all()
