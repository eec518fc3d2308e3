"""How far probabilities and rejections of an annotator can be trusted."""

from collections.abc import Callable, Sequence

import numpy as np

from ...inference.calibration import Calibration

BINS = 15  # of the calibration error, as in Guo et al.


def calibration_scores(
    calibration: Calibration, probabilities: np.ndarray, embeddings: np.ndarray, label_ids: np.ndarray
) -> dict[str, float]:
    """Score a calibration on labelled cells with counts that it has not seen, at a threshold of 0.05."""
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
    """Return mean confidence, accuracy, and share of the cells, for each bin of equal width that has cells."""
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    sums = (np.bincount(bin_of, weights, minlength=bins) for weights in (confidence, is_right.astype(float)))
    confident, right = (total[counts > 0] / counts[counts > 0] for total in sums)
    return confident, right, counts[counts > 0] / len(confidence)


def calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """Return the expected calibration error: the mean difference between confidence and accuracy, over 15 bins."""
    confident, right, shares = reliability(confidence, is_right)
    return float((shares * np.abs(confident - right)).sum())


Statistic = Callable[[np.ndarray], float]  # from indices of test cells


def mean_of_all(statistics: Sequence[Statistic]) -> Statistic:
    """Return the mean of several statistics of the same cells; NaN if one is."""
    return lambda rows: float(np.mean([statistic(rows) for statistic in statistics]))


def auroc_of(strangeness: np.ndarray, is_held: np.ndarray) -> Statistic:
    """Return the area under the ROC curve as a function of which cells; NaN if they are of one kind.

    scikit-learn's takes milliseconds, and a bootstrap calls it thousands of times.
    """
    places, place = np.unique(strangeness, return_inverse=True)

    def statistic(rows: np.ndarray) -> float:
        held = np.bincount(place[rows][is_held[rows]], minlength=len(places))
        others = np.bincount(place[rows][~is_held[rows]], minlength=len(places))
        pairs = held.sum() * others.sum()
        below = np.cumsum(others) - others / 2  # a tie is half a pair in order
        return float(held @ below / pairs) if pairs else float("nan")

    return statistic


def share_of(is_called: np.ndarray, is_asked: np.ndarray) -> Statistic:
    """Return the share of the cells asked for that are called so, as a function of which cells; NaN without any."""

    def statistic(rows: np.ndarray) -> float:
        asked = rows[is_asked[rows]]
        return float(is_called[asked].mean()) if len(asked) else float("nan")

    return statistic
