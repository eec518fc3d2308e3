"""The parts of fine-tuning; the whole is in test_training.py."""

import torch

from xtrimogene.training.finetuning import annotation_model


def test_class_weights_may_be_whole_numbers(tiny_config, make_batch, tmp_path):
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    annotation_model(config, ["B", "T"]).save_pretrained(tmp_path)
    batch = {key: make_batch(config)[key] for key in ("input_ids", "values", "attention_mask")}
    labels, losses = torch.tensor([0, 1, 1]), []
    for weights in ([1, 3], [1.0, 3.0]):
        model = annotation_model(tmp_path, ["B", "T"], class_weights=weights).eval()
        losses.append(model(**batch, labels=labels).loss.item())
    assert losses[0] == losses[1]
