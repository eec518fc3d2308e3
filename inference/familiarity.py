"""Tell cells that lie far from all cells that a model was pre-trained on.

    training cells  --encoder-->  a few thousand embeddings, kept beside the checkpoint
    held-out cells  ----------->  distance to the nearest kept ones     what is usual for cells like the training cells
    your cells      ----------->  distance, and whether 95 % of the held-out cells lie nearer

An embedding places cells of any kind. That of cells of a kind that the model has not seen says little about them, and
looks like any other. Their distance tells most of them (docs/checkpoints.md): `adapt` then learns from such cells.

`K` kept embeddings, `H` held-out cells, `D` width of the embedding.

Source: Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors", arXiv:2204.06507.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .beside import read_beside

FILE = "familiarity.safetensors"
MOST_KEPT = 2_000  # embeddings beside a checkpoint; more change no distance by much
NEIGHBORS = 5  # whose mean distance is taken: a single kept cell may be odd itself
USUAL = 0.95  # share of held-out cells that lie nearer than a cell which is told
LEAST_HELD_OUT = 100  # with fewer, the distance of the farthest twentieth is that of a few cells
FULL_BYTES = 4  # bytes of a float32; in half precision an embedding lies elsewhere


@dataclass(frozen=True)
class Familiarity:
    """Where the training cells of a model lie, and how near cells like them lie to them.

    Attributes:
        kept: Embeddings of training cells, `(K, D)`.
        distances: Distance of each held-out cell to the training cells, ascending, `(H,)`.
        source: Which cells these are, in words.

    Example:
        >>> kept = np.random.default_rng(0).normal(size=(200, 4))
        >>> held_out = np.random.default_rng(1).normal(size=(200, 4))
        >>> found = Familiarity.fit(kept, held_out, "200 cells of blood")
        >>> found.is_unfamiliar(np.array([[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])).tolist()
        [False, True]
    """

    kept: np.ndarray
    distances: np.ndarray
    source: str

    @classmethod
    def fit(cls, known: np.ndarray, held_out: np.ndarray, source: str, seed: int = 0) -> "Familiarity | None":
        """Return where cells lie; None if fewer than 100 are held out, which cannot tell what is rare.

        Args:
            known: Embeddings of the training cells, `(cells, D)`.
            held_out: Embeddings of cells like them that were not trained on, `(H, D)`.
            source: Which cells these are, in words.
            seed: Seed of the draw of the cells that are kept.
        """
        if len(held_out) < LEAST_HELD_OUT:
            return None
        rows = np.sort(np.random.default_rng(seed).permutation(len(known))[:MOST_KEPT])
        kept = known[rows].astype(np.float16)  # distances change by less than a thousandth
        return cls(kept, np.sort(distances_to(kept, held_out)), source)

    def is_unfamiliar(self, embeddings: np.ndarray) -> np.ndarray:
        """Return which cells lie farther from the training cells than 95 % of the held-out cells, `(cells,)`.

        Args:
            embeddings: Embeddings of cells, `(cells, D)`; NaN rows are of cells without counts, and are not told.

        Raises:
            ValueError: If they are of another width.
        """
        if embeddings.shape[1] != self.kept.shape[1]:
            raise ValueError(
                f"embeddings are {embeddings.shape[1]} wide and those of {FILE} {self.kept.shape[1]}: the file is of "
                f"another checkpoint; delete it"
            )
        is_there = ~np.isnan(embeddings).any(axis=1)
        found = np.zeros(len(embeddings), bool)
        found[is_there] = distances_to(self.kept, embeddings[is_there]) > np.quantile(self.distances, USUAL)
        return found

    def described(self, is_unfamiliar: np.ndarray) -> dict[str, Any]:
        """Return what is written of a data set beside its embedding.

        The keys are `share` of unfamiliar cells, `usual`, their share among cells like the training cells, `trained on`
        and, if the share is far above the usual one, `doubt`: what to do, in words.

        Args:
            is_unfamiliar: Which cells with counts are unfamiliar, `(cells,)`.
        """
        share, usual = float(is_unfamiliar.mean()) if len(is_unfamiliar) else 0.0, round(1 - USUAL, 2)
        spread = np.sqrt(usual / max(len(is_unfamiliar), 1))  # standard error of the share, at most
        about = {"share": share, "usual": usual, "trained on": self.source}
        if share > 2 * usual + 3 * spread:
            about["doubt"] = (
                f"{share:.0%} of the cells lie far from those that the model was trained on ({self.source}), and of "
                f"cells like these {usual:.0%} would: the embedding may miss what tells them apart. Let the model "
                f"learn from them with `xtrimogene adapt`, and compare it with PCA."
            )
        return about

    def save(self, folder: str | os.PathLike) -> None:
        """Write `familiarity.safetensors` into a folder."""
        from safetensors.numpy import save_file

        arrays = {"kept": np.ascontiguousarray(self.kept), "distances": self.distances.astype(np.float32)}
        save_file(arrays, os.path.join(folder, FILE), metadata={"source": self.source})

    @classmethod
    def load(cls, checkpoint: str | os.PathLike | Any) -> "Familiarity | None":
        """Return that of a checkpoint, a folder, Hub name or loaded model; None if it has none.

        Raises:
            ValueError: If the file is damaged, or is something else.
        """

        def read(file: Any, about: dict[str, str]) -> Familiarity:
            return cls(file.get_tensor("kept"), file.get_tensor("distances"), about["source"])

        return read_beside(checkpoint, FILE, "places of familiar cells", read)


def distances_to(kept: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Return the mean distance of each cell to its nearest kept embeddings, `(cells,)`.

    >>> distances_to(np.zeros((9, 2)), np.array([[3.0, 4.0]]))
    array([5.])
    """
    from sklearn.neighbors import NearestNeighbors

    if not len(embeddings):
        return np.zeros(0)
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(kept))).fit(kept.astype(np.float32))
    return nearest.kneighbors(embeddings)[0].mean(axis=1)
