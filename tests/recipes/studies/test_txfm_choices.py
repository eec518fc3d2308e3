"""The study of choices: each is a model of its own, and what is shown and predicted is what its name says."""

import json

import anndata
import numpy as np
import pytest

from xtrimogene import TxFMConfig, TxFMTokenizer
from xtrimogene.recipes.studies import txfm_choices
from xtrimogene.recipes.studies.txfm_choices import CHOICES, DEFAULT, SIMPLE, ExpressedGenes, main, most_counted


@pytest.fixture
def labelled(pbmc, tmp_path):
    cells = anndata.AnnData(pbmc.raw.X[:120], pbmc.obs.iloc[:120][["bulk_labels"]], pbmc.raw.var[[]])
    cells.write_h5ad(tmp_path / "labelled.h5ad")
    return tmp_path / "labelled.h5ad"


def test_every_choice_is_a_configuration_that_differs_from_the_default():
    default = TxFMConfig.preset(txfm_choices.SIZE, anchored=False)
    for name, choice in CHOICES.items():
        config = TxFMConfig.preset(txfm_choices.SIZE, anchored=False, **choice.config)
        others = [key for key in choice.config if getattr(config, key) != getattr(default, key)]
        is_other = bool(others) or choice.hidden != CHOICES[DEFAULT].hidden or not choice.keeps_zeros
        assert is_other == (name != DEFAULT)


def test_only_expressed_genes_are_shown(tmp_path):
    tokenizer = TxFMTokenizer.from_genes([f"gene {number}" for number in range(50)], tmp_path)
    cell = {"input_ids": [3, 20, 41], "counts": [2, 1, 5], "total": 8, "cell_index": 0}
    batch = ExpressedGenes(tokenizer, 10)([cell])
    assert batch["input_ids"].tolist() == [[3, 20, 41]]
    assert (batch["values"] > 0).all()


def test_the_panel_is_that_of_the_most_counts(labelled):
    cells = anndata.read_h5ad(labelled)
    panel = most_counted(cells, 20)
    counts = TxFMTokenizer.default().read_counts(cells).read()[0]
    sums = dict(zip(TxFMTokenizer.default().genes, np.asarray(counts.sum(0)).ravel(), strict=True))
    assert min(sums[gene] for gene in panel) >= sorted(sums.values())[-21]


@pytest.mark.slow  # two trainings
def test_every_run_has_its_scores_and_so_has_the_simple_method(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(txfm_choices, "HELD_OUT", 60)
    monkeypatch.setattr(txfm_choices, "COMPONENTS", 5)
    main(
        labelled, "bulk_labels", tmp_path / "found.json", steps=1, seeds="0", genes=60,
        choices=f"{DEFAULT};only expressed genes shown",
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert [run["choice"] for run in found["runs"]] == [DEFAULT, SIMPLE, "only expressed genes shown"]
    for run in found["runs"]:
        assert 0 <= run["k-NN macro-F1"] <= 1
        assert -1 <= run["Pearson beyond gene means"] <= 1
