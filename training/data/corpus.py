"""Read a corpus: cells of any number of files as Parquet shards, with a manifest that says what they are.

    corpus/  manifest.json  genes.txt  README.md  data/cells-00000.parquet ...        written by `convert.py`
        |  read_corpus      all cells, memory-mapped, in any order
        |  stream_corpus    one cell after the other, from any address of fsspec; shards and a buffer are shuffled
        v
    input_ids, counts, total, cell_index, length, measured          one cell: the input of the collators

The format is described in `docs/corpus.md`.
"""

import copy
import glob
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from ...modeling_xtrimogene.sharing_xtrimogene import Pushed, push_folder
from ...tokenization.labels import numbered_labels
from .manifest import MANIFEST, Manifest, read_manifest
from .measured import MeasuredGenes, corpus_measured

if TYPE_CHECKING:
    import datasets

    from ...tokenization.expression_xtrimogene import ExpressionTokenizer


CELL_COLUMNS = ("input_ids", "counts", "total", "cell_index", "length")
RECORD_BATCH = 8192  # cells that lie together in memory; with smaller batches, finding a cell takes longer
# -- all cells, in any order ------------------------------------------------------------------------------------------


class Corpus(Dataset):
    """Cells of a corpus in memory-mapped Arrow: any cell can be read at once, and only read cells take memory.

    `corpus[7]` is one cell, with views of the mapped memory; `corpus["length"]` is a column.

    Attributes:
        dataset: The same cells as a `datasets.Dataset`.
        manifest: The manifest of the corpus.

    Args:
        dataset: All cells in the order of the manifest, as `load_dataset("parquet")` returns them.
        manifest: The manifest of the corpus.
        measured: The measured genes of each cell.
        indices: Rows of `dataset` to take, in this order; all unless given.
        batches: Number of the batch of each row of `dataset`; cells have no key `batch` unless given.
        path: Where the corpus was read from.
    """

    def __init__(
        self,
        dataset: "datasets.Dataset",
        manifest: Manifest,
        measured: MeasuredGenes,
        indices: np.ndarray | None = None,
        batches: np.ndarray | None = None,
        path: Any = None,
    ):
        self.path = path
        self._whole, self.manifest, self.measured, self._indices = dataset, manifest, measured, indices
        self._batch_numbers = batches
        self._batches = [CellBatch(batch, measured) for batch in dataset.data.table.select(CELL_COLUMNS).to_batches()]
        self._starts = np.cumsum([0, *(batch.size for batch in self._batches)])

    def __len__(self) -> int:
        return len(self._whole) if self._indices is None else len(self._indices)

    def __getitem__(self, key: int | str) -> Any:
        if key == "batch" and self._batch_numbers is not None:
            return self._batch_numbers if self._indices is None else self._batch_numbers[self._indices]
        if isinstance(key, str):
            column = self._whole.data.table.column(key).to_numpy()
            return column if self._indices is None else column[self._indices]
        return self.__getitems__([key])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several cells at once; a DataLoader calls this."""
        rows = np.asarray(indices, np.int64)
        if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"index {rows[np.argmax(np.abs(rows))]} of {len(self):,} cells")
        rows = np.where(rows < 0, rows + len(self), rows)
        if self._indices is not None:
            rows = self._indices[rows]
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[numbers]
        cells = [
            self._batches[number].cell(place) for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
        ]
        if self._batch_numbers is not None:
            for cell, batch in zip(cells, self._batch_numbers[rows].tolist(), strict=True):
                cell["batch"] = batch
        return cells

    def __getstate__(self) -> dict[str, Any]:
        # A pickled view holds all its values; a pickled dataset holds only the names of its files.
        state = {"dataset": self._whole, "manifest": self.manifest}
        rows = {"indices": self._indices, "batches": self._batch_numbers}
        return {**state, "measured": self.measured, **rows, "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def column_names(self) -> list[str]:
        """Names of the columns that can be read whole, as of a `datasets.Dataset`."""
        return self._whole.column_names

    @property
    def dataset(self) -> "datasets.Dataset":
        """The same cells as a `datasets.Dataset`."""
        return self._whole if self._indices is None else self._whole.select(self._indices)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Corpus":
        """Return the cells with these indices, in the order given; each keeps its `cell_index`."""
        chosen = np.asarray(indices, np.int64)
        part = copy.copy(self)
        part._indices = chosen if self._indices is None else self._indices[chosen]
        return part

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Push the corpus to the Hub as a dataset, in one commit; its cells are then read from `hf://datasets/<repo_id>`.

        What people wrote by hand into the card on the Hub stays.

        Args:
            repo_id: The repository, `user/name`; it is made if there is none.
            **options: `private`, `token`, `revision` (a branch), `commit_message`, `commit_description`, `create_pr`.

        Returns:
            The commit: text with its address, and `oid`, its hash.

        Raises:
            ValueError: If these are some cells of a corpus, the corpus is not in a folder, or a file holds a secret or
                a path of this machine.

        Example:
            >>> read_corpus("corpus").push_to_hub("me/blood-cells", private=True)  # doctest: +SKIP
        """
        if self._indices is not None:
            raise ValueError(
                f"these are {len(self):,} of {len(self._whole):,} cells of a corpus, which is pushed as a whole: "
                f"convert these into a corpus of their own"
            )
        return push_corpus(self.path, repo_id, **options).commit

    def with_batches(self, by: str) -> "Corpus":
        """Return the same cells with a key `batch`, the number of the value that each has in a column.

        Raises:
            ValueError: If the corpus has no such column, or a value is missing.
        """
        if by not in self._whole.column_names:
            raise ValueError(
                f"the batches are those of column {by!r}, and the corpus has {', '.join(self._whole.column_names)}: "
                f"name one of them, or convert again with --obs {by}"
            )
        part = copy.copy(self)
        part._batch_numbers, _ = numbered_labels(self._whole.data.table.column(by).to_pylist(), by, "corpus")
        return part


