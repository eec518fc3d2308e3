"""Drug synergy: how well scores of new pairs, drugs or cell lines are predicted, beside baselines and a control.

    scores, drugs, cell lines  ->  for each fold and seed  predictions of the test scores  ->  metrics, intervals

All methods get the same scores, drugs and folds. The networks differ only in the features of a cell line: embeddings of
a checkpoint, raw expression, or its name. The units of intervals are the pairs, drugs or cell lines that are new in the
test, each with all its scores, because scores of one pair are not independent.

Source: DeepSynergy (Preuer et al. 2018, Bioinformatics 34:1538) for metrics and folds by pair; DeepDDS (Wang et al.
2022, Briefings in Bioinformatics 23:bbab390) for classes and for leaving out drugs and cell lines.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...inference.cell_model import CellModel
from ...inference.options import Running
from ...options import Option, Options, group
from ...records import first_names
from ...training.synergy.cell_lines import embed_cell_lines, read_expression
from ...training.synergy.drugs import drug_features, read_drugs
from ...training.synergy.fit import (
    Problem,
    SynergyArguments,
    SynergyDataset,
    fit_synergy,
    predict_synergy,
    synergy_model,
)
from ...training.synergy.measurements import (
    SplitBy,
    check_split,
    describe_scores,
    named_scores,
    new_units,
    read_scores,
    splits,
)
from ..measures.results import BOOTSTRAP_DRAWS, Score, TaskResult, score
from ..measures.synergy import additive, cell_line_mean, gradient_boosting, pair_mean, synergy_metrics
from .run import Run

if TYPE_CHECKING:
    import pandas as pd


RUN = Run(seeds=(0,))
LOWER_IS_BETTER = {"mse"}


def network(
    train: "pd.DataFrame",
    test: "pd.DataFrame",
    drugs: "pd.DataFrame",
    cell_lines: "pd.DataFrame",
    problem: Problem,
    seed: int = 0,
    **changes: Any,
) -> np.ndarray:
    """Train a synergy network without encoder on given features, and return its predictions for `test`, `(rows,)`.

    Args:
        train: Scores to train on.
        test: Scores to predict.
        drugs: Features of the drugs.
        cell_lines: Features of the cell lines, such as embeddings.
        problem: Whether scores are numbers, or classes 0 and 1.
        seed: Seed of the network.
        **changes: Fields of `TrainingArguments`, such as `num_train_epochs`.
    """
    model = synergy_model(None, list(drugs.columns), problem, seed, cell_features=cell_lines.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SynergyArguments(folder, **{"seed": seed, "disable_tqdm": True, **changes})
        fit_synergy(model, train, drugs, cell_lines, arguments=arguments)
    return predict_synergy(model, test, drugs, cell_lines)


# -- evaluation -------------------------------------------------------------------------------------------------------


@group
class SynergyProblem(Options):
    """Options of predictions of drug synergy.

    >>> SynergyProblem(by="drug").problem
    'regression'
    """

    problem: Annotated[Problem, Option("Whether scores are numbers, or classes 0 and 1.")] = "regression"
    by: Annotated[SplitBy, Option("What is new in the test.")] = "pair"


@group
class SynergyOptions(SynergyProblem):
    """Options of the synergy task: what is predicted, and from which files.

    >>> SynergyOptions(drugs="drugs.csv", expression="tpm.csv", score_column="loewe").by
    'pair'
    """

    drugs: Annotated[str, Option("CSV or TSV file with the columns drug and smiles.")]
    expression: Annotated[str, Option("CSV or TSV file with TPM, a row for each cell line.")]
    score_column: Annotated[str, Option("Column of the scores.")]
    fold_column: Annotated[str | None, Option("Column of folds that somebody chose.")] = None
    folds: Annotated[int | None, Option("Only the first so many folds.", least=1, default="all folds")] = None


@dataclass(frozen=True)
class SynergyTables:
    """Scores of pairs of drugs in cell lines, and features of drugs and cell lines.

    Attributes:
        scores: Scores, from `read_scores`.
        drugs: Features of the drugs, from `drug_features`.
        cell_lines: Name -> features of the cell lines, such as the embeddings of a checkpoint. A network is trained on
            each; gradient boosting and the control use the first.
    """

    scores: "pd.DataFrame"
    drugs: "pd.DataFrame"
    cell_lines: Mapping[str, "pd.DataFrame"]


def score_synergy(
    tables: SynergyTables,
    data: str,
    options: SynergyProblem,
    run: Run = RUN,
    *,
    folds: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    control: bool = True,
    draws: int = BOOTSTRAP_DRAWS,
    **changes: Any,
) -> list[Score]:
    """Score networks, baselines and a control on the same folds. A metric is averaged over folds, then over seeds.

    Args:
        tables: Scores, and features of drugs and cell lines.
        data: Name of the data set.
        options: Options of the predictions.
        run: Seeds of networks and gradient boosting.
        folds: Rows to train and to test on; `splits(scores, by)` unless given. Folds that leak are refused.
        control: Whether to train a network on shuffled scores, whose predictions should be no better than chance.
        draws: Number of bootstrap draws of each seed.
        **changes: Fields of `SynergyArguments`, such as `num_train_epochs`.

    Raises:
        ValueError: If `tables.cell_lines` is empty, a fold leaks, or a drug or cell line has no features.
    """
    if not tables.cell_lines:
        raise ValueError("cell_lines is empty: give embeddings of a checkpoint or expression, by name")
    scores, by = tables.scores.reset_index(drop=True), options.by
    folds = splits(scores, by) if folds is None else folds
    for train, test in folds:
        check_split(scores.iloc[train], scores.iloc[test], by)
    for table in tables.cell_lines.values():
        SynergyDataset(scores, tables.drugs, table, options.problem)  # raises its errors before hours of training

    true = [scores.score.to_numpy(np.float64)[test] for _, test in folds]
    units = _test_units(scores, folds, by)
    results = []
    methods = methods_of(tables, options.problem, run.seeds, control, changes)
    for method, (seeds, predict) in run.parts(methods.items()):
        predicted_of: list[list[np.ndarray]] = []  # for each seed, for each fold
        for seed in seeds:
            predicted_of.append([])
            for number, (train, test) in enumerate(folds):
                run.say(f"{method}, seed {seed}, fold {number + 1} of {len(folds)}")
                predicted_of[-1].append(predict(scores.iloc[train], scores.iloc[test], seed))
        for metric, function in synergy_metrics(options.problem).items():
            statistics = [_Statistic(function, true, predicted, units) for predicted in predicted_of]
            results.append(
                score(
                    "synergy",
                    f"{data}, by {by.replace('_', ' ')}",
                    method,
                    metric,
                    statistics,
                    [len(units)] * len(statistics),
                    higher_is_better=metric not in LOWER_IS_BETTER,
                    draws=draws,
                )
            )
    return results


def methods_of(
    tables: SynergyTables, problem: Problem, seeds: Sequence[int], control: bool, changes: dict[str, Any]
) -> dict[str, tuple[Sequence[int], Callable[..., np.ndarray]]]:
    """Return name -> seeds, and a function from scores to train on, scores to test on and a seed to predictions."""
    drugs, first = tables.drugs, next(iter(tables.cell_lines.values()))
    methods: dict[str, tuple[Sequence[int], Callable[..., np.ndarray]]] = {
        f"network on {name}": (seeds, _network_on(drugs, table, problem, changes))
        for name, table in tables.cell_lines.items()
    }
    methods |= {
        "gradient boosting": (
            seeds[:1],  # it is deterministic: all seeds give the same trees
            lambda train, test, seed: gradient_boosting(train, test, drugs, first, problem, seed),
        ),
        "additive": (seeds[:1], lambda train, test, seed: additive(train, test)),
        "pair mean": (seeds[:1], lambda train, test, seed: pair_mean(train, test)),
        "cell line mean": (seeds[:1], lambda train, test, seed: cell_line_mean(train, test)),
    }
    if control:
        methods["control: shuffled scores"] = (seeds, _shuffled(_network_on(drugs, first, problem, changes)))
    return methods


def _network_on(
    drugs: "pd.DataFrame", table: "pd.DataFrame", problem: Problem, changes: dict[str, Any]
) -> Callable[..., np.ndarray]:
    return lambda train, test, seed: network(train, test, drugs, table, problem, seed, **changes)


def _shuffled(predict: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Return `predict` on training scores that belong to other pairs and cell lines."""

    def shuffled(train: "pd.DataFrame", test: "pd.DataFrame", seed: int) -> np.ndarray:
        order = np.random.default_rng(seed).permutation(len(train))
        return predict(train.assign(score=train.score.to_numpy()[order]), test, seed)

    return shuffled


