"""Which genes of the panel were measured in each cell: the genes that have a column in its file.

A gene without a count in a cell was either measured and not found, or not measured. To tell these apart, the measured
genes are stored: as text in the manifest of a corpus, and as packed bits in each cell.

    measured (G,), bool  ->  bytes of `numpy.packbits`, G / 8: the key `measured` of a cell
                         ->  `genes 0-443 500` or `bits gAAB...` in a manifest, whichever is shorter
"""

import warnings
from base64 import b64decode, b64encode
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from .manifest import Manifest, Shard

READ_AT_ONCE = 4096  # cells


def measured_text(measured: np.ndarray) -> str:
    """Return the measured genes as text: their ids as ranges, or their bits in base64 if that is shorter.

    Args:
        measured: Whether each gene was measured, bool `(G,)`.

    Example:
        >>> measured_text(np.ones(1000, bool))
        'genes 0-999'
    """
    ids = np.flatnonzero(measured)
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1) if len(ids) else []
    genes = " ".join(["genes", *(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)])
    bits = f"bits {b64encode(np.packbits(measured).tobytes()).decode()}"
    return min(genes, bits, key=len)


def measured_from_text(text: str, num_genes: int) -> np.ndarray:
    """Return whether each gene was measured, bool `(G,)`, from the text that `measured_text` made.

    Args:
        text: The text, from a manifest.
        num_genes: Number of genes `G` of the panel.

    Raises:
        ValueError: If the text has another format, or ids that the panel does not have.

    Example:
        >>> measured_from_text("genes 0-2 4", 5).tolist()
        [True, True, True, False, True]
    """
    kind, *parts = text.split() or [""]
    measured = np.zeros(num_genes, bool)
    try:
        if kind == "bits" and len(parts) == 1:
            bits = np.frombuffer(b64decode(parts[0], validate=True), np.uint8)
            if len(bits) == -(-num_genes // 8):
                return np.unpackbits(bits, count=num_genes).astype(bool)
        elif kind == "genes":
            for part in parts:
                first, last = int(part.split("-")[0]), int(part.split("-", 1)[-1])
                if not 0 <= first <= last < num_genes:
                    break
                measured[first : last + 1] = True
            else:
                return measured
    except ValueError:  # of a number or of base64
        pass
    raise ValueError(
        f"{text[:40]!r} does not say which of {num_genes:,} genes were measured: convert again into a new folder"
    )


class MeasuredGenes:
    """The measured genes of each cell of a corpus.

    Args:
        num_cells: Number of cells of each shard.
        measured: Whether each gene was measured in the shard, bool `(G,)` for each shard. Shards of one source may
            share an array.

    Example:
        >>> genes = MeasuredGenes([2, 1], [np.array([True, True, False]), np.array([True, False, False])])
        >>> np.unpackbits(np.frombuffer(genes[2], np.uint8), count=3).tolist()  # the third cell is in the second shard
        [1, 0, 0]
    """

    def __init__(self, num_cells: Sequence[int], measured: Sequence[np.ndarray]):
        self._ends = list(accumulate(num_cells))
        packed = {id(genes): np.packbits(genes).tobytes() for genes in measured}
        self._bits = [packed[id(genes)] for genes in measured]

    def __getitem__(self, cell_index: int) -> bytes:
        """Return the packed bits of a cell; all cells of a source share one object."""
        return self._bits[bisect_right(self._ends, cell_index)]


def corpus_measured(path: Any, manifest: Manifest, **storage_options: Any) -> MeasuredGenes:
    """Return the measured genes of each cell of a corpus.

    If the manifest does not have them for a source, all its cells are read, and the genes that any of them expresses
    are taken for measured.

    Args:
        path: Folder of the corpus, or any address that fsspec reads.
        manifest: The manifest of the corpus.
        **storage_options: Options of fsspec, such as credentials.

    Warns:
        UserWarning: If the manifest does not have the measured genes of a source.
    """
    num_genes = manifest.panel["num_genes"]
    known = {each.name: measured_from_text(each.measured, num_genes) for each in manifest.sources if each.measured}
    if unknown := list(dict.fromkeys(shard.source for shard in manifest.shards if shard.source not in known)):
        warnings.warn(
            f"{path} does not say which genes {len(unknown)} of its {len(manifest.sources)} files measured, "
            f"{unknown[0]} first, because an earlier version converted them: genes that no cell of a file expresses "
            f"are taken as not measured; repeat the `xtrimogene convert` that made it, which adds what the files say",
            stacklevel=3,
        )
    for name in unknown:
        shards = [shard for shard in manifest.shards if shard.source == name]
        known[name] = expressed_genes(path, shards, num_genes, **storage_options)
    return MeasuredGenes([shard.cells for shard in manifest.shards], [known[shard.source] for shard in manifest.shards])


def expressed_genes(path: Any, shards: Sequence[Shard], num_genes: int, **storage_options: Any) -> np.ndarray:
    """Return for each gene whether any cell of these shards expresses it, bool `(G,)`."""
    import pyarrow.parquet as pq
    from fsspec.core import url_to_fs

    files, root = url_to_fs(str(path), **storage_options)
    found = np.zeros(num_genes, bool)
    for shard in shards:
        with files.open(f"{root}/{shard.file}") as file:
            for batch in pq.ParquetFile(file).iter_batches(READ_AT_ONCE, columns=["input_ids"]):
                found[batch.column(0).flatten().to_numpy()] = True
    return found


def num_measured(dataset: Any, num_genes: int) -> np.ndarray:
    """Return in how many cells of a dataset each gene was measured, `(G,)`.

    A cell without `measured` counts for every gene.

    Args:
        dataset: Cells, from `cells_dataset` or `read_corpus`.
        num_genes: Number of genes `G` of the panel.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> num_measured(cells_dataset(tokenizer.read_counts(counts[["CD3E", "MS4A1", "NKG7"]])), num_genes=4).tolist()
        [4, 4, 4, 0]
    """
    times: Counter[bytes] = Counter()
    for start in range(0, len(dataset), READ_AT_ONCE):
        cells = dataset.__getitems__(list(range(start, min(start + READ_AT_ONCE, len(dataset)))))
        times.update(cell["measured"] for cell in cells if "measured" in cell)
    counts = np.full(num_genes, len(dataset) - times.total())
    for bits, number in times.items():
        counts[np.unpackbits(np.frombuffer(bits, np.uint8), count=num_genes).astype(bool)] += number
    return counts
