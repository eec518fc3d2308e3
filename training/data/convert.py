"""Convert files of cells to a corpus of Parquet shards and a manifest, in bounded memory, and resume where it stopped.

    files  ->  cells, some thousand at a time  ->  quality control  ->  ids and counts on the panel  ->  shard
                                                                                       |  written, renamed
                                                                                       v
                                                                             manifest, replaced as a whole

The manifest names complete shards only: a shard is written to disk, renamed, and then added to the manifest. The same
command again goes on after the last shard. If a cell of a file cannot be read, none of its cells is in the corpus.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...atomic import UNFINISHED, WriteError, file_hash, write_whole
from ...tokenization.counts_xtrimogene import CountSource
from ...tokenization.expression_xtrimogene import ExpressionTokenizer
from ...tokenization.files_xtrimogene import load
from ...tokenization.genes_xtrimogene import GeneMatch
from ...tokenization.stored import fingerprint_of, open_cells, says_what_was_measured, size_of
from ...tokenization.stored_cells import MissingColumns, StoredCells
from ..options import Converting
from .manifest import MANIFEST, Manifest, Source, card, check_shards, genes_text, panel_of
from .measured import expressed_genes, measured_text
from .quality import QualityControl
from .shards import as_text, table_of, write_shard

CHUNK = 1024  # cells in memory at a time
OWN_COLUMNS = ("input_ids", "counts", "total", "cell_index", "length", "source", "source_row", "cell_name")
# Files that a conversion leaves behind if it is interrupted before it writes the manifest.
BEFORE_THE_MANIFEST = ("data", "genes.txt", f"genes.txt{UNFINISHED}", f"{MANIFEST}{UNFINISHED}")


class SourceError(ValueError):
    """A file cannot be read, or its content cannot be converted."""


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        manifest: Content of the corpus after the conversion.
        failed: Given files that could not be converted.
        num_new: Number of cells that were added.
    """

    manifest: Manifest
    failed: list[Source]
    num_new: int


def convert_files(
    files: Sequence[str | Path],
    output: str | Path,
    recipe: Converting | None = None,
    *,
    tokenizer: ExpressionTokenizer,
    say: Callable[[str], None] = print,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    **options: Any,
) -> Conversion:
    """Convert files to a corpus, go on with a conversion that was interrupted, or add files to a corpus.

    Args:
        files: Files with cells: .h5ad, .zarr, 10x .h5 or mtx folders, .csv, .tsv, Parquet, folders of `datasets`.
        output: Folder of the corpus, made if it does not exist.
        recipe: Options of the conversion. `min_genes` counts expressed genes as scanpy's `filter_cells` does, over all
            genes in the file; columns that are no genes, such as antibodies, do not count. `max_mt_percent` is compared
            with scanpy's `pct_counts_mt`. A column of `obs` that a file lacks is null there, unless `strict` is set.
        tokenizer: Tokenizer whose panel gives the gene ids.
        say: Called with one line of text for each file.
        progress: Called with the name of a file, its number of cells read so far, and its number of cells.
        **options: Options of `Converting` that replace those of `recipe`, such as `min_genes=500`.

    Raises:
        FileNotFoundError: If a file does not exist.
        OSError: If the corpus cannot be written.
        ValueError: If the folder holds something other than a corpus, or a corpus made with other options or for other
            genes; if a file changed since it was converted; if no file has a column of `obs`; or if a file cannot be
            converted or lacks a column, and `strict` is set.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> counts.to_csv("cells.csv")
        >>> done = convert_files(["cells.csv"], "corpus", tokenizer=tokenizer, min_genes=1, say=lambda line: None)
        >>> done.manifest.num_cells, done.failed
        (4, [])
    """
    recipe = replace(recipe or Converting(), **options)
    folder, obs = Path(output), list(dict.fromkeys(recipe.obs or ()))
    if taken := sorted(set(obs) & set(OWN_COLUMNS)):
        raise ValueError(f"obs column {taken[0]!r} has the name of a column of the corpus: rename it in obs")
    # These options decide which cells are kept, and in which shards.
    kept = ("min_genes", "max_mt_percent", "layer", "gene_column", "shard_cells")
    held = {"obs": obs, **{name: getattr(recipe, name) for name in kept}}
    manifest = open_corpus(folder, panel_of(tokenizer.genes), held, recipe.verify)
    named = name_sources([Path(file) for file in files], manifest)
    if not (folder / MANIFEST).exists():
        check_obs([path for path, _ in named], obs)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "genes.txt", genes_text(tokenizer.genes))
        write_whole(folder / MANIFEST, manifest.to_json())
    num_new = 0
    without: dict[str, list[str]] = {}  # column of obs -> files that lack it
    # An interrupted source goes first: its cells come last in the corpus, and more can only follow there.
    for path, source in sorted(
        named, key=lambda pair: pair[1] not in manifest.sources or pair[1].state != "converting"
    ):
        if source.state == "complete":
            say(f"{source.name}: is in the corpus with {source.cells_kept:,} cells")
            if not source.measured:
                say(add_measured(path, source, folder, manifest, tokenizer))
            continue
        num_before = source.cells_kept
        try:
            for name in convert_source(path, source, folder, manifest, tokenizer, progress, recipe.strict):
                without.setdefault(name, []).append(source.name)
            num_new += source.cells_kept - num_before
            say(summary(source))
        except SourceError as error:
            give_up(source, folder, manifest, str(error))
            if recipe.strict:
                raise
            say(f"Not converted: {error}")
    for name, lacking in without.items():
        say(f"obs has no column {name!r} in {len(lacking)} of {len(files)} files, null there: {', '.join(lacking)}")
    write_whole(folder / "README.md", card(folder.name, manifest))
    return Conversion(manifest, [source for _, source in named if source.state == "failed"], num_new)


