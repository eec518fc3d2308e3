"""Read a corpus: cells of any number of files as Parquet shards, with a manifest that says what they are.

    corpus/  manifest.json  genes.txt  README.md  data/cells-00000.parquet ...        written by `convert.py`
        |  read_corpus      all cells, memory-mapped, in any order
        |  stream_corpus    as they come, from anywhere fsspec reaches: shards and a buffer are shuffled
        v
    input_ids, counts, total, cell_index, length          one cell, as the collators take it

The format is described in `docs/corpus.md`.
"""

import copy
import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from .sampler import ShuffledCells

if TYPE_CHECKING:
    import datasets

    from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CELL_COLUMNS = ("input_ids", "counts", "total", "cell_index", "length")
RECORD_BATCH = 8192  # cells that lie together in memory: many small ones cost a look-up each


# -- manifest ---------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """A file that was converted, is being converted, or could not be.

    Attributes:
        name: Name of the file, with as many of its folders as tell it from the others.
        bytes: Its size.
        fingerprint: Hash of parts of it, see `fingerprint_of`.
        state: `converting`, `complete` or `failed`.
        error: Why it failed.
        description: Where the counts were found.
        genes: How its columns were matched to the panel.
        cells: Cells in it.
        cells_read: Cells looked at so far.
        cells_kept: Of them, those in the corpus.
        left_out: Of them, those that are not, by the first rule that left them out.
        repeated_names: Cells whose name an earlier cell has; they are kept.
    """

    name: str
    bytes: int
    fingerprint: str
    state: str = "converting"
    error: str | None = None
    description: str = ""
    genes: dict[str, Any] = field(default_factory=dict)
    cells: int = 0
    cells_read: int = 0
    cells_kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    repeated_names: int = 0


@dataclass
class Shard:
    """A Parquet file of cells of one source.

    Attributes:
        file: Its path in the corpus.
        source: Name of the source.
        first_row: Row in the source from which cells were read.
        cells: Cells in it.
        nonzeros: Their counts that are not 0.
        bytes: Its size.
        sha256: Its hash.
    """

    file: str
    source: str
    first_row: int
    cells: int
    nonzeros: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """What a corpus holds; `manifest.json`.

    Attributes:
        panel: `sha256` of `genes.txt` and `num_genes`.
        options: What was asked for; the same for all sources.
        sources: In the order in which they were converted.
        shards: In the order of their cells.
        format_version: Of the corpus.
    """

    panel: dict[str, Any]
    options: dict[str, Any]
    sources: list[Source] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @property
    def num_cells(self) -> int:
        """Cells of all shards."""
        return sum(shard.cells for shard in self.shards)

    def to_json(self) -> str:
        """Return the text of the file, with a hash of itself: what was changed by hand is seen."""
        content = asdict(self)
        return json.dumps({**content, "sha256": hash_of(content)}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Manifest":
        """Read the text of the file.

        Raises:
            ValueError: If it is none, of another version, or was changed.
        """
        try:
            content = json.loads(text)
            version, given = content.pop("format_version"), content.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is no manifest of a corpus ({error}): convert into a new folder") from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{where} has format version {version}, this program reads {FORMAT_VERSION}: convert again, or use "
                f"the version of the program that wrote it"
            )
        if given != hash_of({**content, "format_version": version}):
            raise ValueError(
                f"{where} was changed after it was written: its content does not give its sha256 {given[:12]}...; "
                f"restore it, or convert again into a new folder"
            )
        content["sources"] = [Source(**source) for source in content["sources"]]
        content["shards"] = [Shard(**shard) for shard in content["shards"]]
        return cls(**content)


def hash_of(content: dict[str, Any]) -> str:
    """Return the hash of the content of a manifest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def panel_of(genes: Sequence[str]) -> dict[str, Any]:
    """Return what tells a panel: the hash of its `genes.txt`, and its size."""
    return {"sha256": hashlib.sha256(genes_text(genes).encode()).hexdigest(), "num_genes": len(genes)}


