"""Convert files of cells to a corpus: Parquet shards and a manifest, in bounded memory, resumed where it stopped.

    files  ->  cells, some thousand at a time  ->  quality control  ->  ids and counts on the panel  ->  shard
                                                                                       |  written, renamed
                                                                                       v
                                                                             manifest, replaced as a whole

What is in the manifest is whole: a shard takes its name when it is on disk, and only then the manifest names it. The
same command again goes on behind the last shard. A file is in the corpus with all its cells or, if one cannot be read,
with none.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..tokenization.counts_xtrimogene import CountSource, find_counts, load
from ..tokenization.genes_xtrimogene import GeneMatch
from ..tokenization.panel_xtrimogene import PanelCounts
from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
from .checkpoints import file_hash
from .corpus import MANIFEST, Manifest, Shard, Source, check_shards, genes_text, panel_of
from .sources import fingerprint_of, open_cells, size_of

SHARD_CELLS = 8192  # cells of a source that are read for a shard: about 20 MB of 1,000 genes each
CHUNK = 1024  # cells in memory at a time
LARGEST_COUNT = 1 << 24  # float32, in which counts are read, holds all integers up to here
ROW_GROUP = 512  # cells that a reader of Parquet has to decode to get one
OWN_COLUMNS = ("input_ids", "counts", "total", "cell_index", "length", "source", "source_row", "cell_name")
UNFINISHED = ".unfinished"
# All that a conversion leaves which was interrupted before there was a manifest.
BEFORE_THE_MANIFEST = ("data", "genes.txt", f"genes.txt{UNFINISHED}", f"{MANIFEST}{UNFINISHED}")


class SourceError(ValueError):
    """A file cannot be read, or what it holds cannot be used."""


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        manifest: What the corpus holds now.
        failed: Sources given that could not be converted.
        num_new: Cells that were added.
    """

    manifest: Manifest
    failed: list[Source]
    num_new: int


def convert_files(
    files: Sequence[str | Path],
    output: str | Path,
    *,
    tokenizer: XTrimoGeneTokenizer,
    obs: Sequence[str] = (),
    min_genes: int = 200,
    max_mt_percent: float | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    strict: bool = False,
    verify: bool = False,
    shard_cells: int = SHARD_CELLS,
    say: Callable[[str], None] = print,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Conversion:
    """Convert files to a corpus, go on with a conversion that was interrupted, or add files to a corpus.

    Args:
        files: Anything that `open_cells` reads.
        output: Folder of the corpus, made if it is not there.
        tokenizer: Its panel gives the ids.
        obs: Columns of `obs` to keep, as text; every file has to have them.
        min_genes: Leave out cells with fewer expressed genes, of all in the file (scanpy's `filter_cells`); antibodies
            and other columns that are no genes do not count.
        max_mt_percent: Leave out cells with a larger share of mitochondrial counts (scanpy's `pct_counts_mt`).
        layer: Layer with the counts in every file, if they are not found by themselves.
        gene_column: Column of `var` with the gene names in every file.
        strict: Stop at the first file that cannot be converted, instead of going on with the next.
        verify: Compare the hashes of shards that are there, not only their sizes.
        shard_cells: Cells that are read for a shard.
        say: Called with one line for each file.
        progress: Called with the name of a file, the cells of it that were read, and all its cells.

    Raises:
        FileNotFoundError: If a file does not exist.
        OSError: If the corpus cannot be written.
        ValueError: If the folder holds something else, was made with other options or of other files, or with `strict`
            a file cannot be converted.
    """
    folder, obs = Path(output), list(dict.fromkeys(obs))
    if taken := sorted(set(obs) & set(OWN_COLUMNS)):
        raise ValueError(f"obs column {taken[0]!r} has the name of a column of the corpus: rename it in obs")
    options = {
        "obs": obs,
        "min_genes": min_genes,
        "max_mt_percent": max_mt_percent,
        "layer": layer,
        "gene_column": gene_column,
        "shard_cells": shard_cells,
    }
    manifest = open_corpus(folder, panel_of(tokenizer.genes), options, verify)
    named = name_sources([Path(file) for file in files], manifest)
    if not (folder / MANIFEST).exists():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "genes.txt", genes_text(tokenizer.genes))
        write_whole(folder / MANIFEST, manifest.to_json())
    num_new = 0
    # A source that was interrupted goes first: its cells lie behind all others.
    for path, source in sorted(
        named, key=lambda pair: pair[1] not in manifest.sources or pair[1].state != "converting"
    ):
        if source.state == "complete":
            say(f"{source.name}: is in the corpus with {source.cells_kept:,} cells")
            continue
        num_before = source.cells_kept
        try:
            convert_source(path, source, folder, manifest, tokenizer, progress)
            num_new += source.cells_kept - num_before
            say(summary(source))
        except SourceError as error:
            give_up(source, folder, manifest, str(error))
            if strict:
                raise
            say(f"Not converted: {error}")
    write_whole(folder / "README.md", card(folder.name, manifest))
    return Conversion(manifest, [source for _, source in named if source.state == "failed"], num_new)


