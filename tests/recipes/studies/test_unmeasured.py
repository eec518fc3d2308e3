"""The study counts the pairs that were not measured, and trains both ways on the same cells."""

import json

import anndata
import numpy as np
import pytest

from xtrimogene.recipes.studies import unmeasured
from xtrimogene.tokenization.collators import DataCollatorForMaskedExpression
from xtrimogene.training.data.convert import convert_files
from xtrimogene.training.data.corpus import read_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, pbmc, tokenizer):
    """A corpus of real cells of two files, of which one has fewer genes."""
    folder = tmp_path_factory.mktemp("study")
    adata = anndata.AnnData(pbmc.raw.X, pbmc.obs[[]], pbmc.raw.var[[]])
    adata[:40].write_h5ad(folder / "all.h5ad")
    adata[40:80, -300:].write_h5ad(folder / "few.h5ad")
    files = [folder / "all.h5ad", folder / "few.h5ad"]
    convert_files(files, folder / "corpus", tokenizer=tokenizer, min_genes=0, say=lambda line: None)
    return folder / "corpus"


def test_pairs_are_counted_by_file_and_as_they_are_masked(corpus, tokenizer, tmp_path):
    cells = read_corpus(corpus, tokenizer, cache_dir=str(tmp_path))
    found = unmeasured.pairs(cells, tokenizer)
    for name, rows in {"all.h5ad": range(40), "few.h5ad": range(40, 80)}.items():
        bits = np.frombuffer(cells[rows[0]]["measured"], np.uint8)
        measured = int(np.unpackbits(bits).sum())
        source = found["sources"][name]
        assert source["genes measured"] == measured
        assert (source["pairs"], source["pairs not measured"]) == (40 * 19_264, 40 * (19_264 - measured))
        zeros = [
            (
                DataCollatorForMaskedExpression(tokenizer, unmeasured=setting)([cells[row] for row in rows])["labels"]
                == 0
            )
            for setting in ("zero", "ignore")
        ]
        assert source["masked zero genes"] == zeros[0].sum()
        assert source["masked zero genes not measured"] == zeros[0].sum() - zeros[1].sum()
    assert found["pairs not measured"] == sum(each["pairs not measured"] for each in found["sources"].values())


def test_quick_study_scores_both_ways_on_the_same_values(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unmeasured.main(corpus, "all.h5ad,few.h5ad", tmp_path / "found.json", quick=True)
    found = json.loads((tmp_path / "found.json").read_text())
    (ignored,), (zero,) = found["ignore"], found["zero"]
    assert ignored["gene mean, pearson"] == zero["gene mean, pearson"]  # of the same masked values
    assert ignored["pearson"] != zero["pearson"]
    assert found["steps"] == 2
    with pytest.raises(ValueError, match=r"has no cells of 'c.h5ad', only of all.h5ad, few.h5ad"):
        unmeasured.main(corpus, "c.h5ad", tmp_path / "other.json")
