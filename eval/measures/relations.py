"""Recall of known pairs among vectors: of genes, or of the cells in which they were perturbed.

    vectors (G, D)     ->  reduced          unit vectors (G, K)
    unit (G, K)        ->  random_cosines   null (N,)
    pairs (P, 2), null ->  is_recalled (P,) ->  recall_of: share of pairs, for a bootstrap of genes

Letters: G genes, D width of a vector, K components, P pairs, N random pairs.
Source: EFAAR benchmarking (Recursion) and Tx-Evaluation for the tails; TxFM for the components.
"""

import numpy as np

from .results import Statistic

NULL_PAIRS = 2_000_000
TAILS = (5, 95)


def reduced(vectors: np.ndarray, num_components: int, seed: int) -> np.ndarray:
    """Return unit vectors `(G, K)` after standardising columns and PCA to at most so many components.

    Example:
        >>> reduced(np.random.default_rng(0).normal(size=(50, 40)), num_components=8, seed=0).shape
        (50, 8)
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(vectors)
    if scaled.shape[1] > num_components:
        scaled = PCA(num_components, random_state=seed).fit_transform(scaled)
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def random_cosines(unit: np.ndarray, seed: int) -> np.ndarray:
    """Return cosines of random pairs of different rows of unit vectors `(G, K)`, of about 2,000,000 pairs."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, len(unit), (2, NULL_PAIRS))
    one, other = one[one != other], other[one != other]
    return np.concatenate(
        [(unit[a] * unit[b]).sum(1) for a, b in zip(np.array_split(one, 20), np.array_split(other, 20), strict=True)]
    )


def is_recalled(unit: np.ndarray, pairs: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return whether the cosine of each pair is at most the 5th or at least the 95th percentile of a null, bool `(P,)`.

    Args:
        unit: Unit vectors, `(G, K)`.
        pairs: Rows of the two of each pair, `(P, 2)`.
        null: Cosines of other pairs, `(N,)`; one in ten of them is recalled.

    Example:
        >>> unit = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> is_recalled(unit, np.array([[0, 1], [0, 2]]), null=np.linspace(0.1, 0.9, 81)).tolist()
        [False, True]
    """
    low, high = np.percentile(null, TAILS)
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1)
    return (cosines <= low) | (cosines >= high)


def recall_of(is_found: np.ndarray, pairs: np.ndarray, num_genes: int) -> Statistic:
    """Return a function from indices of genes to the share of their pairs `(P, 2)` that are found, or NaN.

    Source: bootstrap of a graph by its nodes (Snijders and Borgatti 1999).

    Example:
        >>> is_found, pairs = np.array([True, False]), np.array([[0, 1], [1, 2]])
        >>> recall_of(is_found, pairs, num_genes=3)(np.arange(3))
        0.5
    """

    def statistic(genes: np.ndarray) -> float:
        times = np.bincount(genes, minlength=num_genes)
        weights = times[pairs[:, 0]] * times[pairs[:, 1]]
        total = weights.sum()
        return float(weights @ is_found / total) if total else float("nan")

    return statistic
