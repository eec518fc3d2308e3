"""Components of training cells: those of a dense computation, of the training cells only, and of one panel."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import xtrimogene
from xtrimogene.eval.measures import corpus_pca
from xtrimogene.eval.measures.corpus_pca import FILE, CorpusPCA
from xtrimogene.tokenization.panel_xtrimogene import InMemory
from xtrimogene.training.data.dataset import cells_dataset


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    genes = xtrimogene.XTrimoGeneTokenizer.default().genes[:30]
    return xtrimogene.XTrimoGeneTokenizer.from_genes(genes, tmp_path_factory.mktemp("panel"))


@pytest.fixture(scope="module")
def counts():
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    rates = np.repeat(rng.gamma(0.5, 4, size=(4, 30)), 20, axis=0)
    return csr_matrix(rng.poisson(rates).astype(np.float32))


def test_components_are_those_of_a_dense_computation(counts, tokenizer, tmp_path):
    found = CorpusPCA.fit(cells_dataset(InMemory(counts)), tokenizer)
    found.save(tmp_path)
    loaded = CorpusPCA.load(tmp_path, tokenizer)
    dense = counts.toarray().astype(np.float64)
    values = np.log1p(1e4 * dense / dense.sum(1, keepdims=True))
    centred = values - values.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    expected = (left * sizes)[:, :29]
    given = loaded.transform(InMemory(counts))
    assert given.shape == (80, 29)  # one component less than genes
    signs = np.sign((given * expected).sum(0))
    np.testing.assert_allclose(given * signs, expected, atol=1e-3)
    assert loaded.num_cells == 80


def test_other_cells_are_projected_and_not_fitted(counts, tokenizer, monkeypatch):
    found = CorpusPCA.fit(cells_dataset(InMemory(counts[:60])), tokenizer)
    whole = found.transform(InMemory(counts))
    monkeypatch.setattr(corpus_pca, "CHUNK", 7)
    np.testing.assert_allclose(found.transform(InMemory(counts)), whole, atol=1e-5)
    np.testing.assert_allclose(found.transform(InMemory(counts[60:])), whole[60:], atol=1e-5)
    assert abs(whole[:60].mean(0)).max() < 1e-3 < abs(whole[60:].mean(0)).max()


def test_more_cells_than_are_fitted_are_drawn_at_random(counts, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus_pca, "FITTED_CELLS", 25)
    dataset = cells_dataset(InMemory(counts))
    one, again, other = (CorpusPCA.fit(dataset, tokenizer, seed) for seed in (0, 0, 1))
    assert one.num_cells == 25
    np.testing.assert_array_equal(one.means, again.means)
    assert abs(one.means - other.means).max() > 0.01
    with pytest.raises(ValueError, match="the corpus has 1 cell, and principal components need 2"):
        CorpusPCA.fit(dataset.select([0]), tokenizer)


def test_a_file_of_another_panel_or_of_nothing_is_refused(counts, tokenizer, tmp_path):
    assert CorpusPCA.load(tmp_path, tokenizer) is None
    CorpusPCA.fit(cells_dataset(InMemory(counts)), tokenizer).save(tmp_path)
    other = xtrimogene.XTrimoGeneTokenizer.from_genes(tokenizer.genes[::-1], tmp_path / "panel")
    with pytest.raises(ValueError, match="its gene ids mean other genes"):
        CorpusPCA.load(tmp_path, other)
    save_file({"means": np.zeros(3, np.float32)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="holds no principal components"):
        CorpusPCA.load(tmp_path, tokenizer)
