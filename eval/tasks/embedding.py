"""Zero-shot embeddings of cells: are types separate and batches mixed, without any training on these cells?

    cells  ->  embeddings of each method  ->  k-NN, linear probe, clusters, silhouettes, mixing of batches

Methods: checkpoints, the same models before training, PCA of variable genes, scVI if it is installed, and random
numbers as a control. Sources: Kedzierska et al. 2025 (zero-shot protocol), scIB (metrics), cz-benchmarks (probes).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...inference.cell_model import CellModel
from ...inference.devices import pick_device
from ...inference.options import Running
from ...options import Option, group
from ..measures.baselines import COMPONENTS, PCA_NAME, SCVI_NAME, scvi_latent, scvi_version, variable_components
from ..measures.probes import CLUSTER_DRAWS, columns, embedding_statistics, probe_statistics, refuse_twins, say_left_out
from ..measures.results import Score, TaskResult, score
from ..report.pictures import umap
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData


RUN = Run(seeds=(0, 1, 2))
PROTOCOL = (
    "No training on these cells. k-NN (15 neighbours) and a linear probe (logistic regression) predict labels "
    "{split}; ARI and NMI compare k-means clusters, as many as labels, with the labels; silhouettes (ASW) and the "
    "mixing of batches among the 50 nearest cells (entropy over that of the whole, 1 = fully mixed) need no "
    "prediction. ASW of batches is taken within each label that has several batches, as in scIB, but as the mean "
    "over cells. Beside the checkpoints stand the same models before training, PCA of 2,000 variable genes, scVI "
    "on the same genes where it is installed (trained on these cells; told their batches if there are any, not "
    "their labels), and random numbers. Labels with fewer than 10 cells are left out. Intervals: 95 %, bootstrap over "
    "cells."
)


@group
class EmbeddingOptions(DrawnCells):
    """Options of the embedding task: score by labels, by batches or by both.

    >>> EmbeddingOptions(label_key="cell_type").batch_key
    """

    label_key: Annotated[
        str | None,
        Option("Column of obs with labels; cells without a label, or of one with fewer than 10 cells, are left out."),
    ] = None
    batch_key: Annotated[
        str | None,
        Option("Column of obs with donors, batches or studies: then probes are tested on batches they have not seen."),
    ] = None


def evaluate_embedding(
    adata: "AnnData",
    data: str,
    checkpoints: Mapping[str, str],
    options: EmbeddingOptions,
    run: Run = RUN,
) -> TaskResult:
    """Score zero-shot embeddings of cells.

    Args:
        adata: Cells with counts.
        data: Name of the data set.
        checkpoints: Name -> folder or Hub name.
        options: Options of the task.
        run: Seeds of folds and clusters; the first is also the seed of untrained models and random numbers.

    Raises:
        ValueError: If neither a label nor a batch column is given, or a column is missing or has a single value.

    Example:
        >>> options = EmbeddingOptions(label_key="cell_type")
        >>> result = evaluate_embedding(adata, "blood", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    seeds, say = run.seeds, run.say
    labels, batches, keep = columns(adata, options.label_key, options.batch_key)
    say_left_out(keep, say)
    adata = adata[keep].copy() if not keep.all() else adata
    found = cell_embeddings(adata, checkpoints, batches, run)
    statistics: dict[tuple[str, str], list[Callable[[np.ndarray], float]]] = {}
    for seed in seeds:
        say(f"seed {seed}: {len(found)} embeddings")
        of_methods = {
            method: embedding_statistics(values, labels, batches, seed, standardize=method not in (PCA_NAME, SCVI_NAME))
            for method, values in found.items()
        }
        if labels is not None:
            first, shuffled = next(iter(found)), np.random.default_rng(seed).permutation(labels)
            of_methods[f"{first}, shuffled labels"] = probe_statistics(found[first], shuffled, batches, seed)
        for method, of_metrics in of_methods.items():
            for metric, statistic in of_metrics.items():
                statistics.setdefault((method, metric), []).append(statistic)
    scores: list[Score] = []
    for (method, metric), of_seeds in statistics.items():
        draws = CLUSTER_DRAWS if metric in ("ARI", "NMI") else 1_000
        scores.append(
            score("zero-shot embedding", data, method, metric, of_seeds, [adata.n_obs] * len(of_seeds), draws=draws)
        )
    pictures: dict[str, Any] = {}
    drawn = {name: values for name, values in found.items() if name in (*checkpoints, PCA_NAME, SCVI_NAME)}
    for key, values in (("labels", labels), ("batches", batches)):
        if values is not None:
            pictures[f"UMAP, coloured by {key}"] = umap(drawn, values.tolist())
    split = "of batches that they have not seen" if batches is not None else "in five folds"
    settings = {
        "seeds": list(seeds), "cells": adata.n_obs, "left out": int((~keep).sum()), "labels": options.label_key,
        "batches": options.batch_key,
    }  # fmt: skip
    settings |= {"scvi-tools": scvi_version()} if SCVI_NAME in found else {}
    return TaskResult("zero-shot embedding", data, PROTOCOL.format(split=split), scores, pictures, settings)


def cell_embeddings(
    adata: "AnnData", checkpoints: Mapping[str, str], batches: np.ndarray | None, run: Run
) -> dict[str, np.ndarray]:
    """Return method -> embeddings `(cells, D)`, the checkpoints first.

    Raises:
        ValueError: If a checkpoint gives no embedding for some cells, because they have no counts on its panel.
    """
    seed, say = run.seeds[0], run.say
    found: dict[str, np.ndarray] = {}
    untrained: dict[str, np.ndarray] = {}
    for name, path in checkpoints.items():
        loaded = CellModel.load(path, Running(device=run.device))
        cells = loaded.read(adata)
        say(f"{name}: {cells.description}")
        for title, model in {name: loaded, f"{name}, not trained": loaded.untrained(seed)}.items():
            say(f"embedding {adata.n_obs:,} cells by {title}")
            (found if title == name else untrained)[title] = embed_all(model, cells, name)
    counts = cells.source.rows(0, cells.n_cells)
    refuse_twins(counts)
    found |= untrained | {PCA_NAME: variable_components(counts, seed)}
    if scvi_version() is not None:
        say(f"training scVI on {adata.n_obs:,} cells")
        found[SCVI_NAME] = scvi_latent(counts, batches, seed, pick_device(run.device))
    rng = np.random.default_rng(seed)
    return found | {"random numbers": rng.normal(size=(adata.n_obs, COMPONENTS)).astype(np.float32)}


def embed_all(model: CellModel, cells: Any, name: str) -> np.ndarray:
    """Return embeddings `(cells, D)` of all cells.

    Raises:
        ValueError: If cells have no counts on the panel of the checkpoint `name`.
    """
    embedding = model.embed(cells)
    num_empty = int(np.isnan(embedding).any(axis=1).sum())
    if num_empty:
        raise ValueError(
            f"{num_empty} of {cells.n_cells:,} cells have no counts on the panel of {name}: leave them out, e.g. "
            f"scanpy.pp.filter_cells(adata, min_counts=1)"
        )
    return embedding