def genes_text(genes: Sequence[str]) -> str:
    """Return the content of `genes.txt`: one name a line, the line is the id."""
    return "\n".join(genes) + "\n"


def read_manifest(path: Any, tokenizer: "XTrimoGeneTokenizer | None" = None, **storage_options: Any) -> Manifest:
    """Read the manifest of a corpus and check that its shards are there.

    Args:
        path: Folder, or any address that fsspec reads, such as `hf://datasets/owner/name`.
        tokenizer: If given, its panel has to be that of the corpus.
        **storage_options: For fsspec.

    Raises:
        FileNotFoundError: If there is no corpus, or a shard is missing.
        ValueError: If the conversion did not end, a shard has another size, or the panel is another one.
    """
    from fsspec.core import url_to_fs

    files, root = url_to_fs(str(path), **storage_options)
    if not files.exists(f"{root}/{MANIFEST}"):
        raise FileNotFoundError(f"{path} holds no {MANIFEST}, so it is no corpus: make one with xtrimogene convert")
    manifest = Manifest.from_json(files.cat_file(f"{root}/{MANIFEST}").decode(), f"{path}/{MANIFEST}")
    if unfinished := [source for source in manifest.sources if source.state == "converting"]:
        source = unfinished[0]
        raise ValueError(
            f"{path} is not finished: {source.cells_read:,} of {source.cells:,} cells of {source.name} were read; "
            f"repeat the command that made it, it goes on from there"
        )
    if not manifest.num_cells:
        raise ValueError(f"{path} holds 0 cells of {len(manifest.sources)} files: its manifest says why")
    there = files.ls(f"{root}/data", detail=True) if files.exists(f"{root}/data") else []
    check_shards(manifest, path, {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in there})
    if hashlib.sha256(files.cat_file(f"{root}/genes.txt")).hexdigest() != manifest.panel["sha256"]:
        raise ValueError(f"{path}/genes.txt is not the panel that the corpus was made for: restore it")
    if tokenizer is not None and panel_of(tokenizer.genes) != manifest.panel:
        raise ValueError(
            f"{path} was made for a panel of {manifest.panel['num_genes']:,} genes, hash "
            f"{manifest.panel['sha256'][:12]}..., and the tokenizer has {tokenizer.num_genes:,}, hash "
            f"{panel_of(tokenizer.genes)['sha256'][:12]}...: gene ids would mean other genes; convert again for it"
        )
    return manifest


def check_shards(manifest: Manifest, path: Any, sizes: dict[str, int]) -> None:
    """Compare the manifest with the files that are there.

    Args:
        manifest: Manifest.
        path: The corpus.
        sizes: Name of each file in `data` -> its bytes.
    """
    missing = [shard.file for shard in manifest.shards if shard.file.rsplit("/", 1)[-1] not in sizes]
    if missing:
        raise FileNotFoundError(
            f"{path} lacks {len(missing)} of {len(manifest.shards)} shards, {missing[0]} first: copy it again, or "
            f"convert again into a new folder"
        )
    for shard in manifest.shards:
        found = sizes[shard.file.rsplit("/", 1)[-1]]
        if found != shard.bytes:
            raise ValueError(
                f"{path}/{shard.file} has {found:,} bytes, and {shard.bytes:,} in {MANIFEST}: it is damaged; copy it "
                f"again, or convert again into a new folder"
            )


# -- all cells, in any order ------------------------------------------------------------------------------------------


