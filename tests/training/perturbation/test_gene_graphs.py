"""Relations are read whole, graphs and features are what they say."""

import gzip

import numpy as np
import pytest
import torch

from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
from xtrimogene.training.perturbation.gene_graphs import coexpression, context_features, gene_graphs, read_relations
from xtrimogene.training.perturbation.screens import CONTROL, read_screen

PAIRS = [("KLF1", "GATA1"), ("KLF1", "GATA2"), ("MAPK1", "MAP2K3"), ("MAPK1", "MAP2K6"), ("MAP2K3", "MAP2K6")]


@pytest.fixture(scope="module")
def relations(tokenizer, tmp_path_factory):
    file = tmp_path_factory.mktemp("relations") / "pairs.tsv"
    file.write_text("".join(f"{first}\t{second}\n" for first, second in PAIRS))
    return read_relations([file], tokenizer)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the folder of a small model with random weights, on the whole panel."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", hidden_size=16, decoder_hidden_size=12)).save_pretrained(folder)
    return folder


def test_relations_of_pairs_and_sets(tokenizer, tmp_path):
    pairs, sets = tmp_path / "pairs.csv.gz", tmp_path / "sets.gmt"
    with gzip.open(pairs, "wt") as file:
        file.write("entity1,entity2,score\nKLF1,GATA1,0.5\nEKLF,NOGENE,1\nMAPK1,KLF1,1\n")
    sets.write_text("FIRST\thttp://x\tKLF1\tGATA1\tNOGENE\tMAPK1\nSECOND\t\tKLF1\n")
    relations = read_relations([pairs, sets], tokenizer)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("KLF1", "GATA1", "MAPK1")}
    members = [set(relations[:, column].nonzero()[0].tolist()) for column in range(relations.shape[1])]
    assert members == [{ids["KLF1"], ids["GATA1"]}, {ids["MAPK1"], ids["KLF1"]}, set(ids.values())]


@pytest.mark.parametrize("name", ["Reactome.txt.gz", "StringDB.txt.gz", "human_hallmark_v2025.gmt.gz"])
def test_published_relations_are_read(shared, tokenizer, name):
    relations = read_relations([shared / "data/gene_relations" / name], tokenizer)
    sizes = np.asarray(relations.sum(axis=0)).ravel()
    assert relations.shape[0] == tokenizer.num_genes
    assert (sizes >= 2).all()
    if not name.endswith("gmt.gz"):
        assert (sizes == 2).all()
        assert relations.shape[1] > 15_000


@pytest.mark.parametrize(("text", "message"), [
    ("", "no line names a gene"),
    ("KLF1 GATA1\nMAPK1 MAP2K3\n", "has 2 lines and none with two genes of the panel: a line is a pair"),
    ("Klf1,Gata1\n", "has 1 lines and none with two genes of the panel"),
])  # fmt: skip
def test_files_without_relations_are_refused(tokenizer, tmp_path, text, message):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_relations([tmp_path / "bad.txt"], tokenizer)


def test_relation_graph_is_the_jaccard_index_by_loops(screen, relations, tokenizer):
    graphs = gene_graphs(screen, relations=relations)
    names = [tokenizer.genes[gene] for gene in graphs.gene_ids]
    assert names[: len(screen.genes)] == screen.genes
    assert {"KLF1", "GATA1", "GATA2", "MAPK1"} <= set(names)
    groups = [set(pair) for pair in PAIRS]
    for first in ("KLF1", "MAPK1", "GATA1", "MIDN"):
        strength = {}
        for second in set(names) - {first}:
            either = sum(first in group or second in group for group in groups)
            both = sum({first, second} <= group for group in groups)
            if both:
                strength[second] = both / either
        row = graphs.relations[names.index(first)]
        found = {names[column]: weight for column, weight in zip(row.indices, row.data, strict=True)}
        total = sum(strength.values())
        assert found == pytest.approx({name: weight / total for name, weight in strength.items()})


def test_coexpression_graph_is_the_strongest_correlations(screen):
    dense = screen.cells(CONTROL).toarray().astype(float)
    varies = dense.std(axis=0) > 0
    correlation = np.zeros((dense.shape[1],) * 2)
    correlation[np.ix_(varies, varies)] = np.abs(np.corrcoef(dense[:, varies].T))
    np.fill_diagonal(correlation, 0)
    graph = coexpression(screen.cells(CONTROL))
    assert graph.nnz > 50
    for gene in range(dense.shape[1]):
        close = [other for other in np.argsort(-correlation[gene]) if correlation[gene, other] >= 0.4][:20]
        assert sorted(graph[gene].indices) == sorted(close)
        if close:
            expected = correlation[gene, close] / correlation[gene, close].sum()
            np.testing.assert_allclose(graph[gene].toarray().ravel()[close], expected, rtol=1e-5)


def test_features_are_context_embeddings_averaged_over_control_cells(screen_cells, checkpoint, tokenizer):
    labels = screen_cells.obs["perturbation"]
    few = screen_cells[np.concatenate([np.flatnonzero(labels == name)[:12] for name in (CONTROL, "KLF1")])].copy()
    gene_ids = np.array([17, 3, 12_000, 800, 4_711])
    features = context_features(checkpoint, read_screen(few, tokenizer), gene_ids)
    model = XTrimoGeneModel.from_pretrained(checkpoint).eval()
    batch = tokenizer(few[few.obs["perturbation"] == CONTROL].copy())
    with torch.inference_mode():
        embedded = [
            model.contextual_gene_embeddings(ids[None], values[None], mask[None])[0, gene_ids]
            for ids, values, mask in zip(batch["input_ids"], batch["values"], batch["attention_mask"], strict=True)
        ]
    mean = torch.stack(embedded).double().mean(0).numpy()
    standard = (mean - mean.mean(axis=0)) / mean.std(axis=0)
    expected = standard / np.sqrt((standard**2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(features, expected, atol=2e-3)


def test_a_checkpoint_of_another_panel_is_refused(screen, tmp_path):
    XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=40)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 40 genes .* the screen was read with 19,264"):
        gene_graphs(screen, tmp_path)
    with pytest.raises(ValueError, match="further_genes: 1 of 1 perturbed genes are not among"):
        gene_graphs(screen, further_genes=["NOGENE"])
