import numpy as np
import pandas as pd
import pytest

from xtrimogene.eval.measures.synergy import additive, cell_line_mean, gradient_boosting, pair_mean, synergy_metrics
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


def table(rows):
    return pd.DataFrame(rows, columns=["drug_a", "drug_b", "cell_line", "score"])


def test_metrics_of_scores_agree_with_their_definitions():
    rng = np.random.default_rng(0)
    true = rng.normal(5, 20, 60).round()  # with ties
    predicted = (0.5 * true + rng.normal(0, 10, 60)).round()
    metrics = {name: metric(true, predicted) for name, metric in synergy_metrics("regression").items()}

    def correlation(x, y):
        x, y = x - x.mean(), y - y.mean()
        return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())

    def ranks(x):  # 1 + those below + half of the others that are equal
        return 1 + (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) - 1) / 2

    assert metrics == pytest.approx(
        {
            "mse": sum((t - p) ** 2 for t, p in zip(true, predicted, strict=True)) / 60,
            "pearson": correlation(true, predicted),
            "spearman": correlation(ranks(true), ranks(predicted)),
        }
    )


def test_metrics_of_classes_agree_with_their_definitions():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 2, 50)
    predicted = np.clip(0.3 * true + rng.uniform(0, 0.7, 50), 0, 1).round(1)  # with ties
    metrics = {name: metric(true, predicted) for name, metric in synergy_metrics(CLASSES).items()}
    ones, zeros = predicted[true == 1], predicted[true == 0]
    above = (ones[:, None] > zeros).mean() + 0.5 * (ones[:, None] == zeros).mean()
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(predicted), reverse=True):
        called = predicted >= threshold
        recall = (called & (true == 1)).sum() / (true == 1).sum()
        area += (recall - recall_before) * (true[called] == 1).mean()
        recall_before = recall
    agreed = np.mean((predicted > 0.5) == (true == 1))
    p, q = np.mean(predicted > 0.5), np.mean(true)
    by_chance = p * q + (1 - p) * (1 - q)
    expected = {"auroc": above, "auprc": area, "accuracy": agreed, "kappa": (agreed - by_chance) / (1 - by_chance)}
    assert metrics == pytest.approx(expected)


def test_metrics_that_do_not_exist_are_nan_without_a_warning(recwarn):
    constant, true = np.full(4, 3.0), np.array([1.0, 2, 3, 4])
    metrics = synergy_metrics("regression")
    assert np.isnan([metrics["pearson"](true, constant), metrics["spearman"](true, constant)]).all()
    assert np.isnan(synergy_metrics(CLASSES)["auroc"](np.ones(4), true / 5))
    assert not recwarn.list


def test_means_are_of_the_pair_the_drugs_and_the_cell_line():
    train = table([("A", "B", "X", 1.0), ("A", "B", "Y", 3.0), ("A", "C", "X", 9.0)])
    test = table([("A", "B", "Z", 0), ("B", "C", "X", 0), ("A", "Q", "Y", 0), ("P", "Q", "Z", 0)])
    everything, a, b, c = 13 / 3, 13 / 3, 2, 9
    assert pair_mean(train, test) == pytest.approx([2, (b + c) / 2, (a + everything) / 2, everything])
    assert cell_line_mean(train, test) == pytest.approx([everything, 5, 3, everything])


def test_additive_baseline_finds_parts_that_add():
    rng = np.random.default_rng(0)
    parts = {name: 10 * rng.normal() for name in [*"ABCDEFGH", *(f"C{index}" for index in range(20))]}
    rows = [
        (a, b, cell, parts[a] + parts[b] + parts[cell]) for a in "ABCDEFGH" for b in "ABCDEFGH" if a < b
        for cell in parts if len(cell) > 1
    ]  # fmt: skip
    scores = table(rows)
    is_test = (scores.drug_a == "C") & (scores.drug_b == "F")
    predicted = additive(scores[~is_test], scores[is_test])
    np.testing.assert_allclose(predicted, scores.score[is_test], atol=1.5)
    assert np.isfinite(additive(scores[~is_test], table([("P", "Q", "new", 0.0)]))).all()


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
