"""Zero-shot embeddings of cells: do types lie together, and batches on top of each other, without any training?

    cells  ->  embeddings of each method  ->  k-NN, linear probe, clusters, silhouettes, mixing of batches

Methods: checkpoints, the same models before training, PCA of variable genes, scVI where it is installed, and random
numbers as the lower end.
Sources: Kedzierska et al. 2025 (zero-shot protocol), scIB (metrics), cz-benchmarks (probes).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ..modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneModel
from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
from ..training.labels import label_text
from .baselines import log_normalise
from .inference import embed_cells, pick_device
from .neighbors import label_probabilities
from .pictures import umap
from .results import Score, TaskResult, mean_of, score

if TYPE_CHECKING:
    from anndata import AnnData

NEIGHBORS = 15
PCA_NAME, SCVI_NAME = "PCA of variable genes", "scVI"
VARIABLE_GENES, COMPONENTS = 2_000, 50
FOLDS = 5
LEAST_CELLS = 10  # of a label, as in cz-benchmarks: rarer ones cannot be in every fold
CLUSTER_DRAWS = 100  # bootstrap draws where a draw takes milliseconds
MIXING_NEIGHBORS = 50
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


def evaluate_embedding(
    adata: "AnnData",
    data: str,
    checkpoints: Mapping[str, str],
    *,
    label_key: str | None = None,
    batch_key: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "auto",
    say: Callable[[str], object] = print,
) -> TaskResult:
    """Score zero-shot embeddings of cells.

    Args:
        adata: Cells with counts.
        data: Name of the data set.
        checkpoints: Name -> folder or Hub name.
        label_key: Column of obs with labels; cells without a label, or of one with fewer than 10 cells, are left out.
        batch_key: Column of obs with donors, batches or studies: then probes are tested on batches they have not seen.
        seeds: Of folds and clusters; the first one also of untrained models and random numbers.
        device: See `pick_device`.
        say: Told what is going on.

    Raises:
        ValueError: If there is neither label nor batch, or a column is not there or has a single value.
    """
    labels, batches, keep = columns(adata, label_key, batch_key)
    say_left_out(keep, say)
    adata = adata[keep].copy() if not keep.all() else adata
    found = cell_embeddings(adata, checkpoints, batches, seeds[0], device, say)
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
    some = {name: values for name, values in found.items() if name in (*checkpoints, PCA_NAME, SCVI_NAME)}
    for key, values in (("labels", labels), ("batches", batches)):
        if values is not None:
            pictures[f"UMAP, coloured by {key}"] = umap(some, values.tolist())
    split = "of batches that they have not seen" if batches is not None else "in five folds"
    settings = {
        "seeds": list(seeds), "cells": adata.n_obs, "left out": int((~keep).sum()), "labels": label_key,
        "batches": batch_key,
    }  # fmt: skip
    settings |= {"scvi-tools": scvi_version()} if SCVI_NAME in found else {}
    return TaskResult("zero-shot embedding", data, PROTOCOL.format(split=split), scores, pictures, settings)


def columns(
    adata: "AnnData", label_key: str | None, batch_key: str | None
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray]:
    """Return labels and batches of the cells that are kept, and which these are."""
    import pandas as pd

    texts: dict[str, pd.Series] = {}
    if label_key is None and batch_key is None:
        raise ValueError("embeddings are scored by labels or by batches: give --label-key, --batch-key or both")
    keep = np.ones(adata.n_obs, bool)
    for key in (label_key, batch_key):
        if key is None:
            continue
        if key not in adata.obs:
            raise ValueError(f"{key!r} is not in obs; its columns are {', '.join(map(str, adata.obs)) or 'none'}")
        texts[key] = pd.Series(label_text(adata.obs[key], key))
        keep &= texts[key].notna().to_numpy()
    if label_key is not None:
        numbers = texts[label_key][keep].value_counts()
        keep &= texts[label_key].map(numbers).fillna(0).to_numpy() >= LEAST_CELLS
    found = [None if key is None else texts[key][keep].to_numpy(str) for key in (label_key, batch_key)]
    for key, values in zip((label_key, batch_key), found, strict=True):
        if values is not None and len(set(values)) < 2:
            raise ValueError(
                f"obs[{key!r}] has {len(set(values))} value with at least {LEAST_CELLS} cells in {adata.n_obs:,} "
                f"cells: at least 2 are needed to compare"
            )
    if found[0] is not None and found[1] is not None:
        spread = len(set(zip(*found, strict=True))) - len(set(found[0]))
        if not spread:
            raise ValueError(
                f"each label of obs[{label_key!r}] is in a single batch of obs[{batch_key!r}], so none can be learned "
                f"from other batches: leave --batch-key out, or give donors"
            )
    return found[0], found[1], keep


def say_left_out(keep: np.ndarray, say: Callable[[str], object]) -> None:
    """Say how many cells `columns` does not keep, if any."""
    if not keep.all():
        say(
            f"{(~keep).sum():,} of {len(keep):,} cells are left out: they have no label or batch, or a label that "
            f"fewer than {LEAST_CELLS} cells have"
        )


def cell_embeddings(
    adata: "AnnData",
    checkpoints: Mapping[str, str],
    batches: np.ndarray | None,
    seed: int,
    device: str,
    say: Callable[[str], object],
) -> dict[str, np.ndarray]:
    """Return method -> embeddings `(cells, D)`, the checkpoints first.

    Raises:
        ValueError: If a checkpoint gives no embedding for some cells, because they have no counts on its panel.
    """
    found: dict[str, np.ndarray] = {}
    untrained: dict[str, np.ndarray] = {}
    for name, path in checkpoints.items():
        tokenizer = XTrimoGeneTokenizer.from_pretrained(path)
        cells = tokenizer.read_counts(adata)
        say(f"{name}: {cells.description}")
        torch.manual_seed(seed)
        fresh = XTrimoGeneModel(XTrimoGeneConfig.from_pretrained(path))
        models = {name: XTrimoGeneModel.from_pretrained(path), f"{name}, not trained": fresh}
        for title, model in models.items():
            say(f"embedding {adata.n_obs:,} cells by {title}")
            (found if title == name else untrained)[title] = embed_all(model, tokenizer, cells, name, device)
    counts = cells.source.rows(0, cells.n_cells)
    refuse_twins(counts)
    found |= untrained | {PCA_NAME: variable_components(counts, seed)}
    if scvi_version() is not None:
        say(f"training scVI on {adata.n_obs:,} cells")
        found[SCVI_NAME] = scvi_latent(counts, batches, seed, pick_device(device))
    rng = np.random.default_rng(seed)
    return found | {"random numbers": rng.normal(size=(adata.n_obs, COMPONENTS)).astype(np.float32)}


def embed_all(model: XTrimoGeneModel, tokenizer: XTrimoGeneTokenizer, cells: Any, name: str, device: str) -> np.ndarray:
    """Return embeddings `(cells, D)`, of every cell.

    Raises:
        ValueError: If cells have no counts on the panel of the checkpoint `name`.
    """
    embedding = embed_cells(model.to(pick_device(device)), tokenizer, cells)
    num_empty = int(np.isnan(embedding).any(axis=1).sum())
    if num_empty:
        raise ValueError(
            f"{num_empty} of {cells.n_cells:,} cells have no counts on the panel of {name}: leave them out, e.g. "
            f"scanpy.pp.filter_cells(adata, min_counts=1)"
        )
    return embedding


def linear_probe() -> Any:
    """Return a logistic regression on standardised features, not fitted."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))


