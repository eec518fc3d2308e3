"""Labels of the nearest reference cells."""

from collections.abc import Sequence

import numpy as np


def label_probabilities(
    reference: np.ndarray,
    labels: Sequence[str] | np.ndarray,
    query: np.ndarray,
    n_neighbors: int = 15,
    standardize: bool = True,
) -> tuple[np.ndarray, list[str]]:
    """Return the share of the nearest reference cells with each label, and the label names.

    Features are standardised by the reference, so that none dominates the distance. Principal components and embeddings
    of anchored models must not be standardised, because their scale separates signal from noise.

    Args:
        reference: Embeddings of the labelled cells, `(cells, D)`; NaN rows are left out.
        labels: Labels of these cells.
        query: Embeddings of the cells to label, `(cells, D)`; NaN rows stay NaN.
        n_neighbors: Cells that vote, nearer ones with more weight.
        standardize: Whether to standardise features.

    Example:
        >>> reference, labels = np.array([[0.0], [1.0], [9.0]]), ["B", "B", "T"]
        >>> label_probabilities(reference, labels, np.array([[8.0]]), n_neighbors=1)
        (array([[0., 1.]]), ['B', 'T'])
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.asarray(labels)
    is_known = ~np.isnan(reference).any(axis=1)
    voters = KNeighborsClassifier(min(n_neighbors, int(is_known.sum())), weights="distance")
    pipeline = make_pipeline(StandardScaler() if standardize else "passthrough", voters).fit(
        reference[is_known], labels[is_known]
    )
    is_there = ~np.isnan(query).any(axis=1)
    probabilities = np.full((len(query), len(pipeline.classes_)), np.nan)
    if is_there.any():
        probabilities[is_there] = pipeline.predict_proba(query[is_there])
    return probabilities, [str(name) for name in pipeline.classes_]
