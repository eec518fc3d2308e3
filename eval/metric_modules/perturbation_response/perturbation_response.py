"""Responses to perturbations: errors of profiles, and correlation and direction of their change from control."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, mean_squared_error

DESCRIPTION = """
Scores of predicted mean expression profiles after perturbations, `log1p` of counts per 10,000. Profiles resemble that
of control cells after any perturbation, so errors of profiles look good for any prediction. Read the scores of the
change, which is the profile minus that of control.
"""
INPUTS = """
Args:
    predictions: Predicted profile of each perturbation, a value for each gene.
    references: Measured profile of each perturbation.
    control: Profile of control cells, a value for each gene, or one profile for each perturbation. With the latter,
        each perturbation may have genes of its own, such as the 20 that differ most from control.

Returns:
    Means over perturbations. `mse` and `mae`: errors of the profile. `pearson_change`: correlation of predicted and
    measured change over genes, 0 if one of them does not vary.
    `direction_accuracy`: share of the genes with a measured change whose predicted change has the same sign.

Example:
    >>> metric.compute(predictions=[[2.0, 0.0]], references=[[3.0, 2.0]], control=[1.0, 1.0])["direction_accuracy"]
    0.5
"""
CITATION = "Roohani, Huang and Leskovec 2024, Nature Biotechnology 42:927 (GEARS): change from control and directions."


class PerturbationResponse(evaluate.Metric):
    """Score predicted responses to perturbations."""

    def _info(self) -> evaluate.MetricInfo:
        profile = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": profile, "references": profile}),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[float]],
        control: Sequence[float] | Sequence[Sequence[float]],
    ) -> dict[str, float]:
        sizes = {len(profile) for profile in (*predictions, *references)}
        if len(sizes) > 1:
            raise ValueError(f"profiles have {min(sizes)} to {max(sizes)} genes: give all of them the same genes")
        predicted, true, start = np.array(predictions), np.array(references), np.asarray(control, dtype=np.float64)
        if start.shape not in (true.shape, true.shape[1:]):
            raise ValueError(
                f"control has shape {start.shape}: give {true.shape[1:]}, a value for each gene, or {true.shape}"
            )
        for name, values in {"predictions": predicted, "references": true, "control": start}.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{(~np.isfinite(values)).sum()} values of {name} are not finite: give numbers only")
        change, true_change = predicted - start, true - start
        is_right = (np.sign(change) == np.sign(true_change)) & (true_change != 0)
        num_changed = (true_change != 0).sum(axis=1)
        return {
            "mse": float(mean_squared_error(true, predicted)),
            "mae": float(mean_absolute_error(true, predicted)),
            "pearson_change": float(np.mean([pearson(*pair) for pair in zip(true_change, change, strict=True)])),
            "direction_accuracy": float(np.mean(is_right.sum(axis=1) / np.maximum(num_changed, 1))),
        }


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Pearson correlation, 0 where a vector does not vary by more than rounding errors of float32."""
    if len(first) < 2 or min(np.std(first), np.std(second)) < 1e-6:
        return 0.0
    return float(pearsonr(first, second).statistic)