def open_corpus(folder: Path, panel: dict[str, Any], options: dict[str, Any], verify: bool) -> Manifest:
    """Return the manifest of a corpus to go on with, or a new one."""
    file = folder / MANIFEST
    if not file.exists():
        if folder.is_file():
            raise ValueError(f"{folder} is a file, and --output a folder to write: choose another name")
        others = [path.name for path in folder.rglob("*") if path.name not in BEFORE_THE_MANIFEST]
        if others:
            raise ValueError(
                f"{folder} holds {', '.join(sorted(others)[:5])} and no {MANIFEST}, so it is no corpus: choose another "
                f"--output"
            )
        return Manifest(panel, options)
    manifest = Manifest.from_json(file.read_text(encoding="utf-8"), str(file))
    if manifest.panel != panel:
        raise ValueError(
            f"{folder} was made for a panel of {manifest.panel['num_genes']:,} genes, and this one has "
            f"{panel['num_genes']:,} (hash {panel['sha256'][:12]}...): convert into a new folder"
        )
    different = [name for name in options if manifest.options.get(name) != options[name]]
    if different:
        shown = ", ".join(f"{name} {manifest.options.get(name)!r}, now {options[name]!r}" for name in different)
        raise ValueError(f"{folder} was made with {shown}: give the same options, or convert into a new folder")
    there = {path.name: path for path in (folder / "data").glob("*")}
    check_shards(manifest, folder, {name: path.stat().st_size for name, path in there.items()})
    if verify:
        for shard in manifest.shards:
            if file_hash(folder / shard.file) != shard.sha256:
                raise ValueError(
                    f"{folder / shard.file} does not give the sha256 of {MANIFEST}: it is damaged; copy it again, or "
                    f"convert into a new folder"
                )
    # A shard that the manifest does not name was written just before an interruption.
    named = {Path(shard.file).name for shard in manifest.shards}
    for name, path in there.items():
        if name not in named and name.startswith("cells-"):
            path.unlink()
    return manifest


