"""Fields of the synergy model's own configuration, the encoder's inside it, and folders that version 0.1 saved."""

import doctest
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForDrugSynergy, XTrimoGeneForPreTraining, XTrimoGeneModel
from xtrimogene.modeling_xtrimogene import configuration_synergy
from xtrimogene.modeling_xtrimogene.configuration_synergy import XTrimoGeneSynergyConfig

OLD = Path(__file__).parents[1] / "data" / "saved_by_0_1" / "synergy"
HEAD = {"drug_features": ["MolWt", "TPSA"], "problem_type": "regression", "num_labels": 1, "hidden_size": 6}


@pytest.mark.parametrize(("changes", "message"), [
    ({"hidden_size": 1}, "hidden_size is 1 and must be at least 2"),
    ({"dropout": 1.0}, r"dropout is 1\.0 and must be a share"),
    ({"cell_features": -4}, "cell_features is -4 and must be at least 1"),
    ({"cell_features": 4, "encoder_config": {"num_genes": 50}}, "cell_features is 4 and there is an encoder_config"),
    ({"encoder_config": {"num_genes": 0}}, "num_genes 0 must be at least 1"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        XTrimoGeneSynergyConfig(**{**HEAD, **changes})


def test_the_encoder_is_given_by_fields_or_as_a_configuration(tiny_config):
    config = XTrimoGeneSynergyConfig(encoder_config=tiny_config(pooling="all"), **HEAD)
    fields = XTrimoGeneSynergyConfig(encoder_config=tiny_config(pooling="all").to_dict(), **HEAD)
    assert config.encoder_config.to_dict() == fields.encoder_config.to_dict()
    assert config.cell_size == fields.cell_size == 32
    without = XTrimoGeneSynergyConfig(cell_features=9, **HEAD)
    assert (without.encoder_config, without.cell_size) == (None, 9)
    assert XTrimoGeneSynergyConfig().encoder_config.to_dict() == XTrimoGeneConfig().to_dict()


@pytest.mark.parametrize("has_encoder", [True, False])
def test_the_type_of_a_saved_configuration_is_known(tiny_config, tmp_path, has_encoder):
    cells = {"encoder_config": tiny_config(pooling="all", num_bins=9)} if has_encoder else {"cell_features": 32}
    XTrimoGeneSynergyConfig(**cells, **HEAD).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "xtrimogene-synergy"
    for loaded in (AutoConfig.from_pretrained(tmp_path), XTrimoGeneSynergyConfig.from_pretrained(tmp_path)):
        assert type(loaded) is XTrimoGeneSynergyConfig
        assert {name: getattr(loaded, name) for name in HEAD} == HEAD
        assert loaded.cell_size == 32
        if has_encoder:
            assert loaded.encoder_config.to_dict() == tiny_config(pooling="all", num_bins=9).to_dict()
        else:
            assert loaded.encoder_config is None


def test_attention_of_the_encoder_follows_the_whole(tiny_config, tmp_path):
    XTrimoGeneForDrugSynergy(XTrimoGeneSynergyConfig(encoder_config=tiny_config(), **HEAD)).save_pretrained(tmp_path)
    model = XTrimoGeneForDrugSynergy.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.model.config._attn_implementation == "eager"
    assert model.model.config is model.config.encoder_config


def test_nothing_of_where_a_checkpoint_lay_is_saved(tiny_config, tmp_path):
    XTrimoGeneForPreTraining(tiny_config()).save_pretrained(tmp_path / "pretrained")
    encoder_config = XTrimoGeneConfig.from_pretrained(tmp_path / "pretrained")
    of_fields = XTrimoGeneForDrugSynergy.from_pretrained(tmp_path / "pretrained", **HEAD)
    of_config = XTrimoGeneForDrugSynergy(XTrimoGeneSynergyConfig(encoder_config=encoder_config, **HEAD))
    encoder = XTrimoGeneModel.from_pretrained(tmp_path / "pretrained")
    of_encoder = XTrimoGeneForDrugSynergy(XTrimoGeneSynergyConfig(encoder_config=encoder.config, **HEAD))
    for model in (of_fields, of_config, of_encoder):
        model.save_pretrained(tmp_path / "saved")
        text = (tmp_path / "saved" / "config.json").read_text()
        assert tmp_path.name not in text
        saved = json.loads(text)
        assert saved["encoder_config"]["architectures"] == saved["architectures"] == ["XTrimoGeneForDrugSynergy"]
        assert "auto_map" not in saved["encoder_config"]


def test_a_folder_saved_by_0_1_is_read_without_a_warning_and_saved_in_the_new_form(tmp_path, caplog):
    before = json.loads((OLD / "config.json").read_text())
    model = XTrimoGeneForDrugSynergy.from_pretrained(OLD)
    assert "model of type" not in caplog.text
    names = ("drug_features", "cell_features", "hidden_size", "dropout")
    assert {name: getattr(model.config, name) for name in names} == {name: before[f"synergy_{name}"] for name in names}
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    for name in XTrimoGeneConfig.__annotations__.keys() & before.keys() - {"model_type"}:
        assert getattr(model.config.encoder_config, name) == before[name], name
    model.save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    everywhere = [*after, *after["encoder_config"]]
    assert not [name for name in everywhere if name.startswith(("perturbation_", "synergy_"))]
    assert set(after["auto_map"]) == {"AutoConfig", "AutoModel"}
    assert type(AutoModel.from_pretrained(tmp_path)) is XTrimoGeneForDrugSynergy


def test_a_folder_without_encoder_saved_by_0_1_is_read(tmp_path):
    old = json.loads((OLD / "config.json").read_text()) | {"synergy_cell_features": 9}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = XTrimoGeneSynergyConfig.from_pretrained(tmp_path)
    assert (config.encoder_config, config.cell_size, config.hidden_size) == (None, 9, 16)


@pytest.mark.parametrize(
    "load", [AutoModel.from_pretrained, AutoConfig.from_pretrained, XTrimoGeneModel.from_pretrained]
)
def test_what_cannot_read_a_folder_saved_by_0_1_names_what_can(load):
    with pytest.raises(ValueError, match=r"loaded by XTrimoGeneForDrugSynergy\.from_pretrained\(folder\)"):
        load(OLD)


def test_a_perturbation_model_is_no_encoder():
    with pytest.raises(ValueError, match="it belongs to the configuration of XTrimoGeneForPerturbationPrediction"):
        XTrimoGeneForDrugSynergy.from_pretrained(OLD.parent / "perturbation", **HEAD)


def test_examples_in_docstrings_run():
    assert doctest.testmod(configuration_synergy).failed == 0
    assert doctest.testmod(configuration_synergy).attempted > 0