def refuse_twins(counts: Any) -> None:
    """Refuse cells that are there twice: the one in training would give away the one in the test.

    Raises:
        ValueError: If two cells have the same counts; the first such cells are named.
    """
    places: dict[tuple[bytes, bytes], list[int]] = {}
    for cell, (start, stop) in enumerate(zip(counts.indptr[:-1], counts.indptr[1:], strict=True)):
        if stop > start:
            key = counts.indices[start:stop].tobytes(), counts.data[start:stop].tobytes()
            places.setdefault(key, []).append(cell)
    twins = [cells for cells in places.values() if len(cells) > 1]
    if twins:
        raise ValueError(
            f"{sum(map(len, twins)):,} of {counts.shape[0]:,} cells have the counts of another cell (cells "
            f"{twins[0][0]:,} and {twins[0][1]:,} first), and would be in training and test: keep one of each"
        )


def variable_genes(values: Any) -> np.ndarray:
    """Return the columns of the 2,000 most variable genes of log-normalised values `(cells, genes)`."""
    from anndata import AnnData
    from scanpy.preprocessing import highly_variable_genes

    expressed = np.flatnonzero(np.diff(values.tocsc().indptr))
    number = min(VARIABLE_GENES, len(expressed))
    table = highly_variable_genes(AnnData(values[:, expressed]), n_top_genes=number, inplace=False)
    return expressed[table["highly_variable"].to_numpy()]


def variable_components(counts: Any, seed: int) -> np.ndarray:
    """Return principal components `(cells, 50)` of the 2,000 most variable genes, log-normalised."""
    from sklearn.decomposition import PCA

    values = log_normalise(counts)
    chosen = values[:, variable_genes(values)]
    return PCA(
        min(COMPONENTS, *(size - 1 for size in chosen.shape)), svd_solver="arpack", random_state=seed
    ).fit_transform(chosen)


def scvi_version() -> str | None:
    """Return the version of scvi-tools, None where it is not installed."""
    try:
        return version("scvi-tools")
    except PackageNotFoundError:
        return None


