"""Metrics of cell-type annotation and of masked-value recovery, thin over scikit-learn and scipy.

    labels (C,)    -> annotation_metrics, confusion
    values (C, M)  -> masked_value_metrics, gene_centred_pearson      padded where `true` is -100

`C` cells, `M` masked genes of the cell with the most of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

PADDING = -100  # in `true`, as in the labels of a batch


def annotation_metrics(true: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """Score predicted cell types.

    Returns:
        `accuracy`, `macro_f1`, `weighted_f1`, and `per_class`: for each label its `f1` and `support`
        (number of true cells). A label that was predicted but never true counts in `macro_f1` with 0.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support
    from sklearn.utils.multiclass import unique_labels

    labels = unique_labels(true, predicted)
    _, _, f1, support = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1.mean()),
        "weighted_f1": float(np.average(f1, weights=support)),
        "per_class": {
            str(label): {"f1": float(score), "support": int(count)}
            for label, score, count in zip(labels, f1, support, strict=True)
        },
    }


def confusion(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Count cells by true label (rows) and predicted label (columns), both in the order of `labels`."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(true, predicted, labels=labels)


def masked_value_metrics(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Score predicted values of masked genes.

    Args:
        true: `log1p` of counts per 10,000, -100 where padded. Shape `(C, M)`.
        predicted: Predictions at the same positions; what stands at padded ones is ignored.

    Returns:
        `pearson`, `mse` and `r2` over all masked values; the same with `_expressed` over those truly above
        zero; `pearson_per_cell`, the mean over the cells in which it is defined.
    """
    _check_shapes(true, predicted)
    is_real, is_expressed = true != PADDING, true > 0
    per_cell = [pearson(*pair) for pair in _by_cell(true, predicted, is_real)]
    per_cell = [value for value in per_cell if not np.isnan(value)]
    return {
        **_value_metrics(true[is_real], predicted[is_real]),
        **{
            f"{name}_expressed": value
            for name, value in _value_metrics(true[is_expressed], predicted[is_expressed]).items()
        },
        "pearson_per_cell": float(np.mean(per_cell)) if per_cell else float("nan"),
    }


def gene_centred_pearson(true: np.ndarray, predicted: np.ndarray, gene_means: np.ndarray) -> float:
    """Correlate what truth and prediction say beyond the mean of each gene.

    Genes differ so much in their means that a high plain Pearson says little about the cells.

    Args:
        true: As in `masked_value_metrics`. Shape `(C, M)`.
        predicted: Predictions at the same positions.
        gene_means: What `baselines.gene_mean` predicts there, given the mask ratios: about its mean over all
            cells even a constant per gene would score, because masking picks expressed genes more often.

    Returns:
        The Pearson correlation after `gene_means` has been subtracted from both; `nan` if nothing is left of
        either, as for the gene-mean baseline itself.
    """
    _check_shapes(true, predicted)
    _check_shapes(true, gene_means)
    is_real = true != PADDING
    means = gene_means[is_real]
    return pearson(true[is_real] - means, predicted[is_real] - means)


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Pearson correlation of two vectors, `nan` (without a warning) where it is undefined."""
    from scipy.stats import pearsonr

    # Rounding errors of float32 would correlate with something; they are not a signal.
    if len(first) < 2 or min(np.std(first), np.std(second)) < 1e-6:
        return float("nan")
    # float64: float32 sums over millions of values lose digits.
    return float(pearsonr(first.astype(np.float64), second.astype(np.float64)).statistic)


def _value_metrics(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import mean_squared_error, r2_score

    if len(true) < 2:
        return dict.fromkeys(("pearson", "mse", "r2"), float("nan"))
    return {
        "pearson": pearson(true, predicted),
        "mse": float(mean_squared_error(true, predicted)),
        "r2": float(r2_score(true, predicted)),
    }


def _by_cell(true: np.ndarray, predicted: np.ndarray, is_real: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(t[real], p[real]) for t, p, real in zip(true, predicted, is_real, strict=True)]


def _check_shapes(true: np.ndarray, other: np.ndarray) -> None:
    if true.shape != other.shape:
        raise ValueError(f"values to compare differ in shape: true {true.shape}, other {other.shape}")
