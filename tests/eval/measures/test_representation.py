"""Probes, mixing of batches and decoded expression: against loops, scikit-learn and scipy, and by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from xtrimogene.eval.measures import representation


def blobs(seed, per_label=40, spread=1.0):
    """Cells of four labels that overlap."""
    labels = np.repeat(np.arange(4), per_label)
    centres = 2 * np.eye(4, 6)
    return centres[labels] + np.random.default_rng(seed).normal(scale=spread, size=(len(labels), 6)), labels


def test_the_learning_rate_rises_for_ten_epochs_and_ends_at_zero():
    rates = [representation.rate_at(step, 2) for step in range(500)]
    assert rates[0] == 3e-5
    assert rates[10] == pytest.approx((3e-5 + 1e-3) / 2)
    assert max(rates) == rates[20] == 1e-3
    assert rates[260] == pytest.approx(0.5e-3)
    assert 0 < rates[-1] < 1e-7


@pytest.mark.parametrize("scale", [0.1, 1, 10, 100])
def test_the_linear_probe_is_about_as_good_as_logistic_regression_at_every_scale(scale):
    (train, labels), (test, _) = blobs(0, spread=0.8), blobs(1, spread=0.8)
    found = representation.linear_scores(scale * train, labels, scale * test, seed=0).argmax(1) == labels
    judged = LogisticRegression(max_iter=1_000).fit(train, labels).score(test, labels)
    assert found.mean() == pytest.approx(judged, abs=0.06)


def test_the_linear_probe_follows_from_its_seed_alone(monkeypatch):
    monkeypatch.setattr(representation, "BATCH", 50)  # several batches an epoch
    monkeypatch.setattr(representation, "EPOCHS", 20)
    (train, labels), (test, _) = blobs(0), blobs(1)
    before = torch.random.get_rng_state()
    first = representation.linear_scores(train, labels, test, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    np.testing.assert_array_equal(first, representation.linear_scores(train, labels, test, seed=3))
    assert not np.array_equal(first, representation.linear_scores(train, labels, test, seed=4))


def test_votes_of_neighbors_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(representation, "NEIGHBORS", 7)
    monkeypatch.setattr(representation, "NEIGHBOR_COMPONENTS", 3)
    (train, labels), (test, _) = blobs(0), blobs(1)
    components = PCA(3).fit(train)
    expected = np.zeros((len(test), 4))
    for row, cell in enumerate(components.transform(test)):
        distances = np.linalg.norm(components.transform(train) - cell, axis=1)
        nearest = np.argsort(distances)[:7]
        np.add.at(expected[row], labels[nearest], 1 / (distances[nearest] + 1e-5))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(representation.neighbor_scores(train, labels, test, seed=0), expected, rtol=1e-6)


def test_hits_are_the_mean_of_top_1_and_top_5_and_ties_are_none():
    scores = np.array([[6, 5, 4, 3, 2, 1, 0.0]] * 4)
    assert representation.hits(scores, np.array([0, 1, 4, 5])).tolist() == [1, 0.5, 0.5, 0]
    no_votes = np.array([[1.0, 0, 0, 0, 0, 0, 0]])
    assert representation.hits(no_votes, np.array([3])).tolist() == [0]
    assert representation.hits(np.random.default_rng(0).random((20_000, 20)), np.zeros(20_000, int)).mean() == (
        pytest.approx((1 / 20 + 5 / 20) / 2, abs=0.01)
    )


def lisi_of_a_cell(distances, batches, perplexity):
    """The inverse Simpson index of one cell, found as Harmony's authors describe it."""
    low, high, slope = -np.inf, np.inf, 1.0
    for _ in range(50):
        weights = np.exp(-slope * distances)
        shares = weights / weights.sum()
        entropy = math.log(weights.sum()) + slope * (distances * shares).sum()
        if abs(entropy - math.log(perplexity)) < 1e-5:
            break
        if entropy > math.log(perplexity):
            low, slope = slope, 2 * slope if np.isinf(high) else (slope + high) / 2
        else:
            high, slope = slope, slope / 2 if np.isinf(low) else (slope + low) / 2
    return 1 / sum(shares[batches == name].sum() ** 2 for name in set(batches))


