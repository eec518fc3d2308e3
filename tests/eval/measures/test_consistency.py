"""Perturbation consistency: against loops over cells, at chance without an effect, and found where there is one."""

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from xtrimogene.eval.measures import consistency


@pytest.fixture
def cells():
    """200 cells of two batches: 100 control cells, A shifted, B not, 50 each."""
    rng = np.random.default_rng(0)
    names = np.repeat(["control", "A", "B"], [100, 50, 50])
    batches = np.where(np.arange(200) % 2 == 0, "one", "two")
    embedding = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    embedding[names == "A"] += 6 * rng.normal(size=6)
    return embedding, names, batches, names == "control"


def by_loops(embedding, names, batches, is_control):
    turned = PCA().fit(embedding[is_control]).transform(embedding)
    for name in set(batches):
        turned[batches == name] = StandardScaler().fit_transform(turned[batches == name])
    cosines, null = {}, []
    for name in ("A", "B"):
        rows = np.flatnonzero(names == name)
        others = [turned[rows[rows != row]].mean(0) for row in rows]
        cosines[name] = np.mean([1 - cosine(turned[row], mean) for row, mean in zip(rows, others, strict=True)])
        mean = turned[rows].mean(0)
        null += [1 - cosine(turned[row], mean) for row in np.flatnonzero(names != name)]
    return cosines, np.sort(null)


def test_cosines_null_and_p_values_are_those_of_loops_over_cells(cells):
    cosines, null = by_loops(*cells)
    found = consistency.perturbation_consistency(*cells, seed=0)
    assert found.names.tolist() == ["A", "B"]
    np.testing.assert_allclose(found.cosines, [cosines["A"], cosines["B"]])
    np.testing.assert_allclose(found.null, null)
    assert len(null) == 2 * 150
    for name, p in zip(found.names, found.p_values, strict=True):
        assert p == pytest.approx((1 + np.sum(null >= cosines[name])) / 301)


def test_an_effect_is_significant_and_shuffled_labels_are_not(cells):
    embedding, names, batches, is_control = cells
    found = consistency.perturbation_consistency(*cells, seed=0)
    assert found.is_significant.tolist() == [True, False]
    names[100:] = np.random.default_rng(1).permutation(names[100:])
    shuffled = consistency.perturbation_consistency(embedding, names, batches, is_control, seed=0)
    assert not shuffled.is_significant.any()
    assert shuffled.p_values.min() > 0.1


def test_each_batch_is_standardised_over_all_of_its_cells(cells):
    embedding, _, batches, is_control = cells
    found = consistency.align(embedding + 5.0 * (batches == "one")[:, None], batches, is_control)
    for name in ("one", "two"):
        np.testing.assert_allclose(found[batches == name].mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(found[batches == name].std(0), 1)


def test_the_null_is_of_so_many_cells_at_most(cells, monkeypatch):
    monkeypatch.setattr(consistency, "NULL_CELLS", 30)
    nulls = [consistency.perturbation_consistency(*cells, seed=seed).null for seed in (0, 0, 1)]
    np.testing.assert_array_equal(nulls[0], nulls[1])
    assert not np.array_equal(nulls[0][:30], nulls[2][:30])
    assert all(30 <= len(null) <= 60 for null in nulls)


def test_what_cannot_be_compared_is_refused(cells):
    embedding, names, batches, is_control = cells
    names[-1] = "C"
    with pytest.raises(ValueError, match="C has a single cell, and consistency needs 2"):
        consistency.perturbation_consistency(embedding, names, batches, is_control, seed=0)
    with pytest.raises(ValueError, match="0 of 200 cells are control cells"):
        consistency.perturbation_consistency(embedding, names, batches, np.zeros(200, bool), seed=0)
