"""Recovery against sparsity: cells are as sparse as asked for, scores are those of plain computations."""

import numpy as np
import pytest
import torch
from scipy import sparse

import xtrimogene
from xtrimogene.eval.measures import recovery as measures_recovery
from xtrimogene.eval.tasks import recovery as tasks_recovery
from xtrimogene.eval.tasks.ablation import BASE, PERFORMER, VARIANTS, AblationOptions, evaluate_ablation
from xtrimogene.eval.tasks.run import Run

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
    adata.obs["half"] = ["a", "b"] * 30
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = xtrimogene.XTrimoGeneConfig.preset("tiny", num_genes=GENES, hidden_size=16, decoder_hidden_size=16)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder).save_pretrained(folder)
    return adata, str(folder)


def test_thinned_cells_are_as_sparse_as_asked_for_and_never_gain(cells):
    counts = cells[0].X.tocsr()
    wanted = 40
    rich = counts[np.flatnonzero(np.diff(counts.indptr) >= wanted)]
    thinned = tasks_recovery.thin(rich, wanted, np.random.default_rng(0))
    assert thinned.shape[0] == rich.shape[0] > 10
    numbers = np.diff(thinned.indptr)
    assert abs(numbers.mean() - wanted) < 4
    assert (rich - thinned).min() >= 0
    assert np.diff(tasks_recovery.thin(rich, 0.1, np.random.default_rng(0)).indptr).min() == 1  # none is left empty


def test_scores_are_plain_correlations_over_the_same_masked_genes(cells):
    rng = np.random.default_rng(0)
    true = np.where(rng.random((6, 9)) < 0.3, -100, rng.choice([0, 1.5, 2.0, 3.0], (6, 9)))
    guess = rng.normal(size=(6, 9))
    rows = np.array([0, 2, 2, 5])
    is_real = true[rows] != -100
    expected = np.corrcoef(true[rows][is_real], guess[rows][is_real])[0, 1]
    assert measures_recovery.correlation(true, guess)(rows) == pytest.approx(expected)
    genes, sides = rng.integers(0, 4, (6, 9)), []
    for side in (true, guess):
        centred = side[rows].copy()
        for gene in range(4):
            of_gene = (genes[rows] == gene) & is_real
            centred[of_gene] -= centred[of_gene].mean()
        sides.append(centred[is_real])
    assert measures_recovery.within_genes(true, guess, genes)(rows) == pytest.approx(np.corrcoef(*sides)[0, 1])


def test_an_untrained_model_recovers_nothing_and_the_gene_mean_much(cells):
    adata, folder = cells
    options = tasks_recovery.RecoveryOptions(sparsities=(0.85, 0.9), num_test=20)
    result = tasks_recovery.evaluate_recovery(adata, "blood", {"ours": folder}, options, Run(say=len))
    value = {(each.data, each.method, each.metric): each.value for each in result.scores}
    for level in ("blood, 85% zeros", "blood, 90% zeros"):
        assert abs(value[level, "ours, not trained", "Pearson beyond gene means"]) < 0.1
        assert value[level, "gene mean", "Pearson"] > 0.2
        assert (level, "gene mean", "Pearson beyond gene means") not in value
    assert "Pearson against sparsity" in result.pictures
    assert {each.units for each in result.scores} == {result.settings["cells at every level"]}
    assert result.settings["cells at every level"] > 5


def test_levels_hold_the_same_cells(cells):
    counts = cells[0].X.tocsr()
    levels = list(tasks_recovery.at_sparsities(counts[:30], counts[30:], (0.9, 0.85), 12, 0))
    assert [sparsity for sparsity, *_ in levels] == [0.85, 0.9]
    rich = counts[30:][np.flatnonzero(np.diff(counts[30:].indptr) >= 60)].toarray()
    for sparsity, train, test in levels:
        assert test.shape[0] == 12 < len(rich)
        assert train.shape[0] == (np.diff(counts[:30].indptr) >= 60).sum()
        assert abs(np.diff(test.indptr).mean() - (1 - sparsity) * GENES) < 6
    one, other = (
        [[cell for cell, row in enumerate(rich) if (row >= kept).all()] for kept in test.toarray()]
        for *_, test in levels
    )
    assert all(set(a) & set(b) for a, b in zip(one, other, strict=True))  # thinned from the same cell
    assert list(tasks_recovery.at_sparsities(counts[:30], counts[30:], (), 12, 0)) == []