@dataclass(frozen=True)
class _Statistic:
    """A function from indices of test units to the mean of a metric over the folds that these units are in.

    Attributes:
        metric: Function of true and predicted scores.
        true: Test scores of each fold.
        predicted: Predictions of each fold.
        units: Number of the fold and rows in the fold, for each unit.
    """

    metric: Callable[[np.ndarray, np.ndarray], float]
    true: Sequence[np.ndarray]
    predicted: Sequence[np.ndarray]
    units: Sequence[tuple[int, np.ndarray]]

    def __call__(self, drawn: np.ndarray) -> float:
        rows_of: list[list[np.ndarray]] = [[] for _ in self.true]
        for unit in drawn:
            fold, rows = self.units[unit]
            rows_of[fold].append(rows)
        values = []
        for true, predicted, parts in zip(self.true, self.predicted, rows_of, strict=True):
            if parts:
                rows = np.concatenate(parts)
                values.append(self.metric(true[rows], predicted[rows]))
        return float(np.mean(values))


def _test_units(
    scores: "pd.DataFrame", folds: Sequence[tuple[np.ndarray, np.ndarray]], by: SplitBy
) -> list[tuple[int, np.ndarray]]:
    """Return the number of the fold and the rows in it, for each pair, drug or cell line that is new in a test."""
    units = []
    for number, (train, test) in enumerate(folds):
        new = np.array([str(unit) for unit in new_units(scores.iloc[train], scores.iloc[test], by)])
        units += [(number, np.flatnonzero(new == unit)) for unit in np.unique(new)]
    return units


