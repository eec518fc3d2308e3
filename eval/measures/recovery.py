"""How well masked values are recovered, beside simple guesses of the same values."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...tokenization.collators import IGNORED
from ...training.objectives import objective_of
from ...training.scores import pearson


def recovery_scores(
    true: np.ndarray,
    predicted: np.ndarray,
    masked_ids: np.ndarray,
    seen: Any,
    visible: Any,
    ratios: tuple[float, float],
    seed: int,
    num_measured: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Return the scores of the model and of both baselines on the same masked values.

    Args:
        true: Values of the masked genes of held-out cells, -100 where padded, `(cells, M)`.
        predicted: What the model says of them.
        masked_ids: Which genes they are.
        seen: Values of the training cells, CSR `(cells, G)`.
        visible: Values of the held-out cells without the masked ones, CSR `(cells, G)`.
        ratios: Shares of expressed and of zero genes that are masked.
        seed: Seed of the PCA.
        num_measured: See `gene_mean`. PCA takes genes that were not measured for zero, as it always does.
    """
    from . import baselines
    from .metrics import gene_centred_pearson, masked_value_metrics

    guesses = {
        "xTrimoGene": predicted,
        "PCA": baselines.pca_imputer(seen, visible, masked_ids, ratios, seed),
        "gene mean": baselines.gene_mean(seen, masked_ids, ratios, num_measured),
    }
    scores = {name: masked_value_metrics(true, guess) for name, guess in guesses.items()}
    for name, guess in guesses.items():
        scores[name]["pearson_beyond_gene_mean"] = gene_centred_pearson(true, guess, guesses["gene mean"])
    return scores


def loss_baselines(recovery: Mapping[str, Mapping[str, float]], config: Any) -> dict[str, dict[str, float]]:
    """Return what stands beside the curves of a run: scores of the baselines that are in the units of its curves.

    Args:
        recovery: From `recovery_scores`.
        config: Of the model; its family says whether the loss is a squared error of values.
    """
    keys = ("pearson", "mse") if objective_of(config).is_squared_error(config) else ("pearson",)
    return {name: {key: row[key] for key in keys} for name, row in recovery.items() if name != "xTrimoGene"}


def correlation(
    true: np.ndarray, guess: np.ndarray, gene_ids: np.ndarray | None = None
) -> Callable[[np.ndarray], float]:
    """Return the Pearson correlation of values `(C, M)` as a function of which cells; with `gene_ids`, within genes.

    Each side is then taken less its own mean over these cells of each gene. Means of other cells would do for neither:
    their noise, in both, correlates.
    """

    def statistic(rows: np.ndarray) -> float:
        is_real = true[rows] != IGNORED
        sides = [side[rows][is_real].astype(np.float64) for side in (true, guess)]
        if gene_ids is not None:
            ids = gene_ids[rows][is_real]
            times = np.maximum(np.bincount(ids), 1)
            sides = [side - (np.bincount(ids, side) / times)[ids] for side in sides]
        return pearson(*sides)

    return statistic
