import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneModel, XTrimoGeneTokenizer
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.modeling_xtrimogene.modeling_synergy import XTrimoGeneForDrugSynergy
from xtrimogene.training.synergy.cell_lines import embed_cell_lines, read_expression, tokenize_expression
from xtrimogene.training.synergy.drugs import DESCRIPTORS, drug_features, read_drugs
from xtrimogene.training.synergy.fit import SynergyArguments, SynergyDataset, fit_synergy, synergy_model
from xtrimogene.training.synergy.measurements import (
    check_split,
    describe_scores,
    named_scores,
    new_units,
    read_scores,
    splits,
)

SMILES = {"toluene": "Cc1ccccc1", "phenol": "Oc1ccccc1", "ethanol": "CCO", "acetone": "CC(C)=O"}
GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]
needs_rdkit = pytest.mark.skipif(not find_spec("rdkit"), reason="needs rdkit: pip install rdkit")


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data" / "drug_synergy"


@pytest.fixture(scope="module")
def real_scores(folder):
    """O'Neil's scores, of the cell lines with expression."""
    scores = read_scores(folder / "oneil_loewe_deepsynergy_folds0-3.csv.gz", "loewe_synergy", "fold")
    expression = read_expression(folder / "cell_features_954_ccle_tpm.csv.gz")
    return scores[scores.cell_line.isin(expression.index)].reset_index(drop=True)


@pytest.fixture
def write(tmp_path):
    """Write a table as CSV, and return its path."""

    def write(rows, name="table.csv"):
        pd.DataFrame(rows).to_csv(tmp_path / name, index=False, sep="\t" if ".tsv" in name else ",")
        return tmp_path / name

    return write


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


# -- drugs ------------------------------------------------------------------------------------------------------------


@needs_rdkit
def test_features_are_of_the_molecule_not_of_how_it_is_written():
    features = drug_features({**SMILES, "methylbenzene": "C1=CC=CC=C1C"})
    assert features.loc["toluene"].equals(features.loc["methylbenzene"])
    assert features.loc["ethanol", "MolWt"] == pytest.approx(2 * 12.011 + 6 * 1.008 + 15.999, abs=1e-3)
    assert features.loc["ethanol", "NumHDonors"] == 1
    assert list(features.columns[: len(DESCRIPTORS)]) == list(DESCRIPTORS)
    fragments = features[[name for name in features if name.startswith("morgan2_")]]
    assert ((fragments > 0).sum() >= 2).all()  # each in two drugs at least
    # Atoms are fragments of radius 0: toluene has five aromatic CH, phenol too.
    assert (fragments.loc[["toluene", "phenol"]] == 5).all().any()


@needs_rdkit
def test_features_of_a_trained_model_are_made_for_new_drugs():
    known = drug_features(SMILES)
    columns = list(known.columns[::-1])
    again = drug_features({"ethanol": "OCC", "benzene": "c1ccccc1"}, columns)
    assert list(again.columns) == columns
    assert again.loc["ethanol"].equals(known.loc["ethanol", columns])


@needs_rdkit
def test_all_real_drugs_have_finite_features_that_tell_them_apart(folder):
    features = drug_features(read_drugs(folder / "oneil_drugs_smiles.csv"))
    assert len(features) == 38
    assert np.isfinite(features.to_numpy()).all()
    assert not features.duplicated().any()


@needs_rdkit
def test_unfit_drugs_are_refused(write, monkeypatch):
    with pytest.raises(ValueError, match=r"1 of 5 drugs have no valid SMILES: broken \('C1CC'\)"):
        drug_features({**SMILES, "broken": "C1CC"})
    with pytest.raises(ValueError, match=r"nothing \(''\)"):
        drug_features({**SMILES, "nothing": ""})
    with pytest.raises(ValueError, match="0 of 0 drugs"):
        drug_features({})
    with pytest.raises(ValueError, match="1 of 2 drug features are not known: NoDescriptor"):
        drug_features(SMILES, ["MolWt", "NoDescriptor"])
    with pytest.raises(ValueError, match="no column smiles; there are drug, SMILES"):
        read_drugs(write({"drug": ["A"], "SMILES": ["C"]}))
    with pytest.raises(ValueError, match="1 drugs have more than one SMILES: A"):
        read_drugs(write({"drug": ["A", "A", "B"], "smiles": ["C", "CC", "C"]}))
    with pytest.raises(ValueError, match="1 of 2 rows have no name or no SMILES: B"):
        read_drugs(write({"drug": ["A", "B"], "smiles": ["C", None]}))
    assert read_drugs(write({"drug": ["A", "A"], "smiles": ["C", "C"], "plate": [1, 2]})) == {"A": "C"}
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match="pip install rdkit"):
        drug_features(SMILES)


