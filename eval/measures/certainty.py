"""Metrics of calibration, and of the recognition of unknown cells."""

from collections.abc import Sequence

import numpy as np

from ...inference.calibration import Calibration
from .results import Statistic

BINS = 15  # number of bins of the calibration error, as in Guo et al.


def calibration_scores(
    calibration: Calibration, probabilities: np.ndarray, embeddings: np.ndarray, label_ids: np.ndarray
) -> dict[str, float]:
    """Score a calibration on held-out labelled cells, at a threshold of 0.05.

    Args:
        calibration: The calibration.
        probabilities: Uncalibrated probabilities of the labels, `(cells, C)`.
        embeddings: Embeddings of the cells, `(cells, D)`.
        label_ids: True label of each cell, `(cells,)`.
    """
    applied = calibration.apply(probabilities, embeddings)
    is_right = probabilities.argmax(axis=1) == label_ids
    return {
        "calibration error": calibration_error(applied.probabilities.max(axis=1), is_right),
        "calibration error before": calibration_error(probabilities.max(axis=1), is_right),
        "sets at 0.05 with the true label": float(applied.is_in_set[np.arange(len(label_ids)), label_ids].mean()),
        "labels in a set": float(applied.is_in_set.sum(axis=1).mean()),
        "called unknown": float(applied.is_unknown.mean()),
    }


def reliability(
    confidence: np.ndarray, is_right: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean confidence, accuracy and share of cells for each bin of confidence, without empty bins.

    Example:
        >>> confident, right, shares = reliability(np.array([0.9, 0.95, 0.3]), np.array([True, False, False]), bins=2)
        >>> right.tolist(), shares.round(2).tolist()
        ([0.0, 0.5], [0.33, 0.67])
    """
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    sums = (np.bincount(bin_of, weights, minlength=bins) for weights in (confidence, is_right.astype(float)))
    confident, right = (total[counts > 0] / counts[counts > 0] for total in sums)
    return confident, right, counts[counts > 0] / len(confidence)


def calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """Return the expected calibration error, the mean absolute difference of confidence and accuracy in 15 bins.

    Example:
        >>> round(calibration_error(np.array([1.0, 1.0, 1.0, 1.0]), np.array([True, True, True, False])), 2)
        0.25
    """
    confident, right, shares = reliability(confidence, is_right)
    return float((shares * np.abs(confident - right)).sum())


def mean_of_all(statistics: Sequence[Statistic]) -> Statistic:
    """Return the mean of several statistics of the same cells; it is NaN if one of them is.

    Example:
        >>> mean_of_all([lambda rows: 0.2, lambda rows: 0.4])(np.arange(3))
        0.3...
    """
    return lambda rows: float(np.mean([statistic(rows) for statistic in statistics]))


def auroc_of(strangeness: np.ndarray, is_held: np.ndarray) -> Statistic:
    """Return a function from indices of cells to the area under the ROC curve, NaN if all are of one kind.

    It is faster than scikit-learn's, which matters because a bootstrap calls it thousands of times.

    Args:
        strangeness: Score of each cell; cells of held-out types should have the higher ones.
        is_held: Whether each cell is of a held-out type.

    Example:
        >>> statistic = auroc_of(np.array([0.1, 0.4, 0.9, 0.8]), np.array([False, False, True, True]))
        >>> statistic(np.arange(4))
        1.0
    """
    ranks, rank = np.unique(strangeness, return_inverse=True)

    def statistic(rows: np.ndarray) -> float:
        held = np.bincount(rank[rows][is_held[rows]], minlength=len(ranks))
        others = np.bincount(rank[rows][~is_held[rows]], minlength=len(ranks))
        pairs = held.sum() * others.sum()
        below = np.cumsum(others) - others / 2  # a tie counts as half of a pair in the right order
        return float(held @ below / pairs) if pairs else float("nan")

    return statistic


def share_of(is_called: np.ndarray, is_asked: np.ndarray) -> Statistic:
    """Return a function from indices of cells to the share of `is_asked` cells that are `is_called`, or NaN.

    Example:
        >>> share_of(np.array([True, False, True]), np.array([True, True, False]))(np.arange(3))
        0.5
    """

    def statistic(rows: np.ndarray) -> float:
        asked = rows[is_asked[rows]]
        return float(is_called[asked].mean()) if len(asked) else float("nan")

    return statistic
