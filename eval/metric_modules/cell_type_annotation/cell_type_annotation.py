"""Cell types: accuracy, macro and weighted F1."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score

DESCRIPTION = """
Scores of predicted cell types. Macro F1 is the mean over all labels that occur among true or predicted labels: a rare
type counts as much as a common one, and a label that is predicted but never true has an F1 of 0.
Weighted F1 is the mean over cells.
"""
INPUTS = """
Args:
    predictions: Predicted label of each cell, names or numbers.
    references: True label of each cell.

Returns:
    `accuracy`, `macro_f1` and `weighted_f1`, from 0 to 1.

Example:
    >>> metric.compute(predictions=["B", "T", "T"], references=["B", "T", "NK"])["accuracy"]
    0.6666666666666666
"""


class CellTypeAnnotation(evaluate.Metric):
    """Score predicted cell types."""

    def _info(self) -> evaluate.MetricInfo:
        kinds = [datasets.Value("string"), datasets.Value("int64")]
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": kind, "references": kind}) for kind in kinds],
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        f1 = {
            f"{average}_f1": float(f1_score(references, predictions, average=average, zero_division=0))
            for average in ("macro", "weighted")
        }
        return {"accuracy": float(accuracy_score(references, predictions)), **f1}
