"""Scores and baselines of drug synergy."""

import numpy as np
import pandas as pd
import pytest

from xtrimogene.eval.measures.synergy import additive, cell_line_mean, pair_mean, synergy_metrics

CLASSES = "single_label_classification"


def table(rows):
    return pd.DataFrame(rows, columns=["drug_a", "drug_b", "cell_line", "score"])


def test_metrics_of_scores_agree_with_their_definitions():
    rng = np.random.default_rng(0)
    true = rng.normal(5, 20, 60).round()  # with ties
    predicted = (0.5 * true + rng.normal(0, 10, 60)).round()
    metrics = {name: metric(true, predicted) for name, metric in synergy_metrics("regression").items()}

    def correlation(x, y):
        x, y = x - x.mean(), y - y.mean()
        return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())

    def ranks(x):  # 1 + those below + half of the others that are equal
        return 1 + (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) - 1) / 2

    assert metrics == pytest.approx(
        {
            "mse": sum((t - p) ** 2 for t, p in zip(true, predicted, strict=True)) / 60,
            "pearson": correlation(true, predicted),
            "spearman": correlation(ranks(true), ranks(predicted)),
        }
    )


def test_metrics_of_classes_agree_with_their_definitions():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 2, 50)
    predicted = np.clip(0.3 * true + rng.uniform(0, 0.7, 50), 0, 1).round(1)  # with ties
    metrics = {name: metric(true, predicted) for name, metric in synergy_metrics(CLASSES).items()}
    ones, zeros = predicted[true == 1], predicted[true == 0]
    above = (ones[:, None] > zeros).mean() + 0.5 * (ones[:, None] == zeros).mean()
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(predicted), reverse=True):
        called = predicted >= threshold
        recall = (called & (true == 1)).sum() / (true == 1).sum()
        area += (recall - recall_before) * (true[called] == 1).mean()
        recall_before = recall
    agreed = np.mean((predicted > 0.5) == (true == 1))
    p, q = np.mean(predicted > 0.5), np.mean(true)
    by_chance = p * q + (1 - p) * (1 - q)
    expected = {"auroc": above, "auprc": area, "accuracy": agreed, "kappa": (agreed - by_chance) / (1 - by_chance)}
    assert metrics == pytest.approx(expected)


def test_metrics_that_do_not_exist_are_nan_without_a_warning(recwarn):
    constant, true = np.full(4, 3.0), np.array([1.0, 2, 3, 4])
    metrics = synergy_metrics("regression")
    assert np.isnan([metrics["pearson"](true, constant), metrics["spearman"](true, constant)]).all()
    assert np.isnan(synergy_metrics(CLASSES)["auroc"](np.ones(4), true / 5))
    assert not recwarn.list


def test_means_are_of_the_pair_the_drugs_and_the_cell_line():
    train = table([("A", "B", "X", 1.0), ("A", "B", "Y", 3.0), ("A", "C", "X", 9.0)])
    test = table([("A", "B", "Z", 0), ("B", "C", "X", 0), ("A", "Q", "Y", 0), ("P", "Q", "Z", 0)])
    everything, a, b, c = 13 / 3, 13 / 3, 2, 9
    assert pair_mean(train, test) == pytest.approx([2, (b + c) / 2, (a + everything) / 2, everything])
    assert cell_line_mean(train, test) == pytest.approx([everything, 5, 3, everything])


def test_additive_baseline_finds_parts_that_add():
    rng = np.random.default_rng(0)
    parts = {name: 10 * rng.normal() for name in [*"ABCDEFGH", *(f"C{index}" for index in range(20))]}
    rows = [
        (a, b, cell, parts[a] + parts[b] + parts[cell]) for a in "ABCDEFGH" for b in "ABCDEFGH" if a < b
        for cell in parts if len(cell) > 1
    ]  # fmt: skip
    scores = table(rows)
    is_test = (scores.drug_a == "C") & (scores.drug_b == "F")
    predicted = additive(scores[~is_test], scores[is_test])
    np.testing.assert_allclose(predicted, scores.score[is_test], atol=1.5)
    assert np.isfinite(additive(scores[~is_test], table([("P", "Q", "new", 0.0)]))).all()
