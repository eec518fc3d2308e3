"""Predicted and measured effects of perturbations: metrics, baselines, and the metrics of the package cell-eval.

    truth, predicted, control (T, R)  ->  perturbation_metrics    each metric for each perturbation (T,)
    screen, split, models             ->  predict_split           predictions of every method
    cells, checkpoints, options, run  ->  predict_screen          the same for each seed
                                      ->  evaluate_perturbation   their scores

Letters: T test perturbations, P all perturbations of the screen, R measured genes, D training perturbations,
N genes with features, F features.

A profile is the mean over cells of `log1p` of counts per 10,000; a change is a profile minus that of control cells.
"""

import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from ... import families
from ...inference.devices import pick_device
from ...inference.saved import Saved
from ...options import Option, group
from ...training.perturbation.anchoring import additive_weights, set_members
from ...training.perturbation.fit import PerturbationArguments, fit_perturbation, predict_profiles
from ...training.perturbation.gene_graphs import GeneGraphs, context_features, gene_graphs, read_relations
from ...training.perturbation.screens import (
    CONTROL,
    PerturbationScreen,
    PerturbationSplit,
    doubles_split,
    gene_split,
    read_screen,
)
from ..measures.perturbation import METRICS, additive, linear, perturbation_metrics, set_features
from ..measures.results import Score, TaskResult, mean_of, score
from ..report.pictures import scatter_panels
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData


RUN = Run(seeds=(0, 1, 2))
NO_CHANGE, MEAN, ADDITIVE, LINEAR, RIDGE = "no change", "mean of perturbed", "additive", "linear", "additive ridge"
NOT_ANCHORED = "not anchored"
LEARNED, SHUFFLED = "without pre-training", "shuffled labels"


@group
class PerturbationOptions(DrawnCells):
    """Options of the perturbation task.

    >>> PerturbationOptions(split="doubles").perturbation_key
    'perturbation'
    """

    split: Annotated[
        Literal["genes", "doubles"],
        Option("Test genes that no training perturbation has, other ones for each seed; or pairs of known genes."),
    ] = "genes"
    relations: Annotated[Sequence[str | os.PathLike], Option("Files of pairs or sets of related genes.")] = ()
    perturbation_key: Annotated[str, Option("Column of obs with the perturbed genes.")] = "perturbation"
    total_key: Annotated[str | None, Option("Column of obs with the total counts of the cells.")] = None
    min_cells: Annotated[int, Option("Leave out perturbations of fewer cells.", least=1)] = 10


