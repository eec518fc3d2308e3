"""Values of masked genes: correlation and squared error; positions with a reference of -100 do not count."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr
from sklearn.metrics import mean_squared_error, r2_score

IGNORED = -100  # as in labels of transformers
DESCRIPTION = """
Scores of predicted expression values at masked genes, `log1p` of counts per 10,000. Positions whose reference is -100
are ignored. Scores are given over all values of all cells, and over true values above zero, because most masked values
are zeros, which are easy to predict.
"""
INPUTS = """
Args:
    predictions: For each cell its predicted values, as many as references.
    references: For each cell its true values; -100 where nothing was masked.

Returns:
    `pearson`, `mse` and `r2` over all values, the same with `_expressed` over those above zero, and `pearson_per_cell`,
    the mean over the cells in which it is defined. An undefined score, such as a correlation with a constant, is NaN.

Example:
    >>> metric.compute(predictions=[[0.0, 1.0], [3.0, 9.0]], references=[[0.0, 2.0], [4.0, -100]])["mse"]
    0.6666666666666666
"""


class MaskedExpression(evaluate.Metric):
    """Score predicted values of masked genes."""

    def _info(self) -> evaluate.MetricInfo:
        values = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": values, "references": values}),
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        cells = []
        for number, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            if len(predicted) != len(true):
                raise ValueError(
                    f"cell {number} has {len(predicted)} predictions and {len(true)} references: give as many"
                )
            values = np.array([true, predicted])
            cells.append(values[:, values[0] != IGNORED])
        true, predicted = np.concatenate(cells, axis=1)
        per_cell = [pearson(*cell) for cell in cells]
        per_cell = [value for value in per_cell if not np.isnan(value)]
        is_expressed = true > 0
        expressed = scores(true[is_expressed], predicted[is_expressed])
        return {
            **scores(true, predicted),
            **{f"{name}_expressed": value for name, value in expressed.items()},
            "pearson_per_cell": float(np.mean(per_cell)) if per_cell else float("nan"),
        }


def scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return the scores of two vectors, NaN where there are fewer than two values."""
    if len(true) < 2:
        return dict.fromkeys(("pearson", "mse", "r2"), float("nan"))
    return {
        "pearson": pearson(true, predicted),
        "mse": float(mean_squared_error(true, predicted)),
        "r2": float(r2_score(true, predicted)),
    }


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Pearson correlation, NaN where a vector does not vary by more than rounding errors of float32."""
    if len(first) < 2 or min(np.std(first), np.std(second)) < 1e-6:
        return float("nan")
    return float(pearsonr(first, second).statistic)
