"""Recall of gene relations: pairs and tables as they stand in files, of both tables of a checkpoint, on real cells."""

import gzip

import numpy as np
import pytest
import torch

from xtrimogene import XTrimoGeneTokenizer
from xtrimogene.eval.measures import relations as measures
from xtrimogene.eval.measures.corpus_pca import CorpusPCA
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


def test_real_relations_on_real_cells(shared, tokenizer, tmp_path, monkeypatch):
    import anndata

    import xtrimogene

    monkeypatch.setattr(measures, "NULL_PAIRS", 100_000)
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


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Cells of 600 genes, pairs of them as a file, a TxFM whose decoder holds the pairs, and a table that does."""
    import anndata
    import pandas as pd

    import xtrimogene
    from xtrimogene.training.data.dataset import cells_dataset

    monkeypatch.setattr(measures, "NULL_PAIRS", 100_000)
    rng = np.random.default_rng(0)
    genes = XTrimoGeneTokenizer.default().genes[:600]
    folder = tmp_path / "model"
    tokenizer = xtrimogene.TxFMTokenizer.from_genes(genes, tmp_path / "panel")
    config = xtrimogene.TxFMConfig.preset(
        "txfm-tiny", num_genes=600, num_hidden_layers=1, hidden_size=32, anchored=False
    )
    model = xtrimogene.TxFMForPreTraining(config)
    vectors = np.repeat(rng.normal(size=(300, 32)), 2, axis=0) + rng.normal(scale=0.2, size=(600, 32))
    model.decoder.output.weight.data[:600] = torch.from_numpy(vectors).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    counts = rng.poisson(0.5, (80, 600)).astype(np.float32)
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=genes))
    CorpusPCA.fit(cells_dataset(tokenizer.read_counts(adata)), tokenizer).save(folder)
    for name, order in (("pairs", np.arange(600)), ("others", rng.permutation(600))):
        rows = [(genes[a], genes[b]) for a, b in order.reshape(-1, 2)]
        write(tmp_path / f"{name}.txt.gz", rows)
    table = pd.DataFrame(vectors, index=pd.Index(genes, name="gene")).add_prefix("component ")[::-1]
    table.to_csv(tmp_path / "mine.csv")
    table.iloc[:400].reset_index().to_parquet(tmp_path / "part.parquet")
    return adata, str(folder), [tmp_path / "pairs.txt.gz", tmp_path / "others.txt.gz"]


def test_both_tables_of_a_txfm_stand_beside_loadings_of_its_corpus(planted):
    adata, folder, files = planted
    options = relations.RelationsOptions(relations=files)
    result = relations.evaluate_relations(adata, "made up", {"ours": folder}, options, Run(seeds=(0, 1), say=len))
    value = {(each.method, each.metric): each.value for each in result.scores}
    assert value["ours, decoder", "recall, pairs"] > 0.95
    at_chance = [
        "ours", "ours, not trained", "ours, decoder, not trained", "ours, decoder, genes paired anew", "PCA loadings",
        "PCA loadings, 256 components", "PCA of the corpus of ours, loadings", "random vectors",
    ]  # fmt: skip
    for method in at_chance:
        assert value[method, "recall, pairs"] == pytest.approx(0.1, abs=0.06), method
    assert value["ours, decoder", "recall, others"] < 0.2
    both = value["ours, decoder", "recall, all files"]
    apart = value["ours, decoder", "recall, pairs"], value["ours, decoder", "recall, others"]
    assert both == pytest.approx(np.mean(apart), abs=0.01)
    assert result.settings["pairs"]["all files"] == 599  # one of 2 x 300 pairs is in both


def test_tables_from_files_are_judged_without_a_checkpoint_on_the_genes_that_all_have(planted, tmp_path):
    adata, _, files = planted
    options = relations.RelationsOptions(relations=files[:1], tables=[tmp_path / "mine.csv", tmp_path / "part.parquet"])
    result = relations.evaluate_relations(adata, "made up", {}, options, Run(seeds=(0,), say=len))
    value = {each.method: each.value for each in result.scores}
    assert result.scores[0].method == "table mine"
    assert value["table mine"] > 0.95
    assert value["table part"] > 0.95
    assert value["random vectors"] == pytest.approx(0.1, abs=0.06)
    assert result.settings["genes"] == 400
    assert result.settings["pairs"] == {"pairs": 200}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene,0\nCD3D,a\n", r"has 1 columns after the names of genes, 1 of them no numbers \(0\)"),
        ("CD3D\nLYZ\n", "has 0 columns after the names of genes"),
        ("gene,0\nCD3D,1\nLYZ,\n", "has missing or infinite values in 1 of 2 rows"),
    ],
)
def test_what_is_no_table_of_genes_is_refused(tmp_path, text, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        relations.read_table(tmp_path / "table.csv")
