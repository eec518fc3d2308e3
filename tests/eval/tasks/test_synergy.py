import numpy as np
import pandas as pd
import pytest

from xtrimogene.eval.measures.synergy import gradient_boosting, pair_mean
from xtrimogene.eval.tasks.run import Run
from xtrimogene.eval.tasks.synergy import SynergyProblem, SynergyTables, network, score_synergy
from xtrimogene.training.synergy import fit as synergy
from xtrimogene.training.synergy.cell_lines import read_expression
from xtrimogene.training.synergy.drugs import drug_features, read_drugs
from xtrimogene.training.synergy.fit import predict_synergy, synergy_model
from xtrimogene.training.synergy.measurements import read_scores, splits

CLASSES = "single_label_classification"


@pytest.fixture(scope="module")
def real(shared):
    """O'Neil's scores in eight cell lines, the drugs, and expression."""
    pytest.importorskip("rdkit", reason="needs rdkit: pip install rdkit")
    folder = shared / "data" / "drug_synergy"
    expression = np.log1p(read_expression(folder / "cell_features_954_ccle_tpm.csv.gz").iloc[:8])
    scores = read_scores(folder / "oneil_loewe_deepsynergy_folds0-3.csv.gz", "loewe_synergy", "fold")
    scores = scores[scores.cell_line.isin(expression.index)].reset_index(drop=True)
    return scores, drug_features(read_drugs(folder / "oneil_drugs_smiles.csv")), expression


def test_boosted_trees_do_not_see_the_order_of_the_drugs(real):
    scores, drugs, cells = real
    train, test = scores[scores.fold > 0][:600], scores[scores.fold == 0][:50]
    swapped = test.rename(columns={"drug_a": "drug_b", "drug_b": "drug_a"})
    drugs = drugs.iloc[:, :60]
    predicted = gradient_boosting(train, test, drugs, cells.iloc[:, :20], "regression")
    assert np.array_equal(predicted, gradient_boosting(train, swapped, drugs, cells.iloc[:, :20], "regression"))
    labels = train.assign(score=(train.score > 5).astype(float))
    probabilities = gradient_boosting(labels, test, drugs, cells.iloc[:, :20], CLASSES)
    assert (probabilities >= 0).all()
    assert np.corrcoef(predicted, probabilities)[0, 1] > 0.3


@pytest.mark.parametrize("problem", ["regression", CLASSES])
def test_predictions_are_in_the_order_of_the_rows_whatever_goes_together(real, monkeypatch, problem):
    scores, drugs, cells = real
    model = synergy_model(None, list(drugs.columns), problem, cell_features=cells.shape[1])
    asked = scores.sample(40, random_state=0)
    predicted = predict_synergy(model, asked, drugs, cells)
    monkeypatch.setattr(synergy, "PREDICTED_AT_ONCE", 7)
    np.testing.assert_allclose(predict_synergy(model, asked, drugs, cells), predicted, rtol=1e-5, atol=1e-5)
    swapped = asked.rename(columns={"drug_a": "drug_b", "drug_b": "drug_a"})[::-1]
    np.testing.assert_allclose(predict_synergy(model, swapped, drugs, cells)[::-1], predicted, rtol=1e-5, atol=1e-5)
    assert model.training  # as it was built


@pytest.mark.slow  # trainings
def test_networks_beat_the_control_and_the_control_is_at_chance(real):
    scores, drugs, cells = real
    folds = splits(scores, "pair")[:1]
    said = []
    names = pd.DataFrame(np.eye(len(cells)), index=cells.index)
    tables = SynergyTables(scores, drugs.iloc[:, :60], {"raw expression": cells.iloc[:, :50], "name only": names})
    run = Run(say=said.append)
    found = score_synergy(tables, "eight lines", SynergyProblem(), run, folds=folds, draws=50, num_train_epochs=6)
    table = {(row.method, row.metric): row for row in found}
    assert {method for method, _ in table} == {
        "network on raw expression", "network on name only", "gradient boosting", "additive", "pair mean",
        "cell line mean", "control: shuffled scores",
    }  # fmt: skip
    assert len(said) == 7 * len(folds)
    assert all(row.data == "eight lines, by pair" and row.low <= row.value <= row.high for row in found)
    assert all(row.higher_is_better == (row.metric != "mse") for row in found)
    # The units are pairs, not their scores in eight cell lines.
    assert {row.units for row in found} == {len(scores[scores.fold == 0].groupby(["drug_a", "drug_b"]))}
    control, real_one = table["control: shuffled scores", "pearson"], table["network on raw expression", "pearson"]
    assert abs(control.value) < 0.15
    assert real_one.value > 0.3
    assert table["network on raw expression", "mse"].value < table["control: shuffled scores", "mse"].value


def test_value_is_the_mean_over_folds_of_what_the_metric_gives(real, recwarn):
    scores, drugs, cells = real
    folds = splits(scores, "cell_line", 3)
    tables = SynergyTables(scores, drugs.iloc[:, :9], {"two genes": cells.iloc[:, :2]})
    found = score_synergy(
        tables, "d", SynergyProblem(by="cell_line"), folds=folds, control=False, draws=20, num_train_epochs=1
    )
    row = next(row for row in found if (row.method, row.metric) == ("pair mean", "mse"))
    errors = [
        np.mean((pair_mean(scores.iloc[train], scores.iloc[test]) - scores.score.iloc[test]) ** 2)
        for train, test in folds
    ]
    assert row.value == pytest.approx(np.mean(errors))
    assert row.units == 8
    assert row.data == "d, by cell line"
    # The mean of new cell lines is one number, which correlates with nothing.
    row = next(row for row in found if (row.method, row.metric) == ("cell line mean", "pearson"))
    assert np.isnan([row.value, row.low, row.high]).all()
    assert not recwarn.list


def test_network_is_deterministic_and_makes_classes(real):
    scores, drugs, cells = real
    labels = scores.assign(score=(scores.score > 5).astype(float))
    train, test = labels[labels.fold > 0][:700], labels[labels.fold == 0][:100]
    arguments = (train, test, drugs, cells.iloc[:, :50], CLASSES)
    one, same, other = (network(*arguments, seed=seed, num_train_epochs=3) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert ((one > 0) & (one < 1)).all()
    trained = network(train, train, drugs, cells.iloc[:, :50], CLASSES, num_train_epochs=3)
    assert trained[train.score == 1].mean() > 0.1 + trained[train.score == 0].mean()


def test_unfit_evaluations_are_refused_before_training(real):
    scores, drugs, cells = real
    train, test = splits(scores, "pair")[0]
    tables, by_pair = SynergyTables(scores, drugs, {"raw": cells}), SynergyProblem()
    with pytest.raises(ValueError, match="cell_lines is empty"):
        score_synergy(SynergyTables(scores, drugs, {}), "d", SynergyProblem())
    with pytest.raises(ValueError, match=r"the split by pair leaks: of .* test scores 1 have nothing"):
        score_synergy(tables, "d", by_pair, folds=[(train, np.append(test, train[0]))])
    with pytest.raises(ValueError, match="cell lines of the scores have no features: A2058"):
        score_synergy(SynergyTables(scores, drugs, {"raw": cells.drop(index="A2058")}), "d", by_pair)
    with pytest.raises(ValueError, match="scores are not 0 or 1"):
        score_synergy(tables, "d", SynergyProblem(problem=CLASSES))
