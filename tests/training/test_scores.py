"""What training logs is what evaluation reports: each number is computed in one place."""

import numpy as np
import pytest

from xtrimogene.eval.measures.metrics import annotation_metrics, masked_value_metrics
from xtrimogene.training.scores import label_scores, value_scores


@pytest.mark.filterwarnings("error")
def test_label_scores_are_those_of_the_evaluation():
    true, predicted = ["B", "B", "B", "T", "T", "NK"], ["B", "B", "T", "T", "B", "Mono"]
    scores = label_scores(true, predicted)
    assert scores == pytest.approx({"accuracy": 3 / 6, "macro_f1": (2 / 3 + 1 / 2) / 4})
    assert scores.items() <= annotation_metrics(true, predicted).items()


def test_value_scores_are_those_of_the_evaluation():
    rng = np.random.default_rng(0)
    true = np.where(rng.random((5, 7)) < 0.3, 0, rng.gamma(2, 1, (5, 7)))
    predicted = 0.5 * true + rng.normal(0, 0.3, true.shape)
    true[:, 6] = -100
    scores = value_scores(true, predicted)
    for ending, counted in {"": true >= 0, "_expressed": true > 0}.items():
        expected = np.corrcoef(true[counted], predicted[counted])[0, 1]
        assert scores[f"pearson{ending}"] == pytest.approx(expected)
        assert scores[f"mse{ending}"] == pytest.approx(np.mean((true - predicted)[counted] ** 2))
    assert scores.items() <= masked_value_metrics(true, predicted).items()
