"""Predicted against measured effects of perturbations: metrics, what a model has to beat, and a judge from outside.

    truth, predicted, control (T, R)  ->  perturbation_metrics    each metric for each perturbation (T,)
    screen, split, models             ->  predict_split           predictions of every method
    cells, checkpoints, seeds         ->  evaluate_perturbation   scores, and the predictions behind them

Letters: T test perturbations, P all perturbations of the screen, R measured genes, D training perturbations,
N genes with features, F features.

Profiles are means over cells of `log1p` of counts per 10,000; a change is a profile less that of control cells.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import stdev
from typing import Any, Literal

import numpy as np

from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
from ..training.gene_graphs import GeneGraphs, context_features, gene_graphs, read_relations
from ..training.perturbation import fit_perturbation, perturbation_arguments, predict_profiles
from ..training.scores import pearson
from ..training.screens import (
    CONTROL,
    PerturbationScreen,
    PerturbationSplit,
    doubles_split,
    gene_split,
    read_screen,
)
from .results import Score, mean_of, score

# Metric -> whether larger is better.
METRICS = {
    "mse_top20": False,
    "mae": False,
    "pearson_change": True,
    "pearson_change_top20": True,
    "pearson_beyond_mean": True,
    "direction_top20": True,
    "centroid_accuracy": True,
}
# Ahlmann-Eltze and Huber: 10 principal components and a penalty of 0.1. Features in other units want another penalty.
NUM_COMPONENTS = 10
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
NO_CHANGE, MEAN, ADDITIVE, LINEAR = "no change", "mean of perturbed", "additive", "linear"
LEARNED, SHUFFLED = "without pre-training", "shuffled labels"


@dataclass(frozen=True)
class PerturbationPredictions:
    """What methods say of the test perturbations of one split, and what was measured.

    Attributes:
        seed: Seed of the split and of the models.
        split: The split; its test perturbations are the rows below, in this order.
        genes: Names of the measured genes. Length R.
        control: Profile of the control cells, `(R,)`.
        reference: Mean profile of the training perturbations, `(R,)`.
        truth: Measured profiles, `(T, R)`.
        centroids: Measured profiles of all perturbations of the screen, the test ones first, `(P, R)`.
        top_genes: Columns of the 20 genes that differ most from control, `(T, 20)`.
        predicted: Predicted profiles of each method, `(T, R)`.
    """

    seed: int
    split: PerturbationSplit
    genes: list[str]
    control: np.ndarray
    reference: np.ndarray
    truth: np.ndarray
    centroids: np.ndarray
    top_genes: np.ndarray
    predicted: dict[str, np.ndarray]

    def metrics(self, method: str) -> dict[str, np.ndarray]:
        """Return each metric of a method for each test perturbation, `(T,)`."""
        return perturbation_metrics(
            self.truth, self.predicted[method], self.control, self.reference, self.centroids, self.top_genes
        )


# -- metrics ----------------------------------------------------------------------------------------------------------


def perturbation_metrics(
    truth: np.ndarray,
    predicted: np.ndarray,
    control: np.ndarray,
    reference: np.ndarray,
    centroids: np.ndarray,
    top_genes: np.ndarray,
) -> dict[str, np.ndarray]:
    """Score predicted profiles, each perturbation for itself.

    Args:
        truth: Measured profiles, `(T, R)`.
        predicted: Predicted profiles, `(T, R)`.
        control: Profile of control cells, `(R,)`.
        reference: Mean profile of the training perturbations, `(R,)`.
        centroids: Measured profiles of all perturbations, those of `truth` first, in their order. `(P, R)`.
        top_genes: Columns of the genes that differ most from control, `(T, 20)`.

    Returns:
        Arrays `(T,)`. `mse_top20`: squared error of the top genes. `mae`: absolute error of all genes.
        `pearson_change`, `pearson_change_top20`: correlation of predicted and true change from control over all and
        over the top genes. `pearson_beyond_mean`: the same for the change from `reference`, which takes away what all
        perturbations share. `direction_top20`: share of the top genes whose change has the right sign; no change has
        none. `centroid_accuracy`: share of the other perturbations whose measured profile is farther from the
        prediction than the right one; 0.5 is chance.

        A correlation with what does not vary is 0: such a prediction says nothing, and leaving it out would favour it.

    Raises:
        ValueError: If shapes do not fit, or values are not finite.

    Source: GEARS for the top genes and directions; Systema (doi:10.1038/s41587-025-02777-8) for the reference and
    the centroid accuracy.
    """
    if truth.shape != predicted.shape or centroids.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"profiles differ in shape: measured {truth.shape}, predicted {predicted.shape}, centroids "
            f"{centroids.shape}: a row for each perturbation, a column for each measured gene"
        )
    if not np.isfinite(predicted).all():
        rows = np.flatnonzero(~np.isfinite(predicted).all(axis=1))
        raise ValueError(f"{len(rows)} of {len(predicted)} predicted profiles have values that are not finite")
    from scipy.spatial.distance import cdist

    change, true_change = predicted - control, truth - control
    top_change, top_true = (np.take_along_axis(part, top_genes, axis=1) for part in (change, true_change))
    distances = cdist(predicted.astype(np.float64), centroids.astype(np.float64))
    own = distances[np.arange(len(truth)), np.arange(len(truth))]
    return {
        "mse_top20": np.mean((top_change - top_true) ** 2, axis=1),
        "mae": np.mean(np.abs(change - true_change), axis=1),
        "pearson_change": _correlations(true_change, change),
        "pearson_change_top20": _correlations(top_true, top_change),
        "pearson_beyond_mean": _correlations(truth - reference, predicted - reference),
        "direction_top20": np.mean((np.sign(top_change) == np.sign(top_true)) & (top_true != 0), axis=1),
        "centroid_accuracy": (distances > own[:, None]).sum(axis=1) / max(len(centroids) - 1, 1),
    }


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.array([pearson(*pair) for pair in zip(first, second, strict=True)]))


# -- what a model has to beat -----------------------------------------------------------------------------------------


def additive(changes: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Predict changes `(T, R)` as sums of the changes of single perturbations.

    A gene that was not perturbed alone in training counts with the mean change of those that were.

    Args:
        changes: Change of each training perturbation, `(R,)`.
        names: Perturbations to predict.

    Source: Ahlmann-Eltze et al. 2025, doi:10.1038/s41592-025-02772-6, for genes that were all perturbed alone.
    """
    singles = {name: change for name, change in changes.items() if "+" not in name}
    mean: np.ndarray = np.mean([*(singles or changes).values()], axis=0)
    return np.array([np.sum([singles.get(gene, mean) for gene in name.split("+")], axis=0) for name in names])