class CellBatch:
    """Views of the cells of an Arrow record batch.

    Args:
        batch: Arrow record batch with the columns of a corpus.
        measured: The measured genes of each cell of the corpus.
    """

    def __init__(self, batch: Any, measured: MeasuredGenes):
        self.size, self.measured = batch.num_rows, measured
        ids, counts = batch.column("input_ids"), batch.column("counts")
        # Offsets count from the beginning of `values`, also if the batch is a slice of it.
        self.starts = ids.offsets.to_numpy()
        self.shift = counts.offsets[0].as_py() - ids.offsets[0].as_py() if self.size else 0
        self.ids, self.counts = ids.values.to_numpy(), counts.values.to_numpy()
        self.totals = batch.column("total").to_numpy()
        self.cell_indices = batch.column("cell_index").to_numpy()

    def cell(self, row: int) -> dict[str, Any]:
        """Return the cell in a row of the batch, with views of its values."""
        start, stop = int(self.starts[row]), int(self.starts[row + 1])
        cell_index = self.cell_indices[row]
        return {
            "input_ids": self.ids[start:stop],
            "counts": self.counts[start + self.shift : stop + self.shift],
            "total": self.totals[row],
            "cell_index": cell_index,
            "length": stop - start,
            "measured": self.measured[cell_index],
        }


def read_corpus(
    path: Any,
    tokenizer: "ExpressionTokenizer | None" = None,
    cache_dir: str | None = None,
    **storage_options: Any,
) -> Corpus:
    """Open a corpus to read its cells in any order.

    The first time, `datasets` writes the shards as Arrow files into its cache, about 8 bytes a count. These files are
    then memory-mapped.

    Args:
        path: Folder of the corpus, or any address that fsspec reads, such as `hf://datasets/owner/name`.
        tokenizer: If given, its panel has to be that of the corpus.
        cache_dir: Cache folder of `datasets`; its default unless given.
        **storage_options: Options of fsspec, such as credentials.

    Raises:
        FileNotFoundError: If there is no corpus, or a shard is missing.
        ValueError: If the conversion did not end, a shard has another size, or the panel is another one.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> counts.to_csv("cells.csv")
        >>> from xtrimogene.training.data.convert import convert_files
        >>> _ = convert_files(["cells.csv"], "corpus", tokenizer=tokenizer, min_genes=1, say=lambda line: None)
        >>> corpus = read_corpus("corpus", tokenizer, cache_dir="cache")
        >>> len(corpus), corpus[0]["input_ids"].tolist(), corpus["length"].tolist()
        (4, [0, 2], [2, 2, 2, 3])
    """
    import datasets

    manifest = read_manifest(path, tokenizer, **storage_options)
    dataset = datasets.load_dataset(
        "parquet",
        data_files=[glob.escape(f"{path}/{shard.file}") for shard in manifest.shards],
        split="train",
        batch_size=RECORD_BATCH,
        cache_dir=cache_dir,
        storage_options=storage_options or None,
    )
    if len(dataset) != manifest.num_cells:
        raise ValueError(
            f"{path} gives {len(dataset):,} cells, and {manifest.num_cells:,} by {MANIFEST}: convert again into a new "
            f"folder"
        )
    measured = corpus_measured(path, manifest, **storage_options)
    return Corpus(dataset.with_format("numpy"), manifest, measured, path=path)


