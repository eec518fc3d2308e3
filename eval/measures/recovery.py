"""Metrics of recovered masked values, beside those of simple baselines."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...tokenization.collators import IGNORED
from ...training.objectives import objective_of
from ...training.scores import pearson
from . import baselines
from .metrics import masked_value_metrics


def recovery_scores(
    name: str,
    true: np.ndarray,
    predicted: np.ndarray,
    masked_ids: np.ndarray,
    seen: Any,
    visible: Any,
    ratios: tuple[float, float],
    seed: int,
    num_measured: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Return the scores of the model, in the first row, and of PCA and the gene mean on the same masked values.

    Args:
        name: Name of the model's row, such as that of its family.
        true: Values of the masked genes of held-out cells, -100 where padded. Shape `(cells, M)`.
        predicted: Values that the model predicts. Shape `(cells, M)`.
        masked_ids: Ids of the masked genes. Shape `(cells, M)`.
        seen: Values of the training cells, CSR `(cells, G)`.
        visible: Values of the held-out cells, 0 at masked genes, CSR `(cells, G)`.
        ratios: Shares of expressed and of zero genes that are masked.
        seed: Seed of the PCA.
        num_measured: Number of training cells in which each gene was measured, `(G,)`, for the gene mean; all cells
            unless given. PCA takes genes that were not measured for zeros.
    """
    guesses = {
        name: predicted,
        "PCA": baselines.pca_imputer(seen, visible, masked_ids, ratios, seed),
        "gene mean": baselines.gene_mean(seen, masked_ids, ratios, num_measured),
    }
    scores = {method: masked_value_metrics(true, guess) for method, guess in guesses.items()}
    for method, guess in guesses.items():
        scores[method]["pearson_beyond_gene_mean"] = within_genes(true, guess, masked_ids)(np.arange(len(true)))
    return scores


def loss_baselines(recovery: Mapping[str, Mapping[str, float]], config: Any) -> dict[str, dict[str, float]]:
    """Return the scores of the baselines to draw beside the curves of a run.

    These are the Pearson correlation, and the squared error if that is the loss of the model.

    Args:
        recovery: From `recovery_scores`: the first row is the model's.
        config: The model's configuration.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig
        >>> recovery = {"xTrimoGene": {"pearson": 0.8, "mse": 1.0}, "gene mean": {"pearson": 0.7, "mse": 1.5}}
        >>> loss_baselines(recovery, XTrimoGeneConfig())
        {'gene mean': {'pearson': 0.7, 'mse': 1.5}}
    """
    keys = ("pearson", "mse") if objective_of(config).is_squared_error(config) else ("pearson",)
    return {name: {key: row[key] for key in keys} for name, row in list(recovery.items())[1:]}


def correlation(true: np.ndarray, guess: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return the Pearson correlation of values `(C, M)` as a function of which cells; -100 in `true` is left out."""

    def statistic(rows: np.ndarray) -> float:
        is_real = true[rows] != IGNORED
        return pearson(true[rows][is_real], guess[rows][is_real])

    return statistic


def within_genes(true: np.ndarray, guess: np.ndarray, gene_ids: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return the Pearson correlation beyond gene means, of values `(C, M)`, as a function of which cells.

    Genes differ so much in their means that a high plain Pearson says little about the cells. Here each side is taken
    less its own mean over these cells of each gene, so a guess that is one number for each gene has no correlation.
    Means over other cells would do for neither side: their noise is then in both, and correlates.

    Args:
        true: True values, -100 where padded. Shape `(C, M)`.
        guess: Predicted values. Shape `(C, M)`.
        gene_ids: Ids of the genes. Shape `(C, M)`.

    Example:
        >>> true, guess = np.array([[1.0, 5.0], [3.0, 7.0]]), np.array([[1.5, 5.5], [2.5, 6.5]])
        >>> round(within_genes(true, guess, gene_ids=np.array([[0, 1], [0, 1]]))(np.arange(2)), 2)
        1.0
    """

    def statistic(rows: np.ndarray) -> float:
        is_real = true[rows] != IGNORED
        ids = gene_ids[rows][is_real]
        times = np.maximum(np.bincount(ids), 1)
        sides = [side[rows][is_real].astype(np.float64) for side in (true, guess)]
        return pearson(*(side - (np.bincount(ids, side) / times)[ids] for side in sides))

    return statistic
