"""Perturbation consistency: do the cells of a perturbation lie together, more than cells drawn at random lie with them?

    embedding (C, D)  ->  aligned: components of the control cells, standardised within batches
                      ->  cosine of each cell with the mean of the others of its perturbation  ->  mean of each (P,)
    random cells      ->  cosine with the mean of every perturbation but their own             ->  null (N,)
    both              ->  p-value of each perturbation (P,), share of p < 0.01

Letters: C cells, D width of the embedding, P perturbations, N pairs of a random cell and a perturbation.
Source: Kenyon-Dean et al. 2026, TxFM. Where the paper is silent: the null is pooled over perturbations, all components
are kept, and the means and standard deviations of a batch are over all of its cells.
"""

from dataclasses import dataclass

import numpy as np

from .controls import on_components_of, standardised

NULL_CELLS = 10_000
SIGNIFICANT = 0.01  # p-values below it count


@dataclass(frozen=True)
class Consistency:
    """Consistency of perturbations.

    Attributes:
        names: Perturbations, ascending, `(P,)`.
        cosines: Mean over the cells of a perturbation of the cosine between a cell and the mean of the others, `(P,)`.
        p_values: Share of the null that is at least as large, `(P,)`; never 0, since the value itself counts.
        null: Cosines of random cells with the means of perturbations that they are not of, ascending, `(N,)`.

    Example:
        >>> found = Consistency(np.array(["KLF1"]), np.array([0.4]), np.array([0.001]), np.array([-0.1, 0.1]))
        >>> found.is_significant.tolist()
        [True]
    """

    names: np.ndarray
    cosines: np.ndarray
    p_values: np.ndarray
    null: np.ndarray

    @property
    def is_significant(self) -> np.ndarray:
        """Whether each perturbation has p < 0.01, bool `(P,)`."""
        return self.p_values < SIGNIFICANT


def perturbation_consistency(
    embedding: np.ndarray, perturbations: np.ndarray, batches: np.ndarray, is_control: np.ndarray, seed: int
) -> Consistency:
    """Return the consistency of each perturbation, with the null and the p-values.

    Args:
        embedding: Embedding of the cells, `(C, D)`.
        perturbations: Perturbation of each cell, `(C,)`; of control cells anything.
        batches: Batch of each cell, `(C,)`.
        is_control: Whether each cell is a control cell, bool `(C,)`.
        seed: Seed of the 10,000 cells of the null; all cells where there are fewer.

    Raises:
        ValueError: If a perturbation has a single cell, or there are fewer than two control cells.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> names = np.repeat(["control", "A", "B"], [200, 20, 20])
        >>> embedding = rng.normal(size=(240, 16)) + 2 * (names == "A")[:, None]  # B does nothing
        >>> found = perturbation_consistency(embedding, names, np.full(240, "one"), names == "control", seed=0)
        >>> dict(zip(found.names.tolist(), found.is_significant.tolist()))
        {'A': True, 'B': False}
    """
    if is_control.sum() < 2:
        raise ValueError(f"{is_control.sum()} of {len(is_control):,} cells are control cells, and alignment needs 2")
    names, sizes = np.unique(perturbations[~is_control], return_counts=True)
    if (sizes < 2).any():
        raise ValueError(f"{names[sizes < 2][0]} has a single cell, and consistency needs 2: leave it out")
    aligned = align(embedding, batches, is_control)
    sums, cosines = [], []
    for name in names:
        cells = aligned[(perturbations == name) & ~is_control]
        total = cells.sum(0)
        sums.append(total)
        cosines.append(cosine(cells, total - cells).mean())  # a sum points where its mean does
    null = null_cosines(aligned, np.where(is_control, "", perturbations), names, np.array(sums), seed)
    found = np.array(cosines)
    at_least = len(null) - np.searchsorted(null, found, side="left")
    return Consistency(names, found, (1 + at_least) / (1 + len(null)), null)


def align(embedding: np.ndarray, batches: np.ndarray, is_control: np.ndarray) -> np.ndarray:
    """Return cells on the principal components of the control cells, standardised within each batch, `(C, K)`."""
    turned = on_components_of(embedding[is_control], embedding)
    for name in np.unique(batches):
        rows = batches == name
        turned[rows] = standardised(turned[rows], turned[rows])
    return turned


def null_cosines(
    aligned: np.ndarray, perturbations: np.ndarray, names: np.ndarray, sums: np.ndarray, seed: int
) -> np.ndarray:
    """Return cosines of random cells with the sums `(P, K)` of perturbations that they are not of, ascending."""
    rows = np.random.default_rng(seed).permutation(len(aligned))[:NULL_CELLS]
    pairs = unit(aligned[rows]) @ unit(sums).T
    return np.sort(pairs[perturbations[rows][:, None] != names])


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of two arrays `(rows, K)`; 0 with a row of zeros.

    Example:
        >>> cosine(np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]])).tolist()
        [0.6]
    """
    return (unit(one) * unit(other)).sum(1)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1, or of zeros where they are zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
