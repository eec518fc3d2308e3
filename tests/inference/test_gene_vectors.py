"""Vectors of genes as a table."""

import numpy as np
import pytest
import torch

from xtrimogene import TxFMConfig, TxFMForPreTraining, TxFMTokenizer, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
from xtrimogene.inference.gene_vectors import gene_vectors

GENES = ["TP53", "CD3D", "CD3E", "MS4A1", "NKG7", "LYZ", "GNLY"]


@pytest.fixture
def txfm(tmp_path):
    """A model whose vectors of CD3D and CD3E are nearly alike, and its folder."""
    torch.manual_seed(0)
    model = TxFMForPreTraining(TxFMConfig(num_genes=7, hidden_size=12, num_attention_heads=2, num_hidden_layers=1))
    for table in (model.model.embeddings.gene_embedding.weight, model.decoder.output.weight):
        table.data[2] = table.data[1] * 1.01
    model.save_pretrained(tmp_path / "model")
    TxFMTokenizer.from_genes(GENES, tmp_path / "panel").save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("table", ["encoder", "decoder"])
def test_columns_are_standardised_over_the_genes_and_rotated(txfm, table):
    model, folder = txfm
    rows = model.model.static_gene_embeddings() if table == "encoder" else model.decoder_gene_embeddings()
    rows = rows.detach().numpy()
    plain = gene_vectors(folder, table, num_components=0)
    np.testing.assert_allclose(plain, (rows - rows.mean(0)) / rows.std(0), rtol=1e-4, atol=1e-5)
    assert list(plain.index) == GENES
    rotated = gene_vectors(folder, table)
    assert rotated.shape == (7, 7)  # no more components than genes
    np.testing.assert_allclose(rotated @ rotated.T, plain @ plain.T, rtol=1e-3, atol=1e-3)
    cosines = np.corrcoef(rotated)
    assert cosines[1, 2] > 0.99 > np.abs(cosines[1, 3:]).max()


def test_chosen_genes_are_standardised_among_themselves(txfm):
    vectors = gene_vectors(txfm[1], genes=["LYZ", "ENSG00000167286", "TP53"], num_components=2)
    assert list(vectors.index) == ["LYZ", "ENSG00000167286", "TP53"]  # CD3D by its Ensembl id
    assert vectors.shape == (3, 2)
    np.testing.assert_allclose(vectors.mean(), 0, atol=1e-6)


def test_unless_told_otherwise_vectors_are_the_rows_by_which_genes_are_predicted(txfm, tmp_path, tiny_config):
    def assert_same(found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    assert_same(gene_vectors(txfm[1]), gene_vectors(txfm[1], "decoder"))
    model = XTrimoGeneForPreTraining(tiny_config(num_genes=7, anchored=True))
    model.save_pretrained(tmp_path / "anchored")
    XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel").save_pretrained(tmp_path / "anchored")
    rows = model.cell_decoder.to_genes.weight.detach().numpy()
    assert_same(gene_vectors(tmp_path / "anchored", num_components=0), (rows - rows.mean(0)) / rows.std(0))
    again = XTrimoGeneForPreTraining.from_pretrained(tmp_path / "anchored")
    assert_same(gene_vectors(again, num_components=0), (rows - rows.mean(0)) / rows.std(0))


def test_what_a_model_does_not_have_is_refused(txfm, tmp_path, tiny_config):
    XTrimoGeneForPreTraining(tiny_config(num_genes=7)).save_pretrained(tmp_path / "other")
    XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel").save_pretrained(tmp_path / "other")
    assert gene_vectors(tmp_path / "other").shape == (7, 7)
    with pytest.raises(ValueError, match="XTrimoGeneForPreTraining predicts genes by no rows of their own"):
        gene_vectors(tmp_path / "other", "decoder")
    with pytest.raises(ValueError, match="table is 'codebook': give 'encoder' or 'decoder'"):
        gene_vectors(txfm[1], "codebook")
    with pytest.raises(ValueError, match="1 of 1 genes asked for are not among the 7 of the panel: NOTHING"):
        gene_vectors(txfm[1], genes=["NOTHING"])
