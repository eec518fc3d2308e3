"""Zero-shot embeddings of cells: are types separate and batches mixed, without any training on these cells?

    cells  ->  embeddings of each method  ->  k-NN, linear probe, clusters, silhouettes, mixing of batches

Methods: checkpoints, the same models before training, PCA of the corpus, PCA of variable genes, scVI if it is
installed, and random numbers as a control. Each says how many of the cells it was trained on. Sources: Kedzierska et
al. 2025 (zero-shot protocol), scIB (metrics), cz-benchmarks (probes).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ... import families
from ...inference.cell_model import CellModel
from ...inference.devices import pick_device
from ...inference.options import Running
from ...inference.saved import Saved
from ...options import Option, group
from ...training.data.corpus import read_corpus
from ..measures.baselines import COMPONENTS, PCA_NAME, SCVI_NAME, scvi_latent, scvi_version, variable_components
from ..measures.corpus_pca import CORPUS_PCA_NAME, CorpusPCA
from ..measures.probes import CLUSTER_DRAWS, columns, embedding_statistics, probe_statistics, refuse_twins, say_left_out
from ..measures.results import Score, TaskResult, score
from ..measures.trained_on import NOT_KNOWN, TrainedOn, seen_of
from ..report.maps import umap
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData

    from ...tokenization.expression_xtrimogene import ExpressionTokenizer
    from ...tokenization.panel_xtrimogene import PanelCounts


RUN = Run(seeds=(0, 1, 2))
PROTOCOL = (
    "No training on these cells. k-NN (15 neighbours) and a linear probe (logistic regression) predict labels "
    "{split}; ARI and NMI compare k-means clusters, as many as labels, with the labels; silhouettes (ASW) and the "
    "mixing of batches among the 50 nearest cells (entropy over that of the whole, 1 = fully mixed) need no "
    "prediction. ASW of batches is taken within each label that has several batches, as in scIB, but as the mean "
    "over cells. Beside the checkpoints stand the same models before training, PCA of the corpus (50 components of "
    "the cells that a checkpoint was pre-trained on, all genes, where they are known), PCA of 2,000 variable genes, "
    "scVI on the same genes where it is installed (trained on these cells; told their batches if there are any, not "
    "their labels), and random numbers. Labels with fewer than 10 cells are left out. Intervals: 95 %, bootstrap over "
    "cells. {seen}"
)
SEEN = (
    "A cell counts as trained on if a training cell has the same counts; the same cell read from a file with other "
    "genes is not recognised."
)
NONE, ALL = "none", "all, without labels"
STORED = "obsm "  # before the key of an embedding of the user
BASELINES = (PCA_NAME, CORPUS_PCA_NAME, SCVI_NAME)  # they are drawn beside the checkpoints


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
    corpus: Annotated[
        str | None,
        Option("Folder from `xtrimogene convert`, to whose cells PCA of the corpus is fitted.", default="none"),
    ] = None
    obsm: Annotated[Sequence[str], Option("Keys of obsm with other embeddings, whose distances are as they are.")] = ()


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a method.

    Attributes:
        values: Embeddings, `(cells, D)`.
        seen: How many of these cells the method was trained on, as `0 of 1,000`.
        is_scaled: Whether features are standardised before distances are taken. Those of principal components and of
            anchored models are not, because their scale separates signal from noise.
    """

    values: np.ndarray
    seen: str
    is_scaled: bool = True


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
        checkpoints: Name -> folder or Hub name; may be empty if there are embeddings in obsm.
        options: Options of the task.
        run: Seeds of folds and clusters; the first is also the seed of untrained models and random numbers.

    Raises:
        FileNotFoundError: If there is no corpus where `options.corpus` says.
        ValueError: If neither a label nor a batch column is given, a column is missing or has a single value, the
            corpus is of another panel, or obsm holds no such embedding.

    Example:
        >>> options = EmbeddingOptions(label_key="cell_type")
        >>> result = evaluate_embedding(adata, "blood", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    seeds, say = run.seeds, run.say
    labels, batches, keep = columns(adata, options.label_key, options.batch_key)
    say_left_out(keep, say)
    adata = adata[keep].copy() if not keep.all() else adata
    found = cell_embeddings(adata, checkpoints, batches, options.corpus, run, options.obsm)
    first = next(iter(found))
    seen = {method: each.seen for method, each in found.items()} | {f"{first}, shuffled labels": found[first].seen}
    statistics: dict[tuple[str, str], list[Callable[[np.ndarray], float]]] = {}
    for seed in run.parts(seeds):
        say(f"seed {seed}: {len(found)} embeddings")
        of_methods = {
            method: embedding_statistics(each.values, labels, batches, seed, standardize=each.is_scaled)
            for method, each in found.items()
        }
        if labels is not None:
            shuffled = np.random.default_rng(seed).permutation(labels)
            own = found[first]
            of_methods[f"{first}, shuffled labels"] = probe_statistics(
                own.values, shuffled, batches, seed, own.is_scaled
            )
        for method, of_metrics in of_methods.items():
            for metric, statistic in of_metrics.items():
                statistics.setdefault((method, metric), []).append(statistic)
    scores: list[Score] = []
    for (method, metric), of_seeds in statistics.items():
        draws = CLUSTER_DRAWS if metric in ("ARI", "NMI") else 1_000
        found_score = score(
            "zero-shot embedding", data, method, metric, of_seeds, [adata.n_obs] * len(of_seeds), draws=draws
        )
        scores.append(replace(found_score, seen=seen[method]))
    pictures: dict[str, Any] = {}
    drawn = {
        name: each.values
        for name, each in found.items()
        if name in checkpoints or name.startswith((*BASELINES, STORED))
    }
    for key, values in (("labels", labels), ("batches", batches)):
        if values is not None:
            pictures[f"UMAP, coloured by {key}"] = umap(drawn, values.tolist())
    split = "of batches that they have not seen" if batches is not None else "in five folds"
    settings = {
        "seeds": list(seeds), "cells": adata.n_obs, "left out": int((~keep).sum()), "labels": options.label_key,
        "batches": options.batch_key,
    }  # fmt: skip
    settings |= {"scvi-tools": scvi_version()} if SCVI_NAME in found else {}
    settings |= {"corpus": options.corpus} if options.corpus else {}
    protocol = PROTOCOL.format(split=split, seen=SEEN)
    return TaskResult("zero-shot embedding", data, protocol, scores, pictures, settings)


def cell_embeddings(
    adata: "AnnData",
    checkpoints: Mapping[str, str],
    batches: np.ndarray | None,
    corpus: str | None,
    run: Run,
    obsm: Sequence[str] = (),
) -> dict[str, Embedded]:
    """Return method -> embeddings, the checkpoints first, then those of `obsm`.

    Raises:
        ValueError: If a checkpoint gives no embedding for some cells, because they have no counts on its panel, two
            cells have the same counts, or `obsm` holds no such embedding.
    """
    seed, say = run.seeds[0], run.say
    found: dict[str, Embedded] = {}
    untrained: dict[str, Embedded] = {}
    of_corpora: dict[str, Embedded] = {}
    for name, path in checkpoints.items():
        loaded, cells = opened(name, path, adata, run)
        is_scaled = not loaded.has_own_scale
        found[name] = Embedded(embed_all(loaded, cells, name), seen_by(path, loaded, cells), is_scaled)
        if (alone := loaded.without_encoder()) is not None:
            say(f"embedding {adata.n_obs:,} cells by the bag of genes of {name}")
            found[f"bag of genes of {name}"] = Embedded(embed_all(alone, cells, name), found[name].seen, is_scaled)
        say(f"embedding {adata.n_obs:,} cells by {name}, not trained")
        untrained[f"{name}, not trained"] = Embedded(embed_all(loaded.untrained(seed), cells, name), NONE, is_scaled)
        of_corpora |= corpus_components(name, path, loaded, cells)
    tokenizer = first_tokenizer(checkpoints)
    if corpus is not None:
        of_corpora |= components_from(corpus, tokenizer, tokenizer.read_counts(adata), seed)
    counts = all_counts(adata, tokenizer)
    refuse_twins(counts)
    found |= {f"{STORED}{key}": Embedded(stored(adata, key), NOT_KNOWN, is_scaled=False) for key in obsm}
    found |= untrained | of_corpora | {PCA_NAME: Embedded(variable_components(counts, seed), ALL, is_scaled=False)}
    if scvi_version() is not None:
        say(f"training scVI on {adata.n_obs:,} cells")
        latent = scvi_latent(counts, batches, seed, pick_device(run.device))
        found[SCVI_NAME] = Embedded(latent, ALL, is_scaled=False)
    rng = np.random.default_rng(seed)
    return found | {"random numbers": Embedded(rng.normal(size=(adata.n_obs, COMPONENTS)).astype(np.float32), NONE)}


def first_tokenizer(checkpoints: Mapping[str, str]) -> "ExpressionTokenizer":
    """Return the tokenizer of the first checkpoint, or the default one if there is none."""
    for path in checkpoints.values():
        return Saved.of(path).tokenizer()
    return families.DEFAULT.tokenizer.default()


def all_counts(adata: "AnnData", tokenizer: "ExpressionTokenizer") -> Any:
    """Return counts of all genes in the cells, those that are not on the panel too, CSR `(cells, genes)`."""
    source = tokenizer.find_columns(adata)
    return source.rows(0, source.n_cells)


def stored(adata: "AnnData", key: str) -> np.ndarray:
    """Return an embedding `(cells, D)` of obsm.

    Raises:
        ValueError: If there is none of this key, or it is no table of finite numbers.
    """
    if key not in adata.obsm:
        raise ValueError(f"obsm has no {key!r}, it holds {', '.join(map(str, adata.obsm)) or 'nothing'}")
    values = adata.obsm[key]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise ValueError(
            f"obsm[{key!r}] has the shape {values.shape} of {values.dtype}: give numbers, cells x features"
        )
    if num_bad := int((~np.isfinite(values)).any(axis=1).sum()):
        raise ValueError(f"obsm[{key!r}] is not finite in {num_bad:,} of {len(values):,} cells: leave these cells out")
    return values.astype(np.float32)


def opened(name: str, path: str, adata: "AnnData", run: Run) -> tuple[CellModel, Any]:
    """Return the checkpoint `name` on the device of the run, and the cells on its panel."""
    loaded = CellModel.load(path, Running(device=run.device))
    cells = loaded.read(adata)
    run.say(f"{name}: {cells.description}")
    run.say(f"embedding {adata.n_obs:,} cells by {name}")
    return loaded, cells


def seen_by(path: str, loaded: CellModel, cells: "PanelCounts") -> str:
    """Return how many of the cells a checkpoint was pre-trained on; `not known` if it does not say."""
    return seen_of(TrainedOn.load(path, loaded.tokenizer), cells)


def corpus_components(name: str, path: str, loaded: CellModel, cells: "PanelCounts") -> dict[str, Embedded]:
    """Return the components that lie beside the checkpoint `name`, under the name of their row; none if there are none.

    They are fitted to some of its training cells, so that they have seen no cell that it has not.
    """
    found = CorpusPCA.load(path, loaded.tokenizer)
    if found is None:
        return {}
    seen = seen_by(path, loaded, cells)
    return {f"{CORPUS_PCA_NAME} of {name}": Embedded(found.transform(cells), seen, is_scaled=False)}


def components_from(
    corpus: str, tokenizer: "ExpressionTokenizer", cells: "PanelCounts", seed: int
) -> dict[str, Embedded]:
    """Return components fitted to a corpus, under the name of their row.

    Raises:
        FileNotFoundError: If there is no corpus.
        ValueError: If it was made for another panel than the tokenizer's.
    """
    dataset = read_corpus(corpus, tokenizer)
    found = CorpusPCA.fit(dataset, tokenizer, seed)
    seen = TrainedOn.of(dataset, tokenizer).share_of(cells)
    return {CORPUS_PCA_NAME: Embedded(found.transform(cells), seen, is_scaled=False)}


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
