import numpy as np
import pytest

from xtrimogene.eval.measures.results import difference, differences, mean_of, score


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


def test_more_seeds_on_the_same_units_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(3, 2, 400)
    one, many = (score("t", "d", "m", "mean", [lambda rows: values[rows].mean()] * n, [400] * n) for n in (1, 5))
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_other_units_in_other_seeds_do_not_narrow_it_either():
    """Each seed tests another half of the same 400 cells; the mean over seeds is as uncertain as the cells are few."""
    rng = np.random.default_rng(1)
    halves = [rng.normal(3, 2, 200) for _ in range(6)]
    found = score("t", "d", "m", "mean", [lambda rows, half=half: half[rows].mean() for half in halves], [200] * 6)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / 200**0.5, rel=0.1)


def test_an_interval_holds_the_value_of_a_metric_that_repeats_distort():
    """Repeated units raise the share of distinct ones that are lost: the plain percentiles would lie beside it."""
    found = score("t", "d", "m", "distinct", [lambda rows: len(set(rows.tolist())) / len(rows)], [200])
    assert found.value == 1
    assert found.low < 1 < found.high


def test_a_difference_is_that_of_pairs_and_has_their_interval():
    """Both methods go up and down with the unit; what they differ by hardly does."""
    rng = np.random.default_rng(1)
    units = rng.normal(0, 2, 400)
    ours, theirs = units + 0.3 + rng.normal(0, 0.1, 400), units
    found = difference("t", "d", "m", "mean", [(mean_of(ours), mean_of(theirs))], [np.arange(400)])
    assert found.value == pytest.approx((ours - theirs).mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * (ours - theirs).std() / 20, rel=0.1)
    assert (found.seeds, found.units) == (1, 400)


def test_seeds_narrow_a_difference_only_as_far_as_they_test_other_units():
    values = np.random.default_rng(1).normal(3, 2, 400)
    nothing = mean_of(np.zeros(400))
    halves = np.arange(200), np.arange(200, 400)

    def width(tests):
        pairs = [(mean_of(values[test]), nothing) for test in tests]
        found = difference("t", "d", "m", "mean", pairs, tests)
        assert found.low < np.mean([values[test].mean() for test in tests]) < found.high
        return found.high - found.low

    once = width(halves[:1])
    assert width([halves[0], halves[0][::-1]]) == pytest.approx(once, rel=0.1)
    assert width(halves) == pytest.approx(once / 2**0.5, rel=0.1)


def test_differences_are_those_of_the_named_methods_in_every_metric():
    right = {"ours": np.ones(9), "theirs": np.zeros(9), "control": np.ones(9)}
    statistics = {(name, metric): [mean_of(each)] for name, each in right.items() for metric in ("a", "b")}
    found = differences("t", "d", statistics, "theirs", ["ours"], [np.arange(9)])
    assert [(score.data, score.method, score.metric, score.value) for score in found] == [
        ("d, less theirs", "ours", "a", 1), ("d, less theirs", "ours", "b", 1),
    ]  # fmt: skip