def name_sources(paths: Sequence[Path], manifest: Manifest) -> list[tuple[Path, Source]]:
    """Give each file its source in the manifest, a new one where it has none.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is given twice, has another size than before, or one that was interrupted is missing.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    targets = [path.resolve() for path in paths]
    if repeated := [path for index, path in enumerate(paths) if targets[index] in targets[:index]]:
        raise ValueError(f"{repeated[0].name} is given twice: give each file once")
    found: list[tuple[Path, Source]] = []
    for path in absolute:
        if not path.exists():
            load(path)  # says what is there with a similar name
        # The least of its folders that tells it from the others given.
        name = next(
            name
            for depth in range(1, len(path.parts) + 1)
            if (name := "/".join(path.parts[-depth:]))
            and sum(f"/{other.as_posix()}".endswith(f"/{name}") for other in absolute) == 1
        )
        size, fingerprint = size_of(path), fingerprint_of(path)
        alike = [one for one in manifest.sources if f"/{path.as_posix()}".endswith(f"/{one.name}")]
        source = next((one for one in alike if one.name == name), alike[0] if alike else None)
        if source is None:
            source = Source(name, size, fingerprint)
        elif source.state == "failed":
            source.bytes, source.fingerprint, source.error = size, fingerprint, None
        elif (source.bytes, source.fingerprint) != (size, fingerprint):
            raise ValueError(
                f"{path.name} has {size:,} bytes, and {source.name} of the corpus other {source.bytes:,} bytes: if "
                f"it is another file, name it differently; if it was changed, convert into a new folder"
            )
        if any(source is other for _, other in found):
            raise ValueError(
                f"{source.name} of the corpus may be any of several files given, {path.name} last: give other names"
            )
        found.append((path, source))
    given = [source.name for _, source in found]
    for source in manifest.sources:
        if source.state == "converting" and source.name not in given:
            raise ValueError(
                f"{source.name} was interrupted after {source.cells_read:,} of {source.cells:,} cells and is not "
                f"given: repeat the command that began it"
            )
    return found


# -- one source -------------------------------------------------------------------------------------------------------


def convert_source(
    path: Path,
    source: Source,
    folder: Path,
    manifest: Manifest,
    tokenizer: XTrimoGeneTokenizer,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write the cells of a file from where the manifest ends.

    Raises:
        SourceError: If it cannot be read.
    """
    options = manifest.options
    with reading(path), open_cells(path, options["obs"]) as stored:
        counts = find_counts(
            stored, layer=options["layer"], gene_column=options["gene_column"], is_gene=tokenizer.matcher.knows
        )
        match = tokenizer.matcher.best_match(counts.name_candidates, row_names=counts.cell_names)
        control = QualityControl(
            counts, match, tokenizer.genes, options["min_genes"], options["max_mt_percent"], source.left_out
        )
        if source not in manifest.sources:
            manifest.sources.append(source)
        source.state = "converting"
        source.description, source.cells = control.cells.description, counts.n_cells
        source.genes = match.to_dict() | {"summary": match.summary()}
        names = np.asarray(counts.cell_names, object)
        source.repeated_names = len(names) - len(set(names))
        labels = {name: as_text(stored.obs[name]) for name in options["obs"]}
        progress(source.name, source.cells_read, source.cells)
        for start in range(source.cells_read, source.cells, options["shard_cells"]):
            stop = min(start + options["shard_cells"], source.cells)

            def tables(start: int = start, stop: int = stop) -> Iterator[Any]:
                """Yield the kept cells of a shard, chunk by chunk."""
                cell_index = manifest.num_cells
                for first in range(start, stop, CHUNK):
                    last = min(first + CHUNK, stop)
                    kept, cells, totals = control.read(first, last)
                    if len(kept):
                        yield table_of(cells, totals, cell_index, source.name, kept, names, labels)
                    cell_index += len(kept)
                    progress(source.name, last, source.cells)

            shard = write_shard(folder, len(manifest.shards), source.name, start, tables())
            if shard is not None:
                manifest.shards.append(shard)
                source.cells_kept += shard.cells
            source.cells_read = stop
            source.state = "complete" if stop == source.cells else "converting"
            write_whole(folder / MANIFEST, manifest.to_json())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong that this file was read; what goes wrong with the corpus is no fault of the file."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:  # damaged files make their readers raise anything
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        text = f"{kind}{' '.join(str(error).split())}"
        raise SourceError(text if text.startswith(path.name) else f"{path.name}: {text}") from error


