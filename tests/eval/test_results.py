import numpy as np
import pytest

from xtrimogene.eval.results import score


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = score("t", "d", "m", "mean", [lambda rows: values[rows].mean()], [400])
    assert found.value == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.04)
    assert (found.spread, found.seeds, found.units) == (0, 1, 400)


def test_seeds_are_averaged_and_their_spread_is_told():
    first, second = np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0])
    found = score("t", "d", "m", "mean", [lambda rows: first[rows].mean(), lambda rows: second[rows].mean()], [3, 2])
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)
    assert found.spread == pytest.approx(0.5**0.5)
