"""Scores of annotators on cells of other experiments."""

import math

import numpy as np
import pytest

from xtrimogene.recipes.studies.annotators import Named, coarse, rows


def test_names_of_two_studies_come_to_types_that_both_have():
    true = np.array(["CD14 Mono", "CD4 Naive T", "B Activated", "NK"])
    label = np.array(["CD14+ Monocyte", "CD8+ Cytotoxic T", "CD34+", "CD56+ NK"])
    named = coarse(Named(true, label, np.array([0.99, 0.95, 0.91, 0.2]), np.array([False, False, True, False])))
    assert named.true.tolist() == ["monocyte", "T", "B", "NK"]
    assert named.label.tolist() == ["monocyte", "T", "CD34+", "NK"]
    scores = named.scores()
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == 0.75  # CD34+ is none of the true types
    assert scores["sure"] == 0.75
    assert scores["right of probability >= .9"] == pytest.approx(2 / 3)
    assert scores["called unknown"] == 0.25


def test_rows_are_means_over_the_seeds_that_have_a_score():
    def run(accuracy, right):
        return {"set": {"ours": {"accuracy": accuracy, "right of probability >= .9": right}}}

    (row,) = rows([run(0.8, 1.0), run(0.6, math.nan)])
    assert (row["test set"], row["method"], row["seeds"]) == ("set", "ours", 2)
    assert row["accuracy"] == pytest.approx(0.7)
    assert row["accuracy std"] == pytest.approx(0.1 * 2**0.5)
    assert row["right of probability >= .9"] == 1.0
    (row,) = rows([run(0.8, math.nan)])
    assert math.isnan(row["right of probability >= .9"])
    assert math.isnan(row["accuracy std"])  # of one seed nothing is known