def test_inverse_simpson_is_that_of_a_loop_over_cells():
    rng = np.random.default_rng(0)
    batches = rng.choice(["a", "b", "c"], 150)
    embedding = rng.normal(size=(150, 4)) + 1.5 * (batches == "a")[:, None]
    found = representation.inverse_simpson(embedding, batches, perplexity=10)
    for cell in (0, 1, 77, 149):
        distances = np.linalg.norm(embedding - embedding[cell], axis=1)
        nearest = np.argsort(distances)[1:30]  # three times the perplexity, the cell itself among them
        expected = lisi_of_a_cell(distances[nearest], batches[nearest], 10)
        assert found[cell] == pytest.approx(expected, abs=1e-3)


def test_ilisi_is_0_for_batches_apart_and_1_for_equal_shares():
    rng = np.random.default_rng(0)
    batches = np.tile(["a", "b", "c"], 200)
    embedding = rng.normal(size=(600, 3))
    assert 0.9 < representation.ilisi(embedding, batches, 0).mean() <= 1
    apart = embedding + 100 * np.unique(batches, return_inverse=True)[1][:, None]
    assert representation.ilisi(apart, batches, 0).max() < 1e-9
    two = np.where(batches == "c", "b", batches)  # one third and two thirds
    assert representation.ilisi(embedding, two, 0).mean() == pytest.approx(1 / (1 / 9 + 4 / 9) - 1, abs=0.05)


def test_expression_is_decoded_where_an_embedding_holds_it_and_the_mean_elsewhere():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 4))
    embedding = values @ rng.normal(size=(4, 6)) + 3
    found = representation.decoded(embedding[:200], values[:200], embedding[200:], seed=0)
    np.testing.assert_allclose(found, values[200:], atol=0.1)
    noise = representation.decoded(rng.normal(size=(200, 100)), values[:200], rng.normal(size=(100, 100)), seed=0)
    assert noise.std() < 0.1 * values.std()


def test_correlations_of_genes_are_those_of_scipy():
    rng = np.random.default_rng(0)
    truth = rng.poisson(1.0, (40, 5)).astype(float)  # many ties
    predicted = truth + rng.normal(size=truth.shape)
    truth[:, 3], predicted[:, 4] = 2.0, 1.0
    found = representation.gene_correlations(truth, predicted)
    expected = [spearmanr(truth[:, gene], predicted[:, gene]).statistic for gene in range(3)]
    np.testing.assert_allclose(found, [*expected, 0])  # the gene that does not vary is left out


def test_structural_integrity_by_hand():
    truth = np.array([[0.0, 0.0], [4.0, 3.0], [1.0, 1.0], [1.0, 2.0], [1.0, 1.0]])
    batches = np.array(["a", "a", "b", "b", "b"])
    is_control = np.array([True, False, True, False, True])
    predicted = truth.copy()
    predicted[1], predicted[3] = [4.0, 0.0], [1.0, 5.0]
    found = representation.structural_integrity(truth, predicted, batches, is_control)
    # |P - Y| is 3 in each batch, |Y| is 5 and 1: 1 - (3 / 2 + 3 / 3) / (2 (5 / 2 + 1 / 3))
    assert found(np.arange(5)) == pytest.approx(1 - 2.5 / (2 * (5 / 2 + 1 / 3)))
    assert found(np.array([1, 1])) == pytest.approx(1 - 3 / (2 * 5))  # one batch, its cell twice
    every = np.arange(5)
    assert representation.structural_integrity(truth, truth, batches, is_control)(every) == 1
    means = np.array([[0.0, 0.0]] * 2 + [[1.0, 1.0]] * 3)
    assert representation.structural_integrity(truth, means, batches, is_control)(every) == pytest.approx(0.5)
