from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneModel, XTrimoGeneTokenizer
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.modeling_xtrimogene.modeling_synergy import XTrimoGeneForDrugSynergy
from xtrimogene.training.synergy.cell_lines import embed_cell_lines, tokenize_expression
from xtrimogene.training.synergy.drugs import drug_features
from xtrimogene.training.synergy.fit import SynergyArguments, SynergyDataset, fit_synergy, synergy_model
from xtrimogene.training.synergy.measurements import (
    describe_scores,
    named_scores,
    read_scores,
)

SMILES = {"toluene": "Cc1ccccc1", "phenol": "Oc1ccccc1", "ethanol": "CCO", "acetone": "CC(C)=O"}
GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]
needs_rdkit = pytest.mark.skipif(not find_spec("rdkit"), reason="needs rdkit: pip install rdkit")


def measured(*rows):
    """Scores of `A+B cell score` in one string each."""
    names = [row.replace("+", " ").split() for row in rows]
    return pd.DataFrame(names, columns=["drug_a", "drug_b", "cell_line", "score"]).astype({"score": float})


def made_up(num_drugs=6, num_cells=5, seed=0):
    """Scores that are a sum of parts of drugs and cell lines, with the features to find them."""
    rng = np.random.default_rng(seed)
    names = [f"D{index}" for index in range(num_drugs)]
    drugs = pd.DataFrame(rng.normal(size=(num_drugs, 4)), index=names, columns=["MolWt", "TPSA", "qed", "MolLogP"])
    cells = pd.DataFrame(rng.normal(size=(num_cells, 3)), index=[f"C{index}" for index in range(num_cells)])
    rows = [(a, b, cell) for i, a in enumerate(names) for b in names[i + 1 :] for cell in cells.index]
    scores = pd.DataFrame(rows, columns=["drug_a", "drug_b", "cell_line"])
    parts = 10 * drugs.MolWt
    scores["score"] = 5 + parts[scores.drug_a].to_numpy() + parts[scores.drug_b].to_numpy()
    scores["score"] += 5 * cells.loc[scores.cell_line, 0].to_numpy()
    return scores, drugs, cells


# -- scores -----------------------------------------------------------------------------------------------------------


def test_classes_that_disagree_are_marked_and_refused(folder):
    scores = read_scores(folder / "deepdds_labels_0_10_dev.csv.gz", "label")
    assert describe_scores(scores).endswith(
        "336 repeated ones became 168, 147 of equal values and 21 the mean of different ones: 9,739 scores"
    )
    assert named_scores(scores[scores.differs])[0] == "AZD1775 + GEMCITABINE in A375"
    drugs = pd.DataFrame(0.0, index=sorted({*scores.drug_a, *scores.drug_b}), columns=["MolWt"])
    cells = pd.DataFrame(0.0, index=sorted(set(scores.cell_line)), columns=["x"])
    classes = "single_label_classification"
    with pytest.raises(ValueError, match=r"21 of 9739 scores are not 0 or 1, such as 0.5: .*scores\[~scores.differs\]"):
        SynergyDataset(scores, drugs, cells, classes)
    assert len(SynergyDataset(scores[~scores.differs], drugs, cells, classes)) == 9718


# -- training ---------------------------------------------------------------------------------------------------------


def train(tmp_path, model, scores, drugs, cells, **changes):
    arguments = SynergyArguments(tmp_path, disable_tqdm=True, **{"num_train_epochs": 30, **changes})
    return fit_synergy(model, scores, drugs, cells, arguments=arguments)


def test_a_network_learns_what_drugs_and_cell_lines_add(tmp_path):
    scores, drugs, cells = made_up()
    model = synergy_model(None, drugs.columns, cell_features=3, dropout=0.0)
    trainer = train(tmp_path, model, scores, drugs, cells, per_device_train_batch_size=16, num_train_epochs=40)
    predicted = trainer.predict(SynergyDataset(scores, drugs, cells, "regression")).predictions[:, 0]
    assert np.mean((predicted - scores.score) ** 2) < 0.05 * scores.score.var()


def test_training_again_gives_the_same_weights_and_leaves_the_encoder_alone(tmp_path, tiny_config):
    scores, drugs, _ = made_up()
    pretrained = XTrimoGeneForPreTraining(tiny_config())
    pretrained.save_pretrained(tmp_path / "pretrained")
    cells = pd.DataFrame(np.random.default_rng(1).normal(size=(5, 16)), index=[f"C{index}" for index in range(5)])
    states = []
    for seed in (3, 3, 4):
        model = synergy_model(tmp_path / "pretrained", drugs.columns, seed=seed)
        train(tmp_path, model, scores, drugs, cells, seed=seed, num_train_epochs=2)
        states.append(model.state_dict())
        assert not any(weight.requires_grad for weight in model.model.parameters())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(states[0]["synergy.dense.weight"], states[2]["synergy.dense.weight"])
    encoder = pretrained.model.state_dict()
    assert all(torch.equal(states[0][f"model.{key}"], encoder[key]) for key in encoder if not key.startswith("decoder"))