# -- cell lines -------------------------------------------------------------------------------------------------------


def test_tpm_become_log1p_of_ten_thousand_and_columns_are_matched_and_summed(tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path)
    ensembl = {"ENSG00000141510.18": [250.0, 0], "CD3D": [0, 40.0], "NOGENE": [9.0, 9], "TP53": [50.0, 0]}
    batch = tokenize_expression(tokenizer, pd.DataFrame(ensembl, index=["X", "Y"]))
    assert batch["input_ids"].tolist() == [[0], [1]]
    # 1e6 TPM are 1e4 of the model's: 300 are 3. The sum over four columns is not the total.
    torch.testing.assert_close(batch["values"], torch.tensor([[300.0], [40.0]]).div(100).log1p())


def test_embeddings_are_those_of_the_model(tmp_path, tiny_config, folder):
    expression = read_expression(folder / "cell_features_954_ccle_tpm.csv.gz").iloc[:3, :300]
    tokenizer = XTrimoGeneTokenizer.default()
    torch.manual_seed(0)
    model = XTrimoGeneModel(tiny_config(num_genes=tokenizer.num_genes, hidden_dropout_prob=0.5)).train()
    embeddings = embed_cell_lines(CellModel(model, tokenizer), expression)
    assert model.training
    assert list(embeddings.index) == ["A2058", "A2780", "A375"]
    with torch.no_grad():
        together = model.eval()(**tokenize_expression(tokenizer, expression)).pooler_output
    np.testing.assert_allclose(embeddings, together, atol=1e-5)
    silent = pd.DataFrame({"TP53": [1.0, 0]}, index=["loud", "silent"])
    with pytest.raises(ValueError, match="1 of 2 cell lines express no gene of the panel: silent"):
        embed_cell_lines(CellModel(model, tokenizer), silent)


def test_unfit_expression_is_refused(write):
    with pytest.raises(ValueError, match="1 of 2 cell lines have missing or negative values: Y"):
        read_expression(write({"cell": ["X", "Y"], "TP53": [1.0, -0.5]}))
    with pytest.raises(ValueError, match="values: X"):
        read_expression(write({"cell": ["X", "Y"], "TP53": [None, 0.5]}))
    with pytest.raises(ValueError, match="1 cell lines occur more than once: X"):
        read_expression(write({"cell": ["X", "X"], "TP53": [1.0, 0.5]}))
    with pytest.raises(ValueError, match="1 of 2 columns hold no numbers: tissue"):
        read_expression(write({"cell": ["X"], "tissue": ["skin"], "TP53": [1.0]}))


# -- scores -----------------------------------------------------------------------------------------------------------


def test_repeated_measurements_are_averaged_in_either_order(write):
    rows = {
        "drug_a": ["B", "A", "A"],
        "drug_b": ["A", "B", "C"],
        "cell_line": ["X"] * 3,
        "s": [2.0, 5, 1],
        "f": [1] * 3,
    }
    for name in ("table.csv", "table.tsv"):
        scores = read_scores(write(rows, name), "s", "f")
        assert scores.to_dict("list") == {
            "drug_a": ["A", "A"],
            "drug_b": ["B", "C"],
            "cell_line": ["X", "X"],
            "score": [3.5, 1.0],
            "measurements": [2, 1],
            "differs": [True, False],
            "fold": [1, 1],
        }
    assert "2 repeated ones became 1, 0 of equal values and 1 the mean of different ones: 2 scores" in describe_scores(
        scores
    )


def test_real_scores_are_all_read(folder):
    path = folder / "oneil_loewe_deepsynergy_folds0-3.csv.gz"
    scores = read_scores(path, "loewe_synergy", "fold")
    raw = pd.read_csv(path)
    assert (scores.score * scores.measurements).sum() == pytest.approx(raw.loewe_synergy.sum())
    assert describe_scores(scores) == (
        "18,366 measurements of 464 pairs of 38 drugs in 39 cell lines; "
        "540 repeated ones became 270, 0 of equal values and 270 the mean of different ones: 18,096 scores"
    )


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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"s": [1.0, None]}, "1 of 2 measurements lack a name, a score or a fold, first in line 3"),
        ({"s": [1.0, np.inf]}, "no finite numbers"),
        ({"s": ["high", "low"]}, "column 's' holds values that are no finite numbers"),
        ({"drug_a": ["A", None]}, "1 of 2 measurements lack a name"),
        ({"drug_a": ["A", "B"]}, "1 measurements pair a drug with itself: B"),
        (
            {"drug_b": ["B", "A"], "drug_a": ["A", "B"], "f": [0, 1]},
            r"1 pairs are in different folds, first A \+ B in X",
        ),
    ],
)
def test_unfit_scores_are_refused(write, change, named):
    rows = {"drug_a": ["A", "A"], "drug_b": ["B", "B"], "cell_line": ["X", "X"], "s": [1.0, 2.0], "f": [0, 0]}
    with pytest.raises(ValueError, match=named):
        read_scores(write({**rows, **change}), "s", "f")