@dataclass(frozen=True)
class PerturbationPredictions:
    """Predicted and measured profiles of the test perturbations of a split.

    Attributes:
        seed: Seed of the split and of the models.
        split: The split; its test perturbations are the rows of the arrays, in this order.
        genes: Names of the R measured genes.
        control: Profile of the control cells, `(R,)`.
        reference: Mean profile of the training perturbations, `(R,)`.
        truth: Measured profiles, `(T, R)`.
        centroids: Measured profiles of all perturbations of the screen, the test ones first, `(P, R)`.
        top_genes: Columns of the 20 genes that differ most from control, `(T, 20)`.
        predicted: Method -> predicted profiles, `(T, R)`.
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
        """Return metric -> its value for each test perturbation, `(T,)`, for a method."""
        return perturbation_metrics(
            self.truth, self.predicted[method], self.control, self.reference, self.centroids, self.top_genes
        )


# -- protocol ---------------------------------------------------------------------------------------------------------


def predict_split(
    screen: PerturbationScreen,
    split: PerturbationSplit,
    graphs: GeneGraphs,
    features: Mapping[str, np.ndarray],
    seed: int = 0,
    fields: Mapping[str, Any] | None = None,
    **training: Any,
) -> PerturbationPredictions:
    """Train every method on a split and predict its test perturbations.

    Args:
        screen: Perturbed and control cells, from `read_screen`.
        split: Perturbations to train on and to test on.
        graphs: From `gene_graphs`.
        features: Name of a checkpoint -> features of the genes of the graphs, from `context_features`.
        seed: Seed of the models.
        fields: Fields of the head's configuration, such as `hidden_size`; its defaults unless given.
        **training: Fields of `PerturbationArguments`.

    Returns:
        Predictions of these methods: no change; the mean of the training perturbations; sums of single perturbations;
        linear models on the perturbed genes, and on the features of each checkpoint; the additive models that anchored
        heads begin as, without and with these features; anchored heads with the features of each checkpoint, and
        without; heads that are not anchored with the features of each checkpoint; and, as a control, an anchored head
        that learns from profiles that are shuffled among perturbations. Predictions below 0 are set to 0, the smallest
        possible value.
    """
    train, test = list(split.train), list(split.test)
    control = screen.profiles([CONTROL])[0]
    predicted = {name: control + change for name, change in simple_changes(screen, split, graphs, features).items()}

    def trained(of: PerturbationScreen, of_genes: np.ndarray | None, anchored: bool = True) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            arguments = PerturbationArguments(folder, seed=seed, **training)
            with_features = replace(graphs, features=of_genes)
            head = {"anchored": anchored, **(fields or {})}
            model = fit_perturbation(of, train, with_features, arguments=arguments, **head).model
        return predict_profiles(model, control, [screen.sets[name] for name in test])

    others = np.random.default_rng(seed).permutation(train)
    shuffled = replace(screen, sets={name: screen.sets[other] for name, other in zip(train, others, strict=True)})
    predicted |= {name: trained(screen, of_genes) for name, of_genes in features.items()}
    for name, of_genes in features.items():
        predicted[f"{name}, {NOT_ANCHORED}"] = trained(screen, of_genes, anchored=False)
    predicted[LEARNED] = trained(screen, None)
    predicted[SHUFFLED] = trained(shuffled, next(iter(features.values()), None))
    return PerturbationPredictions(
        seed=seed,
        split=split,
        genes=screen.genes,
        control=control,
        reference=predicted[MEAN][0],
        truth=screen.profiles(test),
        centroids=screen.profiles([*test, *(name for name in screen.sets if name not in split.test)]),
        top_genes=np.array([screen.top_genes(name) for name in test]),
        predicted={name: np.maximum(profiles, 0).astype(np.float32) for name, profiles in predicted.items()},
    )


def simple_changes(
    screen: PerturbationScreen, split: PerturbationSplit, graphs: GeneGraphs, features: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return baseline -> its predicted changes from control `(T, R)`; the arguments are those of `predict_split`."""
    train, test = list(split.train), list(split.test)
    train_changes = screen.profiles(train) - screen.profiles([CONTROL])
    genes = sorted(set(chain.from_iterable(name.split("+") for name in [*train, *test])))
    which = dict(zip(genes, np.eye(len(genes)), strict=True))
    in_graphs = [screen.tokenizer.genes[gene] for gene in graphs.gene_ids]
    members, test_members = (
        set_members([screen.sets[name] for name in names], graphs.gene_ids) for names in (train, test)
    )

    def linear_on(features: Mapping[str, np.ndarray]) -> np.ndarray:
        return linear(train_changes, set_features(train, features), set_features(test, features))

    def ridge_on(of_genes: np.ndarray | None) -> np.ndarray:
        return np.asarray(test_members @ additive_weights(members, train_changes, of_genes) @ train_changes)

    changes = {
        NO_CHANGE: np.zeros((len(test), len(screen.gene_ids))),
        MEAN: np.tile(train_changes.mean(axis=0), (len(test), 1)),
        ADDITIVE: additive(dict(zip(train, train_changes, strict=True)), test),
        LINEAR: linear_on(which),
        RIDGE: ridge_on(None),
    }
    for name, of_genes in features.items():
        changes[f"{LINEAR}, {name}"] = linear_on(dict(zip(in_graphs, of_genes, strict=True)))
        changes[f"{RIDGE}, {name}"] = ridge_on(of_genes)
    return changes


def predict_screen(
    adata: Any,
    checkpoints: Mapping[str, str | os.PathLike],
    options: PerturbationOptions,
    run: Run = RUN,
    fields: Mapping[str, Any] | None = None,
    **training: Any,
) -> list[PerturbationPredictions]:
    """Return the predictions of all methods of `predict_split` on a screen, for each seed.

    Args:
        adata: Perturbed and control cells of one cell line or condition.
        checkpoints: Name in the scores -> folder or Hub name of a pre-trained model.
        options: Options of the task.
        run: Seeds of splits and models.
        fields: Fields of the head's configuration, such as `hidden_size`; its defaults unless given.
        **training: Fields of `PerturbationArguments`.

    Raises:
        ValueError: If a checkpoint has the name of a baseline, checkpoints have different panels, the screen cannot be
            read (`read_screen`), or a file of relations has no pair of the panel.
    """
    reserved = {NO_CHANGE, MEAN, ADDITIVE, LINEAR, RIDGE, LEARNED, SHUFFLED}
    if taken := sorted(reserved & set(checkpoints)):
        raise ValueError(f"checkpoints are called {', '.join(taken)}, as baselines are: give them other names")
    tokenizers = [Saved.of(path).tokenizer() for path in checkpoints.values()]
    tokenizer = tokenizers[0] if tokenizers else families.DEFAULT.tokenizer.default()
    for name, other in zip(checkpoints, tokenizers, strict=True):
        if other.genes != tokenizer.genes or other.depth_tokens != tokenizer.depth_tokens:
            raise ValueError(
                f"{name} has another panel ({other.num_genes:,} genes) than {next(iter(checkpoints))} "
                f"({tokenizer.num_genes:,}): their scores would be of different genes; evaluate them one by one"
            )
    device = str(pick_device(run.device))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        screen = read_screen(adata, tokenizer, options.perturbation_key, options.total_key, options.min_cells)
    for warning in warned:
        run.say(str(warning.message))
    related = read_relations(options.relations, tokenizer) if options.relations else None
    graphs = gene_graphs(screen, relations=related)
    features = {name: context_features(path, screen, graphs.gene_ids, device) for name, path in checkpoints.items()}
    predictions = []
    for seed in run.parts(run.seeds):
        split = gene_split(screen.sets, seed) if options.split == "genes" else doubles_split(screen.sets)
        predictions.append(predict_split(screen, split, graphs, features, seed, fields, **training))
    return predictions


