"""The script that fine-tunes: a checkpoint and labelled cells -> a classifier that Auto classes load."""

import json

import pytest
from transformers import AutoModelForSequenceClassification

from xtrimogene.training import run_finetuning


def typed(folder, output, **changes):
    options = {
        "file": folder / "cells.h5ad",
        "drop_empty": True,
        "label_key": "bulk_labels",
        "test_share": 0.25,
        "checkpoint": folder / "model",
        "pooling": "all",
        "output_dir": output,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return [word for name, value in {**options, **changes}.items() for word in (f"--{name}", str(value))]


def test_the_script_trains_and_saves_a_classifier_with_its_labels(blood_folder, tmp_path):
    trainer = run_finetuning.main(typed(blood_folder, tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.id2label == {0: "CD19+ B", 1: "Dendritic", 2: "other"}
    assert model.config.pooling == "all"
    scores = json.loads((tmp_path / "eval_results.json").read_text())
    assert scores["eval_accuracy"] > 0.6
    assert len(trainer.eval_dataset) == round(0.25 * (len(trainer.train_dataset) + len(trainer.eval_dataset)))


def test_a_column_that_is_not_there_is_named(blood_folder, tmp_path):
    with pytest.raises(ValueError, match=r"label_key is 'cell_type', and obs of cells\.h5ad has the columns"):
        run_finetuning.main(typed(blood_folder, tmp_path, label_key="cell_type"))
