"""Recovery against sparsity: cells are as sparse as asked for, scores are those of plain computations."""

import numpy as np
import pytest
import torch
from scipy import sparse

import xtrimogene
from xtrimogene.eval import recovery
from xtrimogene.eval.ablation import BASE, evaluate_ablation

GENES = 400


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Counts of 60 real blood cells over their 400 most frequent genes of the panel, and an untrained checkpoint."""
    import anndata
    import scanpy as sc

    pbmc = sc.datasets.pbmc68k_reduced()[:60]
    default = xtrimogene.XTrimoGeneTokenizer.default()
    source = default.read_counts(pbmc)
    counts, _ = source.read()
    frequent = np.argsort(-np.bincount(counts.indices, minlength=default.num_genes), kind="stable")[:GENES]
    genes = [default.genes[row] for row in np.sort(frequent)]
    adata = anndata.AnnData(counts[:, np.sort(frequent)])
    adata.var_names = genes
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = xtrimogene.XTrimoGeneConfig.preset("tiny", num_genes=GENES, hidden_size=16, decoder_hidden_size=16)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder).save_pretrained(folder)
    return adata, str(folder)


def test_thinned_cells_are_as_sparse_as_asked_for_and_never_gain(cells):
    counts = cells[0].X.tocsr()
    wanted = 40
    thinned = recovery.thin(counts, wanted, np.random.default_rng(0), 50)
    rich = np.flatnonzero(np.diff(counts.indptr) >= wanted)[:50]
    assert thinned.shape[0] == len(rich) > 10
    numbers = np.diff(thinned.indptr)
    assert abs(numbers.mean() - wanted) < 4
    assert (counts[rich] - thinned).min() >= 0
    assert recovery.thin(counts, GENES + 1, np.random.default_rng(0), 50).shape[0] == 0


def test_scores_are_plain_correlations_over_the_same_masked_genes(cells):
    rng = np.random.default_rng(0)
    true = np.where(rng.random((6, 9)) < 0.3, -100, rng.choice([0, 1.5, 2.0, 3.0], (6, 9)))
    guess, means = rng.normal(size=(2, 6, 9))
    rows = np.array([0, 2, 2, 5])
    is_real = true[rows] != -100
    expected = np.corrcoef(true[rows][is_real], guess[rows][is_real])[0, 1]
    assert recovery._correlation(true, guess, None)(rows) == pytest.approx(expected)
    expected = np.corrcoef((true - means)[rows][is_real], (guess - means)[rows][is_real])[0, 1]
    assert recovery._correlation(true, guess, means)(rows) == pytest.approx(expected)


def test_an_untrained_model_recovers_nothing_and_the_gene_mean_much(cells):
    adata, folder = cells
    result = recovery.evaluate_recovery(adata, "blood", {"ours": folder}, sparsities=(0.85, 0.9), num_test=20, say=len)
    value = {(each.data, each.method, each.metric): each.value for each in result.scores}
    for level in ("blood, 85% zeros", "blood, 90% zeros"):
        assert abs(value[level, "ours, not trained", "Pearson"]) < 0.15
        assert value[level, "gene mean", "Pearson"] > 0.2
        assert (level, "gene mean", "Pearson beyond gene means") not in value
    assert "Pearson against sparsity" in result.pictures
    assert {each.units for each in result.scores} == {result.settings["cells at every level"]}
    assert result.settings["cells at every level"] > 5


def test_levels_hold_the_same_cells(cells):
    counts = cells[0].X.tocsr()
    levels = list(recovery.at_sparsities(counts[:30], counts[30:], (0.9, 0.85), 12, 0))
    assert [sparsity for sparsity, *_ in levels] == [0.85, 0.9]
    rich = counts[30:][np.flatnonzero(np.diff(counts[30:].indptr) >= 60)[:12]]
    for sparsity, _, test in levels:
        assert test.shape == rich.shape
        assert (rich - test).min() >= 0
        assert abs(np.diff(test.indptr).mean() - (1 - sparsity) * GENES) < 6


def test_cells_that_are_too_sparse_are_refused(cells):
    adata, folder = cells
    with pytest.raises(
        ValueError, match=r"10% zeros are 360 expressed genes of 400, and 0 cells to learn from and 0 to test on"
    ):
        recovery.evaluate_recovery(adata, "blood", {"ours": folder}, sparsities=(0.1,), say=len)


def test_models_of_other_panels_are_not_compared(cells, tmp_path):
    adata, folder = cells
    genes = [*adata.var_names[:-1], "NOVEL"]
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, tmp_path).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="other and ours have other genes"):
        recovery.evaluate_recovery(adata, "blood", {"ours": folder, "other": str(tmp_path)}, say=len)


def test_padding_of_batches_takes_the_value_given():
    parts = [np.ones((2, 3)), np.zeros((1, 1))]
    np.testing.assert_array_equal(recovery.padded(parts, -100), [[1, 1, 1], [1, 1, 1], [0, -100, -100]])


def test_variants_differ_only_in_what_they_are_called(cells, monkeypatch):
    adata, folder = cells
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_pretrained(folder)
    monkeypatch.setattr("xtrimogene.eval.ablation.XTrimoGeneTokenizer.default", lambda: tokenizer)
    preset = xtrimogene.XTrimoGeneConfig.preset
    small = {"num_genes": GENES, "hidden_size": 16, "decoder_hidden_size": 16}
    trained = []

    def remember(name, **changes):
        trained.append(changes)
        return preset(name, **small, **changes)

    monkeypatch.setattr("xtrimogene.eval.ablation.XTrimoGeneConfig.preset", remember)
    result = evaluate_ablation(adata, "blood", steps=2, batch_size=8, say=len, device="cpu")
    assert trained == [
        {}, {"value_embedding": "rounded_bin"}, {"value_embedding": "linear"}, {"objective": "classification"}, {}
    ]  # fmt: skip
    methods = list(dict.fromkeys(each.method for each in result.scores))
    assert methods[0] == BASE
    assert methods.count("gene mean") == 1
    with pytest.raises(ValueError, match="no such variant: '5M'"):
        evaluate_ablation(adata, "blood", sizes=("5M",), say=len)


def test_in_memory_counts_are_read_like_those_of_a_file():
    from xtrimogene.tokenization.panel_xtrimogene import InMemory

    counts = sparse.csr_matrix(np.array([[1, 0, 3], [0, 0, 2], [5, 1, 0]], np.float32))
    rows, totals = InMemory(counts).read(1, 3)
    np.testing.assert_array_equal(rows.toarray(), counts[1:].toarray())
    assert totals.tolist() == [2, 6]
