"""Post-processing by control cells: against scikit-learn and scipy, and for what no batch allows."""

import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from xtrimogene.eval.measures import controls


@pytest.fixture
def cells():
    """90 cells of three batches with shifts of their own, a third of them control cells."""
    rng = np.random.default_rng(0)
    batches = np.repeat(["a", "b", "c"], 30)
    mixing, shifts = rng.normal(size=(5, 5)), rng.normal(scale=4, size=(3, 5))
    embedding = rng.normal(size=(90, 5)) @ mixing + np.repeat(shifts, 30, axis=0)
    return embedding, batches, np.arange(90) % 3 == 0


def test_cells_are_centred_and_scaled_by_the_controls_of_their_batch(cells):
    embedding, batches, is_control = cells
    centred, scaled = controls.centred(*cells), controls.centre_scaled(*cells)
    for name in "abc":
        rows = batches == name
        by = StandardScaler().fit(embedding[rows & is_control])
        np.testing.assert_allclose(scaled[rows], by.transform(embedding[rows]))
        np.testing.assert_allclose(centred[rows], embedding[rows] - by.mean_)


def test_a_feature_that_controls_do_not_vary_in_is_only_centred(cells):
    embedding, batches, is_control = cells
    embedding[is_control, 2] = 7.0
    found = controls.centre_scaled(embedding, batches, is_control)
    np.testing.assert_allclose(found[:, 2], embedding[:, 2] - 7)


def test_tvn_is_what_its_steps_say(cells):
    embedding, batches, is_control = cells
    by = StandardScaler().fit(embedding[is_control])
    turned = PCA().fit(by.transform(embedding[is_control])).transform(by.transform(embedding))
    turned = StandardScaler().fit(turned[is_control]).transform(turned)
    expected = np.empty_like(turned)
    for name in "abc":
        rows = batches == name
        covariance = np.cov(turned[rows & is_control].T, ddof=1) + 0.5 * np.eye(5)
        expected[rows] = turned[rows] @ fractional_matrix_power(covariance, -0.5)
    found = controls.tvn(*cells)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-8)  # components have no sign


def test_tvn_keeps_the_directions_in_which_few_controls_vary():
    rng = np.random.default_rng(0)
    embedding, batches = rng.normal(size=(40, 30)), np.repeat(["a", "b"], 20)
    found = controls.tvn(embedding, batches, np.arange(40) % 4 == 0)
    assert found.shape == (40, 9)  # ten control cells vary in nine directions
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 100


@pytest.mark.parametrize("process", ["centred", "centre-scaled", "TVN"])
def test_a_batch_without_controls_is_named(cells, process):
    embedding, batches, is_control = cells
    with pytest.raises(ValueError, match=r"batch b has 0 control cells among its 30, and post-processing needs \d"):
        controls.POST_PROCESSING[process](embedding, batches, is_control & (batches != "b"))


def test_a_constant_feature_in_float32_is_only_centred_and_integers_are_numbers():
    """The standard deviation of equal numbers in float32 is not 0."""
    values = np.full((40, 2), 0.3, np.float32)
    values[30:, 0] = 1.3
    values[:, 1] = np.arange(40)
    is_control = np.arange(40) < 30
    scaled = controls.centre_scaled(values, np.full(40, "a"), is_control)
    np.testing.assert_allclose(scaled[:, 0], np.where(is_control, 0, 1), atol=1e-6)
    whole = np.array([[1], [2], [4], [8]])
    first_two = np.array([True, True, False, False])
    assert controls.centred(whole, np.full(4, "a"), first_two).ravel().tolist() == [-0.5, 0.5, 2.5, 6.5]