class QualityControl:
    """Reads cells, counts those it leaves out, and gives the others on the panel.

    It stands between the file and `PanelCounts`, where all genes are seen, also those that are not on the panel.

    Args:
        counts: Counts of a file.
        match: How its columns lie on the panel.
        genes: Names of the panel.
        min_genes: See `convert_files`.
        max_mt_percent: See `convert_files`.
        left_out: Rule -> cells that it left out; counted on.

    Raises:
        ValueError: If a share of mitochondrial counts is asked for and no column is mitochondrial.
    """

    def __init__(
        self,
        counts: CountSource,
        match: GeneMatch,
        genes: Sequence[str],
        min_genes: int,
        max_mt_percent: float | None,
        left_out: dict[str, int],
    ):
        self.counts, self.min_genes, self.max_mt_percent, self.left_out = counts, min_genes, max_mt_percent, left_out
        self.n_cells, self.n_columns = counts.n_cells, counts.n_columns
        self.cell_names, self.description, self.state = counts.cell_names, counts.description, counts.state
        self.column_sums, self.gene_names = counts.column_sums, counts.gene_names
        self.cells = PanelCounts(cast(CountSource, self), match, len(genes))
        if max_mt_percent is not None:
            on_panel = [genes[row] if row >= 0 else "" for row in match.rows.tolist()]
            every = [*counts.name_candidates.values(), on_panel]
            is_mitochondrial = np.array([[name.upper().startswith("MT-") for name in names] for names in every])
            self.is_mitochondrial = is_mitochondrial.any(axis=0).astype(np.float64)
            if not self.is_mitochondrial.any():
                raise ValueError(
                    f"none of {counts.n_columns:,} columns is mitochondrial (MT-...), so their share is unknown: leave "
                    f"--max-mt-percent out"
                )

    def rows(self, start: int, stop: int) -> Any:
        """Return the counts of cells, as `CountSource.rows`, and remember what the rules ask for."""
        columns = self.counts.rows(start, stop)
        self.num_genes = np.diff(columns.indptr)
        if self.max_mt_percent is not None:
            self.mt_counts = columns @ self.is_mitochondrial
        return columns

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Any, np.ndarray]:
        """Return the rows that are kept of cells `start ... stop`, their counts on the panel (CSR) and their totals."""
        cells, totals = self.cells.read(start, stop)
        rules = {f"fewer than {self.min_genes} genes": self.num_genes < self.min_genes}
        if self.max_mt_percent is not None:
            is_over = 100 * self.mt_counts > self.max_mt_percent * totals
            rules[f"more than {self.max_mt_percent:g} % mitochondrial counts"] = is_over
        rules["no counts on the panel"] = np.diff(cells.indptr) == 0
        is_kept = np.ones(stop - start, bool)
        for rule, is_out in rules.items():
            self.left_out[rule] = self.left_out.get(rule, 0) + int((is_kept & is_out).sum())
            is_kept &= ~is_out
        kept = np.flatnonzero(is_kept)
        return kept + start, cells if len(kept) == stop - start else cells[kept], totals[kept]


def as_text(column: Any) -> Any:
    """Return a column of obs as Arrow strings; what is missing stays missing."""
    import pyarrow as pa

    return pa.array(column.astype("string"), pa.string(), from_pandas=True)


def give_up(source: Source, folder: Path, manifest: Manifest, error: str) -> None:
    """Record that a source cannot be converted, and take its cells out again: part of a file would be a trap."""
    shards = [shard for shard in manifest.shards if shard.source == source.name]
    manifest.shards = manifest.shards[: len(manifest.shards) - len(shards)]
    manifest.sources = [other for other in manifest.sources if other is not source]
    source.__init__(source.name, source.bytes, source.fingerprint, "failed", error)  # type: ignore[misc]
    manifest.sources.append(source)
    write_whole(folder / MANIFEST, manifest.to_json())
    for shard in shards:
        (folder / shard.file).unlink()


# -- shards -----------------------------------------------------------------------------------------------------------


def table_of(
    cells: Any,
    totals: np.ndarray,
    cell_index: int,
    source: str,
    rows: np.ndarray,
    names: np.ndarray,
    labels: dict[str, Any],
) -> Any:
    """Return cells as an Arrow table, without a loop over them."""
    import pyarrow as pa

    if cells.nnz and cells.data.max() >= LARGEST_COUNT:
        raise ValueError(f"a count of {cells.data.max():.3g} cannot be read exactly (float32): are these single cells?")
    offsets = pa.array(cells.indptr.astype(np.int32))
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(cells.indices.astype(np.int32))),
        "counts": pa.ListArray.from_arrays(offsets, pa.array(cells.data.astype(np.int32))),
        "total": pa.array(totals),
        "cell_index": pa.array(np.arange(cell_index, cell_index + len(rows))),
        "length": pa.array(np.diff(cells.indptr).astype(np.int32)),
        "source": pa.repeat(pa.scalar(source), len(rows)),
        "source_row": pa.array(rows),
        "cell_name": pa.array(names[rows], pa.string()),
    }
    return pa.table(columns | {name: column.take(pa.array(rows)) for name, column in labels.items()})


