"""The study of few labels: scores are of the seeds that there are, and no test cell was pre-trained on."""

import json

import anndata
import numpy as np
import pytest
import yaml

from xtrimogene.eval.tasks.few_labels import Predictions
from xtrimogene.recipes.studies.few_labels import DataSet, main


@pytest.fixture
def entry(pbmc, tmp_path):
    cells = pbmc.raw.to_adata()[:240]
    anndata.AnnData(cells.X, pbmc.obs.iloc[:240][["bulk_labels"]], cells.var[[]]).write_h5ad(tmp_path / "blood.h5ad")
    return {"data": str(tmp_path / "blood.h5ad"), "label_key": "bulk_labels", "max_cells": 120}


def test_scores_are_of_the_seeds_that_there_are(entry):
    found = DataSet.of_entry({"task": "few-labels", **entry})
    ids = found.cells.ids
    assert len(ids) <= 120
    for seed in (0, 1):
        test = np.random.default_rng(seed).permutation(len(ids))[:20]
        said = {("tiny, first step", 5): ids[test], ("logistic regression", 5): np.zeros(20, int)}
        found.of_seeds.append(Predictions(test, said))
        scores = {(each["data"], each["method"], each["metric"]): each for each in found.scores()["scores"]}
        ours = scores["blood", "tiny, first step", "accuracy, 5 labels"]
        less = scores["blood, less logistic regression", "tiny, first step", "accuracy, 5 labels"]
        theirs = scores["blood", "logistic regression", "accuracy, 5 labels"]
        assert (ours["value"], ours["seeds"], less["seeds"]) == (1, seed + 1, seed + 1)
        assert less["value"] == pytest.approx(1 - theirs["value"])


@pytest.mark.slow  # a pre-training on the full panel, and four fine-tunings
@pytest.mark.usefixtures("quick_bag", "quick_umap")
def test_test_cells_were_not_pre_trained_on(entry, tmp_path):
    corpus, plan, output = (tmp_path / name for name in ("corpus.yaml", "plan.yaml", "found.json"))
    corpus.write_text(yaml.safe_dump({"tasks": [{"task": "embedding", **entry}]}))
    plan.write_text(yaml.safe_dump({"tasks": [{"task": "few-labels", "fine_tuning_epochs": 1, **entry}]}))
    main(corpus, plan, None, output, steps=1, seeds="0")
    found = json.loads(output.read_text())
    (of_blood,) = found["results"]
    scores = {(each["method"], each["metric"]): each for each in of_blood["scores"] if each["data"] == "blood"}
    for method in ("tiny, first step", "tiny, fine-tuned"):
        for number in ("5 labels", "all labels"):
            assert 0 <= scores[method, f"macro-F1, {number}"]["value"] <= 1
        assert scores[method, "macro-F1, 5 labels"]["seen"] == f"0 of {of_blood['cells']}"