def test_cells_that_are_too_sparse_are_refused(cells):
    adata, folder = cells
    options = tasks_recovery.RecoveryOptions(sparsities=(0.1,))
    with pytest.raises(
        ValueError, match=r"10% zeros are 360 expressed genes of 400, and 0 cells to learn from and 0 to test on"
    ):
        tasks_recovery.evaluate_recovery(adata, "blood", {"ours": folder}, options, Run(say=len))


def test_models_of_other_panels_are_not_compared(cells, tmp_path):
    adata, folder = cells
    genes = [*adata.var_names[:-1], "NOVEL"]
    xtrimogene.XTrimoGeneConfig(num_genes=GENES).save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, tmp_path).save_pretrained(tmp_path)
    options = tasks_recovery.RecoveryOptions()
    with pytest.raises(ValueError, match="other and ours have other genes"):
        tasks_recovery.evaluate_recovery(adata, "blood", {"ours": folder, "other": str(tmp_path)}, options)


def test_padding_of_batches_takes_the_value_given():
    parts = [np.ones((2, 3)), np.zeros((1, 1))]
    np.testing.assert_array_equal(tasks_recovery.padded(parts, -100), [[1, 1, 1], [1, 1, 1], [0, -100, -100]])


@pytest.mark.slow  # each variant is trained
def test_variants_differ_only_in_what_they_are_called(cells, monkeypatch):
    adata, folder = cells
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_pretrained(folder)
    monkeypatch.setattr("xtrimogene.eval.tasks.ablation.XTrimoGeneTokenizer.default", lambda: tokenizer)
    preset = xtrimogene.XTrimoGeneConfig.preset
    small = {"num_genes": GENES, "hidden_size": 16, "decoder_hidden_size": 16}
    trained = []

    def remember(name, anchored, **changes):
        assert not anchored
        trained.append(changes)
        return preset(name, **small, **changes, anchored=anchored)

    monkeypatch.setattr("xtrimogene.eval.tasks.ablation.XTrimoGeneConfig.preset", remember)
    options = AblationOptions(variants=tuple(VARIANTS), steps=2, batch_size=8, sparsities=(0.85, 0.9), label_key="half")
    result = evaluate_ablation(adata, "blood", {}, options, Run(say=len, device="cpu"))
    assert trained == [
        {}, {"value_embedding": "rounded_bin"}, {"value_embedding": "linear"}, {"objective": "classification"}, {},
        {"num_hidden_layers": 0, "decoder_num_hidden_layers": 3, "decoder_context": "all"},
    ]  # fmt: skip
    scored = {(each.method, each.data, each.metric) for each in result.scores}
    assert {(PERFORMER, f"blood{level}", "Pearson") for level in ("", ", 85% zeros", ", 90% zeros")} <= scored
    assert (BASE, "blood", "ARI") in scored
    assert (PERFORMER, "blood", "ARI") not in scored  # no encoder, no embedding
    assert set(result.settings["seconds of training"]) == set(VARIANTS)
    assert "Pearson against sparsity" in result.pictures
    methods = list(dict.fromkeys(each.method for each in result.scores))
    assert methods[0] == BASE
    assert methods.count("gene mean") == 1
    with pytest.raises(ValueError, match="no such variant: '5M'"):
        evaluate_ablation(adata, "blood", {}, AblationOptions(sizes=("5M",)))


def test_genes_that_the_file_did_not_measure_are_not_scored(cells, monkeypatch):
    adata, checkpoint = cells
    few = adata[:, : GENES // 2].copy()
    masked = []
    statistic = tasks_recovery.within_genes

    def remember(true, guess, gene_ids):
        masked.append((gene_ids[true != tasks_recovery.IGNORED], true[true != tasks_recovery.IGNORED]))
        return statistic(true, guess, gene_ids)

    monkeypatch.setattr(tasks_recovery, "within_genes", remember)
    options = tasks_recovery.RecoveryOptions(sparsities=(0.95,))
    tasks_recovery.evaluate_recovery(few, "blood", {"ours": checkpoint}, options, Run(device="cpu", say=len))
    ids, true = (np.concatenate(parts) for parts in zip(*masked, strict=True))
    assert ids.max() < GENES // 2  # the checkpoint's panel has as many genes again
    assert (true == 0).any()


def test_in_memory_counts_are_read_like_those_of_a_file():
    from xtrimogene.tokenization.panel_xtrimogene import InMemory

    counts = sparse.csr_matrix(np.array([[1, 0, 3], [0, 0, 2], [5, 1, 0]], np.float32))
    rows, totals = InMemory(counts).read(1, 3)
    np.testing.assert_array_equal(rows.toarray(), counts[1:].toarray())
    assert totals.tolist() == [2, 6]