class Corpus(Dataset):
    """Cells of a corpus in memory-mapped Arrow: any cell at once, none in memory before it is asked for.

    `corpus[7]` is one cell, with views of the mapped memory; `corpus["length"]` is a column.

    Attributes:
        dataset: The same cells as a `datasets.Dataset`.
        manifest: What the corpus holds.

    Args:
        dataset: As `load_dataset("parquet")` gives it: all cells in the order of the manifest.
        manifest: Of the corpus.
        indices: Which of the cells, in this order; all unless given.
    """

    def __init__(self, dataset: "datasets.Dataset", manifest: Manifest, indices: np.ndarray | None = None):
        self._whole, self.manifest, self._indices = dataset, manifest, indices
        self._batches = [CellBatch(batch) for batch in dataset.data.table.select(CELL_COLUMNS).to_batches()]
        self._starts = np.cumsum([0, *(batch.size for batch in self._batches)])

    def __len__(self) -> int:
        return len(self._whole) if self._indices is None else len(self._indices)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            column = self._whole.data.table.column(key).to_numpy()
            return column if self._indices is None else column[self._indices]
        return self.__getitems__([key])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return cells, as a DataLoader asks for them."""
        rows = np.asarray(indices, np.int64)
        if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"index {rows[np.argmax(np.abs(rows))]} of {len(self):,} cells")
        rows = np.where(rows < 0, rows + len(self), rows)
        if self._indices is not None:
            rows = self._indices[rows]
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[numbers]
        return [
            self._batches[number].cell(place) for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        # Views would be copied; the dataset travels as the names of its files.
        return {"dataset": self._whole, "manifest": self.manifest, "indices": self._indices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def dataset(self) -> "datasets.Dataset":
        """The same cells as a `datasets.Dataset`."""
        return self._whole if self._indices is None else self._whole.select(self._indices)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Corpus":
        """Return some cells, in the order given; each keeps its `cell_index`."""
        chosen = np.asarray(indices, np.int64)
        part = copy.copy(self)
        part._indices = chosen if self._indices is None else self._indices[chosen]
        return part


class CellBatch:
    """Views of the cells of an Arrow record batch."""

    def __init__(self, batch: Any):
        self.size = batch.num_rows
        ids, counts = batch.column("input_ids"), batch.column("counts")
        # Offsets count from the beginning of `values`, whatever part of it the batch shows.
        self.starts = ids.offsets.to_numpy()
        self.shift = counts.offsets[0].as_py() - ids.offsets[0].as_py() if self.size else 0
        self.ids, self.counts = ids.values.to_numpy(), counts.values.to_numpy()
        self.totals = batch.column("total").to_numpy()
        self.cell_indices = batch.column("cell_index").to_numpy()

    def cell(self, row: int) -> dict[str, Any]:
        """Return a cell."""
        start, stop = int(self.starts[row]), int(self.starts[row + 1])
        return {
            "input_ids": self.ids[start:stop],
            "counts": self.counts[start + self.shift : stop + self.shift],
            "total": self.totals[row],
            "cell_index": self.cell_indices[row],
            "length": stop - start,
        }


def read_corpus(
    path: Any,
    tokenizer: "XTrimoGeneTokenizer | None" = None,
    cache_dir: str | None = None,
    **storage_options: Any,
) -> Corpus:
    """Open a corpus to read its cells in any order.

    The first time, `datasets` writes the shards as Arrow into its cache, which is then mapped: about 8 bytes a count.

    Args:
        path: See `read_manifest`.
        tokenizer: See `read_manifest`.
        cache_dir: Cache of `datasets`; its own unless given.
        **storage_options: For fsspec.

    Raises:
        FileNotFoundError: See `read_manifest`.
        ValueError: See `read_manifest`.
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
    return Corpus(dataset.with_format("numpy"), manifest)


# -- as they come -----------------------------------------------------------------------------------------------------


class CellStream(IterableDataset):
    """The cells of a corpus one after the other; as a torch `IterableDataset` it also deals shards out to workers.

    Args:
        rows: Stream of `datasets` in the format `arrow`: in its others a row takes longer than its collating.
        obs: Further columns of the rows.
    """

    def __init__(self, rows: "datasets.IterableDataset", obs: Sequence[str] = ()):
        self.rows, self.obs = rows, tuple(obs)
        self.epoch = self.num_given = self.num_before = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.num_given, self.num_before = self.num_before, 0
        for table in islice(self.rows, self.num_given, None):
            self.num_given += 1
            cell = CellBatch(table.combine_chunks().to_batches()[0]).cell(0)
            yield cell | {name: table[name][0].as_py() for name in self.obs}

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return where this epoch stands, for `load_state_dict`."""
        return {"epoch": self.epoch, "num_given": self.num_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on from there: the cells before are read again and passed over, so none is lost."""
        self.set_epoch(state["epoch"])
        self.num_before = state["num_given"]