def check_obs(paths: Sequence[Path], obs: Sequence[str]) -> None:
    """Refuse a column of obs that no file has: its name may be misspelt, and all its values would be null.

    Raises:
        ValueError: If there is such a column.
    """
    lacked = dict.fromkeys(obs, 0)
    for path in paths if obs else ():
        try:
            with open_cells(path, obs):
                pass
        except MissingColumns as error:
            last = str(error)
            for name in error.names:
                lacked[name] += 1
        except Exception:  # the conversion tells what is wrong with the file
            pass
    if nowhere := [name for name in obs if lacked[name] == len(paths)]:
        raise ValueError(f"obs column {nowhere[0]!r} is in none of {len(paths)} files; {last}")


@contextmanager
def open_present(path: Path, obs: Sequence[str], strict: bool) -> Iterator[tuple[StoredCells, list[str]]]:
    """Open a file of cells, and yield it with the columns of obs that it lacks.

    Raises:
        MissingColumns: If it lacks one and `strict` is set.
    """
    with ExitStack() as stack:
        try:
            stored, absent = stack.enter_context(open_cells(path, obs)), []
        except MissingColumns as error:
            if strict:
                raise
            absent = error.names
            stored = stack.enter_context(open_cells(path, [name for name in obs if name not in absent]))
        yield stored, absent


