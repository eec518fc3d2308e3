"""Principal components of cells, free of what differs between batches.

    value of a gene  =  mean of its batch  +  components of the cell . axes  +  rest

The axes are those of the cells about the mean of their batch, so that no axis is spent on differences between batches.
Then the directions in which the means of batches differ are taken out of them. Cells of other batches need no
correction: their components hardly say which batch they are of.
"""

import numpy as np
from scipy.sparse import csr_matrix

OVERSAMPLING, ITERATIONS = 16, 6  # of the randomised singular value decomposition (Halko et al., 2011)
MOST_BATCH_AXES, LEAST_CELLS = 16, 50  # of a batch that is compared with others
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
        >>> cells = [[1.0, 9.0, 0.0], [0.0, 9.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        >>> values, batches = csr_matrix(np.repeat(cells, 25, axis=0)), np.repeat([0, 1], 50)
        >>> axes = batch_free_components(values, batches, 1, np.random.default_rng(0))
        >>> np.abs(axes).round(3).ravel().tolist()
        [1.0, 0.0, 0.0]
    """
    of_cells, means, members = batch_means(values, of_cells)

    def within(vectors: np.ndarray) -> np.ndarray:  # (G, X) -> (cells, X)
        return values @ vectors - (means @ vectors)[of_cells]

    size = min(number + OVERSAMPLING, *values.shape)
    axes = rng.normal(size=(values.shape[1], size)).astype(np.float32)
    for _ in range(ITERATIONS):
        of_axes = np.linalg.qr(within(axes))[0]
        axes = np.linalg.qr(values.T @ of_axes - means.T @ (members @ of_axes))[0]
    axes = axes @ np.linalg.svd(within(axes), full_matrices=False)[2].T
    return without_batches(axes[:, : min(number, *values.shape)], values, of_cells)


def batch_means(values: csr_matrix, of_cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, csr_matrix]:
    """Return numbers of the batches from 0 on `(cells,)`, their means `(batches, G)`, and which cell is in which."""
    of_cells = np.unique(of_cells, return_inverse=True)[1]
    members = csr_matrix((np.ones(len(of_cells), np.float32), (of_cells, np.arange(len(of_cells)))))
    numbers = np.bincount(of_cells).astype(np.float32)[:, None]
    return of_cells, (members @ values).toarray() / numbers, members


def without_batches(
    axes: np.ndarray,
    values: csr_matrix,
    of_cells: np.ndarray,
    of_sources: np.ndarray | None = None,
    share: float = 1.0,
) -> np.ndarray:
    """Return axes `(G, K)` less the directions in which batches differ by more than kinds of cells make.

    Batches of fewer than 50 cells are left out: by chance alone, their means differ in everything that cells vary in.

    Args:
        axes: Axes, `(G, K)`.
        values: Values of cells, CSR `(cells, G)`.
        of_cells: Number of the batch of each cell, `(cells,)`.
        of_sources: Number of the source of each cell, `(cells,)`. If given, batches are compared with those of the same
            source only: other sources hold other kinds of cells, too.
        share: How much of these directions is taken out of the axes, from 0 to 1.

    Example:
        >>> values = csr_matrix(np.repeat([[9.0, 9.0], [9.0, 0.0], [0.0, 0.0]], 50, axis=0))
        >>> axes, batches, sources = np.eye(2, dtype=np.float32), np.repeat([0, 1, 2], 50), np.repeat([0, 0, 1], 50)
        >>> without_batches(axes, values, batches, sources, share=0.5).round(3).tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """
    if of_sources is None:
        of_sources = np.zeros_like(of_cells)
    pairs = np.stack([of_sources, of_cells])  # a batch of two sources counts as two
    (of_batches, _), of_cells, numbers = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    is_large = numbers >= LEAST_CELLS
    of_batches, rows = of_batches[is_large], np.flatnonzero(is_large[of_cells.ravel()])
    is_of_same = of_batches[:, None] == of_batches  # whether two batches are of one source, (batches, batches)
    if is_of_same.sum() == len(of_batches):
        return axes  # no source has two batches
    values = values[rows]
    of_cells, means, _ = batch_means(values, of_cells.ravel()[rows])
    source_means = is_of_same @ means / is_of_same.sum(1, keepdims=True, dtype=np.float32)
    differences = np.linalg.svd(means - source_means, full_matrices=False)
    variances, directions = differences[1] ** 2 / len(means), differences[2].T  # of batches alike in weight
    spreads = (values @ directions - (means @ directions)[of_cells]).var(0)
    directions = directions[:, variances > LEAST_RATIO * spreads][:, :MOST_BATCH_AXES]
    return axes - share * directions @ (directions.T @ axes)


def joined_axes(axes: np.ndarray, more: np.ndarray, values: csr_matrix, of_cells: np.ndarray) -> np.ndarray:
    """Return the main axes of the space that two sets of axes span, weighted by how far cells spread along each.

    As in `batch_free_components`, cells spread about the mean of their batch, and what differs between batches is
    taken out of the axes.

    Args:
        axes: Axes from `batch_free_components`, `(G, K)`; as many are returned.
        more: Other axes, such as those of other cells, `(G, J)`; those that are 0 are left out.
        values: Values of cells, CSR `(cells, G)`.
        of_cells: Number of the batch of each cell, `(cells,)`.

    Example:
        >>> values = csr_matrix([[1.0, 9.0, 0.0], [0.0, 9.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> axes = np.eye(3, dtype=np.float32)
        >>> np.abs(joined_axes(axes[:, :1], axes[:, 1:], values, np.zeros(4, int))).round(3).ravel().tolist()
        [0.0, 1.0, 0.0]
    """
    of_cells, means, _ = batch_means(values, of_cells)
    spreads = []
    for each in (axes, without_batches(more[:, more.any(0)], values, of_cells)):
        orthonormal = np.linalg.qr(each)[0]
        spreads.append(orthonormal * (values @ orthonormal - (means @ orthonormal)[of_cells]).std(0))
    return np.linalg.svd(np.concatenate(spreads, axis=1), full_matrices=False)[0][:, : axes.shape[1]]
