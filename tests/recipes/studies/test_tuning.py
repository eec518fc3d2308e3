"""The study of poolings and tuning: equal widths and weights, shares that are those of what learns, and all rows."""

import json

import anndata
import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from xtrimogene.eval.tasks.annotation import Labelled, Split
from xtrimogene.recipes.studies import tuning
from xtrimogene.recipes.studies.tuning import Cells, as_it_is, main, new_checkpoint, tuned


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return new_checkpoint(tmp_path_factory.mktemp("new"), seed=0)


@pytest.fixture
def cells(pbmc, checkpoint):
    adata = pbmc.raw.to_adata()[:90]
    names, ids = np.unique(pbmc.obs["bulk_labels"].iloc[:90].astype(str), return_inverse=True)
    parts = Split(np.arange(30), np.arange(30, 60), np.arange(60, 90))
    return Cells(AutoTokenizer.from_pretrained(checkpoint).read_counts(adata), Labelled(adata, ids, names), parts)


def test_latents_are_as_wide_as_all_and_the_others_a_fourth(cells, checkpoint):
    widths = {pooling: as_it_is(checkpoint, cells, pooling)["width"] for pooling in ("mean", "all", "xpressor")}
    assert widths == {"mean": 64, "all": 256, "xpressor": 256}


def test_what_learns_is_a_share_of_the_same_weights(cells, checkpoint):
    of_ways = {peft: tuned(checkpoint, cells, "xpressor", peft, epochs=1, seed=0) for peft in tuning.TUNED}
    assert of_ways["none"]["share"] == 1
    assert 0 < of_ways["lora"]["share"] < of_ways["xpressor"]["share"] < 0.5
    assert len({found["weights"] for found in of_ways.values()}) == 1
    assert all(0 <= found["macro-F1"] <= 1 for found in of_ways.values())


def test_macro_f1_is_of_the_test_cells(cells):
    test = cells.parts.test
    assert cells.macro_f1(cells.labelled.ids[test]) == 1
    assert cells.macro_f1(np.roll(cells.labelled.ids[test], 1)) < 1


@pytest.mark.slow  # a pre-training on the full panel, and seven fine-tunings
@pytest.mark.usefixtures("quick_bag")
def test_there_is_a_row_for_each_pooling_and_way(pbmc, tmp_path):
    data = tmp_path / "blood.h5ad"
    cells = pbmc.raw.to_adata()[:240]
    anndata.AnnData(cells.X, pbmc.obs.iloc[:240][["bulk_labels"]], cells.var[[]]).write_h5ad(data)
    plan, output = tmp_path / "plan.yaml", tmp_path / "found.json"
    plan.write_text(yaml.safe_dump({"tasks": [{"task": "embedding", "data": str(data), "max_cells": 120}]}))
    main(plan, data, "bulk_labels", output, steps=1, epochs=1, seeds="0")
    rows = [(row["pooling"], row["peft"]) for row in json.loads(output.read_text())["rows"]]
    assert rows == [*((pooling, "none") for pooling in tuning.POOLINGS), ("xpressor", "lora"), ("xpressor", "xpressor")]
