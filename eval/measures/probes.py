"""Metrics of embeddings: probes for labels, clusters, silhouettes, and mixing of batches."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...inference.neighbors import label_probabilities
from ...tokenization.labels import label_text
from .results import mean_of

if TYPE_CHECKING:
    from anndata import AnnData


NEIGHBORS = 15
FOLDS = 5
LEAST_CELLS = 10  # smallest number of cells of a label, as in cz-benchmarks: rarer ones are not in every fold
CLUSTER_DRAWS = 100  # bootstrap draws for metrics of clusters, which take milliseconds a draw
MIXING_NEIGHBORS = 50
STARTS = 50  # of k-means; with 5 starts ARI of one embedding of blood was anything from .5 to .8, with 50 it stays


def columns(
    adata: "AnnData", label_key: str | None, batch_key: str | None
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray]:
    """Return labels and batches of the kept cells, and whether each cell is kept, `(cells,)`.

    A cell is kept if it has a label and a batch, as far as asked for, and its label has at least 10 cells.

    Args:
        adata: Cells.
        label_key: Column of `obs` with labels; None for no labels.
        batch_key: Column of `obs` with batches; None for no batches.

    Raises:
        ValueError: If neither key is given, a column is missing or has a single value, or each label is in one batch.
    """
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
    """Call `say` with the number of cells that `columns` does not keep, unless it is 0."""
    if not keep.all():
        say(
            f"{(~keep).sum():,} of {len(keep):,} cells are left out: they have no label or batch, or a label that "
            f"fewer than {LEAST_CELLS} cells have"
        )


def linear_probe() -> Any:
    """Return an unfitted logistic regression on standardised features.

    Example:
        >>> embedding = np.random.default_rng(0).normal(size=(40, 3)) + 9 * np.repeat([[0.0], [1.0]], 20, axis=0)
        >>> labels = np.repeat(["B", "T"], 20)
        >>> linear_probe().fit(embedding, labels).score(embedding, labels)
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))


def refuse_twins(counts: Any) -> None:
    """Check that no two cells have the same counts: a training cell would give away the label of its copy in the test.

    Args:
        counts: Counts, CSR `(cells, G)`.

    Raises:
        ValueError: If two cells have the same counts.

    Example:
        >>> from scipy.sparse import csr_matrix
        >>> refuse_twins(csr_matrix([[1, 0], [0, 2], [1, 0]]))
        Traceback (most recent call last):
        ValueError: 2 of 3 cells have the counts of another cell (cells 0 and 2 first), ...
    """
    cells_of: dict[tuple[bytes, bytes], list[int]] = {}
    for cell, (start, stop) in enumerate(zip(counts.indptr[:-1], counts.indptr[1:], strict=True)):
        if stop > start:
            key = counts.indices[start:stop].tobytes(), counts.data[start:stop].tobytes()
            cells_of.setdefault(key, []).append(cell)
    twins = [cells for cells in cells_of.values() if len(cells) > 1]
    if twins:
        raise ValueError(
            f"{sum(map(len, twins)):,} of {counts.shape[0]:,} cells have the counts of another cell (cells "
            f"{twins[0][0]:,} and {twins[0][1]:,} first), and would be in training and test: keep one of each"
        )


