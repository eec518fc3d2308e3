"""Annotation by a checkpoint: are types right, are probabilities calibrated, and are unknown types recognised?

    cells  ->  learn (60 %)      calibrate (20 %)     test (20 %)
               methods       ->  temperature, sets -> accuracy, macro-F1, calibration error, coverage
               without a type ------------------->    is that type called unknown?

Methods: nearest neighbours and a linear probe on embeddings of checkpoints, fine-tuned checkpoints if asked for,
logistic regression on genes, nearest neighbours on PCA, and shuffled labels as a control. All learn from the same
cells. Sources: Kedzierska et al. 2025 (probes of frozen embeddings), Open Problems label projection (baselines), Guo et
al. 2017 (calibration error), Angelopoulos and Bates 2021 (coverage).
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from transformers import set_seed

from ... import families
from ...inference.calibration import LEAST_CELLS, Calibration, familiarity, stratified_groups
from ...inference.cell_model import CellModel
from ...inference.devices import pick_device
from ...inference.neighbors import label_probabilities
from ...inference.options import Running
from ...inference.saved import Saved
from ...options import Option, group
from ...training.arguments import CellTrainingArguments
from ...training.data.dataset import cells_dataset
from ...training.data.splits import stratified_split
from ...training.finetuning import annotation_model, finetune, finetuning_rate, logistic_classifier, renew_head
from ..measures.baselines import log_normalise
from ..measures.certainty import (
    auroc_of,
    calibration_error,
    calibration_scores,
    mean_of_all,
    reliability,
    share_of,
)
from ..measures.probes import columns, linear_probe, macro_f1_of, refuse_twins, say_left_out
from ..measures.results import Statistic, TaskResult, differences, mean_of, score
from ..report.pictures import confusion_matrix, lines
from .embedding import embed_all
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData


TASK = "annotation"
RUN = Run(seeds=(0, 1, 2))
TEST_SHARE, PARTS = 0.2, 4  # one of 4 parts of the other 80 % is for calibration
NEIGHBORS, COMPONENTS = 15, 20  # those of `baselines.knn_on_pca`
LEAST_HELD_OUT, MOST_TYPES = 20, 6
ALPHA = 0.05  # share of cells that a set may miss, and of known cells that may be called unknown
CURVE_BINS = 10
PCA_SPACE = "PCA"
ON_GENES, LABEL_METRICS = "logistic regression", ("accuracy", "macro-F1")  # what checkpoints are compared with, and in
COVERAGE = "coverage of 95 % sets"  # should be 95 %
LOWER_IS_BETTER = ("calibration error", "labels in a set", "known called unknown")
PROTOCOL = (
    "20 % of the cells test{batches}, 20 % calibrate, 60 % are learned from; all methods see the same. "
    "k-NN (15 neighbours) and a linear probe (logistic regression) use embeddings of the checkpoint as it is. "
    "{tuned}"
    "Calibration error (15 bins) is that after a temperature fitted to the calibration cells. Conformal sets should "
    "hold the true label in 95 % of cells, neither more nor fewer. {held_out}Labels with fewer than 10 "
    "cells are left out. Intervals: 95 %, bootstrap over test cells; of differences, over pairs of the same test cells."
)
TUNED = (
    "Fine-tuned checkpoints saw the cells that are learned from {epochs} times, every weight trained; they take no "
    "part where types are held out. "
)
HELD_OUT = (
    "The {number} most frequent types of at least 20 cells are held out, one after the other: their test cells should "
    "look stranger than all others (AUROC): by the highest probability, and by the worse of the conformal set and "
    "the Mahalanobis distance to the nearest type, as `annotate` does, which calls cells unknown at a threshold of "
    "0.05. Logistic regression on genes takes its distances among principal components. "
)
UNKNOWN_AUROC = "unknown AUROC"


class Split(NamedTuple):
    """Rows of the cells to learn from, to calibrate with, and to test on."""

    known: np.ndarray
    calibrating: np.ndarray
    test: np.ndarray


class Predicted(NamedTuple):
    """Probabilities `(cells, types)`, 0 for the cells to learn from, and the name of the embedding of the method."""

    probabilities: np.ndarray
    space: str


@group
class AnnotationOptions(DrawnCells):
    """Options of the annotation task.

    >>> AnnotationOptions(label_key="cell_type").hold_out_types
    True
    """

    label_key: Annotated[
        str, Option("Column of obs with cell types; cells without one, or of one with fewer than 10, are left out.")
    ]
    batch_key: Annotated[
        str | None,
        Option("Column of obs with donors or studies: test cells are then of some that nothing else has seen."),
    ] = None
    hold_out_types: Annotated[
        bool, Option("Hold out types, the six most frequent; each fits all methods once more.")
    ] = True
    fine_tuning_epochs: Annotated[
        int, Option("Passes over the known cells in which checkpoints are fine-tuned; 0 tunes none.")
    ] = 0


@dataclass(frozen=True)
class Labelled:
    """Cells with their types.

    Attributes:
        adata: The cells.
        ids: Index in `names` of the type of each cell, `(cells,)`.
        names: Names of the types.
    """

    adata: "AnnData"
    ids: np.ndarray
    names: np.ndarray


@dataclass(frozen=True)
class Features:
    """Features of cells that methods learn from.

    Attributes:
        spaces: Name -> embeddings `(cells, D)`, those of checkpoints first.
        values: Log-normalised expression, CSR `(cells, G)`.
        unscaled: Names of the spaces whose features are not standardised before distances are taken.
    """

    spaces: dict[str, np.ndarray]
    values: Any
    unscaled: frozenset[str]


def evaluate_annotation(
    adata: "AnnData",
    data: str,
    checkpoints: Mapping[str, str],
    options: AnnotationOptions,
    run: Run = RUN,
) -> TaskResult:
    """Score annotation: accuracy, calibration, and the recognition of types that were held out.

    Args:
        adata: Cells with counts.
        data: Name of the data set.
        checkpoints: Name -> folder or Hub name.
        options: Options of the task.
        run: Seeds of splits and shuffled labels.

    Raises:
        ValueError: If there is no checkpoint or seed, a column is missing or has a single value, most types of the
            tested batches are in no other batch, or cells have no counts on the panel of a checkpoint.

    Example:
        >>> options = AnnotationOptions(label_key="cell_type")
        >>> result = evaluate_annotation(adata, "blood", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    batch_key, epochs = options.batch_key, options.fine_tuning_epochs
    check_annotation(checkpoints, options, run)
    labels, batches, keep = columns(adata, options.label_key, batch_key)
    assert labels is not None  # there is a label_key
    say_left_out(keep, run.say)
    names, ids = np.unique(labels, return_inverse=True)
    cells = Labelled(adata[keep].copy() if not keep.all() else adata, ids, names)
    splits = [split(ids, batches, seed) for seed in run.seeds]
    check_splits(splits, ids, names, batch_key, run.say)
    of_checkpoints = read(cells.adata, checkpoints, run)
    values = of_checkpoints.values
    held_out = types_to_hold_out(ids, splits) if options.hold_out_types else []
    # (title, method, metric) -> a statistic for each seed
    statistics: dict[tuple[str, str, str], list[Statistic]] = {}
    pictures: dict[str, Any] = {}
    for seed, parts in zip(run.parts(run.seeds), splits, strict=True):
        run.say(f"seed {seed}: {', '.join(f'{len(part):,} cells {use}' for use, part in parts._asdict().items())}")
        spaces = {**of_checkpoints.spaces, PCA_SPACE: components(values, parts.known, seed)}
        features = replace(of_checkpoints, spaces=spaces)
        found, of_test = score_methods(cells, parts, features, checkpoints if epochs else {}, epochs, seed, run)
        pictures = pictures or found
        of_types = score_unknown(cells, parts, features, held_out, seed, run)
        for (held, method, metric), statistic in [*of_test.items(), *of_types.items()]:
            title = data if held is None else f"{data}, {held} held out"
            statistics.setdefault((title, method, metric), []).append(statistic)
    units = [len(parts.test) for parts in splits]
    scores = [
        score(TASK, title, method, metric, of_seeds, units, higher_is_better=direction(metric))
        for (title, method, metric), of_seeds in sorted(statistics.items(), key=lambda item: item[0][0] != data)
    ]
    of_labels = {key[1:]: each for key, each in statistics.items() if key[0] == data and key[2] in LABEL_METRICS}
    ways = ("k-NN", "linear probe", "fine-tuned")
    methods = [f"{name}, {way}" for name in checkpoints for way in ways]
    scores += differences(TASK, data, of_labels, ON_GENES, methods, [parts.test for parts in splits])
    protocol = PROTOCOL.format(
        batches="" if batches is None else f", of values of {batch_key} that nothing else has seen",
        held_out=HELD_OUT.format(number=len(held_out)) if held_out else "",
        tuned=TUNED.format(epochs=epochs) if epochs else "",
    )
    settings = {
        "seeds": list(run.seeds), "cells": len(ids), "left out": int((~keep).sum()), "labels": options.label_key,
        "batches": batch_key, "types held out": [str(names[held]) for held in held_out], "threshold": ALPHA,
    }  # fmt: skip
    return TaskResult(TASK, data, protocol, scores, pictures, settings)


def check_annotation(checkpoints: Mapping[str, str], options: AnnotationOptions, run: Run) -> None:
    """Check the arguments of the task, and warn of checkpoints that may have been trained on the labels.

    Raises:
        ValueError: If there is no checkpoint or seed, epochs are negative, or both keys are the same.
    """
    epochs = options.fine_tuning_epochs
    if not checkpoints or not run.seeds:
        raise ValueError(f"{len(checkpoints)} checkpoints and {len(run.seeds)} seeds: at least one of each is needed")
    if epochs < 0:
        raise ValueError(f"fine_tuning_epochs is {epochs!r}: give a whole number, 0 to tune none")
    for name, path in checkpoints.items():
        if "classify" in families.abilities(Saved.of(path).config().architectures or []):
            run.say(f"{name} was fine-tuned before: if on labels of these cells, its scores are too high")
    if options.batch_key == options.label_key:
        raise ValueError(
            f"label_key and batch_key are both {options.label_key!r}: no type of the test would be learned"
        )


def score_methods(
    cells: Labelled,
    parts: Split,
    features: Features,
    tuned: Mapping[str, str],
    epochs: int,
    seed: int,
    run: Run,
) -> tuple[dict[str, Any], dict[tuple[None, str, str], Statistic]]:
    """Fit all methods to the cells to learn from; return pictures, and (None, method, metric) -> statistic.

    None means that no type is held out.

    Args:
        cells: All cells.
        parts: The cells to learn from, to calibrate with and to test on.
        features: Features of all cells.
        tuned: Name -> folder of the checkpoints to fine-tune.
        epochs: Number of epochs of fine-tuning.
        seed: Seed of fine-tuning and shuffled labels.
        run: Device, and the function that is told what happens.
    """
    ids, names, number = cells.ids, cells.names, len(cells.names)
    predicted, spaces = predict(features, ids, parts, number), dict(features.spaces)
    for name, path in tuned.items():
        method = f"{name}, fine-tuned"
        run.say(f"seed {seed}: {method}, {epochs} epochs")
        probabilities, spaces[method] = fine_tune(path, cells, parts, epochs, seed, run.device)
        predicted[method] = Predicted(probabilities, method)
    calibrations = calibrate(predicted, spaces, ids, parts, names)
    found: dict[tuple[None, str, str], Statistic] = {}
    for method, guess in predicted.items():
        of_method = label_statistics(guess.probabilities, ids, parts.test)
        of_method |= certainty_statistics(calibrations[method], guess, spaces, ids, parts.test)
        found |= {(None, method, metric): statistic for metric, statistic in of_method.items()}
    first, embedding = next(iter(features.spaces.items()))
    shuffled = np.random.default_rng(seed).permutation(ids[parts.known])
    votes = neighbors(embedding, shuffled, parts, number, first not in features.unscaled)
    for metric, statistic in label_statistics(votes, ids, parts.test).items():
        found[None, f"{first}, k-NN, shuffled labels", metric] = statistic
    return draw(predicted, calibrations, spaces, ids, names, parts.test), found


def score_unknown(
    cells: Labelled, parts: Split, features: Features, held_out: Sequence[int], seed: int, run: Run
) -> dict[tuple[str | None, str, str], Statistic]:
    """Return (held-out type or None for the mean of types, method, metric) -> how well unknown cells are recognised."""
    found: dict[tuple[str | None, str, str], Statistic] = {}
    of_types: dict[tuple[str, str], list[Statistic]] = {}
    for held in held_out:
        name = str(cells.names[held])
        run.say(f"seed {seed}: without {name}")
        told = unknown_statistics(features, cells.ids, parts, cells.names, held)
        for (method, metric), statistic in told.items():
            of_types.setdefault((method, metric), []).append(statistic)
            if metric == UNKNOWN_AUROC:
                found[name, method, metric] = statistic
    return found | {(None, *key): mean_of_all(each) for key, each in of_types.items()}


def direction(metric: str) -> bool | None:
    """Return whether higher is better for a metric; None if it has no direction.

    Example:
        >>> direction("accuracy"), direction("calibration error"), direction(COVERAGE)
        (True, False, None)
    """
    return None if metric == COVERAGE else not metric.startswith(LOWER_IS_BETTER)


def split(ids: np.ndarray, batches: np.ndarray | None, seed: int) -> Split:
    """Split cells by type; or, if batches are given, test on whole batches.

    Example:
        >>> parts = split(np.repeat([0, 1], 50), batches=None, seed=0)
        >>> [len(cells) for cells in parts]
        [60, 20, 20]
    """
    rest, test = stratified_split(ids, TEST_SHARE, seed, None if batches is None else list(batches))
    calibrates = stratified_groups(ids[rest], PARTS, seed) == 0
    return Split(rest[~calibrates], rest[calibrates], test)


def check_splits(
    splits: Sequence[Split],
    ids: np.ndarray,
    names: np.ndarray,
    batch_key: str | None,
    say: Callable[[str], object],
) -> None:
    """Check that most test cells are of types that are learned.

    Raises:
        ValueError: If most test cells are of types that are not learned, or fewer than two types are.
    """
    for cells in splits:
        is_learned = np.isin(ids[cells.test], ids[cells.known])
        if is_learned.mean() < 0.5 or len(set(ids[cells.known])) < 2:
            raise ValueError(
                f"{(~is_learned).sum()} of {len(cells.test)} test cells are of types that are in no other value of "
                f"obs[{batch_key!r}]: is each type a batch of its own? Give another batch_key, or none"
            )
        if not is_learned.all():
            absent = ", ".join(names[np.setdiff1d(ids[cells.test], ids[cells.known])])
            say(f"{(~is_learned).sum()} test cells are of types that are not learned ({absent}): they count as wrong")


def read(adata: "AnnData", checkpoints: Mapping[str, str], run: Run) -> Features:
    """Return the embeddings of the checkpoints and log-normalised expression.

    Raises:
        ValueError: If cells have no counts on the panel of a checkpoint.
    """
    embeddings, unscaled = {}, set()
    for name, path in checkpoints.items():
        run.say(f"embedding {adata.n_obs:,} cells by {name}")
        loaded = CellModel.load(path, Running(device=run.device))
        cells = loaded.read(adata)
        run.say(f"{name}: {cells.description}")
        embeddings[name] = embed_all(loaded, cells, name)
        unscaled |= {name} if loaded.has_own_scale else set()
    counts = cells.source.rows(0, cells.n_cells)
    refuse_twins(counts)
    return Features(embeddings, log_normalise(counts), frozenset(unscaled))


def types_to_hold_out(ids: np.ndarray, splits: Sequence[Split]) -> list[int]:
    """Return the most frequent types that can be held out: each test has them and others; two others are learned."""
    counts = np.bincount(ids)
    frequent = [int(held) for held in np.argsort(-counts, kind="stable") if counts[held] >= LEAST_HELD_OUT]
    return [
        held
        for held in frequent
        if all({held} < set(ids[cells.test]) and len(set(ids[cells.known]) - {held}) > 1 for cells in splits)
    ][:MOST_TYPES]


def components(values: Any, known: np.ndarray, seed: int) -> np.ndarray:
    """Return principal components `(cells, 20)`, fitted to the cells `known`."""
    from sklearn.decomposition import PCA

    number = min(COMPONENTS, len(known) - 1, values.shape[1] - 1)
    return PCA(number, svd_solver="arpack", random_state=seed).fit(values[known]).transform(values)


def predict(features: Features, ids: np.ndarray, cells: Split, number: int) -> dict[str, Predicted]:
    """Return method -> predictions for the cells that it does not learn from, checkpoints first.

    Args:
        features: Features of all cells; PCA among the spaces.
        ids: Types of all cells; only those of the cells to learn from are used.
        cells: The cells to learn from, to calibrate with and to test on.
        number: Number of types.
    """
    from sklearn.neighbors import KNeighborsClassifier

    learned = ids[cells.known]

    def fit(model: Any, of_cells: Any) -> np.ndarray:
        model.fit(of_cells[cells.known], learned)
        return spread(lambda rows: model.predict_proba(of_cells[rows]), model.classes_, cells, len(ids), number)

    found = {}
    for space, embedding in features.spaces.items():
        if space != PCA_SPACE:
            votes = neighbors(embedding, learned, cells, number, space not in features.unscaled)
            found[f"{space}, k-NN"] = Predicted(votes, space)
            found[f"{space}, linear probe"] = Predicted(fit(linear_probe(), embedding), space)
    on_genes = fit(logistic_classifier(), features.values)
    found[ON_GENES] = Predicted(on_genes, PCA_SPACE)
    voters = KNeighborsClassifier(min(NEIGHBORS, len(learned)), weights="distance")
    found["k-NN on PCA"] = Predicted(fit(voters, features.spaces[PCA_SPACE]), PCA_SPACE)
    return found


def fine_tune(
    checkpoint: str, cells: Labelled, parts: Split, epochs: int, seed: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities `(cells, types)` and embeddings `(cells, D)` of a classifier trained on the known cells."""
    set_seed(seed)
    place = pick_device(device)
    tokenizer = Saved.of(checkpoint).tokenizer()
    counts = tokenizer.read_counts(cells.adata)
    # A new head also replaces one for these labels, which may have been trained on the test cells.
    model = annotation_model(
        checkpoint, [str(name) for name in cells.names], classifier_anchored=True, classifier_norm="features"
    )
    renew_head(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = CellTrainingArguments(
            folder, num_train_epochs=epochs, learning_rate=finetuning_rate(model.config), warmup_steps=0.05, seed=seed,
            use_cpu=place.type == "cpu", disable_tqdm=True,
        )  # fmt: skip
        finetune(model, tokenizer, cells_dataset(counts, cells.ids).select(parts.known), arguments=arguments)
    return CellModel(model.to(place).eval(), tokenizer).classify(counts)


def neighbors(
    embedding: np.ndarray, learned: np.ndarray, cells: Split, number: int, standardize: bool = True
) -> np.ndarray:
    """Return the votes of the nearest known cells, `(cells, types)`; `learned` are the types of the known cells."""
    rows = np.concatenate([cells.calibrating, cells.test])
    votes, voters = label_probabilities(embedding[cells.known], learned, embedding[rows], NEIGHBORS, standardize)
    probabilities = np.zeros((len(embedding), number))
    probabilities[np.ix_(rows, np.array(voters, int))] = votes
    return probabilities


def spread(
    run: Callable[[np.ndarray], np.ndarray], types: np.ndarray, cells: Split, num_cells: int, number: int
) -> np.ndarray:
    """Return probabilities `(cells, types)`: those of `run` for cells not learned from, 0 for other cells and types."""
    rows = np.concatenate([cells.calibrating, cells.test])
    probabilities = np.zeros((num_cells, number))
    probabilities[np.ix_(rows, types)] = run(rows)
    return probabilities


def calibrate(
    predicted: Mapping[str, Predicted], spaces: Mapping[str, np.ndarray], ids: np.ndarray, cells: Split, names: Any
) -> dict[str, Calibration]:
    """Return method -> its calibration, fitted to the calibration cells."""
    known, held = cells.known, cells.calibrating
    return {
        method: Calibration.fit(
            probabilities[held],
            ids[held],
            spaces[space][held],
            spaces[space][known],
            ids[known],
            list(names),
            source="calibration cells",
        )
        for method, (probabilities, space) in predicted.items()
    }


def label_statistics(probabilities: np.ndarray, ids: np.ndarray, test: np.ndarray) -> dict[str, Statistic]:
    """Return accuracy and macro-F1 of the test cells."""
    best = probabilities[test].argmax(axis=1)
    right = mean_of(best == ids[test]), macro_f1_of(ids[test], best, probabilities.shape[1])
    return dict(zip(LABEL_METRICS, right, strict=True))


def certainty_statistics(
    calibration: Calibration,
    predicted: Predicted,
    spaces: Mapping[str, np.ndarray],
    ids: np.ndarray,
    test: np.ndarray,
) -> dict[str, Statistic]:
    """Return calibration error, and coverage and size of conformal sets, of the test cells."""
    applied = calibration.apply(predicted.probabilities[test], spaces[predicted.space][test], ALPHA)
    confidence = applied.probabilities.max(axis=1)
    is_right = predicted.probabilities[test].argmax(axis=1) == ids[test]
    return {
        "calibration error": lambda rows: calibration_error(confidence[rows], is_right[rows]),
        COVERAGE: mean_of(applied.is_in_set[np.arange(len(test)), ids[test]]),
        "labels in a set": mean_of(applied.is_in_set.sum(axis=1)),
    }


def unknown_statistics(
    features: Features, ids: np.ndarray, cells: Split, names: np.ndarray, held: int
) -> dict[tuple[str, str], Statistic]:
    """Return (method, metric) -> how well test cells of the held-out type `held` are recognised as unknown."""
    known, calibrating = (part[ids[part] != held] for part in (cells.known, cells.calibrating))
    left = Split(known, calibrating, cells.test)
    others = np.delete(names, held)
    ids_left = ids - (ids > held)  # meaningless for cells of `held`, which are in the test alone
    predicted, spaces = predict(features, ids_left, left, len(others)), features.spaces
    calibrations = calibrate(predicted, spaces, ids_left, left, others)
    is_held = ids[cells.test] == held
    found: dict[tuple[str, str], Statistic] = {}
    for method, (probabilities, space) in predicted.items():
        of_labels, of_distance = calibrations[method].p_values(probabilities[cells.test], spaces[space][cells.test])
        is_unknown = calibrations[method].is_unknown(of_labels, of_distance, ALPHA)
        found[method, "unknown AUROC, probability alone"] = auroc_of(-probabilities[cells.test].max(axis=1), is_held)
        found[method, UNKNOWN_AUROC] = auroc_of(-familiarity(of_labels, of_distance), is_held)
        found[method, "unknown found"] = share_of(is_unknown, is_held)
        found[method, "known called unknown"] = share_of(is_unknown, ~is_held)
    return found


def draw(
    predicted: Mapping[str, Predicted],
    calibrations: Mapping[str, Calibration],
    spaces: Mapping[str, np.ndarray],
    ids: np.ndarray,
    names: np.ndarray,
    test: np.ndarray,
) -> dict[str, Any]:
    """Return a confusion matrix of the first method, and a reliability diagram of all methods."""
    first = next(iter(predicted))
    best = names[predicted[first].probabilities[test].argmax(axis=1)]
    curves = {}
    for method, (probabilities, space) in predicted.items():
        applied = calibrations[method].apply(probabilities[test], spaces[space][test], ALPHA)
        is_right = probabilities[test].argmax(axis=1) == ids[test]
        stages = {method: applied.probabilities}
        if method == first:
            stages = {f"{method}, before temperature": probabilities[test], **stages}
        for title, certainty in stages.items():
            confident, right, _ = reliability(certainty.max(axis=1), is_right, CURVE_BINS)
            curves[title] = confident.tolist(), right.tolist()
    return {
        f"Test cells by true and predicted type, {first}": confusion_matrix(names[ids[test]], best, list(names)),
        "How often labels are right": lines(curves, "probability of the label", "share of right labels", diagonal=True),
    }


@dataclass(frozen=True)
class Classified:
    """Output of a classifier for labelled cells.

    Attributes:
        probabilities: Probability of each label, `(cells, C)`.
        embeddings: Embeddings of the cells, `(cells, D)`.
        label_ids: Id of the true label of each cell, `(cells,)`.
        names: Names of the labels.
    """

    probabilities: np.ndarray
    embeddings: np.ndarray
    label_ids: np.ndarray
    names: Sequence[str]


def calibrate_classifier(
    said: Classified,
    parts: Split,
    folder: str | os.PathLike,
    say: Callable[[str], object],
    unlabelled: np.ndarray | None = None,
) -> dict[str, Any]:
    """Calibrate a trained classifier, write the calibration into its folder, and return its scores.

    Args:
        said: Output of the classifier for all cells.
        parts: Cells that the classifier was trained on, held-out cells to calibrate with, and other held-out cells to
            test on. With fewer than 10 cells to calibrate with, nothing is written.
        folder: Folder of the classifier.
        say: Called with one line of text if nothing is written.
        unlabelled: Rows of further cells whose labels are not known, which say with those to calibrate with how far
            cells of the types lie.
    """
    known, to_fit, to_test = parts
    if len(to_fit) < LEAST_CELLS:
        note = f"none: half of the held-out cells are {len(to_fit)}, and at least {LEAST_CELLS} are needed"
        say(f"calibration: {note}; `annotate` will not tell unknown cells")
        return {"note": note}
    probabilities, embeddings, label_ids = said.probabilities, said.embeddings, said.label_ids
    source, numbers = f"{len(to_fit):,} held-out cells", {"to calibrate with": len(to_fit)}
    if unlabelled is not None:
        source += f" with labels and {len(unlabelled):,} without"
        numbers["to calibrate with, without labels"] = len(unlabelled)
    calibration = Calibration.fit(
        probabilities[to_fit], label_ids[to_fit], embeddings[to_fit], embeddings[known], label_ids[known], said.names,
        source=source,
        unlabelled=None if unlabelled is None else (probabilities[unlabelled], embeddings[unlabelled]),
    )  # fmt: skip
    calibration.save(folder)
    return {
        "cells": {**numbers, "that these scores are of": len(to_test)},
        "temperature": calibration.temperature,
        **calibration_scores(calibration, probabilities[to_test], embeddings[to_test], label_ids[to_test]),
    }