def write_shard(folder: Path, number: int, source: str, first_row: int, tables: Iterator[Any]) -> Shard | None:
    """Write a shard, which has its name when it is whole; none if there are no cells."""
    import pyarrow.parquet as pq

    name = f"data/cells-{number:05d}.parquet"
    path = folder / f"{name}{UNFINISHED}"
    num_cells = num_nonzeros = 0
    with ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        writer = None
        for table in tables:
            num_cells += len(table)
            num_nonzeros += len(table.column("counts").combine_chunks().flatten())
            with writing(path):
                if writer is None:
                    file = stack.enter_context(path.open("wb"))
                    # Ids ascend: their differences are small, and take half of the space. Counts and names repeat.
                    writer = pq.ParquetWriter(
                        file,
                        table.schema,
                        compression="zstd",
                        use_dictionary=[column for column in table.column_names if column not in NO_DICTIONARY],
                        column_encoding={"input_ids.list.element": "DELTA_BINARY_PACKED"},
                    )
                writer.write_table(table, row_group_size=ROW_GROUP)
        if writer is None:
            return None
        with writing(path):
            writer.close()
            file.flush()
            os.fsync(file.fileno())
            file.close()
            shard = Shard(name, source, first_row, num_cells, num_nonzeros, path.stat().st_size, file_hash(path))
            path.replace(folder / name)
            sync_folder(path.parent)
    return shard


NO_DICTIONARY = ("input_ids", "total", "cell_index", "length", "source_row", "cell_name")


class CorpusError(OSError):
    """The corpus cannot be written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of what goes wrong that the corpus was written, and what is left of it."""
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be written ({error.strerror or error}); the shards before it are whole: make room, and "
            f"repeat the command to go on behind them"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write a file so that its name always stands for all of the old text or all of the new."""
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    with writing(path):
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on disk."""
    with suppress(OSError):  # not every system lets a folder be opened
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


# -- words ------------------------------------------------------------------------------------------------------------


def summary(source: Source) -> str:
    """Return a line on a source that was converted."""
    left_out = [f"{count:,} with {rule}" for rule, count in source.left_out.items() if count]
    parts = [
        f"{source.name}: {source.cells_kept:,} of {source.cells:,} cells",
        *([f"left out {', '.join(left_out)}"] if left_out else []),
        *(
            [f"{source.repeated_names:,} cells repeat the name of another, and are kept"]
            if source.repeated_names
            else []
        ),
        source.description,
        source.genes["summary"],
    ]
    return "; ".join(parts)


def card(name: str, manifest: Manifest) -> str:
    """Return the dataset card, whose header lets `datasets.load_dataset(folder)` find the shards."""
    rows = [
        f"| {source.name} | {source.cells:,} | {source.cells_kept:,} | {source.description} | "
        f"{source.genes['n_matched']:,} |"
        for source in manifest.sources
        if source.state == "complete"
    ]
    return CARD.format(
        name=name,
        cells=manifest.num_cells,
        nonzeros=sum(shard.nonzeros for shard in manifest.shards),
        genes=manifest.panel["num_genes"],
        obs="".join(f", `{column}`" for column in manifest.options["obs"]),
        rows="\n".join(rows),
    )


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- single-cell
- biology
- gene-expression
- scRNA-seq
---

# {name}

{cells:,} cells, {nonzeros:,} counts that are not 0, on a panel of {genes:,} genes (`genes.txt`, the line is the id).
One row a cell: `input_ids` (expressed genes, ascending), `counts` (raw), `total` (all counts of the cell, also of genes
that are not on the panel), `cell_index`, `length`, `source`, `source_row`, `cell_name`{obs}. `manifest.json` says how
each file was read, which cells were left out and why, and the hash of each shard.

```python
import datasets

cells = datasets.load_dataset("parquet", data_files="data/*.parquet", split="train")
```

| file | cells | kept | counts | genes of the panel |
|---|---|---|---|---|
{rows}

The licence is that of the files it was made from.
"""
