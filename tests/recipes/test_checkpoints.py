"""How released checkpoints are stored, what they say of themselves, and which cells they may learn from."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

import xtrimogene
from xtrimogene.recipes.checkpoints import DataSet, Plan, annotation_metrics, embedding_metrics, store

DOCS = Path(xtrimogene.__file__).parent / "docs"


def test_a_stored_checkpoint_is_half_as_large_has_no_code_and_loads_in_float32(tmp_path):
    config = xtrimogene.XTrimoGeneConfig.preset("micro", num_genes=50, num_batches=2)
    model = xtrimogene.XTrimoGeneForPreTraining(config)
    model.save_pretrained(tmp_path / "trained")
    store(tmp_path / "trained", tmp_path / "stored", {"knows": "It was trained on nothing."})
    assert {path.name for path in (tmp_path / "stored").iterdir()} == {
        "config.json", "metrics.json", "model.safetensors"
    }  # fmt: skip
    assert "auto_map" not in json.loads((tmp_path / "stored/config.json").read_text())
    weights = load_file(tmp_path / "stored/model.safetensors")
    assert {part.dtype for part in weights.values()} == {torch.float16, torch.bool}
    again = AutoModelForPreTraining.from_pretrained(tmp_path / "stored")
    assert {part.dtype for part in again.parameters()} == {torch.float32}
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one.half().float(), other), name


def plan(**changes):
    sets = [
        DataSet("a", "blood", "10x 3' v1", "CC0", "me"), DataSet("b", "skin", "inDrop", "CC0", "me"),
        DataSet("c", "blood", "10x 3' v2", "CC0", "me"),
    ]  # fmt: skip
    labelled = {"name": "a", "label_key": "type", "unlabelled": ["c"]}
    return Plan(sets, {}, labelled, [], [], Path(), Path(), **changes)


def test_what_is_known_is_said_once_for_each_kind_of_cells():
    assert plan().known(1000) == "It was trained on 1,000 cells: blood (10x 3' v1, 10x 3' v2); skin (inDrop)."


def test_a_folder_without_the_data_is_refused(tmp_path):
    wanted = {"trained_on": [vars(each) for each in plan().sets], "labelled": {}, "tried_on": []}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(wanted))
    (tmp_path / "evaluated.yaml").write_text("tasks: []\n")
    with pytest.raises(FileNotFoundError, match=r"a\.h5ad is not there: give the folder of the data sets"):
        Plan.read(tmp_path / "plan.yaml", tmp_path / "evaluated.yaml", tmp_path, tmp_path, tmp_path / "cells")


def test_every_data_set_has_a_licence_and_none_is_both_trained_on_and_tried():
    wanted = yaml.safe_load((DOCS / "checkpoints.yaml").read_text())
    trained_on = [DataSet(**each) for each in wanted["trained_on"]]
    assert all(each.licence and each.source for each in trained_on)
    assert not any("non-commercial" in each.licence for each in trained_on)
    assert not {each.name for each in trained_on} & {each["name"] for each in wanted["tried_on"]}
    assert {wanted["labelled"]["name"], *wanted["labelled"]["unlabelled"]} <= {each.name for each in trained_on}


def test_results_of_a_card_stand_beside_their_baselines():
    scores = {"blood": {"small": {"ARI": 0.7, "seen": "0 of 9"}, "PCA of the corpus": {"ARI": 0.6, "seen": "0 of 9"}}}
    (found,) = embedding_metrics("small", scores)
    assert (found.name, found.value, found.baselines) == ("ARI", 0.7, {"PCA of the corpus": 0.6})
    rows = {"blood-annotator": {"accuracy": 0.8, "called unknown": 0.5}, "logistic regression": {"accuracy": 0.9}}
    accuracy, unknown = annotation_metrics({"lupus": rows})
    assert accuracy.winners == ["logistic regression"]
    assert (unknown.value, unknown.baselines) == (0.5, {})