def embedding_statistics(
    embedding: np.ndarray,
    labels: np.ndarray | None,
    batches: np.ndarray | None,
    seed: int,
    standardize: bool = True,
) -> dict[str, Callable[[np.ndarray], float]]:
    """Return metric -> function from indices of cells to its value.

    Args:
        embedding: Embedding of the cells, `(cells, D)`.
        labels: Label of each cell; None for no metrics of labels.
        batches: Batch of each cell; None for no metrics of batches.
        seed: Seed of folds and clusters.
        standardize: Whether features are standardised before nearest neighbours are searched. Do not standardise
            principal components: the last ones are mostly noise.

    Example:
        >>> embedding = np.random.default_rng(0).normal(size=(40, 3)) + 9 * np.repeat([[0.0], [1.0]], 20, axis=0)
        >>> labels = np.repeat(["B", "T"], 20)
        >>> statistics = embedding_statistics(embedding, labels, batches=None, seed=0)
        >>> statistics["ARI"](np.arange(40))
        1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples

    statistics: dict[str, Callable[[np.ndarray], float]] = {}
    if labels is not None:
        statistics |= probe_statistics(embedding, labels, batches, seed, standardize)
        clusters = KMeans(len(set(labels)), n_init=STARTS, random_state=seed).fit_predict(embedding)
        statistics["ARI"] = lambda rows: float(adjusted_rand_score(labels[rows], clusters[rows]))
        statistics["NMI"] = lambda rows: float(normalized_mutual_info_score(labels[rows], clusters[rows]))
        statistics["ASW of labels"] = mean_of(silhouette_samples(embedding, labels))
    if batches is not None:
        # 1 if batches overlap. It is computed within each label, so that differences between types do not count.
        groups = np.zeros(len(batches), int) if labels is None else np.unique(labels, return_inverse=True)[1]
        mixed = batch_silhouettes(embedding, batches, groups)
        statistics["ASW of batches"] = lambda rows: float(np.nanmean(mixed[rows]))
        statistics["mixing of batches"] = mean_of(batch_entropy(embedding, batches, standardize))
    return statistics


def probe_statistics(
    embedding: np.ndarray, labels: np.ndarray, batches: np.ndarray | None, seed: int, standardize: bool = True
) -> dict[str, Callable[[np.ndarray], float]]:
    """Return the macro-F1 of k-NN and of a linear probe; each cell is predicted by a probe trained without it."""

    def by_line(train: np.ndarray, known: np.ndarray, test: np.ndarray) -> np.ndarray:
        return linear_probe().fit(train, known).predict(test)

    return {
        "k-NN macro-F1": neighbor_statistic(embedding, labels, batches, seed, standardize),
        "linear probe macro-F1": held_out_macro_f1(by_line, embedding, labels, batches, seed),
    }


def neighbor_statistic(
    embedding: np.ndarray, labels: np.ndarray, batches: np.ndarray | None, seed: int, standardize: bool = True
) -> Callable[[np.ndarray], float]:
    """Return the macro-F1 of k-NN, which takes a small part of the time of `probe_statistics`."""

    def by_neighbors(train: np.ndarray, known: np.ndarray, test: np.ndarray) -> np.ndarray:
        votes, voters = label_probabilities(train, known, test, NEIGHBORS, standardize)
        return np.array(voters, int)[votes.argmax(1)]

    return held_out_macro_f1(by_neighbors, embedding, labels, batches, seed)


def held_out_macro_f1(
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    embedding: np.ndarray,
    labels: np.ndarray,
    batches: np.ndarray | None,
    seed: int,
) -> Callable[[np.ndarray], float]:
    """Return the macro-F1 of labels that are predicted from the cells of other batches, or of other folds.

    Args:
        predict: Takes embeddings that train, their labels as integers, and embeddings that test; returns labels.
        embedding: Embedding of the cells, `(cells, D)`.
        labels: Label of each cell, `(cells,)`.
        batches: Batch of each cell; None for random folds.
        seed: Seed of the folds.
    """
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold

    splitter: Any = LeaveOneGroupOut()
    if batches is None:
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    names, ids = np.unique(labels, return_inverse=True)
    predicted = np.full(len(ids), -1)
    for train, test in splitter.split(embedding, ids, batches):
        predicted[test] = predict(embedding[train], ids[train], embedding[test])
    return macro_f1_of(ids, predicted, len(names))


def macro_f1_of(true: np.ndarray, predicted: np.ndarray, num_labels: int) -> Callable[[np.ndarray], float]:
    """Return a function from indices of cells to macro-F1 over the labels that are true or predicted for one of them.

    It is faster than scikit-learn's, which matters because a bootstrap calls it thousands of times.

    Example:
        >>> round(macro_f1_of(np.array([0, 0, 1]), np.array([0, 1, 1]), num_labels=2)(np.arange(3)), 2)
        0.67
    """
    pairs = true * num_labels + predicted

    def statistic(rows: np.ndarray) -> float:
        table = np.bincount(pairs[rows], minlength=num_labels**2).reshape(num_labels, num_labels)
        found = table.sum(0) + table.sum(1)
        return float((2 * table.diagonal()[found > 0] / found[found > 0]).mean())

    return statistic


def batch_silhouettes(embedding: np.ndarray, batches: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return for each cell 1 - |silhouette of its batch| within its group; NaN in groups of one batch.

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
    """Return for each cell the entropy of the batches of its 50 nearest cells, divided by that of the whole data set.

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
    """Return the entropy of each row of shares, in nats.

    Example:
        >>> entropy(np.array([[0.5, 0.5], [0.9, 0.1]])).round(2).tolist()
        [0.69, 0.33]
    """
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
