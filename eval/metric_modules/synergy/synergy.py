"""Synergy of drug pairs: error and correlations of scores, or the ranking of synergistic pairs."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error, roc_auc_score

DESCRIPTION = """
Scores of predicted drug synergy. The configuration `regression`, which is the default, compares synergy scores such as
Loewe's; `classification` compares probabilities of being synergistic with classes 0 and 1.
"""
INPUTS = """
Args:
    predictions: Predicted score, or probability of class 1, of each pair and cell line.
    references: True score, or class, of each pair and cell line.

Returns:
    `regression`: `mse` in squared units of the score, `pearson`, `spearman`. `classification`: `auroc`. An undefined
    score, such as a correlation with a constant, is NaN.

Example:
    >>> metric.compute(predictions=[1.0, 2.0, 4.0], references=[1.0, 3.0, 5.0])["mse"]
    0.6666666666666666
"""
CITATION = "Preuer et al. 2018, Bioinformatics 34:1538 (DeepSynergy)."
CONFIGURATIONS = ("default", "regression", "classification")


class Synergy(evaluate.Metric):
    """Score predicted drug synergy."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGURATIONS:
            raise ValueError(f"synergy has no configuration {self.config_name!r}: give regression or classification")
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        predicted, true = np.array(predictions), np.array(references)
        for name, values in {"predictions": predicted, "references": true}.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{(~np.isfinite(values)).sum()} values of {name} are not finite: give numbers only")
        if self.config_name == "classification":
            if not np.isin(true, (0, 1)).all():
                raise ValueError("references are not all 0 or 1: give classes, or load the configuration regression")
            return {"auroc": float(roc_auc_score(true, predicted)) if len(set(true)) == 2 else float("nan")}
        varies = min(np.ptp(true), np.ptp(predicted)) > 0
        return {
            "mse": float(mean_squared_error(true, predicted)),
            "pearson": float(pearsonr(true, predicted).statistic) if varies else float("nan"),
            "spearman": float(spearmanr(true, predicted).statistic) if varies else float("nan"),
        }
