from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from xtrimogene.eval.measures.baselines import gene_mean, knn_on_pca, log_normalise, logistic_regression, pca_imputer
from xtrimogene.eval.measures.metrics import annotation_metrics, masked_value_metrics
from xtrimogene.eval.measures.recovery import within_genes

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
CELLS = SHARED / "data" / "pbmc_facs_zheng" / "pbmc_facs_zheng.h5ad"
RATIOS = (0.3, 0.03)


@pytest.fixture(scope="module")
def blood():
    """1,600 sorted blood cells, the genes that 20 of them express, and 400 of them as a test set."""
    if not CELLS.exists():
        pytest.skip(f"needs the shared data set {CELLS.name}, which is not on this machine")
    import anndata

    cells = anndata.read_h5ad(CELLS)
    chosen = np.random.default_rng(0).permutation(cells.n_obs)[:1600]
    counts = sparse.csr_matrix(cells.X)[chosen]
    counts = counts[:, counts.getnnz(axis=0) >= 20].tocsr()
    return counts[:1200], counts[1200:], cells.obs["cell_type"].to_numpy(str)[chosen]


def mask(values, ratios, padding=-1, seed=0):
    """Return what stays visible of CSR values, the masked ids and their true values, padded."""
    dense = values.toarray()
    is_masked = np.random.default_rng(seed).random(dense.shape) < np.where(dense > 0, *ratios)
    width = is_masked.sum(1).max()
    masked_ids = np.full((len(dense), width), padding)
    true = np.full((len(dense), width), -100, dtype=np.float32)
    for cell, row in enumerate(is_masked):
        genes = np.flatnonzero(row)
        masked_ids[cell, : len(genes)] = genes
        true[cell, : len(genes)] = dense[cell, genes]
    return sparse.csr_matrix(np.where(is_masked, 0, dense)), masked_ids, true


def test_log_normalise_is_log1p_of_counts_per_ten_thousand():
    counts = sparse.csr_matrix(np.array([[1, 0, 3], [0, 0, 0], [5, 5, 0]]))
    expected = np.log1p([[2500, 0, 7500], [0, 0, 0], [5000, 5000, 0]])
    np.testing.assert_allclose(log_normalise(counts).toarray(), expected, rtol=1e-6)


@pytest.mark.parametrize("baseline", [logistic_regression, knn_on_pca])
def test_annotation_is_far_above_the_majority(blood, baseline):
    train, test, labels = blood
    predicted = baseline(train, labels[:1200], test)
    metrics = annotation_metrics(labels[1200:], predicted)
    majority = max(np.mean(labels[1200:] == label) for label in np.unique(labels))
    assert majority < 0.3
    assert metrics["accuracy"] > 0.8
    assert metrics["macro_f1"] > 0.7


def test_gene_mean_is_the_mean_over_all_cells():
    values = sparse.csr_matrix(np.array([[1.0, 0, 2], [3, 0, 0]]))
    predicted = gene_mean(values, np.array([[0, 2], [1, -1]]))
    assert predicted.tolist() == [[2, 1], [0, 0]]


def test_gene_mean_with_mask_ratios_is_the_mean_over_masked_cells(blood):
    values = log_normalise(blood[0])
    # Every gene masked in many draws: the mean of what was masked is the mean given that it is masked.
    draws = [mask(values, RATIOS, seed=seed) for seed in range(5)]
    ids = np.concatenate([masked_ids[true != -100] for _, masked_ids, true in draws])
    true = np.concatenate([true[true != -100] for _, _, true in draws])
    num_masked = np.bincount(ids, minlength=values.shape[1])
    observed = np.bincount(ids, true, minlength=values.shape[1]) / np.maximum(num_masked, 1)
    predicted = gene_mean(values, np.arange(values.shape[1])[None], RATIOS)[0]
    often = num_masked > 1000
    assert often.sum() > 100
    np.testing.assert_allclose(predicted[often], observed[often], rtol=0.1)


def test_gene_mean_with_only_expressed_genes_masked_is_the_expressed_mean():
    values = sparse.csr_matrix(np.array([[1.0, 0, 2], [3, 0, 0]]))
    assert gene_mean(values, np.array([[0, 1, 2]]), (0.3, 0.0)).tolist() == [[2, 0, 2]]


def test_gene_mean_is_over_the_cells_that_measured_the_gene(blood):
    values = log_normalise(blood[0])
    num_cells, every = values.shape[0], np.arange(values.shape[1])[None]
    some = values[: num_cells // 2]
    # As many cells again, of a file that measured the first half of the genes only.
    is_measured = np.arange(values.shape[1]) < values.shape[1] // 2
    others = values[num_cells // 2 :].multiply(is_measured).tocsr()
    both = sparse.vstack([some, others], format="csr")
    num_measured = np.where(is_measured, num_cells, some.shape[0])
    for ratios in (None, RATIOS):
        found = gene_mean(both, every, ratios, num_measured)[0]
        expected = gene_mean(some, every, ratios)[0]
        np.testing.assert_allclose(found[~is_measured], expected[~is_measured], rtol=1e-5)
        alone = gene_mean(both, every, ratios)[0]
        np.testing.assert_allclose(found[is_measured], alone[is_measured], rtol=1e-6)


def test_pca_imputer_beats_the_gene_mean_on_held_out_cells(blood):
    train, test = log_normalise(blood[0]), log_normalise(blood[1])
    visible, masked_ids, true = mask(test, RATIOS)
    means, imputed = gene_mean(train, masked_ids, RATIOS), pca_imputer(train, visible, masked_ids, RATIOS)
    by_mean, by_pca = masked_value_metrics(true, means), masked_value_metrics(true, imputed)
    assert by_pca["pearson"] > by_mean["pearson"] + 0.005
    assert by_pca["mse"] < by_mean["mse"]
    assert within_genes(true, imputed, masked_ids)(np.arange(len(true))) > 0.1
    assert (imputed[true == -100] == 0).all()


def test_pca_imputer_recovers_values_of_low_rank():
    rng = np.random.default_rng(0)
    # Two programmes of genes; nothing is zero, so that masking says nothing about the values.
    values = rng.random((200, 2)) @ rng.random((2, 40)) + 1
    visible, masked_ids, true = mask(sparse.csr_matrix(values[150:]), (0.2, 0.2), padding=40)
    train = sparse.csr_matrix(values[:150])
    imputed = pca_imputer(train, visible, masked_ids, (0.2, 0.2))
    assert masked_value_metrics(true, imputed)["r2"] > 0.95
    assert masked_value_metrics(true, gene_mean(train, masked_ids))["r2"] < 0.7


def test_pca_imputer_does_not_look_at_other_cells(blood):
    train, test = log_normalise(blood[0][:300]), log_normalise(blood[1][:20])
    visible, masked_ids, _ = mask(test, RATIOS)
    together = pca_imputer(train, visible, masked_ids, RATIOS)
    alone = pca_imputer(train, visible[:7], masked_ids[:7], RATIOS)
    np.testing.assert_allclose(together[:7], alone, atol=1e-5)
