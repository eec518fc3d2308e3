"""Which cells a checkpoint was trained on, so that an evaluation can say how many of its cells were among them.

    gene ids and counts of a cell on the panel  ->  a key of 64 bits
    keys of all training cells, 8 bytes each    ->  trained_on.safetensors, beside the checkpoint

The key is the same whatever kind of file the cell was read from. It is another one if the counts differ: the same cell
aligned anew, or read from a file with fewer genes of the panel, is not recognised.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...inference.beside import read_beside
from ...tokenization.collators import packed
from ...tokenization.masking import splitmix64
from ...training.data.manifest import panel_of
from .corpus_pca import of_panel

if TYPE_CHECKING:
    from ...tokenization.expression_xtrimogene import ExpressionTokenizer
    from ...tokenization.panel_xtrimogene import PanelCounts


FILE = "trained_on.safetensors"
CHUNK = 4096  # cells read at a time
NOT_KNOWN = "not known"


def cell_keys(ids: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return a key for each cell, uint64 `(cells,)`: a hash of its gene ids and counts, whatever their order.

    Args:
        ids: Gene ids of the cells, one cell after the other.
        counts: Their counts, whole numbers that float32 holds exactly.
        lengths: Number of genes of each cell, `(cells,)`.

    Example:
        >>> keys = cell_keys(np.array([0, 7, 7, 0]), np.array([3, 1, 1, 3]), np.array([2, 2]))
        >>> bool(keys[0] == keys[1])
        True
    """
    bits = np.ascontiguousarray(counts, np.float32).view(np.uint32).astype(np.uint64)
    of_genes = splitmix64((np.asarray(ids).astype(np.uint64) << np.uint64(32)) | bits)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(of_genes, dtype=np.uint64)])  # modulo 2 to the 64
    stops = np.cumsum(lengths)
    return splitmix64(sums[stops] - sums[stops - lengths])


@dataclass(frozen=True)
class TrainedOn:
    """The cells that a checkpoint was trained on.

    Attributes:
        keys: Key of each cell, ascending, each once, uint64 `(cells,)`.
        panel: Hash of the genes of the panel.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> cells = tokenizer.read_counts(counts)
        >>> TrainedOn.of(cells_dataset(cells).select([0, 1, 2]), tokenizer).save("panel")
        >>> TrainedOn.load("panel", tokenizer).share_of(cells)
        '3 of 4'
    """

    keys: np.ndarray
    panel: str

    @classmethod
    def of(cls, dataset: Any, tokenizer: "ExpressionTokenizer") -> "TrainedOn":
        """Return the cells of a dataset, of `cells_dataset` or `read_corpus`."""
        keys = [
            cell_keys(*packed(dataset.__getitems__(list(range(start, min(start + CHUNK, len(dataset))))))[:3])
            for start in range(0, len(dataset), CHUNK)
        ]
        return cls(np.unique(np.concatenate(keys)), panel_of(tokenizer.genes)["sha256"])

    def with_those_of(self, other: "TrainedOn") -> "TrainedOn":
        """Return the cells of both, as of a checkpoint whose training went on with other cells."""
        return TrainedOn(np.union1d(self.keys, other.keys), self.panel)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `trained_on.safetensors` into a folder."""
        from safetensors.numpy import save_file

        save_file({"keys": self.keys}, os.path.join(folder, FILE), metadata={"panel": self.panel})

    @classmethod
    def load(cls, checkpoint: str | os.PathLike, tokenizer: "ExpressionTokenizer") -> "TrainedOn | None":
        """Return the cells that a checkpoint, a folder or Hub name, was trained on; None if it does not say.

        Raises:
            ValueError: If the file is damaged, or is of another panel than the tokenizer's.
        """

        def read(file: Any, about: dict[str, str]) -> TrainedOn:
            return cls(file.get_tensor("keys"), about["panel"])

        return of_panel(read_beside(checkpoint, FILE, "keys of cells", read), FILE, checkpoint, tokenizer)

    def share_of(self, cells: "PanelCounts") -> str:
        """Return how many cells are among those trained on, as `0 of 1,000`."""
        num_seen = 0
        for start in range(0, cells.n_cells, CHUNK):
            counts, _ = cells.read(start, start + CHUNK)
            keys = cell_keys(counts.indices, counts.data, np.diff(counts.indptr))
            num_seen += int(np.isin(keys, self.keys).sum())
        return f"{num_seen:,} of {cells.n_cells:,}"


def save_trained_on(
    folder: str | os.PathLike, dataset: Any, tokenizer: "ExpressionTokenizer", origin: str | None = None
) -> None:
    """Write the cells that a checkpoint was trained on beside it.

    Nothing is written if the training went on from a checkpoint that does not say what it was trained on: a part of
    the cells would be taken for all of them.

    Args:
        folder: Folder of the new checkpoint.
        dataset: Cells that it was trained on.
        tokenizer: Its tokenizer.
        origin: The checkpoint from which its training went on, a folder or Hub name; None for a new model.

    Example:
        >>> save_trained_on("new", corpus.select(train), tokenizer, origin="earlier")  # doctest: +SKIP
    """
    found = TrainedOn.of(dataset, tokenizer)
    if origin is not None:
        earlier = TrainedOn.load(origin, tokenizer)
        if earlier is None:
            return
        found = found.with_those_of(earlier)
    found.save(folder)


def seen_of(trained_on: TrainedOn | None, cells: "PanelCounts") -> str:
    """Return how many cells a checkpoint was trained on, as `0 of 1,000`; `not known` if it does not say.

    Example:
        >>> seen_of(None, xtrimogene.XTrimoGeneTokenizer.default().read_counts(adata))
        'not known'
    """
    return NOT_KNOWN if trained_on is None else trained_on.share_of(cells)
