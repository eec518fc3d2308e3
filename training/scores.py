"""Scores that are logged during training; `eval/measures/metrics.py` builds on them.

    labels (C,)    -> label_scores
    values (C, M)  -> value_scores      padded where `true` is -100

`C` cells, `M` the largest number of masked genes of a cell.
"""

from collections.abc import Sequence

import numpy as np

from ..tokenization.collators import IGNORED


def label_scores(true: Sequence[str] | np.ndarray, predicted: Sequence[str] | np.ndarray) -> dict[str, float]:
    """Return `accuracy` and `macro_f1`. A label that is predicted but never true has an F1 of 0.

    Args:
        true: True label of each cell, `(C,)`.
        predicted: Predicted label of each cell, `(C,)`.

    Example:
        >>> label_scores(["B", "B", "T"], ["B", "T", "T"])["accuracy"]
        0.6666666666666666
    """
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
    }


def value_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return `pearson`, `mse` and `r2` over all masked values; names with `_expressed` are over true values above zero.

    Args:
        true: `log1p` of counts per 10,000, -100 where padded. Shape `(C, M)`.
        predicted: Predictions at the same positions, ignored where `true` is padded. Shape `(C, M)`.

    Example:
        >>> value_scores(np.array([[0.0, 2.0], [4.0, -100.0]]), np.array([[0.0, 1.0], [3.0, 9.0]]))["mse"]
        0.6666666666666666
    """
    scores: dict[str, float] = {}
    for ending, is_counted in {"": true != IGNORED, "_expressed": true > 0}.items():
        found = _vector_scores(true[is_counted], predicted[is_counted])
        scores |= {f"{name}{ending}": score for name, score in found.items()}
    return scores


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Pearson correlation of two vectors, `nan` (without a warning) where it is undefined.

    Example:
        >>> round(pearson(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])), 3)
        0.982
    """
    from scipy.stats import pearsonr

    # A smaller spread is rounding error of float32, which is no signal.
    if len(first) < 2 or min(np.std(first), np.std(second)) < 1e-6:
        return float("nan")
    # In float32, sums over millions of values lose digits.
    return float(pearsonr(first.astype(np.float64), second.astype(np.float64)).statistic)


def _vector_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import mean_squared_error, r2_score

    if len(true) < 2:
        return dict.fromkeys(("pearson", "mse", "r2"), float("nan"))
    return {
        "pearson": pearson(true, predicted),
        "mse": float(mean_squared_error(true, predicted)),
        "r2": float(r2_score(true, predicted)),
    }
