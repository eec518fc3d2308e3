"""Metrics of cell-type annotation and of masked-value recovery, computed by scikit-learn and scipy.

    labels (C,)    -> annotation_metrics, confusion
    values (C, M)  -> masked_value_metrics      padded where `true` is -100

`C` cells, `M` the largest number of masked genes of a cell.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tokenization.collators import IGNORED
from ...training.scores import label_scores, pearson, value_scores


def annotation_metrics(true: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """Score predicted cell types.

    Args:
        true: True label of each cell.
        predicted: Predicted label of each cell.

    Returns:
        `accuracy`, `macro_f1` and `weighted_f1`; and `per_class`, label -> its `f1` and `support`, the number of cells
        with this true label. A label that is predicted but never true has an F1 of 0.

    Example:
        >>> scores = annotation_metrics(["B", "B", "T"], ["B", "T", "T"])
        >>> round(scores["macro_f1"], 2), scores["per_class"]["T"]["support"]
        (0.67, 1)
    """
    from sklearn.metrics import precision_recall_fscore_support
    from sklearn.utils.multiclass import unique_labels

    labels = unique_labels(true, predicted)
    _, _, f1, support = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    return {
        **label_scores(true, predicted),
        "weighted_f1": float(np.average(f1, weights=support)),
        "per_class": {
            str(label): {"f1": float(score), "support": int(count)}
            for label, score, count in zip(labels, f1, support, strict=True)
        },
    }


def confusion(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Count cells by true label (rows) and predicted label (columns), both in the order of `labels`.

    Example:
        >>> confusion(["B", "B", "T"], ["B", "T", "T"], labels=["B", "T"]).tolist()
        [[1, 1], [0, 1]]
    """
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(true, predicted, labels=labels)


def masked_value_metrics(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Score predicted values of masked genes.

    Args:
        true: `log1p` of counts per 10,000, -100 where padded. Shape `(C, M)`.
        predicted: Predictions at the same positions, ignored where `true` is padded. Shape `(C, M)`.

    Returns:
        `pearson`, `mse` and `r2` over all masked values; the same with `_expressed` over true values above zero; and
        `pearson_per_cell`, the mean over the cells in which a correlation is defined.

    Example:
        >>> true, predicted = np.array([[0.0, 2.0], [4.0, -100.0]]), np.array([[0.0, 1.0], [3.0, 9.0]])
        >>> masked_value_metrics(true, predicted)["mse"]
        0.6666666666666666
    """
    _check_shapes(true, predicted)
    per_cell = [pearson(*pair) for pair in _by_cell(true, predicted, true != IGNORED)]
    per_cell = [value for value in per_cell if not np.isnan(value)]
    return {
        **value_scores(true, predicted),
        "pearson_per_cell": float(np.mean(per_cell)) if per_cell else float("nan"),
    }


def _by_cell(true: np.ndarray, predicted: np.ndarray, is_real: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(t[real], p[real]) for t, p, real in zip(true, predicted, is_real, strict=True)]


def _check_shapes(true: np.ndarray, other: np.ndarray) -> None:
    if true.shape != other.shape:
        raise ValueError(f"values to compare differ in shape: true {true.shape}, other {other.shape}")
