"""Recall of gene relations: pairs as they stand in files, chance for random vectors, all for planted ones."""

import gzip

import numpy as np
import pytest

from xtrimogene import XTrimoGeneTokenizer
from xtrimogene.eval.tasks import relations
from xtrimogene.eval.tasks.run import Run


@pytest.fixture(scope="module")
def tokenizer():
    return XTrimoGeneTokenizer.default()


def write(path, pairs):
    with gzip.open(path, "wt") as file:
        file.write("entity1,entity2\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    return path


def test_pairs_are_counted_once_by_any_name_and_only_of_the_genes_asked_for(tokenizer, tmp_path):
    genes = tokenizer.genes[:60]
    pairs = [(genes[row], genes[row + 1]) for row in range(55)]
    extra = [(genes[1], genes[0]), (genes[3], genes[3]), ("NOVEL", genes[2]), (genes[2], tokenizer.genes[900])]
    found = relations.known_pairs(write(tmp_path / "pairs.txt.gz", [*pairs, *extra]), tokenizer, np.arange(60))
    assert found.tolist() == [[row, row + 1] for row in range(55)]
    with pytest.raises(ValueError, match=r"few.txt.gz has 3 pairs of the panel's genes and 3 of the 60 genes"):
        relations.known_pairs(write(tmp_path / "few.txt.gz", pairs[:3]), tokenizer, np.arange(60))


def recall(vectors, pairs):
    unit = relations.reduced(vectors, 0)
    low, high = np.percentile(relations.random_cosines(unit, 0), relations.TAILS)
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1)
    return np.mean((cosines <= low) | (cosines >= high))


def test_random_vectors_are_at_chance_and_planted_relations_are_found(monkeypatch):
    monkeypatch.setattr(relations, "NULL_PAIRS", 100_000)
    rng = np.random.default_rng(0)
    pairs = np.arange(2_000).reshape(-1, 2)
    assert recall(rng.normal(size=(2_000, 64)), pairs) == pytest.approx(0.1, abs=0.03)
    planted = np.repeat(rng.normal(size=(1_000, 64)), 2, axis=0) + rng.normal(scale=0.3, size=(2_000, 64))
    assert recall(planted, pairs) > 0.95


def test_a_pair_counts_as_often_as_both_of_its_genes_were_drawn():
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    recall = relations.recall_of(np.array([True, False, False]), pairs, 4)
    assert recall(np.arange(4)) == pytest.approx(1 / 3)
    assert recall(np.array([0, 0, 1, 2])) == pytest.approx(2 / 3)  # the first pair twice, the second once, no third
    assert np.isnan(recall(np.array([3, 3, 3, 3])))


def test_intervals_are_as_wide_as_those_of_relations_drawn_anew():
    rng = np.random.default_rng(0)

    # Whether a pair is found depends on its genes: hubs are in many pairs.
    def draw():
        good = rng.random(200) < 0.5
        pairs = np.column_stack([rng.integers(20, size=2_000), rng.integers(20, 200, size=2_000)])
        return good[pairs[:, 0]], pairs

    spread = np.std([found.mean() for found, _ in (draw() for _ in range(300))])
    found, pairs = draw()
    recall = relations.recall_of(found, pairs, 200)
    by_genes = np.nanstd([recall(rng.integers(200, size=200)) for _ in range(300)])
    by_pairs = np.std([found[rng.integers(2_000, size=2_000)].mean() for _ in range(300)])
    assert 0.5 * spread < by_genes < 2 * spread
    assert by_pairs < 0.2 * spread


def test_real_relations_on_real_cells(shared, tokenizer, tmp_path, monkeypatch):
    import anndata
    import torch

    import xtrimogene

    monkeypatch.setattr(relations, "NULL_PAIRS", 100_000)
    adata = anndata.read_h5ad(shared / "data" / "pbmc_facs_zheng" / "pbmc_facs_zheng.h5ad")[::20].copy()
    torch.manual_seed(0)
    config = xtrimogene.XTrimoGeneConfig.preset("tiny", hidden_size=32, decoder_hidden_size=32)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = shared / "data" / "gene_relations" / "CORUM.txt.gz"
    options = relations.RelationsOptions(relations=[file])
    result = relations.evaluate_relations(adata, "blood", {"ours": str(tmp_path)}, options, Run(say=len))
    value = {each.method: each.value for each in result.scores}
    assert value["random vectors"] == pytest.approx(0.1, abs=0.01)
    assert value["ours"] == pytest.approx(0.1, abs=0.02)  # not trained
    assert value["PCA loadings"] > 0.12
    assert result.settings["pairs"]["CORUM"] > 10_000
