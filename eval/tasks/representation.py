"""Embeddings of a perturbation screen: are perturbations told apart, batches mixed, and expression kept?

    cells, obs columns         ->  Screen: perturbation, batch, and whether a control cell, of each cell
    screen, seed               ->  Parts: cells to train on | other batches, same perturbations | and other ones
    embeddings of each method  ->  as it is, centred, centre-scaled, TVN  ->  probes, consistency, iLISI, decoded genes

Methods: checkpoints, embeddings in obsm, checkpoints before training, PCA of the corpus, PCA of variable genes,
log-normalised counts, scVI if it is installed, and random numbers as a control.
Source: Tx-Evaluation (Valence Labs), and TxFM (Kenyon-Dean et al. 2026), which changed some of its metrics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...inference.devices import pick_device
from ...options import Option, group
from ...tokenization.labels import label_text
from ...training.perturbation.screens import CONTROL, CONTROL_NAMES
from ..measures.baselines import PCA_NAME, SCVI_NAME, log_normalise, scvi_version
from ..measures.consistency import Consistency, perturbation_consistency, unit
from ..measures.controls import POST_PROCESSING, of_batches
from ..measures.probes import LEAST_CELLS
from ..measures.relations import is_recalled, recall_of
from ..measures.representation import (
    decoded,
    gene_correlations,
    hits,
    ilisi,
    linear_scores,
    neighbor_scores,
    structural_integrity,
)
from ..measures.results import Score, Statistic, TaskResult, mean_of, score
from ..report.pictures import null_panels
from .embedding import NONE, SEEN, Embedded, all_counts, cell_embeddings, first_tokenizer
from .relations import file_name, known_pairs
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData

    from ...tokenization.expression_xtrimogene import ExpressionTokenizer


TASK = "representation"
RUN = Run(seeds=(0, 1, 2))
TRAIN_SHARE = 0.7  # of batches, and of perturbations
LEAST_PERTURBATIONS = 3
DRAWS = 200  # of the bootstrap
COUNTS_NAME, BEST = "log-normalised counts", "best of these"
PANELS = 4  # methods in the picture
LINEAR, NEIGHBORS, CONSISTENT, MIXED = "linear probe", "k-NN", "perturbation consistency", "iLISI"
GENES, INTEGRITY = "invertibility, Spearman", "structural integrity"
PROTOCOL = (
    "Embeddings are taken as they are, centred on the control cells of each batch, standardised by them, and after "
    "typical variation normalisation (TVN); a table each, and one with the best value of each method and metric, as "
    "TxFM reports. {split} Linear probe and k-NN (251 neighbours) name the perturbation: mean of top-1 and top-5 "
    "accuracy. Perturbation consistency: share of perturbations of which p < 0.01, where the mean cosine of a cell "
    "with the mean of the others is compared with cosines of up to 10,000 random cells with perturbations that they "
    "are not of, on principal components of the control cells, standardised within batches. iLISI: mixing of batches "
    "among about 83 neighbours, 1 = fully mixed. Invertibility: expression decoded by ridge regression for "
    "perturbations that were not trained on; mean Spearman correlation of genes, and structural integrity, which is "
    "0.5 if the mean of the controls is predicted. Relation recall: known pairs of perturbed genes whose mean "
    "embeddings have a cosine outside of the 5th to 95th percentile of all pairs; chance is 0.1. Intervals: 95 %, "
    "bootstrap over test cells; of consistency over perturbations, of Spearman and of relation recall over genes. "
    "{seen}"
)
OF_BATCHES = (
    "70 % of the batches and 70 % of the perturbations train; the probes and iLISI are tested on other batches of the "
    "same perturbations, invertibility on other batches of other perturbations; each with the control cells of its "
    "batches."
)
OF_CELLS = (
    "70 % of the perturbations, and of the cells of each, train; the probes are tested on the other cells of the same "
    "perturbations, invertibility on those of other perturbations; control cells are split like a perturbation. There "
    "is one batch, so that no iLISI is given."
)


@group
class RepresentationOptions(DrawnCells):
    """Options of the representation task.

    >>> RepresentationOptions(obsm=["X_pca"], batch_key="gem_group").perturbation_key
    'perturbation'
    """

    obsm: Annotated[Sequence[str], Option("Keys of obsm with embeddings to judge.")] = ()
    perturbation_key: Annotated[
        str, Option("Column of obs with perturbations; those of fewer than 10 cells are left out.")
    ] = "perturbation"
    control: Annotated[
        str | None, Option("Name of the control cells in it.", default="control, ctrl or non-targeting")
    ] = None
    batch_key: Annotated[str | None, Option("Column of obs with batches.", default="all cells are of one")] = None
    corpus: Annotated[
        str | None,
        Option("Folder from `xtrimogene convert`, to whose cells PCA of the corpus is fitted.", default="none"),
    ] = None
    relations: Annotated[
        Sequence[str | Path], Option("Files of pairs of genes, `a,b` a line, for the recall among perturbations.")
    ] = ()


@dataclass(frozen=True)
class Screen:
    """What is known of the cells of a screen.

    Attributes:
        perturbations: Perturbation of each cell, `control` for control cells, `(C,)`.
        batches: Batch of each cell, `(C,)`.
        values: `log1p` of counts per 10,000, float32 `(C, G)`, of the genes that any cell expresses.
        related: Name of a file of relations -> the perturbations of single genes, and their known pairs.
    """

    perturbations: np.ndarray
    batches: np.ndarray
    values: np.ndarray
    related: dict[str, tuple[list[str], np.ndarray]]

    @property
    def is_control(self) -> np.ndarray:
        """Whether each cell is a control cell, bool `(C,)`."""
        return self.perturbations == CONTROL


@dataclass(frozen=True)
class Parts:
    """Rows of the cells of a seed: to train on, to probe, and to decode; each with control cells of its batches."""

    train: np.ndarray
    probed: np.ndarray
    decoded: np.ndarray


@dataclass
class Found:
    """Scores as they are collected.

    Attributes:
        statistics: (post-processing, method, metric) -> for each seed, the metric and its number of units.
        consistency: Method -> consistency of its embedding as it is, with the first seed.
    """

    statistics: dict[tuple[str, str, str], list[tuple[Statistic, int]]] = field(default_factory=dict)
    consistency: dict[str, Consistency] = field(default_factory=dict)


def evaluate_representation(
    adata: "AnnData",
    data: str,
    checkpoints: Mapping[str, str],
    options: RepresentationOptions,
    run: Run = RUN,
) -> TaskResult:
    """Score embeddings of a perturbation screen.

    Args:
        adata: Perturbed and control cells with counts.
        data: Name of the screen.
        checkpoints: Name -> folder or Hub name; may be empty if there are embeddings in obsm.
        options: Options of the task.
        run: Seeds of splits, probes and nulls; the first is also the seed of untrained models and random numbers.

    Raises:
        ValueError: If there are no control cells in a batch, fewer than three perturbations, no such embedding in obsm,
            fewer than 50 known pairs of perturbed genes in a file of relations, or batches that leave nothing to test.

    Example:
        >>> options = RepresentationOptions(obsm=["X_pca"], batch_key="gem_group")
        >>> result = evaluate_representation(adata, "K562", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    adata, screen, num_left_out = read_screen(adata, first_tokenizer(checkpoints), options, run.say)
    parts = {seed: split_of(screen, seed) for seed in run.seeds}
    batches = None if options.batch_key is None else screen.batches
    embeddings = cell_embeddings(adata, checkpoints, batches, options.corpus, run, options.obsm)
    embeddings |= {COUNTS_NAME: Embedded(screen.values, NONE)}
    without_scvi = {}
    if SCVI_NAME not in embeddings:
        without_scvi = {"scVI": "no row: scvi-tools is not installed (pip install scvi-tools)"}
        run.say(f"scVI has {without_scvi['scVI']}")
    found = Found()
    for method, embedded in run.parts(embeddings.items()):
        for title, process in POST_PROCESSING.items():
            run.say(f"{method}, {title}: {len(run.seeds)} seeds")
            embedding = process(embedded.values, screen.batches, screen.is_control)
            for seed in run.seeds:
                judge(found, title, method, embedding, screen, parts[seed], seed, run)
    seen = {method: embedded.seen for method, embedded in embeddings.items()}
    scores = scores_of(found, data, seen)
    settings = {
        "seeds": list(run.seeds), "cells": adata.n_obs, "control cells": int(screen.is_control.sum()),
        "left out": num_left_out, "perturbations": len(np.unique(screen.perturbations)) - 1,
        "batches": len(np.unique(screen.batches)), "genes": screen.values.shape[1],
        "known pairs": {name: len(pairs) for name, (_, pairs) in screen.related.items()},
        "consistency as it is": {method: described(each) for method, each in found.consistency.items()},
    }  # fmt: skip
    settings |= {"scvi-tools": scvi_version()} if SCVI_NAME in embeddings else without_scvi
    protocol = PROTOCOL.format(split=OF_CELLS if batches is None else OF_BATCHES, seen=SEEN)
    return TaskResult(TASK, data, protocol, scores, pictures(found, checkpoints), settings)


def described(found: Consistency) -> dict[str, Any]:
    """Return the upper percentiles of a null, and cosine and p-value of each perturbation, for the settings."""
    rows = zip(found.names.tolist(), found.cosines.tolist(), found.p_values.tolist(), strict=True)
    return {
        "null": {f"{share} %": round(float(np.percentile(found.null, share)), 4) for share in (50, 95, 99)},
        "perturbations": {name: {"cosine": round(cosine, 4), "p": round(p, 5)} for name, cosine, p in rows},
    }


def pictures(found: Found, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """Return a picture of the null of consistency and of the perturbations, for checkpoints and PCA first."""
    first = [name for name in found.consistency if name in checkpoints or name.startswith(PCA_NAME)]
    names = list(dict.fromkeys([*first, *found.consistency]))[:PANELS]
    panels = {
        name: (each.null, each.cosines, each.is_significant) for name in names for each in [found.consistency[name]]
    }
    return {"Consistency of perturbations, beside the null; full circles have p < 0.01": null_panels(panels)}


# -- cells ------------------------------------------------------------------------------------------------------------


def read_screen(
    adata: "AnnData", tokenizer: "ExpressionTokenizer", options: RepresentationOptions, say: Callable[[str], object]
) -> tuple["AnnData", Screen, int]:
    """Return the cells that are judged, what is known of them, and how many are left out.

    Cells without a perturbation or batch are left out, and those of perturbations of fewer than 10 cells.

    Raises:
        ValueError: If a column is missing, a batch has fewer than two control cells, or there are fewer than three
            perturbations.
    """
    keys = [options.perturbation_key, *([] if options.batch_key is None else [options.batch_key])]
    if absent := [key for key in keys if key not in adata.obs]:
        raise ValueError(f"{absent[0]!r} is not in obs; its columns are {', '.join(map(str, adata.obs)) or 'none'}")
    texts = [label_text(adata.obs[key], key) for key in keys]
    names, batches = texts[0], texts[1] if len(texts) > 1 else np.full(adata.n_obs, "all", object)
    controls = CONTROL_NAMES if options.control is None else {options.control.lower()}
    if CONTROL not in controls and (others := sum(name == CONTROL for name in names)):
        raise ValueError(
            f"control is {options.control!r}, and {others:,} cells of obs[{options.perturbation_key!r}] are called "
            f"{CONTROL!r}, which are no controls then: rename them, or leave them out"
        )
    names = np.array([CONTROL if name is not None and name.lower() in controls else name for name in names], object)
    kept = np.array([name is not None and batch is not None for name, batch in zip(names, batches, strict=True)])
    found, sizes = np.unique(names[kept].astype(str), return_counts=True)
    kept &= np.isin(names.astype(str), [CONTROL, *found[sizes >= LEAST_CELLS]])
    if not kept.all():
        say(f"{(~kept).sum():,} of {len(kept):,} cells are left out: they have no perturbation or batch, or one of few")
    names, batches = names[kept].astype(str), batches[kept].astype(str)
    if (number := len(set(names) - {CONTROL})) < LEAST_PERTURBATIONS:
        raise ValueError(
            f"obs[{options.perturbation_key!r}] has {number} perturbations of {LEAST_CELLS} cells besides the control "
            f"cells ({', '.join(sorted(controls))}), and {LEAST_PERTURBATIONS} are needed, to train on and to test"
        )
    list(of_batches(batches, names == CONTROL, least=2))
    adata = adata[kept].copy() if not kept.all() else adata
    values = log_normalise(all_counts(adata, tokenizer))
    values = values[:, np.flatnonzero(np.diff(values.tocsc().indptr))].toarray()
    screen = Screen(names, batches, values, related_perturbations(names, options.relations, tokenizer))
    return adata, screen, int((~kept).sum())


def related_perturbations(
    names: np.ndarray, files: Sequence[str | Path], tokenizer: "ExpressionTokenizer"
) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return for each file of relations the perturbations of single genes and their known pairs, as indices in them.

    Raises:
        ValueError: If a file holds fewer than 50 such pairs.
    """
    if not files:
        return {}
    singles = sorted(set(names) - {CONTROL})
    ids = tokenizer.matcher.match(singles, min_share=0.0).rows
    genes, first = np.unique(ids[ids >= 0], return_index=True)
    of_genes = [np.array(singles)[ids >= 0][row] for row in first]
    return {file_name(file): (of_genes, known_pairs(file, tokenizer, genes)) for file in files}


def split_of(screen: Screen, seed: int) -> Parts:
    """Return the parts of a seed: of the batches and of the perturbations 70 % train, at least one of each tests.

    Two batches test, unless there are two in all, so that their mixing can be told. With one batch, 70 % of the cells
    of each perturbation train, and of the control cells.

    Raises:
        ValueError: If the batches that test have no cell of the perturbations that train, or of the other ones.

    Source: Tx-Evaluation; for few batches and for one our own.
    """
    rng = np.random.default_rng(seed)
    batches, names = rng.permutation(np.unique(screen.batches)), rng.permutation(np.unique(screen.perturbations))
    names = names[names != CONTROL]
    known = names[: max(int(TRAIN_SHARE * len(names)), 2)]
    if len(batches) > 1:
        is_train = np.isin(screen.batches, batches[: max(min(int(TRAIN_SHARE * len(batches)), len(batches) - 2), 1)])
    else:
        is_train = np.zeros(len(screen.batches), bool)
        for name in (CONTROL, *sorted(names)):
            rows = rng.permutation(np.flatnonzero(screen.perturbations == name))
            is_train[rows[: max(int(TRAIN_SHARE * len(rows)), 1)]] = True
    is_known = np.isin(screen.perturbations, known)
    train = np.flatnonzero(is_train & (is_known | screen.is_control))
    is_learned = np.isin(screen.perturbations, screen.perturbations[train])
    parts = Parts(train, np.flatnonzero(~is_train & is_learned), np.flatnonzero(~is_train & ~is_known))
    if screen.is_control[parts.probed].all() or screen.is_control[parts.decoded].all():
        raise ValueError(
            f"the batches that test with seed {seed} have {(~screen.is_control[parts.probed]).sum()} cells of the "
            f"perturbations that train and {(~screen.is_control[parts.decoded]).sum()} of others: perturbations have "
            f"to be in several batches; leave batch_key out, or give other batches"
        )
    return parts


# -- scores -----------------------------------------------------------------------------------------------------------


def judge(
    found: Found, title: str, method: str, embedding: np.ndarray, screen: Screen, parts: Parts, seed: int, run: Run
) -> None:
    """Add the metrics of an embedding `(C, D)` with one post-processing and one seed."""
    consistency = perturbation_consistency(embedding, screen.perturbations, screen.batches, screen.is_control, seed)
    if title == next(iter(POST_PROCESSING)):
        found.consistency.setdefault(method, consistency)
    metrics = probed(embedding, screen, parts, seed, run)
    metrics[CONSISTENT] = of_units(consistency.is_significant)
    batches = screen.batches[parts.probed]
    if len(set(batches)) > 1:
        metrics[MIXED] = of_units(ilisi(embedding[parts.probed], batches, seed))
    truth, test = screen.values[parts.decoded], parts.decoded
    predicted = decoded(embedding[parts.train], screen.values[parts.train], embedding[test], seed)
    metrics[GENES] = of_units(gene_correlations(truth, predicted))
    integrity = structural_integrity(truth, predicted, screen.batches[test], screen.is_control[test])
    metrics[INTEGRITY] = integrity, len(test)
    for name, (perturbed, pairs) in screen.related.items():
        means = unit(np.stack([embedding[screen.perturbations == each].mean(0) for each in perturbed]))
        null = (means @ means.T)[np.triu_indices(len(means), 1)]
        recall = recall_of(is_recalled(means, pairs, null), pairs, len(means))
        metrics[f"relation recall, {name}"] = recall, len(means)
    for metric, statistic in metrics.items():
        found.statistics.setdefault((title, method, metric), []).append(statistic)


def of_units(values: np.ndarray) -> tuple[Statistic, int]:
    """Return the mean of values of test units as a statistic, and the number of units."""
    return mean_of(values), len(values)


def probed(
    embedding: np.ndarray, screen: Screen, parts: Parts, seed: int, run: Run
) -> dict[str, tuple[Statistic, int]]:
    """Return the metrics of the probes. Control cells are a label for k-NN, and no part of the linear probe."""
    metrics = {}
    for metric, has_controls in ((LINEAR, False), (NEIGHBORS, True)):
        train, test = (rows[~screen.is_control[rows] | has_controls] for rows in (parts.train, parts.probed))
        names, labels = np.unique(screen.perturbations[train], return_inverse=True)
        if has_controls:
            scores = neighbor_scores(embedding[train], labels, embedding[test], seed)
        else:
            scores = linear_scores(embedding[train], labels, embedding[test], seed, pick_device(run.device))
        metrics[metric] = of_units(hits(scores, np.searchsorted(names, screen.perturbations[test])))
    return metrics


def scores_of(found: Found, data: str, seen: Mapping[str, str]) -> list[Score]:
    """Return the scores with each post-processing, then the best value of each method and metric over these."""
    scores = []
    for (title, method, metric), of_seeds in found.statistics.items():
        statistics, units = zip(*of_seeds, strict=True)
        each = score(TASK, f"{data}, {title}", method, metric, statistics, units, draws=DRAWS)
        scores.append(replace(each, seen=seen[method]))
    order = list(POST_PROCESSING)
    scores.sort(key=lambda each: order.index(each.data.removeprefix(f"{data}, ")))  # stable: methods stay in order
    best: dict[tuple[str, str], Score] = {}
    for each in scores:
        key = each.method, each.metric
        best[key] = max(best.get(key, each), each, key=lambda one: one.value)
    return scores + [replace(each, data=f"{data}, {BEST}") for each in best.values()]