def perturbation_scores(predictions: Sequence[PerturbationPredictions], data: str) -> list[Score]:
    """Return the scores of all methods over all test perturbations, and over those of each kind if there are several.

    Units of the intervals are perturbations. A perturbation that several seeds test is one unit, with its mean over the
    seeds, so that more seeds do not make the interval narrower.

    Args:
        predictions: Predictions for each seed, from `predict_screen`.
        data: Name of the data set; scores of a kind are named `data, kind`.
    """
    kinds = sorted(set(chain.from_iterable(found.split.test.values() for found in predictions)))
    scores = []
    for method in predictions[0].predicted:
        found = [(of_seed, of_seed.metrics(method)) for of_seed in predictions]
        for kind in [None, *(kinds if len(kinds) > 1 else [])]:  # with one kind, its table would repeat that of all
            for metric, is_better in METRICS.items():
                values: dict[str, list[float]] = {}
                means = []
                for of_seed, metrics in found:
                    is_kind = np.array([kind in (None, each) for each in of_seed.split.test.values()])
                    if is_kind.any():
                        means.append(float(metrics[metric][is_kind].mean()))
                    for name, value, counts in zip(of_seed.split.test, metrics[metric], is_kind, strict=True):
                        if counts:
                            values.setdefault(name, []).append(float(value))
                units = np.array([np.mean(each) for each in values.values()])
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
    """Return `mae` and `pearson_delta` of the package cell-eval for each test perturbation, `(T,)`.

    Its other metrics need predicted cells, not predicted means.

    Args:
        predictions: Predictions of all methods.
        method: Name of the method to score.

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


PANELS = 8  # perturbations in the picture
PERTURBATION_PROTOCOL = (
    "Mean profiles after perturbing genes are predicted from control cells. Split: {split}. Errors over the 20 "
    "genes that change most and over all, correlation of the change from control (all genes, the 20, and beyond the "
    "mean change of the training perturbations, as in Systema), direction of the change, and centroid accuracy. The "
    "head stands on gene embeddings of a checkpoint or learns its own (without pre-training). It is anchored: it "
    "begins as additive ridge on the same embeddings, and learns more only where a cross-validation over the training "
    "perturbations tells that this helps. Baselines are no change, the mean of the perturbed, additive, and linear. "
    "Of a single gene that no training perturbation has, linear on which genes are perturbed knows nothing and "
    "predicts the mean of the perturbed; additive predicts the mean of the single ones, which is the same where all "
    "training perturbations are single. Intervals: 95 %, bootstrap over perturbations."
)


def evaluate_perturbation(
    adata: "AnnData", data: str, checkpoints: Mapping[str, str], options: PerturbationOptions, run: Run = RUN
) -> TaskResult:
    """Score predictions of perturbations.

    Args:
        adata: Perturbed and control cells of one cell line or condition.
        data: Name of the screen.
        checkpoints: Name -> folder or Hub name of pre-trained models.
        options: Options of the task.
        run: Seeds of splits and models.

    Raises:
        ValueError: If a checkpoint has the name of a baseline, checkpoints have different panels, or the screen cannot
            be read.

    Example:
        >>> options = PerturbationOptions(split="doubles")
        >>> result = evaluate_perturbation(adata, "K562", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    run.say(f"perturbations of {data}, split by {options.split}: {len(run.seeds)} seeds")
    predictions = predict_screen(adata, checkpoints, options, run)
    scores = perturbation_scores(predictions, f"{data}, split by {options.split}")
    first = next(
        (name for name in checkpoints if name in predictions[0].predicted), next(iter(predictions[0].predicted))
    )
    num_test = len(predictions[0].split.test)
    title = (
        f"Change of each gene, {first}: the first {min(PANELS, num_test)} of {num_test} test perturbations of seed "
        f"{predictions[0].seed}"
    )
    scores.sort(key=lambda each: each.method not in checkpoints)  # a stable sort: checkpoints first
    kinds = {name: kind for of_seed in predictions for name, kind in of_seed.split.test.items()}
    settings = {
        "seeds": list(run.seeds), "split": options.split,
        "relations": [Path(file).name for file in options.relations],
        "test perturbations of each kind": dict(sorted(Counter(kinds.values()).items())),
    }  # fmt: skip
    return TaskResult(
        "perturbation",
        data,
        PERTURBATION_PROTOCOL.format(split=options.split),
        scores,
        {title: change_panels(predictions[0], first)},
        settings,
    )


def change_panels(predictions: PerturbationPredictions, method: str) -> Any:
    """Draw predicted against true change of each gene, for the first 8 test perturbations."""
    names = list(predictions.split.test)[:PANELS]
    true, predicted = (each - predictions.control for each in (predictions.truth, predictions.predicted[method]))
    panels = {str(name): (true[row], predicted[row]) for row, name in enumerate(names)}
    return scatter_panels(panels, "true change", "predicted change")
