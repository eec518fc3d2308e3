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
from typing import TYPE_CHECKING, Any

import numpy as np

from ..modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ..training.scores import pearson
from ..training.synergy import (
    Problem,
    SplitBy,
    SynergyDataset,
    check_split,
    fit_synergy,
    new_units,
    splits,
    synergy_arguments,
    synergy_model,
)
from .results import BOOTSTRAP_DRAWS, Score, score

if TYPE_CHECKING:
    import pandas as pd

    from ..modeling_xtrimogene.synergy_xtrimogene import XTrimoGeneForDrugSynergy

LOWER_IS_BETTER = {"mse"}
RIDGE = 1.0  # of the additive baseline: drugs and cell lines of few scores shrink to the mean
PREDICTED_AT_ONCE = 4096


def predict_synergy(
    model: "XTrimoGeneForDrugSynergy", scores: "pd.DataFrame", drugs: "pd.DataFrame", cell_lines: "pd.DataFrame"
) -> np.ndarray:
    """Return predicted scores, or probabilities of class 1, in the order of the rows. Shape `(rows,)`.

    Args:
        model: Trained by `fit_synergy`.
        scores: Table with `drug_a`, `drug_b` and `cell_line`; a `score` in it is not looked at.
        drugs: From `drug_features(smiles, model.config.synergy_drug_features)`.
        cell_lines: What the model was trained with, one row for each cell line.
    """
    import torch

    asked = SynergyDataset(scores[["drug_a", "drug_b", "cell_line"]], drugs, cell_lines, model.config.problem_type)
    was_training = model.training
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(asked), PREDICTED_AT_ONCE):
            batch = asked.__getitems__(range(start, min(start + PREDICTED_AT_ONCE, len(asked))))
            logits = model(**{name: part.to(model.device) for name, part in batch.items()}).logits.float()
            parts.append(logits[:, 0] if model.config.num_labels == 1 else logits.softmax(-1)[:, 1])
    model.train(was_training)
    return torch.cat(parts).cpu().numpy().astype(np.float64)


# -- metrics ----------------------------------------------------------------------------------------------------------


def synergy_metrics(problem: Problem) -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Return the metrics of a problem, functions of what is true and what was predicted, both `(rows,)`.

    Scores: mean squared error in squared units of the score, Pearson and Spearman correlation. Classes, predicted as
    probabilities of class 1: area under the ROC and the precision-recall curve, accuracy and Cohen's kappa at 0.5. A
    metric that does not exist, such as a correlation with a constant, is NaN.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import (
        accuracy_score,
        average_precision_score,
        cohen_kappa_score,
        mean_squared_error,
        roc_auc_score,
    )

    def of_both_classes(metric: Callable[..., float]) -> Callable[[np.ndarray, np.ndarray], float]:
        return lambda true, predicted: float(metric(true, predicted)) if np.ptp(true) else float("nan")

    if problem == "regression":
        return {
            "mse": lambda true, predicted: float(mean_squared_error(true, predicted)),
            "pearson": pearson,
            "spearman": lambda true, predicted: pearson(rankdata(true), rankdata(predicted)),
        }
    return {
        "auroc": of_both_classes(roc_auc_score),
        "auprc": of_both_classes(average_precision_score),
        "accuracy": lambda true, predicted: float(accuracy_score(true, predicted > 0.5)),
        "kappa": of_both_classes(lambda true, predicted: cohen_kappa_score(true, predicted > 0.5)),
    }


# -- baselines --------------------------------------------------------------------------------------------------------


def pair_mean(train: "pd.DataFrame", test: "pd.DataFrame") -> np.ndarray:
    """Predict the mean of the pair over training cell lines; of a new pair, the mean of its drugs' means."""
    everything = train.score.mean()
    of_drug = train.melt(["cell_line", "score"], ["drug_a", "drug_b"], value_name="drug").groupby("drug").score.mean()
    of_drugs = [test[name].map(of_drug).fillna(everything).to_numpy() for name in ("drug_a", "drug_b")]
    of_pair = train.groupby(["drug_a", "drug_b"]).score.mean()
    pairs = of_pair.reindex(list(zip(test.drug_a, test.drug_b, strict=True))).to_numpy()
    return np.where(np.isnan(pairs), np.mean(of_drugs, axis=0), pairs)


def cell_line_mean(train: "pd.DataFrame", test: "pd.DataFrame") -> np.ndarray:
    """Predict the mean of the cell line; of a new one, the mean of all."""
    return test.cell_line.map(train.groupby("cell_line").score.mean()).fillna(train.score.mean()).to_numpy()


def additive(train: "pd.DataFrame", test: "pd.DataFrame") -> np.ndarray:
    """Predict a part of each drug + a part of the cell line, by ridge regression; of a new one the part is 0."""
    from sklearn.linear_model import Ridge

    drugs = sorted({*train.drug_a, *train.drug_b})
    cells = sorted(set(train.cell_line))

    def indicators(scores: "pd.DataFrame") -> np.ndarray:
        a, b, cell = (scores[name].to_numpy()[:, None] for name in ("drug_a", "drug_b", "cell_line"))
        return np.hstack([(a == drugs).astype(float) + (b == drugs), cell == cells])

    return Ridge(RIDGE).fit(indicators(train), train.score).predict(indicators(test))


def gradient_boosting(
    train: "pd.DataFrame",
    test: "pd.DataFrame",
    drugs: "pd.DataFrame",
    cell_lines: "pd.DataFrame",
    problem: Problem,
    seed: int = 0,
) -> np.ndarray:
    """Predict by boosted trees on what the network gets: of each drug feature the smaller and the larger of the pair.

    These two are the same for both orders. Scores, or probabilities of class 1.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    def features(scores: "pd.DataFrame") -> np.ndarray:
        a, b = (drugs.loc[scores[name]].to_numpy() for name in ("drug_a", "drug_b"))
        return np.hstack([np.minimum(a, b), np.maximum(a, b), cell_lines.loc[scores.cell_line].to_numpy()])

    known = features(train)
    # Trees see order only: columns that order these rows alike, as most of rare fragments do, are one to them.
    _, kept = np.unique([np.unique(column, return_inverse=True)[1] for column in known.T], axis=0, return_index=True)
    known, asked = known[:, kept], features(test)[:, kept]
    if problem == "regression":
        return HistGradientBoostingRegressor(random_state=seed).fit(known, train.score).predict(asked)
    classifier = HistGradientBoostingClassifier(random_state=seed).fit(known, train.score.astype(int))
    return classifier.predict_proba(asked)[:, 1]


def network(
    train: "pd.DataFrame",
    test: "pd.DataFrame",
    drugs: "pd.DataFrame",
    cell_lines: "pd.DataFrame",
    problem: Problem,
    seed: int = 0,
    **changes: Any,
) -> np.ndarray:
    """Predict by the synergy network on given features of cell lines; `changes` are those of `synergy_arguments`.

    No encoder is built: ready-made embeddings are features like any others.
    """
    config = XTrimoGeneConfig.preset("tiny", synergy_cell_features=cell_lines.shape[1])
    model = synergy_model(config, list(drugs.columns), problem, seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = synergy_arguments(folder, **{"seed": seed, "disable_tqdm": True, **changes})
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
        **changes: See `synergy_arguments`.

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
