"""What a run leaves beside its model."""

import json
import math

import pytest
from huggingface_hub import ModelCard

from xtrimogene import XTrimoGeneModel
from xtrimogene.hub_cards.card import CardContent, Metric
from xtrimogene.recipes.results import figures, write_results


def test_the_figure_of_the_model_stands_beside_those_of_the_baselines():
    scores = {"TxFM": {"mse": 0.1, "r2": 1}, "gene mean": {"mse": 0.3, "r2": 0}, "PCA": {"mse": 0.2, "r2": 0}}
    assert figures(scores, "mse") == (0.1, {"gene mean": 0.3, "PCA": 0.2})
    with pytest.raises(KeyError):
        figures(scores, "mae")


def test_metrics_are_json_and_the_card_holds_what_is_finite(tmp_path, tiny_config):
    XTrimoGeneModel(tiny_config()).save_pretrained(tmp_path)
    results = [
        Metric("masked values", "blood", "Pearson", 0.5, {"gene mean": 0.25}),
        Metric("masked values", "blood", "R2", math.nan),
    ]
    content = CardContent(model_name="me/blood", summary="A test.", command="xtrimogene pretrain", metrics=results)
    write_results(tmp_path, {"steps": 3, "loss": math.nan, "curve": [1.0, 0.5]}, content)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"steps": 3, "loss": None, "curve": [1.0, 0.5]}
    card = ModelCard.load(tmp_path / "README.md")
    assert [result.metric_name for result in card.data.eval_results] == ["Pearson"]
    assert card.data.license == "unknown"
    assert "hidden_size" in card.text
