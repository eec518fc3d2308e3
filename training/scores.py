"""Scores that are logged while training; `eval/measures/metrics.py` builds on them.

    labels (C,)    -> label_scores
    values (C, M)  -> value_scores      padded where `true` is -100

`C` cells, `M` masked genes of the cell with the most of them.
"""

from collections.abc import Sequence

import numpy as np

from ..tokenization.collators import IGNORED


def label_scores(true: Sequence[str] | np.ndarray, predicted: Sequence[str] | np.ndarray) -> dict[str, float]:
    """Return `accuracy` and `macro_f1`, in which a label that was predicted but never true counts with 0."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
    }


def value_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return `pearson`, `mse` and `r2` over all masked values; the same with `_expressed` over those above zero.

    Args:
        true: `log1p` of counts per 10,000, -100 where padded. Shape `(C, M)`.
        predicted: Predictions at the same positions; what stands at padded ones is ignored.
    """
    scores: dict[str, float] = {}
    for ending, is_counted in {"": true != IGNORED, "_expressed": true > 0}.items():
        found = _vector_scores(true[is_counted], predicted[is_counted])
        scores |= {f"{name}{ending}": score for name, score in found.items()}
    return scores


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Pearson correlation of two vectors, `nan` (without a warning) where it is undefined."""
    from scipy.stats import pearsonr

    # Rounding errors of float32 would correlate with something; they are not a signal.
    if len(first) < 2 or min(np.std(first), np.std(second)) < 1e-6:
        return float("nan")
    # float64: float32 sums over millions of values lose digits.
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