def linear(train_changes: np.ndarray, train_sets: np.ndarray, test_sets: np.ndarray) -> np.ndarray:
    """Predict changes `(T, R)` by `G W P + mean`, least squares with a penalty on W.

    G `(R, 10)` are principal components of the training changes, P features of the perturbed sets. The penalty is the
    one of `PENALTIES` with the lowest squared error where each training perturbation in turn is left out.

    Args:
        train_changes: Changes of the training perturbations, `(D, R)`.
        train_sets: Their features, `(D, F)`.
        test_sets: Features of those to predict, `(T, F)`.

    Source: Ahlmann-Eltze et al. 2025, doi:10.1038/s41592-025-02772-6, methods; the penalty there is 0.1.
    """

    def fit(changes: np.ndarray, sets: np.ndarray, asked: np.ndarray, penalty: float) -> np.ndarray:
        mean = changes.mean(axis=0)
        components = np.linalg.svd(changes - mean, full_matrices=False)[2][:NUM_COMPONENTS]
        latent = (changes - mean) @ components.T
        # In the dual form: there are fewer perturbations than features.
        kernel = sets @ sets.T + penalty * np.eye(len(sets))
        return mean + asked @ sets.T @ np.linalg.solve(kernel, latent) @ components

    every = np.arange(len(train_changes))

    def left_out_error(penalty: float) -> float:
        errors = []
        for held in every:
            rest = every != held
            guess = fit(train_changes[rest], train_sets[rest], train_sets[~rest], penalty)
            errors.append(np.mean((guess - train_changes[~rest]) ** 2))
        return float(np.mean(errors))

    best = min(PENALTIES, key=left_out_error) if len(every) > 2 else PENALTIES[-1]
    return fit(train_changes, train_sets, test_sets, best)


