"""Scores with intervals, as every evaluation task returns them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


BOOTSTRAP_DRAWS = 1_000
COVERAGE = 0.95


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


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], float]:
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
    statistics: Sequence[Callable[[np.ndarray], float]],
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
    outside = (1 - COVERAGE) / 2
    ends = []
    for value, statistic, units in zip(values, statistics, num_units, strict=True):
        drawn = np.array([statistic(rng.integers(units, size=units)) for _ in range(draws)])
        if np.isnan(drawn).all():
            ends.append([np.nan, np.nan])
        else:
            ends.append(np.nanquantile(drawn, [outside, 1 - outside]) - (np.nanmean(drawn) - value))
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