def test_tables_that_are_not_there_are_named(write, tmp_path):
    path = write({"drug_a": ["A"], "drug_b": ["B"], "cell": ["X"], "score": [1.0]})
    with pytest.raises(ValueError, match="no column cell_line, loewe; there are drug_a, drug_b, cell, score"):
        read_scores(path, "loewe")
    with pytest.raises(ValueError, match="no rows"):
        read_scores(write({"drug_a": [], "drug_b": [], "cell_line": [], "score": []}), "score")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_scores(tmp_path / "nowhere.csv", "score")


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["pair", "drug", "cell_line"])
def test_splits_of_real_scores_share_nothing(real_scores, by):
    scores = real_scores.drop(columns="fold")
    folds = splits(scores, by, num_folds=4, seed=1)
    pairs = scores.drug_a + "+" + scores.drug_b
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(len(scores)))
        a, b = scores.iloc[train], scores.iloc[test]
        if by == "pair":
            assert set(pairs[train]).isdisjoint(pairs[test])
        elif by == "cell_line":
            assert set(a.cell_line).isdisjoint(b.cell_line)
        else:
            known = {*a.drug_a, *a.drug_b}
            assert not (b.drug_a.isin(known) & b.drug_b.isin(known)).any()
    times = np.bincount(np.concatenate([test for _, test in folds]))
    assert times.min() == 1
    assert times.max() == (2 if by == "drug" else 1)  # a pair of drugs of two folds is tested in both
    again, other = splits(scores, by, 4, seed=1), splits(scores, by, 4, seed=2)
    assert all(np.array_equal(one[1], same[1]) for one, same in zip(folds, again, strict=True))
    assert any(not np.array_equal(one[1], new[1]) for one, new in zip(folds, other, strict=True))


def test_given_folds_are_taken_and_do_not_leak(real_scores):
    folds = splits(real_scores, "pair")
    assert [set(real_scores.fold[test]) for _, test in folds] == [{0}, {1}, {2}, {3}]
    leaky = real_scores.assign(fold=np.arange(len(real_scores)) % 4)
    with pytest.raises(ValueError, match=r"the split by pair leaks: of 3596 test scores 35\d\d have nothing"):
        splits(leaky, "pair")


@pytest.mark.parametrize(
    ("by", "test_row", "named"),
    [
        ("pair", "B+A Y 1", r"of 1 test scores 1 have nothing .* such as B \+ A"),
        ("drug", "A+C X 1", r"A \+ C, both known"),
        ("cell_line", "D+E X 1", "1 cell lines, such as X"),
    ],
)
def test_leaks_are_refused_with_names_and_numbers(by, test_row, named):
    train = measured("A+B X 1", "C+B X 1")
    with pytest.raises(ValueError, match=named):
        check_split(train, measured(test_row), by)
    new = measured("A+D Y 1")
    check_split(train, new, by)
    with pytest.raises(ValueError, match="of 2 test scores 1 have nothing"):
        check_split(train, pd.concat([new, measured(test_row)]), by)


def test_what_is_new_is_what_training_has_not():
    train, test = measured("A+B X 1"), measured("Z+C Y 1", "B+C Y 1", "A+B X 1")
    assert new_units(train, test, "pair") == [("C", "Z"), ("B", "C"), None]
    assert new_units(train, test, "drug") == ["C", "C", None]
    assert new_units(train, test, "cell_line") == ["Y", "Y", None]


def test_impossible_splits_are_refused():
    scores = measured("A+B X 1", "A+C X 1")
    with pytest.raises(ValueError, match="num_folds is 3: there are 2 to split by pair"):
        splits(scores, "pair", 3)
    with pytest.raises(ValueError, match="there are 1 to split by cell_line"):
        splits(scores, "cell_line", 2)
    with pytest.raises(ValueError, match="by is 'tissue': give pair, drug, cell_line"):
        splits(scores, "tissue", 2)
    with pytest.raises(ValueError, match="0 scores to train on and 2 to test on"):
        check_split(scores[:0], scores, "pair")


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
