"""Embeddings of cells: are labels separate, and batches mixed?"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples, silhouette_score

DESCRIPTION = """
Scores of embeddings against labels of cells. Unless clusters are given, k-means makes as many as there are labels.
Silhouettes need no clusters.
"""
INPUTS = """
Args:
    predictions: Embedding of each cell.
    references: Label of each cell, names or numbers.
    batches: Batch of each cell, if batches are to be scored.
    clusters: Cluster of each cell; from k-means unless given.
    seed: Seed of k-means.

Returns:
    `ari` and `nmi`: adjusted Rand index and normalised mutual information of clusters and labels. `asw_label`: mean
    silhouette of the labels, from -1 to 1. With batches `asw_batch`: 1 - |silhouette of the batch| among the cells of a
    label, mean over its cells, then over the labels that lie in several batches; 1 is mixed, NaN if no label does.

Example:
    >>> metric.compute(predictions=[[0.0], [1.0], [8.0], [9.0]], references=["B", "B", "T", "T"])["ari"]
    1.0
"""
CITATION = (
    "Luecken et al. 2022, Nature Methods 19:41 (scIB): the metrics. asw_label is not rescaled to 0 to 1 as there."
)


class EmbeddingClusters(evaluate.Metric):
    """Score embeddings of cells."""

    def _info(self) -> evaluate.MetricInfo:
        embedding = datasets.Sequence(datasets.Value("float64"))
        kinds = [datasets.Value("string"), datasets.Value("int64")]
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[datasets.Features({"predictions": embedding, "references": kind}) for kind in kinds],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Any],
        batches: Sequence[Any] | None = None,
        clusters: Sequence[Any] | None = None,
        seed: int = 0,
    ) -> dict[str, float]:
        embedding, labels = np.array(predictions), np.array(references)
        num_labels = len(set(references))
        if not 1 < num_labels < len(labels):
            raise ValueError(
                f"{len(labels)} cells have {num_labels} labels: give at least 2 labels, and fewer than cells"
            )
        for name, given in {"batches": batches, "clusters": clusters}.items():
            if given is not None and len(given) != len(labels):
                raise ValueError(f"{name} has {len(given)} values for {len(labels)} cells: give one for each cell")
        if clusters is None:
            clusters = KMeans(num_labels, n_init=50, random_state=seed).fit_predict(embedding)
        scores = {
            "ari": float(adjusted_rand_score(labels, clusters)),
            "nmi": float(normalized_mutual_info_score(labels, clusters)),
            "asw_label": float(silhouette_score(embedding, labels)),
        }
        if batches is not None:
            scores["asw_batch"] = asw_batch(embedding, labels, np.asarray(batches))
        return scores


def asw_batch(embedding: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> float:
    """Return the mean over labels of 1 - |silhouette of the batch|; labels in one batch do not count."""
    of_labels = []
    for label in np.unique(labels):
        is_label = labels == label
        if 1 < len(set(batches[is_label].tolist())) < is_label.sum():
            of_labels.append(np.mean(1 - np.abs(silhouette_samples(embedding[is_label], batches[is_label]))))
    return float(np.mean(of_labels)) if of_labels else float("nan")