@needs_rdkit
def test_one_folder_predicts_from_smiles_and_expression(tmp_path, tiny_config):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel")
    torch.manual_seed(0)
    XTrimoGeneForPreTraining(tiny_config(num_genes=6)).save_pretrained(tmp_path / "pretrained")
    expression = pd.DataFrame(np.random.default_rng(0).gamma(1, 900, (3, 6)), index=["X", "Y", "Z"], columns=GENES)
    drugs = drug_features(SMILES)
    encoder = XTrimoGeneModel.from_pretrained(tmp_path / "pretrained", add_decoder=False)
    cells = embed_cell_lines(CellModel(encoder, tokenizer), expression)
    scores = measured("toluene+phenol X 4", "ethanol+phenol Y 9", "toluene+acetone Z -3", "ethanol+acetone X 2")
    model = synergy_model(tmp_path / "pretrained", drugs.columns)
    trainer = train(tmp_path, model, scores, drugs, cells, num_train_epochs=2)
    expected = trainer.predict(SynergyDataset(scores, drugs, cells, "regression")).predictions
    trainer.save_model(tmp_path / "predictor")
    tokenizer.save_pretrained(tmp_path / "predictor")

    again = XTrimoGeneForDrugSynergy.from_pretrained(tmp_path / "predictor").eval()
    tokenizer = XTrimoGeneTokenizer.from_pretrained(tmp_path / "predictor")
    features = drug_features(SMILES, again.config.drug_features)
    drug_a, drug_b = (torch.from_numpy(features.loc[scores[name]].to_numpy()) for name in ("drug_a", "drug_b"))
    with torch.no_grad():
        logits = again(drug_a, drug_b, **tokenize_expression(tokenizer, expression.loc[scores.cell_line])).logits
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_unfit_data_is_refused_before_training(tmp_path):
    scores, drugs, cells = made_up()
    with pytest.raises(ValueError, match="1 of 6 drugs of the scores have no features: D3"):
        SynergyDataset(scores, drugs.drop(index="D3"), cells, "regression")
    with pytest.raises(ValueError, match="2 of 5 cell lines of the scores have no features: C0, C4"):
        SynergyDataset(scores, drugs, cells.drop(index=["C0", "C4"]), "regression")
    with pytest.raises(ValueError, match="features of 1 of 5 cell lines are no numbers: C2"):
        SynergyDataset(scores, drugs, cells.drop(index="C2").reindex(cells.index), "regression")
    with pytest.raises(ValueError, match="1 of 75 scores are not finite numbers, such as nan"):
        SynergyDataset(scores.assign(score=scores.score.where(scores.index > 0)), drugs, cells, "regression")
    halves = scores.assign(score=np.where(scores.index == 7, 0.5, 1.0))
    with pytest.raises(ValueError, match=r"1 of 75 scores are not 0 or 1, such as 0\.5: leave"):
        SynergyDataset(halves, drugs, cells, "single_label_classification")
    model = synergy_model(None, drugs.columns, cell_features=3)
    with pytest.raises(ValueError, match="drugs has 3 features and the model takes 4"):
        train(tmp_path, model, scores, drugs.iloc[:, :3], cells)
    with pytest.raises(ValueError, match="cell_lines has 2 columns and the model takes 3"):
        train(tmp_path, model, scores, drugs, cells.iloc[:, :2])


def test_a_new_model_describes_cell_lines_in_one_way(tiny_config):
    with_encoder = synergy_model(tiny_config(pooling="all"), ["MolWt"], hidden_size=8)
    assert (with_encoder.config.cell_size, with_encoder.model.config.num_genes) == (32, 50)
    assert synergy_model(None, ["MolWt"], cell_features=3).model is None
    with pytest.raises(ValueError, match="checkpoint is None and cell_features is not given"):
        synergy_model(None, ["MolWt"])
    with pytest.raises(Exception, match="cell_features is 3 and there is an encoder_config"):
        synergy_model(tiny_config(), ["MolWt"], cell_features=3)


def test_fields_of_the_encoder_are_changed_inside_its_configuration(tiny_config, tmp_path):
    XTrimoGeneForPreTraining(tiny_config(pooling="all")).save_pretrained(tmp_path)
    model = synergy_model(tmp_path, ["MolWt"], encoder_config={"pooling": "mean"})
    assert model.model.config.pooling == "mean"
    assert model.model.config.hidden_size == model.synergy.cell.in_features == 16
    with pytest.raises(Exception, match="cell_features is 3 and there is an encoder_config"):
        synergy_model(tmp_path, ["MolWt"], cell_features=3)