def open_corpus(folder: Path, panel: dict[str, Any], options: dict[str, Any], verify: bool) -> Manifest:
    """Return the manifest of the corpus in a folder, or a new one; refuse a folder or a corpus that does not fit."""
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
    """Return each file with its source in the manifest, or with a new source.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is given twice or changed since it was converted, or if the file whose conversion was
            interrupted is not given.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    targets = [path.resolve() for path in paths]
    if repeated := [path for index, path in enumerate(paths) if targets[index] in targets[:index]]:
        raise ValueError(f"{repeated[0].name} is given twice: give each file once")
    found: list[tuple[Path, Source]] = []
    for path in absolute:
        if not path.exists():
            load(path)  # raises an error that lists files with similar names
        # The shortest end of the path that no other given file has.
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
    tokenizer: ExpressionTokenizer,
    progress: Callable[[str, int, int], None],
    strict: bool,
) -> list[str]:
    """Write the cells of a file into shards, from the first row that is not in the corpus yet.

    Returns:
        Columns of obs that the file lacks.

    Raises:
        SourceError: If the file cannot be read, or lacks a column and `strict` is set.
    """
    import pandas as pd

    options = manifest.options
    with reading(path), open_present(path, options["obs"], strict) as (stored, absent):
        counts, match = matched(stored, options, tokenizer)
        control = QualityControl(
            counts, match, tokenizer.genes, options["min_genes"], options["max_mt_percent"], source.left_out
        )
        if source not in manifest.sources:
            manifest.sources.append(source)
        source.state = "converting"
        source.description, source.cells = control.cells.description, counts.n_cells
        source.genes = match.to_dict() | {"summary": match.summary()}
        if says_what_was_measured(path):
            source.measured, source.measured_by = measured_text(match.measured), "columns"
        else:
            source.description += "; genes that no cell expresses are taken as not measured"
        names = np.asarray(counts.cell_names, object)
        source.repeated_names = len(names) - len(set(names))
        nulls = np.full(source.cells, None, object)
        labels = {name: as_text(pd.Series(nulls) if name in absent else stored.obs[name]) for name in options["obs"]}
        source.description += "".join(f"; obs has no column {name!r}, null here" for name in absent)
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
            if source.state == "complete" and not source.measured:
                source.measured = measured_text(genes_with_counts(source, folder, manifest))
                source.measured_by = "counts"
            write_whole(folder / MANIFEST, manifest.to_json())
    return absent


def matched(stored: Any, options: dict[str, Any], tokenizer: ExpressionTokenizer) -> tuple[CountSource, GeneMatch]:
    """Return the counts of an opened file, and the match of its columns to the panel."""
    counts = tokenizer.find_columns(stored, options["layer"], gene_column=options["gene_column"])
    return counts, tokenizer.matcher.best_match(counts.name_candidates, row_names=counts.cell_names)


def add_measured(path: Path, source: Source, folder: Path, manifest: Manifest, tokenizer: ExpressionTokenizer) -> str:
    """Record the measured genes of a source that an earlier version converted; return a line for the user."""
    if says_what_was_measured(path):
        try:
            with reading(path), open_cells(path) as stored:
                measured = matched(stored, manifest.options, tokenizer)[1].measured
        except SourceError as error:
            return f"Which genes it measured is not known: {error}"
        source.measured_by = "columns"
    else:
        measured, source.measured_by = genes_with_counts(source, folder, manifest), "counts"
    source.measured = measured_text(measured)
    write_whole(folder / MANIFEST, manifest.to_json())
    return f"{source.name}: recorded that it measured {measured.sum():,} genes of the panel"


def genes_with_counts(source: Source, folder: Path, manifest: Manifest) -> np.ndarray:
    """Return whether any cell of a source in the corpus expresses each gene of the panel, bool `(G,)`."""
    shards = [shard for shard in manifest.shards if shard.source == source.name]
    return expressed_genes(folder, shards, manifest.panel["num_genes"])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error into a `SourceError` that names the file, except errors of writing the corpus."""
    try:
        yield
    except WriteError:
        raise
    except Exception as error:  # readers of damaged files raise errors of any kind
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        text = f"{kind}{' '.join(str(error).split())}"
        raise SourceError(text if text.startswith(path.name) else f"{path.name}: {text}") from error


def give_up(source: Source, folder: Path, manifest: Manifest, error: str) -> None:
    """Record that a source cannot be converted, and remove its cells: users would take a part for the whole file."""
    shards = [shard for shard in manifest.shards if shard.source == source.name]
    manifest.shards = manifest.shards[: len(manifest.shards) - len(shards)]
    manifest.sources = [other for other in manifest.sources if other is not source]
    source.__init__(source.name, source.bytes, source.fingerprint, "failed", error)  # type: ignore[misc]
    manifest.sources.append(source)
    write_whole(folder / MANIFEST, manifest.to_json())
    for shard in shards:
        (folder / shard.file).unlink()


# -- words ------------------------------------------------------------------------------------------------------------


def summary(source: Source) -> str:
    """Return a line that describes a converted source."""
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