def set_features(names: Sequence[str], features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the sum of the features of the genes of each perturbation `(T, F)`; a gene without any adds nothing."""
    zero = np.zeros_like(next(iter(features.values())))
    return np.array([np.sum([features.get(gene, zero) for gene in name.split("+")], axis=0) for name in names])


# -- protocol ---------------------------------------------------------------------------------------------------------


def predict_split(
    screen: PerturbationScreen,
    split: PerturbationSplit,
    graphs: GeneGraphs,
    features: Mapping[str, np.ndarray],
    seed: int = 0,
    **training: Any,
) -> PerturbationPredictions:
    """Train and predict with every method.

    Args:
        screen: The screen.
        split: Perturbations to train on and to test on.
        graphs: From `gene_graphs`.
        features: From `context_features` for the genes of the graphs, by the names of the checkpoints.
        seed: Of the models.
        **training: Options of `perturbation_arguments`, and fields of the configuration (`perturbation_...`).

    Returns:
        Predictions of: no change; the mean of the training perturbations; sums of single ones; the linear model on
        which genes are perturbed, and on the features of each checkpoint; the trained model with the features of each
        checkpoint; the same with learned features; and, for the scale, with the first features and the training
        profiles shuffled among the perturbations. No prediction is below 0, as no mean of `log1p` is.
    """
    train, test = list(split.train), list(split.test)
    control = screen.profiles([CONTROL])[0]
    changes = dict(zip(train, screen.profiles(train) - control, strict=True))
    train_changes = np.array([*changes.values()])
    genes = sorted(set(chain.from_iterable(name.split("+") for name in [*train, *test])))
    which = dict(zip(genes, np.eye(len(genes)), strict=True))

    def linear_on(features: Mapping[str, np.ndarray]) -> np.ndarray:
        return linear(train_changes, set_features(train, features), set_features(test, features))

    predicted = {
        NO_CHANGE: np.zeros((len(test), len(control))),
        MEAN: np.tile(train_changes.mean(axis=0), (len(test), 1)),
        ADDITIVE: additive(changes, test),
        LINEAR: linear_on(which),
    }
    in_graphs = [screen.tokenizer.genes[gene] for gene in graphs.gene_ids]
    for name, own in features.items():
        predicted[f"{LINEAR}, {name}"] = linear_on(dict(zip(in_graphs, own, strict=True)))
    predicted = {name: control + change for name, change in predicted.items()}

    fields = {name: training.pop(name) for name in [*training] if name.startswith("perturbation_")}

    def trained(of: PerturbationScreen, own: np.ndarray | None) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            arguments = perturbation_arguments(folder, seed=seed, **training)
            model = fit_perturbation(of, train, replace(graphs, features=own), arguments=arguments, **fields).model
        return predict_profiles(model, control, [screen.sets[name] for name in test])

    others = np.random.default_rng(seed).permutation(train)
    shuffled = replace(screen, sets={name: screen.sets[other] for name, other in zip(train, others, strict=True)})
    predicted |= {name: trained(screen, own) for name, own in features.items()}
    predicted[LEARNED] = trained(screen, None)
    predicted[SHUFFLED] = trained(shuffled, next(iter(features.values()), None))
    return PerturbationPredictions(
        seed=seed,
        split=split,
        genes=screen.genes,
        control=control,
        reference=control + train_changes.mean(axis=0),
        truth=screen.profiles(test),
        centroids=screen.profiles([*test, *(name for name in screen.sets if name not in split.test)]),
        top_genes=np.array([screen.top_genes(name) for name in test]),
        predicted={name: np.maximum(profiles, 0).astype(np.float32) for name, profiles in predicted.items()},
    )


def evaluate_perturbation(
    adata: Any,
    checkpoints: Mapping[str, str | os.PathLike],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    data: str = "screen",
    split: Literal["genes", "doubles"] = "genes",
    relations: Sequence[str | os.PathLike] = (),
    perturbation_key: str = "perturbation",
    total_key: str | None = None,
    min_cells: int = 10,
    device: str = "cpu",
    **training: Any,
) -> tuple[list[Score], list[PerturbationPredictions]]:
    """Score every method of `predict_split` on a screen.

    Args:
        adata: Cells of one kind, see `read_screen`.
        checkpoints: Folders or Hub names of pre-trained models by the names they get in the scores.
        seeds: Seeds of splits and models.
        data: Name of the screen in the scores.
        split: `genes` (`gene_split`, another for each seed) or `doubles` (`doubles_split`, the same for all).
        relations: Files of `read_relations`.
        perturbation_key: See `read_screen`.
        total_key: See `read_screen`.
        min_cells: See `read_screen`.
        device: Where the checkpoints run.
        **training: See `predict_split`.

    Returns:
        Scores of all test perturbations and, where there are several kinds, of each, and the predictions of each seed.

    Raises:
        ValueError: If a checkpoint has the name of a baseline, or checkpoints have different panels. See also
            `read_screen` and `read_relations`.
    """
    reserved = {NO_CHANGE, MEAN, ADDITIVE, LINEAR, LEARNED, SHUFFLED}
    if taken := sorted(reserved & set(checkpoints)):
        raise ValueError(f"checkpoints are called {', '.join(taken)}, as baselines are: give them other names")
    if split not in ("genes", "doubles"):
        raise ValueError(f"split is {split!r}: give 'genes' or 'doubles'")
    tokenizers = [XTrimoGeneTokenizer.from_pretrained(path) for path in checkpoints.values()]
    tokenizer = tokenizers[0] if tokenizers else XTrimoGeneTokenizer.default()
    for name, other in zip(checkpoints, tokenizers, strict=True):
        if other.genes != tokenizer.genes or other.depth_tokens != tokenizer.depth_tokens:
            raise ValueError(
                f"{name} has another panel ({other.num_genes:,} genes) than {next(iter(checkpoints))} "
                f"({tokenizer.num_genes:,}): their scores would be of different genes; evaluate them one by one"
            )
    screen = read_screen(adata, tokenizer, perturbation_key, total_key, min_cells)
    related = read_relations(relations, tokenizer) if relations else None
    graphs = gene_graphs(screen, relations=related)
    features = {name: context_features(path, screen, graphs.gene_ids, device) for name, path in checkpoints.items()}
    predictions = []
    for seed in seeds:
        own_split = gene_split(screen.sets, seed) if split == "genes" else doubles_split(screen.sets)
        predictions.append(predict_split(screen, own_split, graphs, features, seed, **training))
    return perturbation_scores(predictions, data), predictions


def perturbation_scores(predictions: Sequence[PerturbationPredictions], data: str) -> list[Score]:
    """Return the scores of all methods over all test perturbations, then of each kind (`data, kind`) of several.

    The units are perturbations. One that several seeds test is one unit, with its mean over these seeds: seeds that
    share perturbations do not make the interval narrower.
    """
    kinds = sorted(set(chain.from_iterable(found.split.test.values() for found in predictions)))
    scores = []
    for method in predictions[0].predicted:
        found = [(own, own.metrics(method)) for own in predictions]
        for kind in [None, *(kinds if len(kinds) > 1 else [])]:  # one kind is all: its table would be there twice
            for metric, is_better in METRICS.items():
                values: dict[str, list[float]] = {}
                means = []
                for own, metrics in found:
                    is_kind = np.array([kind in (None, its) for its in own.split.test.values()])
                    if is_kind.any():
                        means.append(float(metrics[metric][is_kind].mean()))
                    for name, value, counts in zip(own.split.test, metrics[metric], is_kind, strict=True):
                        if counts:
                            values.setdefault(name, []).append(float(value))
                units = np.array([np.mean(own_values) for own_values in values.values()])
                result = score(
                    "perturbation",
                    data if kind is None else f"{data}, {kind}",
                    method,
                    metric,
                    [mean_of(units)],
                    [len(units)],
                    higher_is_better=is_better,
                )
                spread = stdev(means) if len(means) > 1 else 0.0
                scores.append(replace(result, spread=spread, seeds=len(means)))
    return scores


def cell_eval_metrics(predictions: PerturbationPredictions, method: str) -> dict[str, np.ndarray]:
    """Return what the package cell-eval says of a method: `mae` and `pearson_delta` for each test perturbation `(T,)`.

    Its other metrics are of cells, and these are predictions of means.

    Raises:
        ImportError: If cell-eval is not installed.
    """
    try:
        from cell_eval import MetricsEvaluator
    except ImportError as error:
        raise ImportError("the judge cell-eval is not installed: pip install cell-eval") from error
    import anndata
    import pandas as pd

    names = [CONTROL, *predictions.split.test]

    def cells(profiles: np.ndarray) -> Any:
        obs = pd.DataFrame({"perturbation": names}, index=names)
        values = np.concatenate([predictions.control[None], profiles]).astype(np.float64)
        return anndata.AnnData(values, obs=obs, var=pd.DataFrame(index=predictions.genes))

    with tempfile.TemporaryDirectory() as folder:
        evaluator = MetricsEvaluator(
            adata_pred=cells(predictions.predicted[method]),
            adata_real=cells(predictions.truth),
            control_pert=CONTROL,
            pert_col="perturbation",
            num_threads=1,
            outdir=folder,
            skip_de=True,
        )
        judged, _ = evaluator.compute(profile="minimal", write_csv=False)
    rows = {name: row for row, name in enumerate(judged["perturbation"].to_list())}
    order = [rows[name] for name in names[1:]]
    return {metric: judged[metric].to_numpy()[order] for metric in ("mae", "pearson_delta")}