def stream_corpus(
    path: Any,
    tokenizer: "XTrimoGeneTokenizer | None" = None,
    *,
    sources: Sequence[str] | None = None,
    obs: Sequence[str] = (),
    seed: int | None = 0,
    buffer_size: int = 10_000,
    rank: int = 0,
    world_size: int = 1,
    **storage_options: Any,
) -> CellStream:
    """Return the cells of a corpus as a stream: nothing is written, and it may lie anywhere.

    `set_epoch` changes the order of shards and cells, `state_dict` and `load_state_dict` continue it exactly.

    Args:
        path: See `read_manifest`.
        tokenizer: See `read_manifest`.
        sources: Only cells of these sources, such as one side of a split by file; of all unless given.
        obs: Further columns.
        seed: Seed of the order of shards and cells; None keeps the order of the corpus.
        buffer_size: Cells among which each next one is drawn.
        rank: Number of this process.
        world_size: Number of processes; each reads shards of its own where their number is a multiple of it.
        **storage_options: For fsspec.

    Raises:
        FileNotFoundError: See `read_manifest`.
        ValueError: See `read_manifest`; or if a source is not in the corpus.
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
    return CellStream(split_dataset_by_node(stream.with_format("arrow"), rank, world_size), obs)


# -- split and balance ------------------------------------------------------------------------------------------------


def split_corpus(
    corpus: Corpus, validation_share: float, by: str | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells to train on and which to hold out, both ascending.

    Args:
        corpus: Cells.
        validation_share: Share of the cells, about, to hold out.
        by: Column whose values (donor, study, `source`) stay on one side each; by cell unless given. Groups are held
            out in random order as far as they fit into the share; if none does, the smallest one.
        seed: Seed.

    Raises:
        ValueError: If a side would be empty, or there is no such column.
    """
    if by is None:
        groups = np.arange(len(corpus))
    else:
        if by not in corpus.dataset.column_names:
            raise ValueError(f"by is {by!r}, and the corpus has the columns {', '.join(corpus.dataset.column_names)}")
        groups = np.unique(corpus[by].astype(str), return_inverse=True)[1]
    sizes = np.bincount(groups)
    room, chosen = validation_share * len(corpus), []
    for group in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if sizes[group] <= room:
            chosen.append(group)
            room -= sizes[group]
    chosen = chosen or [int(sizes.argmin())]
    if len(chosen) == len(sizes):
        raise ValueError(
            f"{len(sizes)} {by or 'cell'}s and a validation_share of {validation_share} leave nothing to train on: "
            f"split by another column, or hold out less"
        )
    is_held_out = np.isin(groups, chosen)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


class BalancedSampler(ShuffledCells):
    """Draw from each group (study, donor, label) equally often, so that large ones do not drown the others.

    An epoch has as many draws as there are cells. Within a group each cell is drawn equally often, some once more. The
    order is random, and follows from seed and epoch alone.

    Args:
        groups: Group of each cell.
        seed: Seed.
    """

    def __init__(self, groups: Sequence[Any] | np.ndarray, seed: int = 0):
        ids = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
        self.members = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
        super().__init__(len(ids), seed)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        quotas = np.diff(np.linspace(0, len(self), len(self.members) + 1).astype(int))
        drawn = []
        for members, quota in zip(self.members, quotas.tolist(), strict=True):
            rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
            drawn.append(np.concatenate(rounds)[:quota] if rounds else members[:0])
        yield from rng.permutation(np.concatenate(drawn)).tolist()
