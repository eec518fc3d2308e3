"""Drug synergy: how well scores of new pairs, drugs or cell lines are predicted, beside baselines and a control.

    scores, drugs, cell lines  ->  for each fold and seed  predictions of the test scores  ->  metrics, intervals

Every method sees the same scores, drugs and folds. The networks differ only in what describes a cell line, such as the
embeddings of checkpoints, raw expression, or nothing but its name. Intervals are over what is new in the test: pairs,
drugs or cell lines, with all their scores, since scores of one pair are no independent measurements.

Source: DeepSynergy (Preuer et al. 2018, Bioinformatics 34:1538) for metrics and folds by pair; DeepDDS (Wang et al.
2022, Briefings in Bioinformatics 23:bbab390) for classes and for leaving out drugs and cell lines.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...training.synergy.fit import (
    Problem,
    SynergyArguments,
    SynergyDataset,
    fit_synergy,
    predict_synergy,
    synergy_model,
)
from ...training.synergy.measurements import SplitBy, check_split, new_units, splits
from ..measures.results import BOOTSTRAP_DRAWS, Score, TaskResult, score
from ..measures.synergy import additive, cell_line_mean, gradient_boosting, pair_mean, synergy_metrics

if TYPE_CHECKING:
    import pandas as pd


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
    """Predict by the synergy network on given features of cell lines; `changes` are those of `SynergyArguments`.

    No encoder is built: ready-made embeddings are features like any others.
    """
    model = synergy_model(None, list(drugs.columns), problem, seed, cell_features=cell_lines.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SynergyArguments(folder, **{"seed": seed, "disable_tqdm": True, **changes})
        fit_synergy(model, train, drugs, cell_lines, arguments=arguments)
    return predict_synergy(model, test, drugs, cell_lines)


# -- evaluation -------------------------------------------------------------------------------------------------------


def evaluate_synergy(
    scores: "pd.DataFrame",
    drugs: "pd.DataFrame",
    cell_lines: Mapping[str, "pd.DataFrame"],
    *,
    data: str,
    by: SplitBy = "pair",
    problem: Problem = "regression",
    folds: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    seeds: Sequence[int] = (0, 1),
    control: bool = True,
    draws: int = BOOTSTRAP_DRAWS,
    progress: Callable[[str], object] | None = None,
    **changes: Any,
) -> list[Score]:
    """Score networks, baselines and a control on the same folds; a metric is its mean over folds, then over seeds.

    Args:
        scores: From `read_scores`.
        drugs: From `drug_features`.
        cell_lines: What describes a cell line, by name: the embeddings of one or more checkpoints, `raw expression`,
            and so on. Each gives a network; the first also serves gradient boosting and the control.
        data: Name of the data set.
        by: What is new in the test: `pair`, `drug` or `cell_line`.
        problem: Whether scores are numbers, or classes 0 and 1.
        folds: Rows to train and to test on; `splits(scores, by)` unless given. Folds that leak are refused.
        seeds: Seeds of networks and gradient boosting.
        control: Whether to train a network on shuffled scores, which should know nothing of the test.
        draws: See `score`.
        progress: Called with a line before each method and fold.
        **changes: See `SynergyArguments`.

    Raises:
        ValueError: If there is nothing to describe a cell line, a fold leaks, or a drug or cell line has no features.
    """
    if not cell_lines:
        raise ValueError("cell_lines is empty: give embeddings of a checkpoint or expression, by name")
    scores = scores.reset_index(drop=True)
    folds = splits(scores, by) if folds is None else folds
    for train, test in folds:
        check_split(scores.iloc[train], scores.iloc[test], by)
    for table in cell_lines.values():
        SynergyDataset(scores, drugs, table, problem)  # says what is wrong before hours of training

    first = next(iter(cell_lines.values()))
    methods: dict[str, tuple[Sequence[int], Callable[..., np.ndarray]]] = {
        f"network on {name}": (seeds, _network_on(drugs, table, problem, changes)) for name, table in cell_lines.items()
    }
    methods |= {
        "gradient boosting": (
            seeds[:1],  # it draws nothing: seeds give the same trees
            lambda train, test, seed: gradient_boosting(train, test, drugs, first, problem, seed),
        ),
        "additive": (seeds[:1], lambda train, test, seed: additive(train, test)),
        "pair mean": (seeds[:1], lambda train, test, seed: pair_mean(train, test)),
        "cell line mean": (seeds[:1], lambda train, test, seed: cell_line_mean(train, test)),
    }
    if control:
        methods["control: shuffled scores"] = (seeds, _shuffled(_network_on(drugs, first, problem, changes)))

    true = [scores.score.to_numpy(np.float64)[test] for _, test in folds]
    units = _test_units(scores, folds, by)
    results = []
    for method, (method_seeds, predict) in methods.items():
        predicted_of: list[list[np.ndarray]] = []  # of each seed, of each fold
        for seed in method_seeds:
            predicted_of.append([])
            for number, (train, test) in enumerate(folds):
                if progress:
                    progress(f"{method}, seed {seed}, fold {number + 1} of {len(folds)}")
                predicted_of[-1].append(predict(scores.iloc[train], scores.iloc[test], seed))
        for metric, function in synergy_metrics(problem).items():
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
    """A metric as a function of test units, drawn with repeats: its mean over the folds of which there are any.

    Attributes:
        metric: Function of what is true and what was predicted.
        true: Test scores of each fold.
        predicted: Predictions of each fold.
        units: Fold and rows of each unit.
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
    """Return fold and rows, counted within the fold, of each thing that is new in it."""
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


