"""Fields of the perturbation model's own configuration, and folders that version 0.1 saved."""

import doctest
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPerturbationPrediction, XTrimoGeneModel
from xtrimogene.modeling_xtrimogene import configuration_perturbation
from xtrimogene.modeling_xtrimogene.configuration_perturbation import XTrimoGenePerturbationConfig

OLD = Path(__file__).parents[1] / "data" / "saved_by_0_1" / "perturbation"
SIZES = {"num_nodes": 11, "num_measured": 7, "feature_size": 5, "num_expression_edges": 6, "pad_token_id": 50}


@pytest.mark.parametrize(("changes", "message"), [
    ({"feature_size": 0}, "feature_size is 0 and must be at least 1"),
    ({"hidden_size": -4}, "hidden_size is -4 and must be at least 1"),
    ({"num_relation_edges": -1}, "num_relation_edges is -1 and must not be negative"),
    ({"num_anchor_changes": -1}, "num_anchor_changes is -1 and must not be negative"),
    ({"pad_token_id": -1}, "pad_token_id is -1 and must not be negative"),
    ({"num_measured": 12}, "num_measured is 12 and num_nodes 11"),
    ({"dropout": 1.0}, r"dropout is 1\.0 and must be a share from 0 to below 1"),
    ({"focus": float("nan")}, "focus is nan and must not be negative"),
    ({"direction_weight": -1}, "direction_weight is -1 and must not be negative"),
    ({"features": "random"}, "features"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        XTrimoGenePerturbationConfig(**{**SIZES, **changes})


def test_the_type_of_a_saved_configuration_is_known(tmp_path):
    config = XTrimoGenePerturbationConfig(**SIZES, features="learned")
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "xtrimogene-perturbation"
    for loaded in (AutoConfig.from_pretrained(tmp_path), XTrimoGenePerturbationConfig.from_pretrained(tmp_path)):
        assert type(loaded) is XTrimoGenePerturbationConfig
        assert {name: getattr(loaded, name) for name in SIZES} == SIZES
        assert loaded.features == "learned"


def test_the_two_configurations_share_no_field_but_width_padding_and_anchored():
    own = XTrimoGenePerturbationConfig.__annotations__.keys()
    assert own & XTrimoGeneConfig.__annotations__.keys() == {"hidden_size", "pad_token_id", "anchored"}


def test_a_folder_saved_by_0_1_is_read_without_a_warning_and_saved_in_the_new_form(tmp_path, caplog):
    before = json.loads((OLD / "config.json").read_text())
    model = XTrimoGeneForPerturbationPrediction.from_pretrained(OLD)
    assert "model of type" not in caplog.text
    fields = [name.removeprefix("perturbation_") for name in before if name.startswith("perturbation_")]
    assert len(fields) == 10
    assert {name: getattr(model.config, name) for name in fields} == {
        name: before[f"perturbation_{name}"] for name in fields
    }
    assert model.config.pad_token_id == before["pad_token_id"] == 80
    model.save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert not [name for name in after if name.startswith(("perturbation_", "synergy_", "decoder", "classifier"))]
    assert set(after["auto_map"]) == {"AutoConfig", "AutoModel"}
    assert type(AutoModel.from_pretrained(tmp_path)) is XTrimoGeneForPerturbationPrediction


@pytest.mark.parametrize(
    "load", [AutoModel.from_pretrained, AutoConfig.from_pretrained, XTrimoGeneModel.from_pretrained]
)
def test_what_cannot_read_a_folder_saved_by_0_1_names_what_can(load):
    with pytest.raises(ValueError, match=r"loaded by XTrimoGeneForPerturbationPrediction\.from_pretrained\(folder\)"):
        load(OLD)


def test_other_models_do_not_take_its_fields_for_theirs(tmp_path):
    XTrimoGeneForPerturbationPrediction(XTrimoGenePerturbationConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"AutoModel\.from_pretrained or XTrimoGeneForPerturbationPrediction"):
        XTrimoGeneModel.from_pretrained(tmp_path)


def test_other_folders_are_refused(tiny_config, tmp_path):
    XTrimoGeneModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no measured genes, and 0 in the graphs"):
        XTrimoGeneForPerturbationPrediction.from_pretrained(tmp_path)


def test_examples_in_docstrings_run():
    assert doctest.testmod(configuration_perturbation).failed == 0
    assert doctest.testmod(configuration_perturbation).attempted > 0