def push_corpus(folder: Any, repo_id: str, **options: Any) -> Pushed:
    """Push a corpus to the Hub as a dataset.

    Args:
        folder: Folder of the corpus.
        repo_id: The repository, `user/name`.
        **options: Options of `push_folder`.

    Raises:
        FileNotFoundError: If there is no corpus, or a shard is missing.
        ValueError: If it is no folder on this machine, the conversion did not end, or the folder is refused.

    Example:
        >>> push_corpus("corpus", "me/blood-cells").commit.oid  # doctest: +SKIP
        '8f3c...'
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder of this machine: push the folder that `xtrimogene convert` wrote")
    manifest = read_manifest(folder)
    needed = [MANIFEST, "genes.txt", "README.md", *(shard.file for shard in manifest.shards)]
    return push_folder(folder, repo_id, repo_type="dataset", needed=needed, **options)


# -- as they come -----------------------------------------------------------------------------------------------------


class CellStream(IterableDataset):
    """The cells of a corpus, one after the other, as a torch `IterableDataset` that distributes shards over workers.

    Args:
        rows: Stream of `datasets` in the format `arrow`; in other formats, reading a cell takes longer than collating.
        measured: The measured genes of each cell of the corpus.
        obs: Names of further columns to keep.
    """

    def __init__(self, rows: "datasets.IterableDataset", measured: MeasuredGenes, obs: Sequence[str] = ()):
        self.rows, self.measured, self.obs = rows, measured, tuple(obs)
        self.epoch = self.num_given = self.num_before = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.num_given, self.num_before = self.num_before, 0
        for table in islice(self.rows, self.num_given, None):
            self.num_given += 1
            cell = CellBatch(table.combine_chunks().to_batches()[0], self.measured).cell(0)
            yield cell | {name: table[name][0].as_py() for name in self.obs}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the order of shards and cells."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return the position in this epoch, for `load_state_dict`."""
        return {"epoch": self.epoch, "num_given": self.num_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration continue from a position; cells before it are read again and skipped."""
        self.set_epoch(state["epoch"])
        self.num_before = state["num_given"]


def stream_corpus(
    path: Any,
    tokenizer: "ExpressionTokenizer | None" = None,
    *,
    sources: Sequence[str] | None = None,
    obs: Sequence[str] = (),
    seed: int | None = 0,
    buffer_size: int = 10_000,
    rank: int = 0,
    world_size: int = 1,
    **storage_options: Any,
) -> CellStream:
    """Return the cells of a corpus as a stream, without writing anything to disk.

    `set_epoch` changes the order of shards and cells; `state_dict` and `load_state_dict` resume it at the same cell.

    Args:
        path: Folder of the corpus, or any address that fsspec reads, such as `hf://datasets/owner/name`.
        tokenizer: If given, its panel has to be that of the corpus.
        sources: Names of the converted files whose cells to take; all unless given.
        obs: Names of further columns to keep.
        seed: Seed of the order of shards and cells; None keeps the order of the corpus.
        buffer_size: Number of cells in memory from which the next one is drawn.
        rank: Number of this process, from 0.
        world_size: Number of processes. Each reads its own shards if the number of shards is a multiple of it; else
            each reads all shards and keeps its share of the cells.
        **storage_options: Options of fsspec, such as credentials.

    Raises:
        FileNotFoundError: If there is no corpus, or a shard is missing.
        ValueError: If the conversion did not end, a shard has another size, the panel is another one, or a source is
            not in the corpus.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> counts.to_csv("cells.csv")
        >>> from xtrimogene.training.data.convert import convert_files
        >>> _ = convert_files(["cells.csv"], "corpus", tokenizer=tokenizer, min_genes=1, say=lambda line: None)
        >>> cells = stream_corpus("corpus", tokenizer, seed=None)
        >>> [cell["counts"].tolist() for cell in cells][:2]
        [[5, 1], [3, 2]]
    """
    import datasets
    from datasets.distributed import split_dataset_by_node

    manifest = read_manifest(path, tokenizer, **storage_options)
    known = [source.name for source in manifest.sources if source.state == "complete"]
    if unknown := sorted(set(sources or ()) - set(known)):
        raise ValueError(f"{path} has no cells of {unknown[0]!r}; its sources are {', '.join(known)}")
    stream = datasets.load_dataset(
        "parquet",
        data_files=[
            glob.escape(f"{path}/{shard.file}")
            for shard in manifest.shards
            if sources is None or shard.source in sources
        ],
        split="train",
        streaming=True,
        columns=[*CELL_COLUMNS, *obs],
        storage_options=storage_options or None,
    )
    if seed is not None:
        stream = stream.shuffle(seed=seed, buffer_size=buffer_size)
    measured = corpus_measured(path, manifest, **storage_options)
    return CellStream(split_dataset_by_node(stream.with_format("arrow"), rank, world_size), measured, obs)