def scvi_latent(counts: Any, batches: np.ndarray | None, seed: int, device: torch.device) -> np.ndarray:
    """Return the latent means `(cells, 10)` of scVI with its defaults, trained on counts of the 2,000 variable genes.

    Source: Lopez et al. 2018; scvi-tools.
    """
    import scvi
    from anndata import AnnData

    cells = AnnData(counts[:, variable_genes(log_normalise(counts))])
    if batches is not None:
        cells.obs["batch"] = batches
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of lightning, on seeds, devices and services
    try:
        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(cells, batch_key=None if batches is None else "batch")
        model = scvi.model.SCVI(cells)
        model.train(accelerator=device.type, devices=1, enable_progress_bar=False)
    finally:
        logging.disable(before)
    return model.get_latent_representation()


def embedding_statistics(
    embedding: np.ndarray,
    labels: np.ndarray | None,
    batches: np.ndarray | None,
    seed: int,
    standardize: bool = True,
) -> dict[str, Callable[[np.ndarray], float]]:
    """Return metric -> function from indices of cells to its value.

    Neighbours are looked for among standardised features, unless told otherwise: those of principal components would
    be noise as much as signal.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples

    statistics: dict[str, Callable[[np.ndarray], float]] = {}
    if labels is not None:
        statistics |= probe_statistics(embedding, labels, batches, seed, standardize)
        clusters = KMeans(len(set(labels)), n_init=5, random_state=seed).fit_predict(embedding)
        statistics["ARI"] = lambda rows: float(adjusted_rand_score(labels[rows], clusters[rows]))
        statistics["NMI"] = lambda rows: float(normalized_mutual_info_score(labels[rows], clusters[rows]))
        statistics["ASW of labels"] = mean_of(silhouette_samples(embedding, labels))
    if batches is not None:
        # 1 where batches lie on top of each other; within each label, so that types which differ do not count.
        groups = np.zeros(len(batches), int) if labels is None else np.unique(labels, return_inverse=True)[1]
        mixed = batch_silhouettes(embedding, batches, groups)
        statistics["ASW of batches"] = lambda rows: float(np.nanmean(mixed[rows]))
        statistics["mixing of batches"] = mean_of(batch_entropy(embedding, batches, standardize))
    return statistics


def probe_statistics(
    embedding: np.ndarray, labels: np.ndarray, batches: np.ndarray | None, seed: int, standardize: bool = True
) -> dict[str, Callable[[np.ndarray], float]]:
    """Return the scores of k-NN and linear probe, each cell predicted by a probe that has not seen it."""
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold

    splitter: Any = LeaveOneGroupOut()
    if batches is None:
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    names, ids = np.unique(labels, return_inverse=True)
    by_neighbors, by_line = np.full(len(ids), -1), np.full(len(ids), -1)
    for train, test in splitter.split(embedding, ids, batches):
        votes, voters = label_probabilities(embedding[train], ids[train], embedding[test], NEIGHBORS, standardize)
        by_neighbors[test] = np.array(voters, int)[votes.argmax(1)]
        by_line[test] = linear_probe().fit(embedding[train], ids[train]).predict(embedding[test])
    return {
        "k-NN macro-F1": macro_f1_of(ids, by_neighbors, len(names)),
        "linear probe macro-F1": macro_f1_of(ids, by_line, len(names)),
    }


def macro_f1_of(true: np.ndarray, predicted: np.ndarray, num_labels: int) -> Callable[[np.ndarray], float]:
    """Return macro-F1 as a function of which cells, over the labels that are true or predicted for one of them.

    scikit-learn's takes milliseconds, and a bootstrap calls it thousands of times.
    """
    pairs = true * num_labels + predicted

    def statistic(rows: np.ndarray) -> float:
        table = np.bincount(pairs[rows], minlength=num_labels**2).reshape(num_labels, num_labels)
        found = table.sum(0) + table.sum(1)
        return float((2 * table.diagonal()[found > 0] / found[found > 0]).mean())

    return statistic


def batch_silhouettes(embedding: np.ndarray, batches: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return 1 - |silhouette of the batch| of each cell within its group; NaN in groups of one batch.

    Source: scIB, ASW of batches.
    """
    from sklearn.metrics import silhouette_samples

    mixed = np.full(len(batches), np.nan)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if 1 < len(set(batches[rows])) < len(rows):
            mixed[rows] = 1 - np.abs(silhouette_samples(embedding[rows], batches[rows]))
    return mixed


def batch_entropy(embedding: np.ndarray, batches: np.ndarray, standardize: bool = True) -> np.ndarray:
    """Return for each cell the entropy of the batches of its 50 nearest cells, over that of the whole data set.

    Source: cz-benchmarks, entropy per cell.
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    names, ids = np.unique(batches, return_inverse=True)
    scaled = StandardScaler().fit_transform(embedding) if standardize else embedding
    nearest = NearestNeighbors(n_neighbors=min(MIXING_NEIGHBORS, len(ids) - 1)).fit(scaled).kneighbors()[1]
    shares = np.stack([(ids[nearest] == batch).mean(1) for batch in range(len(names))], axis=1)
    whole = np.bincount(ids) / len(ids)
    return entropy(shares) / entropy(whole[None])


def entropy(shares: np.ndarray) -> np.ndarray:
    """Return the entropy of rows of shares, in nats."""
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
