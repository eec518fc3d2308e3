"""Measured synergy of pairs of drugs in cell lines, and its splits into training and test."""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ...records import first_names

if TYPE_CHECKING:
    import pandas as pd


SplitBy = Literal["pair", "drug", "cell_line"]


# -- scores -----------------------------------------------------------------------------------------------------------


def read_scores(
    path: str | os.PathLike,
    score_column: str,
    fold_column: str | None = None,
    drug_columns: tuple[str, str] = ("drug_a", "drug_b"),
    cell_column: str = "cell_line",
) -> "pd.DataFrame":
    """Return one row for each pair of drugs in each cell line; the drugs of a pair in alphabetical order.

    Args:
        path: CSV or TSV file, one row for each measurement.
        score_column: Column with the score, or with the class as 0 or 1.
        fold_column: Column with the number of the fold, if folds are given.
        drug_columns: Columns with the two drugs, in any order.
        cell_column: Column with the cell line.

    Returns:
        Columns `drug_a`, `drug_b` and `cell_line`; `score`, the mean of repeated measurements; `measurements`, their
        number; `differs`, whether their values differ; and `fold` if `fold_column` is given. If scores are classes,
        drop the rows with measurements of both classes by `scores[~scores.differs]`.

    Raises:
        ValueError: If a column is missing, a score or a name is missing, a drug is paired with itself, or repeated
            measurements are in different folds.

    Example:
        >>> import pandas as pd
        >>> scores = pd.DataFrame({"drug_a": ["B", "A", "C"], "drug_b": ["A", "B", "A"], "cell_line": ["X", "X", "Y"]})
        >>> scores.assign(loewe=[3.0, 5.0, 1.0]).to_csv("scores.csv", index=False)
        >>> read_scores("scores.csv", "loewe")[["drug_a", "drug_b", "score", "measurements"]].values.tolist()
        [['A', 'B', 4.0, 2], ['A', 'C', 1.0, 1]]
    """
    columns = [*drug_columns, cell_column, score_column, *([fold_column] if fold_column else [])]
    table = read_table(path, columns)[columns]
    incomplete = table.index[table.isna().any(axis=1)]
    if len(incomplete):
        raise ValueError(
            f"{path}: {len(incomplete)} of {len(table)} measurements lack a name, a score or a fold, first in line "
            f"{incomplete[0] + 2}: remove them or fill them in"
        )
    if table[score_column].dtype.kind not in "iuf" or not np.isfinite(table[score_column]).all():
        raise ValueError(f"{path}: column {score_column!r} holds values that are no finite numbers; is it the score?")
    drugs = np.sort(table[list(drug_columns)].to_numpy(str), axis=1)
    same = drugs[drugs[:, 0] == drugs[:, 1], 0]
    if len(same):
        raise ValueError(f"{path}: {len(same)} measurements pair a drug with itself: {first_names(same)}; remove them")
    table = table.assign(drug_a=drugs[:, 0], drug_b=drugs[:, 1], cell_line=table[cell_column].astype(str))
    groups = table.groupby(["drug_a", "drug_b", "cell_line"], sort=True)
    scores = groups[score_column].agg(score="mean", measurements="size").reset_index()
    scores["differs"] = (groups[score_column].min() != groups[score_column].max()).to_numpy()
    if fold_column:
        folds = groups[fold_column].agg(["min", "max"])
        if (mixed := (folds["min"] != folds["max"])).any():
            raise ValueError(
                f"{path}: repeated measurements of {mixed.sum()} pairs are in different folds, first "
                f"{' + '.join(mixed.index[mixed][0][:2])} in {mixed.index[mixed][0][2]}: put each pair into one fold"
            )
        scores["fold"] = folds["min"].to_numpy()
    return scores


def describe_scores(scores: "pd.DataFrame") -> str:
    """Return a line with the numbers of measurements, drugs, cell lines, and repeated measurements.

    Example:
        >>> import pandas as pd
        >>> scores = pd.DataFrame({"drug_a": ["B", "A", "C"], "drug_b": ["A", "B", "A"], "cell_line": ["X", "X", "Y"]})
        >>> scores.assign(loewe=[3.0, 5.0, 1.0]).to_csv("scores.csv", index=False)
        >>> describe_scores(read_scores("scores.csv", "loewe")).split(";")[0]
        '3 measurements of 2 pairs of 3 drugs in 2 cell lines'
    """
    repeated = scores.measurements[scores.measurements > 1]
    different = scores.differs.sum()
    return (
        f"{scores.measurements.sum():,} measurements of {len(scores.groupby(['drug_a', 'drug_b'])):,} pairs of "
        f"{len(set(scores.drug_a) | set(scores.drug_b))} drugs in {scores.cell_line.nunique()} cell lines; "
        f"{repeated.sum():,} repeated ones became {len(repeated):,}, {len(repeated) - different:,} of equal values and "
        f"{different:,} the mean of different ones: {len(scores):,} scores"
    )


def named_scores(scores: "pd.DataFrame") -> list[str]:
    """Return a name for each row, `drug_a + drug_b in cell_line`.

    Example:
        >>> import pandas as pd
        >>> named_scores(pd.DataFrame({"drug_a": ["A"], "drug_b": ["B"], "cell_line": ["X"]}))
        ['A + B in X']
    """
    return [f"{a} + {b} in {cell}" for a, b, cell in zip(scores.drug_a, scores.drug_b, scores.cell_line, strict=True)]


