"""Measured synergy: repeats are averaged, and splits share nothing."""

import numpy as np
import pandas as pd
import pytest

from xtrimogene.training.synergy.cell_lines import read_expression
from xtrimogene.training.synergy.measurements import (
    check_split,
    describe_scores,
    new_units,
    read_scores,
    splits,
)


@pytest.fixture(scope="module")
def real_scores(folder):
    """O'Neil's scores, of the cell lines with expression."""
    scores = read_scores(folder / "oneil_loewe_deepsynergy_folds0-3.csv.gz", "loewe_synergy", "fold")
    expression = read_expression(folder / "cell_features_954_ccle_tpm.csv.gz")
    return scores[scores.cell_line.isin(expression.index)].reset_index(drop=True)


def measured(*rows):
    """Scores of `A+B cell score` in one string each."""
    names = [row.replace("+", " ").split() for row in rows]
    return pd.DataFrame(names, columns=["drug_a", "drug_b", "cell_line", "score"]).astype({"score": float})


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