SYNERGY_PROTOCOL = (
    "Synergy of pairs of drugs in cell lines ({problem}); new in the test: {by}. A network after DeepSynergy sees "
    "drug features and the embedding of the cell line, its raw expression, or its name; baselines are gradient "
    "boosting on the same features and means of the pair, of the cell line, and of drugs and cell line added. "
    "Intervals: 95 %, bootstrap over what is new in the test."
)


def evaluate_synergy(
    path: str | Path, data: str, checkpoints: Mapping[str, str], options: SynergyOptions, run: Run = RUN
) -> TaskResult:
    """Score predictions of drug synergy.

    Scores of cell lines without expression are left out. So are classes whose repeated measurements differ.

    Args:
        path: CSV or TSV file of scores, with columns `drug_a`, `drug_b` and `cell_line`.
        data: Name of the data set.
        checkpoints: Name -> folder or Hub name.
        options: Options of the task.
        run: Seeds of networks and gradient boosting.

    Raises:
        ValueError: If a file cannot be read, a fold leaks, or a drug or cell line has no features.

    Example:
        >>> options = SynergyOptions(drugs="drugs.csv", expression="tpm.csv", score_column="loewe")
        >>> result = evaluate_synergy("scores.csv", "O'Neil", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    import pandas as pd

    profiles, problem = read_expression(options.expression), options.problem
    scores = read_scores(path, options.score_column, options.fold_column)
    run.say(describe_scores(scores))
    settings: dict[str, Any] = {
        "measurements": int(scores.measurements.sum()), "measured more than once": int((scores.measurements > 1).sum())
    }  # fmt: skip
    if problem != "regression":  # the mean of different classes is no class
        conflicts = named_scores(scores[scores.differs])
        if conflicts:
            names = first_names(conflicts)
            run.say(f"{len(conflicts)} of them were measured as both classes and are left out: {names}")
        scores = scores[~scores.differs]
        settings["left out, measured as both classes"] = conflicts
    is_known = scores.cell_line.isin(profiles.index)
    num_known, num_lines = int(is_known.sum()), len(profiles)
    run.say(f"{num_known:,} of {len(scores):,} scores are of the {num_lines} cell lines in {options.expression}")
    scores = scores[is_known].reset_index(drop=True)
    cell_lines: dict[str, Any] = {}
    for name, checkpoint in checkpoints.items():
        cell_lines[name] = embed_cell_lines(CellModel.load(checkpoint, Running(device=run.device)), profiles)
    cell_lines["raw expression"] = np.log1p(profiles)
    if options.by != "cell_line":  # the name of a new cell line is unknown in training
        one_hot = pd.DataFrame(np.eye(len(profiles), dtype=np.float32), index=profiles.index)
        cell_lines["names of cell lines"] = one_hot
    chosen = splits(scores, options.by)[: options.folds] if options.folds else None
    tables = SynergyTables(scores, drug_features(read_drugs(options.drugs)), cell_lines)
    found = score_synergy(tables, data, options, run, folds=chosen)
    settings |= {
        "seeds": list(run.seeds), "scores": len(scores), "scores without expression": int((~is_known).sum()),
        "problem": problem, "new in the test": options.by,
    }  # fmt: skip
    protocol = SYNERGY_PROTOCOL.format(problem=problem, by=options.by)
    return TaskResult("synergy", data, protocol, found, {}, settings)
