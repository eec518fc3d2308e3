"""Fit the additive model of perturbations, to which the head of an anchored model adds.

    perturbed genes of each training perturbation (D, N), their changes (D, R)  ->  additive_weights  (N, D)
    perturbed genes of any perturbation (N,)  ->  change = sum over them of weights_g . changes  (R,)

The change after perturbing genes is the sum of their effects. An effect is a part that all genes share, a part of the
gene alone, and a part that genes of like features have in common. All parts shrink towards no change. So a gene that
was perturbed alone keeps nearly its own effect, as in the additive model; a gene that was not has the shared effect, as
in the mean of the perturbed, and the effects of genes with like features.

This is ridge regression on the perturbed genes. Its dual form, which weighs training perturbations, is the smaller one.

Letters: D training perturbations, N genes of the graphs, R measured genes, F features of a gene.

Source: the additive and the linear model of Ahlmann-Eltze et al. (2025, doi:10.1038/s41592-025-02772-6), whose penalty
is 0.1. Here one regression does both, and says how much of an effect is shared.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

PENALTY = 0.1  # variance of what is not additive, where a gene's effect has variance 1
SHARED = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # variances of the shared effect to choose from
TOP_GENES = 20  # GEARS; over all genes, of which most hardly change, shrinking too much looks best


def set_members(sets: Sequence[Sequence[int]], gene_ids: np.ndarray) -> sparse.csr_matrix:
    """Return whether each set holds each gene, 0 or 1, CSR `(sets, N)`.

    Args:
        sets: Ids of the perturbed genes of each perturbation, all of them among `gene_ids`.
        gene_ids: Panel ids of the genes, such as those of `GeneGraphs`, `(N,)`.

    Example:
        >>> set_members([(4,), (9, 4)], np.array([9, 2, 4])).toarray().tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    """
    columns = {int(gene): column for column, gene in enumerate(gene_ids)}
    rows = np.repeat(np.arange(len(sets)), [len(genes) for genes in sets])
    places = [columns[gene] for genes in sets for gene in genes]
    return sparse.csr_matrix((np.ones(len(rows)), (rows, places)), shape=(len(sets), len(gene_ids)))


def additive_weights(members: sparse.csr_matrix, changes: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """Return how much each training perturbation says of the effect of each gene, `(N, D)`.

    The effect of a gene is its row times `changes`. The variance of the shared effect is the one of `SHARED` with the
    lowest squared error when each training perturbation in turn is left out, over the 20 genes that it changes most.

    Args:
        members: Whether each training perturbation holds each gene, from `set_members`, CSR `(D, N)`.
        changes: Changes of the training perturbations from control, `(D, R)`.
        features: Features of the genes, `(N, F)`; half of a gene's effect is then one that genes share as far as the
            directions of their features agree. Unless given, all of it is the gene's own.

    Example:
        >>> members = set_members([(0,), (1,)], np.arange(3))
        >>> changes = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> (additive_weights(members, changes) @ changes).round(1).tolist()  # that of gene 2 is the shared one
        [[0.9, 0.0], [0.0, 0.9], [0.0, 0.0]]
    """
    sizes_D = np.asarray(members.sum(axis=1)).ravel()
    own_ND = members.T.toarray()
    if features is not None:
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        unit_NF = features / np.maximum(lengths, 1e-12)
        own_ND = (own_ND + unit_NF @ (members @ unit_NF).T) / 2

    def fit(shared: float) -> tuple[np.ndarray, np.ndarray]:
        covariances_ND = own_ND + shared * sizes_D
        return covariances_ND, np.linalg.inv(members @ covariances_ND + PENALTY * np.eye(len(sizes_D)))

    top_genes = np.argsort(-np.abs(changes), axis=1, kind="stable")[:, :TOP_GENES]

    def left_out_error(shared: float) -> float:
        inverse_DD = fit(shared)[1]
        errors_DR = inverse_DD @ changes / np.diag(inverse_DD)[:, None]
        return float(np.mean(np.take_along_axis(errors_DR, top_genes, axis=1) ** 2))

    covariances_ND, inverse_DD = fit(min(SHARED, key=left_out_error))
    return covariances_ND @ inverse_DD
