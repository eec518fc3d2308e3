"""Principal components of cells, free of what differs between batches.

    value of a gene  =  mean of its batch  +  components of the cell . axes  +  rest

The axes are those of the cells about the mean of their batch, so that no axis is spent on differences between batches.
Then the directions in which the means of batches differ are taken out of them. Cells of other batches need no
correction: their components hardly say which batch they are of.
"""

import numpy as np
from scipy.sparse import csr_matrix

OVERSAMPLING, ITERATIONS = 16, 6  # of the randomised singular value decomposition (Halko et al., 2011)
MOST_BATCH_AXES = 16
LEAST_RATIO = 0.2  # of the variance between batches and that within them; kinds of cells in other shares make less


def batch_free_components(
    values: csr_matrix, of_cells: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Return axes of the values of cells within their batches, less what differs between the batches.

    Args:
        values: Values of cells, CSR `(cells, G)`.
        of_cells: Number of the batch of each cell, `(cells,)`.
        number: Number of axes; there are fewer if there are not so many cells or genes.
        rng: Draws the first subspace.

    Returns:
        Axes in the order of the variance within batches, float32 `(G, K)`.

    Example:
        >>> values = csr_matrix([[1.0, 9.0, 0.0], [0.0, 9.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> axes = batch_free_components(values, np.array([0, 0, 1, 1]), 1, np.random.default_rng(0))
        >>> np.abs(axes).round(3).ravel().tolist()
        [1.0, 0.0, 0.0]
    """
    batches, of_cells = np.unique(of_cells, return_inverse=True)
    members = csr_matrix((np.ones(len(of_cells), np.float32), (of_cells, np.arange(len(of_cells)))))
    numbers = np.bincount(of_cells).astype(np.float32)[:, None]
    means = (members @ values).toarray() / numbers  # (batches, G)

    def within(vectors: np.ndarray) -> np.ndarray:  # (G, X) -> (cells, X)
        return values @ vectors - (means @ vectors)[of_cells]

    size = min(number + OVERSAMPLING, *values.shape)
    axes = rng.normal(size=(values.shape[1], size)).astype(np.float32)
    for _ in range(ITERATIONS):
        of_axes = np.linalg.qr(within(axes))[0]
        axes = np.linalg.qr(values.T @ of_axes - means.T @ (members @ of_axes))[0]
    axes = axes @ np.linalg.svd(within(axes), full_matrices=False)[2].T
    axes = axes[:, : min(number, *values.shape)]
    if len(batches) == 1:
        return axes
    differences = np.linalg.svd(means - means.mean(0), full_matrices=False)
    variances, directions = differences[1] ** 2 / len(batches), differences[2].T  # of batches alike in weight
    is_of_batches = variances > LEAST_RATIO * within(directions).var(0)
    directions = directions[:, is_of_batches][:, :MOST_BATCH_AXES]
    return axes - directions @ (directions.T @ axes)


def joined_axes(axes: np.ndarray, more: np.ndarray, values: csr_matrix) -> np.ndarray:
    """Return the main axes of the space that two sets of axes span, weighted by how far cells spread along each.

    Args:
        axes: Axes, `(G, K)`; as many are returned.
        more: Other axes, such as those of other cells, `(G, J)`.
        values: Values of cells, CSR `(cells, G)`.

    Example:
        >>> values = csr_matrix([[1.0, 9.0, 0.0], [0.0, 9.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> axes = np.eye(3, dtype=np.float32)
        >>> np.abs(joined_axes(axes[:, :1], axes[:, 1:], values)).round(3).ravel().tolist()
        [0.0, 1.0, 0.0]
    """
    spreads = []
    for each in (axes, more):
        orthonormal = np.linalg.qr(each)[0]
        spreads.append(orthonormal * np.asarray(values @ orthonormal).std(0))
    return np.linalg.svd(np.concatenate(spreads, axis=1), full_matrices=False)[0][:, : axes.shape[1]]
