"""Scores with intervals, as every evaluation task returns them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


BOOTSTRAP_DRAWS = 1_000
COVERAGE = 0.95
Statistic = Callable[[np.ndarray], float]  # takes indices of test units, with repeats


@dataclass(frozen=True)
class Score:
    """A metric of one method on one data set.

    Attributes:
        task: Name of the task, such as `annotation`.
        data: Name of the data set, such as a file, with the split if there are several.
        method: Name of the checkpoint, baseline or control that predicted.
        metric: Name of the metric.
        value: Mean over seeds.
        low: Lower end of the 95 % bootstrap interval over test units (cells, perturbations, pairs).
        high: Upper end.
        spread: Standard deviation over seeds; 0 for one seed.
        seeds: Number of seeds.
        units: Number of test units of one seed.
        higher_is_better: Direction of the metric; None if it has none, as a coverage that should be 95 %.
        seen: How many of the evaluated cells the method was trained on, as `0 of 1,000`; empty if the task does not
            say.

    Example:
        >>> accuracy = Score("annotation", "blood", "k-NN", "accuracy", 0.8, 0.7, 0.9, spread=0.0, seeds=1, units=100)
        >>> accuracy.low, accuracy.high
        (0.7, 0.9)
    """

    task: str
    data: str
    method: str
    metric: str
    value: float
    low: float
    high: float
    spread: float
    seeds: int
    units: int
    higher_is_better: bool | None = True
    seen: str = ""


@dataclass
class TaskResult:
    """Result of a task on a data set.

    Attributes:
        task: Name of the task, such as `annotation`.
        data: Name of the data set.
        protocol: A few sentences for the report on how the scores were computed, with sources.
        scores: Scores of the model first, then of baselines and controls.
        pictures: Title -> picture.
        settings: Settings that the result depends on: seeds, splits, sizes.

    Example:
        >>> TaskResult("annotation", "blood", "Cells are split in five folds.", scores=[]).settings
        {}
    """

    task: str
    data: str
    protocol: str
    scores: list[Score]
    pictures: dict[str, "Figure"] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def mean_of(values: np.ndarray) -> Statistic:
    """Return a function from indices of test units to the mean of their values.

    Example:
        >>> mean_of(np.array([1.0, 2.0, 6.0]))(np.array([0, 2]))
        3.5
    """
    return lambda rows: float(values[rows].mean())


def score(
    task: str,
    data: str,
    method: str,
    metric: str,
    statistics: Sequence[Statistic],
    num_units: Sequence[int],
    *,
    higher_is_better: bool | None = True,
    draws: int = BOOTSTRAP_DRAWS,
) -> Score:
    """Return a score with its interval.

    Args:
        task: Name of the task, such as `annotation`.
        data: Name of the data set.
        method: Name of the checkpoint, baseline or control that predicted.
        metric: Name of the metric.
        statistics: For each seed, a function from indices of test units (with repeats) to the metric of these units.
        num_units: Number of test units of each seed.
        higher_is_better: Direction of the metric; None if it has none, as a coverage that should be 95 %.
        draws: Number of bootstrap draws of each seed. The interval is the mean of the intervals of the seeds, so more
            seeds do not make it narrower.

    Source: percentile bootstrap (Efron and Tibshirani 1993, chapter 13). The interval is shifted by the bias of the
    draws, because metrics such as NMI grow when cells repeat. Draws without a value are left out, such as an AUROC
    without one of the classes.

    Example:
        >>> is_right = np.array([True, True, False, True])
        >>> found = score("annotation", "blood", "k-NN", "accuracy", [mean_of(is_right)], [4])
        >>> found.value, found.low < 0.75 < found.high
        (0.75, True)
    """
    values = [statistic(np.arange(units)) for statistic, units in zip(statistics, num_units, strict=True)]
    rng = np.random.default_rng(0)
    ends = [
        interval(value, np.array([statistic(rng.integers(units, size=units)) for _ in range(draws)]))
        for value, statistic, units in zip(values, statistics, num_units, strict=True)
    ]
    low, high = np.mean(ends, axis=0)
    return Score(
        task,
        data,
        method,
        metric,
        value=fmean(values),
        low=float(low),
        high=float(high),
        spread=stdev(values) if len(values) > 1 else 0.0,
        seeds=len(values),
        units=num_units[0],
        higher_is_better=higher_is_better,
    )


def interval(value: float, drawn: np.ndarray) -> np.ndarray:
    """Return the ends of the interval of a value: quantiles of bootstrap draws, shifted by their bias; NaN without any.

    Example:
        >>> interval(5.0, np.arange(101.0)).tolist()  # the draws are 45 higher on average
        [-42.5, 52.5]
    """
    if np.isnan(drawn).all():
        return np.full(2, np.nan)
    outside = (1 - COVERAGE) / 2
    return np.nanquantile(drawn, [outside, 1 - outside]) - (np.nanmean(drawn) - value)


def difference(
    task: str,
    data: str,
    method: str,
    metric: str,
    pairs: Sequence[tuple[Statistic, Statistic]],
    tests: Sequence[np.ndarray],
    draws: int = BOOTSTRAP_DRAWS,
) -> Score:
    """Return how much higher a metric of one method is than that of another on the same test units.

    A bootstrap draws units. Each takes its place in the tests of all seeds that it is in, and in both methods: the
    interval is that of the mean over seeds of the difference. So it is narrower with more seeds as far as these test
    other units. It does not hold what differs between pre-trainings.

    Args:
        task: Name of the task, such as `annotation`.
        data: Name of the data set.
        method: Name of the one method.
        metric: Name of the metric.
        pairs: For each seed, the metric of the one and of the other method, functions as for `score`.
        tests: For each seed, the test units: numbers that tell which are the same in several seeds, `(T,)`.
        draws: Number of bootstrap draws.

    Example:
        >>> ours, theirs = np.array([True, True, True, True]), np.array([True, True, False, True])
        >>> pair = mean_of(ours), mean_of(theirs)
        >>> found = difference("annotation", "blood", "k-NN", "accuracy", [pair], [np.array([3, 5, 8, 9])])
        >>> found.value, found.low < 0.25 < found.high
        (0.25, True)
    """

    def of_rows(rows: Sequence[np.ndarray]) -> list[float]:
        return [ours(each) - theirs(each) for (ours, theirs), each in zip(pairs, rows, strict=True)]

    units = np.unique(np.concatenate(tests))
    places = np.full((len(tests), len(units)), -1)  # of a unit in the test of a seed
    for place, test in zip(places, tests, strict=True):
        place[np.searchsorted(units, test)] = np.arange(len(test))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        of_seeds = places[:, rng.integers(len(units), size=len(units))]
        drawn.append(np.mean(of_rows([row[row >= 0] for row in of_seeds])))
    values = of_rows([np.arange(len(test)) for test in tests])
    low, high = interval(fmean(values), np.array(drawn))
    spread = stdev(values) if len(values) > 1 else 0.0
    return Score(task, data, method, metric, fmean(values), float(low), float(high), spread, len(tests), len(tests[0]))


def differences(
    task: str,
    data: str,
    statistics: Mapping[tuple[str, str], Sequence[Statistic]],
    reference: str,
    methods: Collection[str],
    tests: Sequence[np.ndarray],
) -> list[Score]:
    """Return how much higher the metrics of methods are than those of a reference on the same test units.

    The scores are of the data set `DATA, less REFERENCE`: its table has the metrics of the table of the data set.

    Args:
        task: Name of the task, such as `annotation`.
        data: Name of the data set.
        statistics: (method, metric) -> for each seed, a function as for `score`; the reference has each metric.
        reference: Name of the method that the others are compared with.
        methods: Names of these.
        tests: For each seed, the test units, as for `difference`.

    Example:
        >>> is_right = {"k-NN": np.array([True, True, True]), "genes": np.array([True, False, True])}
        >>> statistics = {(method, "accuracy"): [mean_of(each)] for method, each in is_right.items()}
        >>> (found,) = differences("annotation", "blood", statistics, "genes", ["k-NN"], [np.arange(3)])
        >>> found.data, found.method, round(found.value, 2)
        ('blood, less genes', 'k-NN', 0.33)
    """
    return [
        difference(
            task, f"{data}, less {reference}", method, metric,
            list(zip(of_seeds, statistics[reference, metric], strict=True)), tests,
        )
        for (method, metric), of_seeds in statistics.items()
        if method in methods
    ]  # fmt: skip