def synergise(
    path: str | Path,
    data: str,
    checkpoints: Mapping[str, str],
    *,
    drugs: str,
    expression: str,
    score_column: str,
    fold_column: str | None = None,
    problem: str = "regression",
    by: str = "pair",
    folds: int | None = None,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    say: Callable[[str], object] = print,
) -> TaskResult:
    """Score predictions of synergy; see `evaluate_synergy`.

    Pairs in cell lines without expression are left out, and pairs whose repeated measurements are of both classes.
    """
    import pandas as pd

    from ...inference.cell_model import CellModel
    from ...inference.options import Running
    from ...records import first_names
    from ...training.synergy.cell_lines import embed_cell_lines, read_expression
    from ...training.synergy.drugs import drug_features, read_drugs
    from ...training.synergy.measurements import describe_scores, named_scores, read_scores, splits

    profiles = read_expression(expression)
    scores = read_scores(path, score_column, fold_column)
    say(describe_scores(scores))
    settings: dict[str, Any] = {
        "measurements": int(scores.measurements.sum()), "measured more than once": int((scores.measurements > 1).sum())
    }  # fmt: skip
    if problem != "regression":  # the mean of both classes is none
        conflicts = named_scores(scores[scores.differs])
        if conflicts:
            say(f"{len(conflicts)} of them were measured as both classes and are left out: {first_names(conflicts)}")
        scores = scores[~scores.differs]
        settings["left out, measured as both classes"] = conflicts
    is_known = scores.cell_line.isin(profiles.index)
    say(f"{int(is_known.sum()):,} of {len(scores):,} scores are of the {len(profiles)} cell lines in {expression}")
    scores = scores[is_known].reset_index(drop=True)
    cell_lines: dict[str, Any] = {}
    for name, checkpoint in checkpoints.items():
        cell_lines[name] = embed_cell_lines(CellModel.load(checkpoint, Running(device=device)), profiles)
    cell_lines["raw expression"] = np.log1p(profiles)
    if by != "cell_line":  # what is not known of new ones
        names = pd.DataFrame(np.eye(len(profiles), dtype=np.float32), index=profiles.index)
        cell_lines["names of cell lines"] = names
    chosen = splits(scores, by)[:folds] if folds else None  # type: ignore[arg-type]
    found = evaluate_synergy(
        scores,
        drug_features(read_drugs(drugs)),
        cell_lines,
        data=data,
        by=by,  # type: ignore[arg-type]
        problem=problem,  # type: ignore[arg-type]
        folds=chosen,
        seeds=seeds,
        progress=say,
    )
    settings |= {
        "seeds": list(seeds), "scores": len(scores), "scores without expression": int((~is_known).sum()),
        "problem": problem, "new in the test": by,
    }  # fmt: skip
    return TaskResult("synergy", data, SYNERGY_PROTOCOL.format(problem=problem, by=by), found, {}, settings)
