"""What an embedding holds of labels and batches, by hand and as scikit-learn computes it."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, silhouette_samples

from xtrimogene.eval.measures import probes


def test_macro_f1_is_that_of_scikit_learn_also_where_labels_are_absent():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 5, 60), rng.integers(0, 5, 60)
    statistic = probes.macro_f1_of(true, predicted, 7)
    for rows in (np.arange(60), rng.integers(0, 60, 60), np.flatnonzero(true < 2)):
        expected = f1_score(true[rows], predicted[rows], average="macro", zero_division=0)
        assert statistic(rows) == pytest.approx(expected)


def test_mixing_of_batches_by_hand():
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(120, 3))
    batches = np.repeat(["a", "b", "c"], [60, 40, 20])
    found = probes.batch_entropy(embedding, batches)
    scaled = (embedding - embedding.mean(0)) / embedding.std(0)
    whole = -sum(share * np.log(share) for share in (1 / 2, 1 / 3, 1 / 6))
    for cell in (0, 59, 119):
        nearest = np.argsort(((scaled - scaled[cell]) ** 2).sum(1))[1:51]
        shares = [np.mean(batches[nearest] == name) for name in "abc"]
        expected = -sum(share * np.log(share) for share in shares if share) / whole
        assert found[cell] == pytest.approx(expected)
    assert found.mean() > 0.9
    apart = embedding + 100 * (batches == "a")[:, None] - 100 * (batches == "b")[:, None]
    assert probes.batch_entropy(apart, batches)[batches == "a"].max() == 0


def test_silhouettes_of_batches_leave_out_labels_of_one_batch():
    rng = np.random.default_rng(0)
    embedding, batches = rng.normal(size=(60, 3)), np.repeat(["a", "b"], 30)
    groups = np.where(np.arange(60) < 10, 1, 0)  # the second group lies in batch a
    found = probes.batch_silhouettes(embedding, batches, groups)
    assert np.isnan(found[:10]).all()
    np.testing.assert_allclose(found[10:], 1 - np.abs(silhouette_samples(embedding[10:], batches[10:])))
