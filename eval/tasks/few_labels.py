"""Few labels: how well are cell types named when 5, 10, 20 or 50 cells of each type are labelled?

    cells  ->  test (20 %)  |  the others  ->  5 of each type  <  10  <  20  <  50     each draw holds the smaller one
                  accuracy, macro-F1   <-  methods that learn from the drawn cells alone

Methods: logistic regression on genes, and on principal components of a corpus; nearest neighbours and a linear probe
on embeddings of checkpoints as they are; the regression on genes and embedding of anchored checkpoints; fine-tuned
checkpoints if asked for; shuffled labels as a control. All learn from the same cells and are tested on the same cells.
What methods of checkpoints are better or worse than logistic regression on genes is told for pairs of the same cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...inference.neighbors import label_probabilities
from ...options import Option, group
from ...training.data.splits import stratified_split
from ...training.finetuning import logistic_classifier, names_better, with_embedding
from ..measures.baselines import log_normalise
from ..measures.corpus_pca import CORPUS_PCA_NAME
from ..measures.probes import columns, linear_probe, macro_f1_of, refuse_twins, say_left_out
from ..measures.results import Score, Statistic, TaskResult, differences, mean_of, score
from .annotation import ON_GENES, Labelled, Split, fine_tune
from .embedding import NONE, SEEN, Embedded, components_from, corpus_components, embed_all, opened, seen_by
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData


TASK = "few labels"
RUN = Run(seeds=(0, 1, 2))
LABELS_PER_TYPE = (5, 10, 20, 50)
TEST_SHARE, NEIGHBORS = 0.2, 15
METRICS = ("macro-F1", "accuracy")
PROTOCOL = (
    "20 % of the cells test; of each type {numbers} of the others are labelled, or all where a type has fewer. "
    "Each seed draws other test cells and other labelled cells, and all methods see the same. Logistic regression is "
    "on log1p of counts per 10,000, and on principal components of a corpus, which no label has shaped. k-NN (15 "
    "neighbours, or as many as a type has labels) and the linear probe (logistic regression on standardised features) "
    "use embeddings of the checkpoint as it is. First step: a logistic regression on genes, the same values, and "
    "embedding, such as fine-tuning of an anchored checkpoint begins at. {tuned}Labels with fewer than 10 cells are "
    "left out. Intervals: 95 %, bootstrap over test cells; of differences, over pairs of the same test cells. "
    "{seen} No method has seen a "
    "label of a test cell, unless a checkpoint was fine-tuned on it before."
)
TUNED = "Fine-tuned checkpoints saw the labelled cells {epochs} times, every weight trained. "


@group
class FewLabelsOptions(DrawnCells):
    """Options of the few-labels task.

    >>> FewLabelsOptions(label_key="cell_type").labels_per_type
    (5, 10, 20, 50)
    """

    label_key: Annotated[
        str, Option("Column of obs with cell types; cells without one, or of one with fewer than 10, are left out.")
    ]
    labels_per_type: Annotated[Sequence[int], Option("Numbers of labelled cells of each type.")] = LABELS_PER_TYPE
    corpus: Annotated[
        str | None,
        Option("Folder from `xtrimogene convert`, to whose cells PCA of the corpus is fitted.", default="none"),
    ] = None
    fine_tuning_epochs: Annotated[
        int, Option("Passes over the labelled cells in which checkpoints are fine-tuned; 0 tunes none.", least=0)
    ] = 0


@dataclass(frozen=True)
class Predictions:
    """What methods say of the test cells of a seed.

    Attributes:
        test: Rows of the test cells, `(T,)`.
        of_methods: (method, number of labelled cells of each type or None for all) -> predicted types `(T,)`.
    """

    test: np.ndarray
    of_methods: dict[tuple[str, int | None], np.ndarray]


@dataclass(frozen=True)
class FewFeatures:
    """What methods learn from.

    Attributes:
        checkpoints: Name -> embeddings of a checkpoint.
        components: Name -> principal components of a corpus.
        values: Log-normalised expression, CSR `(cells, G)`.
    """

    checkpoints: dict[str, Embedded]
    components: dict[str, Embedded]
    values: Any


def evaluate_few_labels(
    adata: "AnnData",
    data: str,
    checkpoints: Mapping[str, str],
    options: FewLabelsOptions,
    run: Run = RUN,
) -> TaskResult:
    """Score annotation with few labels of each type.

    Args:
        adata: Cells with counts.
        data: Name of the data set.
        checkpoints: Name -> folder or Hub name.
        options: Options of the task.
        run: Seeds of test cells, labelled cells and shuffled labels.

    Raises:
        FileNotFoundError: If there is no corpus where `options.corpus` says.
        ValueError: If `labels_per_type` are not different positive numbers, the column is missing or has a single
            value, or cells have no counts on the panel of a checkpoint.

    Example:
        >>> options = FewLabelsOptions(label_key="cell_type", labels_per_type=[5, 10])
        >>> result = evaluate_few_labels(adata, "blood", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    numbers = checked_numbers(options.labels_per_type)
    cells, num_left_out = labelled_cells(adata, options.label_key, run)
    features = read(cells.adata, checkpoints, options.corpus, run)
    tuned = checkpoints if options.fine_tuning_epochs else {}
    epochs = options.fine_tuning_epochs
    found = [predictions(cells, features, numbers, seed, tuned, epochs, run) for seed in run.parts(run.seeds)]
    scores = scores_of(data, cells, found, seen_by_method(features))
    protocol = PROTOCOL.format(
        numbers=", ".join(map(str, numbers)),
        tuned=TUNED.format(epochs=options.fine_tuning_epochs) if tuned else "",
        seen=SEEN,
    )
    settings = {
        "seeds": list(run.seeds), "cells": len(cells.ids), "left out": num_left_out, "labels": options.label_key,
        "labels a type": list(numbers), "types": len(cells.names),
    }  # fmt: skip
    settings |= {"corpus": options.corpus} if options.corpus else {}
    return TaskResult(TASK, data, protocol, scores, settings=settings)


def labelled_cells(adata: "AnnData", label_key: str, run: Run) -> tuple[Labelled, int]:
    """Return the cells with a label that at least 10 cells have, and how many others are left out.

    Raises:
        ValueError: If the column is missing or has a single value.
    """
    labels, _, keep = columns(adata, label_key, None)
    assert labels is not None  # there is a label_key
    say_left_out(keep, run.say)
    names, ids = np.unique(labels, return_inverse=True)
    return Labelled(adata[keep].copy() if not keep.all() else adata, ids, names), int((~keep).sum())


def checked_numbers(numbers: Sequence[int]) -> list[int]:
    """Return numbers of labels in ascending order.

    Raises:
        ValueError: If there are none, or they are not different positive numbers.

    Example:
        >>> checked_numbers([20, 5])
        [5, 20]
    """
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise ValueError(f"labels_per_type is {list(numbers)}: give different positive numbers, as [5, 20]")
    return sorted(numbers)


def read(adata: "AnnData", checkpoints: Mapping[str, str], corpus: str | None, run: Run) -> FewFeatures:
    """Return the features that methods learn from.

    Raises:
        ValueError: If there is no checkpoint, two cells have the same counts, or cells have no counts on a panel.
    """
    if not checkpoints:
        raise ValueError("0 checkpoints are given, whose panel says which genes are read: give at least one")
    embedded: dict[str, Embedded] = {}
    components: dict[str, Embedded] = {}
    for name, path in checkpoints.items():
        loaded, cells = opened(name, path, adata, run)
        seen, is_scaled = seen_by(path, loaded, cells), not loaded.has_own_scale
        embedded[name] = Embedded(embed_all(loaded, cells, name), seen, is_scaled)
        components |= corpus_components(name, path, loaded, cells)
        if corpus is not None and CORPUS_PCA_NAME not in components:  # once: the first checkpoint reads the cells
            components |= components_from(corpus, loaded.tokenizer, cells, run.seeds[0])
    counts = cells.source.rows(0, cells.n_cells)
    refuse_twins(counts)
    return FewFeatures(embedded, components, log_normalise(counts))


def predictions(
    cells: Labelled,
    features: FewFeatures,
    numbers: Sequence[int | None],
    seed: int,
    tuned: Mapping[str, str],
    epochs: int,
    run: Run,
) -> Predictions:
    """Return what all methods say of the test cells of a seed.

    Args:
        cells: All cells.
        features: Features of them.
        numbers: Numbers of labelled cells of each type; None for all that do not test.
        seed: Seed of the test cells, the labelled cells, fine-tuning and shuffled labels.
        tuned: Name -> folder of the checkpoints to fine-tune.
        epochs: Number of epochs of fine-tuning.
        run: Device, and the function that is told what happens.
    """
    rest, test = stratified_split(cells.ids, TEST_SHARE, seed)
    of_methods: dict[tuple[str, int | None], np.ndarray] = {}
    for number in numbers:
        known = drawn(cells.ids, rest, number, seed)
        run.say(f"seed {seed}: {len(known):,} labelled cells, {of_number(number)} of a type; {len(test):,} cells test")
        predicted = predict_from(known, test, cells.ids, features, seed)
        for name, path in tuned.items():
            rows = np.concatenate([known, test])  # fine-tuning needs no others
            few = Labelled(cells.adata[rows].copy(), cells.ids[rows], cells.names)
            parts = Split(*np.split(np.arange(len(rows)), [len(known), len(known)]))
            probabilities, _ = fine_tune(path, few, parts, epochs, seed, run.device)
            predicted[f"{name}, fine-tuned"] = probabilities[parts.test].argmax(axis=1)
        of_methods |= {(method, number): guess for method, guess in predicted.items()}
    return Predictions(test, of_methods)


def of_number(number: int | None) -> str:
    """Return a number of labelled cells of each type in words.

    >>> of_number(5), of_number(None)
    ('5 labels', 'all labels')
    """
    return "all labels" if number is None else f"{number} labels"


def scores_of(data: str, cells: Labelled, of_seeds: Sequence[Predictions], seen: Mapping[str, str]) -> list[Score]:
    """Return the scores of all methods, and what those of checkpoints differ from logistic regression on genes.

    Args:
        data: Name of the data set.
        cells: All cells.
        of_seeds: What methods say of the test cells of each seed.
        seen: Method -> how many of the cells it was trained on without their labels; the others on none.
    """
    statistics: dict[tuple[str, str], list[Statistic]] = {}
    for metric in METRICS:
        for method, number in of_seeds[0].of_methods:
            statistics[method, f"{metric}, {of_number(number)}"] = [
                of_predicted(cells.ids[said.test], said.of_methods[method, number], len(cells.names))[metric]
                for said in of_seeds
            ]
    tests = [said.test for said in of_seeds]
    scores = [
        replace(score(TASK, data, method, metric, each, list(map(len, tests))), seen=seen.get(method, NONE))
        for (method, metric), each in statistics.items()
    ]
    of_checkpoints = [method for method in dict.fromkeys(each.method for each in scores) if ON_GENES not in method]
    less = differences(TASK, data, statistics, ON_GENES, of_checkpoints, tests)
    return scores + [replace(each, seen=seen.get(each.method, NONE)) for each in less]


def drawn(ids: np.ndarray, rest: np.ndarray, number: int | None, seed: int) -> np.ndarray:
    """Return `number` cells of each type among the cells `rest`, all where there are fewer or `number` is None.

    Those of a smaller number are among those of a larger one.

    Args:
        ids: Types of all cells, `(cells,)`.
        rest: Rows of the cells that may be labelled.
        number: Number of labelled cells of each type; None for all.
        seed: Seed of the draw.

    Example:
        >>> ids = np.array([0, 1, 0, 1, 0, 1])
        >>> len(drawn(ids, np.arange(6), number=2, seed=0)), len(drawn(ids, np.arange(6), number=9, seed=0))
        (4, 6)
    """
    order = np.random.default_rng(seed).permutation(rest)
    return np.concatenate([order[ids[order] == each][:number] for each in np.unique(ids[order])])


def predict_from(
    known: np.ndarray, test: np.ndarray, ids: np.ndarray, features: FewFeatures, seed: int
) -> dict[str, np.ndarray]:
    """Return method -> predicted types `(test,)` of the cells `test`, learned from the cells `known`."""
    learned = ids[known]
    found: dict[str, np.ndarray] = {}
    for name, each in features.checkpoints.items():
        number = min(NEIGHBORS, int(np.bincount(learned).max()))
        votes, voters = label_probabilities(each.values[known], learned, each.values[test], number, each.is_scaled)
        found[f"{name}, k-NN"] = np.array(voters, int)[votes.argmax(axis=1)]
        found[f"{name}, linear probe"] = linear_probe().fit(each.values[known], learned).predict(each.values[test])
        if not each.is_scaled:  # anchored
            both = with_embedding(features.values, each.values)
            helps = names_better(both[known], features.values[known], learned, None)
            of_cells = both if helps else features.values
            model = logistic_classifier().fit(of_cells[known], learned)
            found[f"{name}, first step"] = model.predict(of_cells[test])
    found[ON_GENES] = logistic_classifier().fit(features.values[known], learned).predict(features.values[test])
    for name, each in features.components.items():
        model = logistic_classifier().fit(each.values[known], learned)
        found[f"{ON_GENES} on {name}"] = model.predict(each.values[test])
    shuffled = np.random.default_rng(seed).permutation(learned)
    model = logistic_classifier().fit(features.values[known], shuffled)
    return found | {f"{ON_GENES}, shuffled labels": model.predict(features.values[test])}


def of_predicted(true: np.ndarray, predicted: np.ndarray, num_types: int) -> dict[str, Statistic]:
    """Return macro-F1 and accuracy of predicted types."""
    return dict(zip(METRICS, (macro_f1_of(true, predicted, num_types), mean_of(predicted == true)), strict=True))


def seen_by_method(features: FewFeatures) -> dict[str, str]:
    """Return method -> how many of the cells it was trained on without their labels."""
    ways = ("k-NN", "linear probe", "first step", "fine-tuned")
    of_checkpoints = {f"{name}, {way}": each.seen for name, each in features.checkpoints.items() for way in ways}
    return of_checkpoints | {f"{ON_GENES} on {name}": each.seen for name, each in features.components.items()}
