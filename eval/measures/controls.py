"""Post-processing of embeddings by control cells, which takes away what differs between batches.

    embedding (C, D), batches (C,), is_control (C,)  ->  centred, centre_scaled  (C, D);  tvn  (C, K)

Letters: C cells, D width of the embedding, K principal components of the control cells, at most D and less than their
number. Perturbations are not looked at. Source: Tx-Evaluation (Valence Labs), and TxFM, which takes it from there; TVN
is typical variation normalisation (Ando, McLean and Berndl 2017).
"""

from collections.abc import Callable, Iterator

import numpy as np

CONSTANT = 1e-6  # of the mean: features that vary less are the same but for rounding in float32
RIDGE = 0.5  # added to the covariance of the controls of a batch, as in Tx-Evaluation


def as_given(embedding: np.ndarray, batches: np.ndarray, is_control: np.ndarray) -> np.ndarray:
    """Return the embedding as it is."""
    return embedding


def centred(embedding: np.ndarray, batches: np.ndarray, is_control: np.ndarray) -> np.ndarray:
    """Return the embedding less the mean of the control cells of the same batch.

    Args:
        embedding: Embedding of the cells, `(C, D)`.
        batches: Batch of each cell, `(C,)`.
        is_control: Whether each cell is a control cell, bool `(C,)`.

    Raises:
        ValueError: If a batch has no control cell.

    Example:
        >>> embedding = np.array([[1.0], [3.0], [5.0]])
        >>> centred(embedding, np.array(["a", "a", "a"]), np.array([True, True, False])).ravel().tolist()
        [-1.0, 1.0, 3.0]
    """
    embedding = np.asarray(embedding, np.float64)
    found = np.empty_like(embedding)
    for rows, controls in of_batches(batches, is_control, least=1):
        found[rows] = embedding[rows] - embedding[controls].mean(0)
    return found


def centre_scaled(embedding: np.ndarray, batches: np.ndarray, is_control: np.ndarray) -> np.ndarray:
    """Return the embedding standardised by mean and standard deviation of the control cells of the same batch.

    The arguments are those of `centred`. A feature that is the same in all these control cells is only centred.

    Raises:
        ValueError: If a batch has fewer than two control cells.

    Example:
        >>> embedding = np.array([[1.0], [3.0], [5.0]])
        >>> centre_scaled(embedding, np.array(["a", "a", "a"]), np.array([True, True, False])).ravel().tolist()
        [-1.0, 1.0, 3.0]
    """
    found = np.empty(embedding.shape)
    for rows, controls in of_batches(batches, is_control, least=2):
        found[rows] = standardised(embedding[rows], embedding[controls])
    return found


def tvn(embedding: np.ndarray, batches: np.ndarray, is_control: np.ndarray) -> np.ndarray:
    """Return the embedding after typical variation normalisation, in which control cells vary alike in all directions.

    Features are standardised by all control cells, turned into the principal components of these, and standardised by
    them again. The cells of a batch are then multiplied by `(C + 0.5 I)^(-1/2)`, where C is the covariance (ddof 1) of
    its control cells. No mean of a batch is subtracted. The arguments are those of `centred`.

    Returns:
        `(C, K)`: all components in which the control cells vary.

    Raises:
        ValueError: If a batch has fewer than two control cells.

    Example:
        >>> embedding = np.random.default_rng(0).normal(size=(40, 3))
        >>> tvn(embedding, np.repeat(["a", "b"], 20), np.arange(40) % 2 == 0).shape
        (40, 3)
    """
    scaled = standardised(embedding, embedding[is_control])
    turned = on_components_of(scaled[is_control], scaled)
    turned = standardised(turned, turned[is_control])
    found = np.empty_like(turned)
    for rows, controls in of_batches(batches, is_control, least=2):
        covariance = np.atleast_2d(np.cov(turned[controls], rowvar=False, ddof=1))
        values, vectors = np.linalg.eigh(covariance + RIDGE * np.eye(turned.shape[1]))
        found[rows] = turned[rows] @ (vectors / np.sqrt(values)) @ vectors.T
    return found


POST_PROCESSING: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "as it is": as_given,
    "centred": centred,
    "centre-scaled": centre_scaled,
    "TVN": tvn,
}


def of_batches(batches: np.ndarray, is_control: np.ndarray, least: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each batch the rows of its cells and those of its control cells.

    Raises:
        ValueError: If a batch has fewer than `least` control cells.
    """
    for name in np.unique(batches):
        rows = np.flatnonzero(batches == name)
        controls = rows[is_control[rows]]
        if len(controls) < least:
            raise ValueError(
                f"batch {name} has {len(controls)} control cells among its {len(rows):,}, and post-processing needs "
                f"{least}: leave the batch out, or give another batch_key"
            )
        yield rows, controls


def standardised(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return values `(C, D)` less the mean of `by` `(cells, D)`, over its standard deviation where that is not 0."""
    values, by = (np.asarray(each, np.float64) for each in (values, by))
    mean, spread = by.mean(0), by.std(0)
    is_constant = spread <= CONSTANT * np.maximum(np.abs(mean), 1e-12)  # but for what rounding leaves
    return (values - mean) / np.where(is_constant, 1, spread)


def on_components_of(controls: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return values `(C, D)` on all principal components `(C, K)` in which control cells `(cells, D)` vary."""
    mean = controls.mean(0)
    _, sizes, axes = np.linalg.svd(controls - mean, full_matrices=False)
    varies = sizes > sizes[0] * max(controls.shape) * np.finfo(sizes.dtype).eps
    return (values - mean) @ axes[varies].T
