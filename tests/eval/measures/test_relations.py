"""Recall of relations: chance for random vectors, all for planted ones, and intervals over genes."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from xtrimogene.eval.measures import relations


def recall(vectors, pairs):
    unit = relations.reduced(vectors, 32, 0)
    return relations.is_recalled(unit, pairs, relations.random_cosines(unit, 0)).mean()


def test_random_vectors_are_at_chance_and_planted_relations_are_found(monkeypatch):
    monkeypatch.setattr(relations, "NULL_PAIRS", 100_000)
    rng = np.random.default_rng(0)
    pairs = np.arange(2_000).reshape(-1, 2)
    assert recall(rng.normal(size=(2_000, 64)), pairs) == pytest.approx(0.1, abs=0.03)
    planted = np.repeat(rng.normal(size=(1_000, 64)), 2, axis=0) + rng.normal(scale=0.3, size=(2_000, 64))
    assert recall(planted, pairs) > 0.95


def test_a_pair_counts_as_often_as_both_of_its_genes_were_drawn():
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    recall = relations.recall_of(np.array([True, False, False]), pairs, 4)
    assert recall(np.arange(4)) == pytest.approx(1 / 3)
    assert recall(np.array([0, 0, 1, 2])) == pytest.approx(2 / 3)  # the first pair twice, the second once, no third
    assert np.isnan(recall(np.array([3, 3, 3, 3])))


def test_intervals_are_as_wide_as_those_of_relations_drawn_anew():
    rng = np.random.default_rng(0)

    # Whether a pair is found depends on its genes: hubs are in many pairs.
    def draw():
        good = rng.random(200) < 0.5
        pairs = np.column_stack([rng.integers(20, size=2_000), rng.integers(20, 200, size=2_000)])
        return good[pairs[:, 0]], pairs

    spread = np.std([found.mean() for found, _ in (draw() for _ in range(300))])
    found, pairs = draw()
    recall = relations.recall_of(found, pairs, 200)
    by_genes = np.nanstd([recall(rng.integers(200, size=200)) for _ in range(300)])
    by_pairs = np.std([found[rng.integers(2_000, size=2_000)].mean() for _ in range(300)])
    assert 0.5 * spread < by_genes < 2 * spread
    assert by_pairs < 0.2 * spread


def test_the_tails_of_a_null_are_recalled_by_hand():
    angles = np.radians([0, 10, 60, 90, 170])
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pairs = np.array([[0, 1], [0, 2], [0, 3], [0, 4]])  # cosines 0.98, 0.5, 0 and -0.98
    found = relations.is_recalled(unit, pairs, np.linspace(-1, 1, 2_001))  # percentiles -0.9 and 0.9
    assert found.tolist() == [True, False, False, True]


def test_vectors_are_standardised_components_of_length_one():
    vectors = np.random.default_rng(0).normal(size=(40, 6)) * [1, 1, 1, 1, 1, 1_000] + 5
    unit = relations.reduced(vectors, 3, 0)
    expected = PCA(3).fit_transform((vectors - vectors.mean(0)) / vectors.std(0))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(unit @ unit.T, expected @ expected.T, atol=1e-8)
    assert relations.reduced(vectors, 9, 0).shape == (40, 6)