# -- splits -----------------------------------------------------------------------------------------------------------


def splits(
    scores: "pd.DataFrame", by: SplitBy, num_folds: int = 5, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows to train on and the rows to test on, for each fold.

    By `pair`, no tested pair occurs in training, in any cell line. By `drug`, at least one drug of each tested pair
    does not occur in training. By `cell_line`, no tested cell line occurs in training.

    Args:
        scores: From `read_scores`. Its column `fold`, if it has one, gives the folds of a split by pair.
        by: What does not occur in training.
        num_folds: Number of folds, unless `scores` has a column `fold`.
        seed: Seed of the folds.

    Raises:
        ValueError: If there are fewer pairs, drugs or cell lines than folds, or a tested one occurs in training.

    Example:
        >>> import pandas as pd
        >>> scores = pd.DataFrame({"drug_a": ["A", "A", "B"], "drug_b": ["B", "C", "C"], "cell_line": ["X", "Y", "Z"]})
        >>> [(len(train), len(test)) for train, test in splits(scores, by="cell_line", num_folds=3)]
        [(2, 1), (2, 1), (2, 1)]
    """
    units = units_of(scores, by)
    if by == "pair" and "fold" in scores:
        is_test_of = [(scores.fold == fold).to_numpy() for fold in sorted(set(scores.fold))]
    else:
        names = sorted(set().union(*units))
        if not 2 <= num_folds <= len(names):
            raise ValueError(f"num_folds is {num_folds}: there are {len(names)} to split by {by}; give 2 ... that many")
        order = np.random.default_rng(seed).permutation(len(names))
        groups = [{names[index] for index in part} for part in np.array_split(order, num_folds)]
        is_test_of = [np.array([not group.isdisjoint(unit) for unit in units]) for group in groups]
    found = [(np.flatnonzero(~is_test), np.flatnonzero(is_test)) for is_test in is_test_of]
    for train, test in found:
        check_split(scores.iloc[train], scores.iloc[test], by)
    return found


def units_of(scores: "pd.DataFrame", by: SplitBy) -> list[set[Any]]:
    """Return for each row the set of its units: its pair (without order), its two drugs, or its cell line."""
    pairs = list(zip(scores.drug_a, scores.drug_b, strict=True))
    kinds: dict[str, Callable[[], list[set[Any]]]] = {
        "pair": lambda: [{(min(pair), max(pair))} for pair in pairs],
        "drug": lambda: [set(pair) for pair in pairs],
        "cell_line": lambda: [{name} for name in scores.cell_line],
    }
    if by not in kinds:
        raise ValueError(f"by is {by!r}: give {', '.join(get_args(SplitBy))}")
    return kinds[by]()


def new_units(train: "pd.DataFrame", test: "pd.DataFrame", by: SplitBy) -> list[Any]:
    """Return for each test row its pair, drug or cell line that is not in training, the first of two; None if none."""
    known = set().union(*units_of(train, by))
    return [min(unit - known, default=None) for unit in units_of(test, by)]


def check_split(train: "pd.DataFrame", test: "pd.DataFrame", by: SplitBy) -> None:
    """Check that the pair, a drug or the cell line of each test row does not occur in training.

    Args:
        train: Rows to train on.
        test: Rows to test on.
        by: What must not occur in training.

    Raises:
        ValueError: If a side is empty; if by `pair` or by `cell_line` a tested one occurs in training; or if by `drug`
            both drugs of a tested pair occur in training.

    Example:
        >>> import pandas as pd
        >>> scores = pd.DataFrame({"drug_a": ["A", "A"], "drug_b": ["B", "B"], "cell_line": ["X", "Y"]})
        >>> check_split(scores[:1], scores[1:], by="cell_line")
        >>> check_split(scores[:1], scores[1:], by="pair")
        Traceback (most recent call last):
        ValueError: the split by pair leaks: ...
    """
    if train.empty or test.empty:
        raise ValueError(f"the split by {by} has {len(train)} scores to train on and {len(test)} to test on: give both")
    is_leaked = [new is None for new in new_units(train, test, by)]
    if any(is_leaked):
        leaked = test[is_leaked]
        what = {
            "pair": [f"{a} + {b}" for a, b in zip(leaked.drug_a, leaked.drug_b, strict=True)],
            "drug": [f"{a} + {b}, both known" for a, b in zip(leaked.drug_a, leaked.drug_b, strict=True)],
            "cell_line": list(leaked.cell_line),
        }[by]
        names = sorted(set(what))
        raise ValueError(
            f"the split by {by} leaks: of {len(test)} test scores {len(leaked)} have nothing that is new to the "
            f"{len(train)} training scores; {len(names)} {by.replace('_', ' ')}s, such as {first_names(names)}: "
            f"make the split with splits(scores, by={by!r})"
        )


# -- files ------------------------------------------------------------------------------------------------------------


def read_table(path: str | os.PathLike, columns: Sequence[str]) -> "pd.DataFrame":
    """Return the table in a CSV or TSV file, and check that it has the given columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If columns are missing, or there are no rows.
    """
    pandas = importlib.import_module("pandas")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: give a .csv or .tsv file")
    table = pandas.read_csv(path, sep="\t" if ".tsv" in Path(path).suffixes else ",")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path} has no column {first_names(missing)}; there are {first_names(table.columns)}: name the right one"
        )
    if table.empty:
        raise ValueError(f"{path} has no rows")
    return table
