"""Scores of recovered values."""

import numpy as np

import xtrimogene
from xtrimogene.eval.measures import recovery as measures_recovery
from xtrimogene.eval.measures.recovery import loss_baselines


def test_who_knows_genes_and_nothing_of_cells_scores_nothing_beyond_gene_means():
    rng = np.random.default_rng(0)
    genes = np.stack([rng.permutation(50)[:20] for _ in range(300)])
    means = rng.normal(size=50)
    true, estimate = means[genes] + rng.normal(size=genes.shape), (means + rng.normal(scale=0.5, size=50))[genes]
    everything = np.arange(300)
    assert measures_recovery.correlation(true, estimate)(everything) > 0.4
    assert not measures_recovery.within_genes(true, estimate, genes)(everything) > 1e-6  # 0, or none
    noisy = estimate + rng.normal(scale=0.1, size=genes.shape)
    assert abs(measures_recovery.within_genes(true, noisy, genes)(everything)) < 0.05


def test_baselines_stand_beside_a_loss_only_in_its_units():
    recovery = {name: {"pearson": 0.8, "mse": 0.4, "r2": 0.1, "pearson_expressed": 0.7} for name in ("TxFM", "PCA")}
    of_values, of_bins = (
        loss_baselines(recovery, xtrimogene.XTrimoGeneConfig(objective=objective))
        for objective in ("regression", "classification")
    )
    assert of_values == {"PCA": {"pearson": 0.8, "mse": 0.4}}
    assert of_bins == {"PCA": {"pearson": 0.8}}
