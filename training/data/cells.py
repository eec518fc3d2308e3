"""Open the cells of a pre-training, from files or a corpus, and choose which of them are held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import concatenate_datasets

from ...tokenization.files_xtrimogene import about
from ...tokenization.labels import numbered_labels
from ...tokenization.reading import TrainingInput, say_empty
from ...tokenization.reading import open_cells as open_anndata
from ..options import CellSource, HeldOut
from .corpus import read_corpus
from .dataset import SOURCE, cells_dataset
from .splits import split_corpus


@dataclass(frozen=True)
class Cells:
    """Cells to pre-train on.

    Attributes:
        dataset: All cells.
        train: Rows to train on, `(cells,)`.
        held_out: Rows held out, cells of like length side by side.
        sources: Files that are trained on, and how many cells of each.
    """

    dataset: Any
    train: np.ndarray
    held_out: np.ndarray
    sources: list[tuple[str, int]]


def check_source(source: CellSource, *columns: str | None) -> None:
    """Refuse files beside a corpus, neither of them, and columns of a corpus that is not there.

    Raises:
        ValueError: If it is so.
    """
    if bool(source.files) == bool(source.corpus):
        raise ValueError("files and corpus exclude each other, and one is needed: give files with cells, or a corpus")
    if source.corpus is None and any(columns):
        raise ValueError("validation_by and balance_by name columns of a corpus: convert the files, then give --corpus")


def open_cells(
    source: CellSource, held_out: HeldOut, tokenizer: Any, seed: int, say: Callable[[str], None] = print
) -> Cells:
    """Open the cells of files or of a corpus, and choose which are held out.

    Args:
        source: Files or a corpus.
        held_out: How many cells are held out, and of which groups.
        tokenizer: Of the model.
        seed: Seed of the choice.
        say: Called with one line for each step.

    Raises:
        ValueError: If files and a corpus are given, or neither, cells without counts are there and `drop_empty` is not
            set, or no cells are left to train on.
    """
    check_source(source, held_out.validation_by)
    if source.corpus:
        cells = open_corpus(source.corpus, source.batch_key, held_out, tokenizer, seed, say)
    else:
        cells = open_files(source.files or (), source, held_out, tokenizer, seed, say)
    say(f"{len(cells.held_out):,} of {len(cells.dataset):,} cells held out")
    return cells


def open_corpus(
    path: str, batch_key: str | None, held_out: HeldOut, tokenizer: Any, seed: int, say: Callable[[str], None]
) -> Cells:
    """Open a corpus, and choose the cells that are held out."""
    dataset = read_corpus(path, tokenizer).with_batches(batch_key or SOURCE)
    sources = dataset.manifest.sources
    number = sum(source.cells_kept > 0 for source in sources)
    train, test = split_corpus(dataset, held_out.validation_share, held_out.validation_by, seed)
    failed = [source.name for source in sources if source.state == "failed"]
    say(f"{path}: {len(dataset):,} cells of {number:,} files")
    if failed:
        say(f"{len(failed):,} files could not be converted and are not in it: {', '.join(failed)}")
    parts = [(shard.source, shard.cells) for shard in dataset.manifest.shards]
    return Cells(dataset, train, by_length(dataset, test), trained_on(parts, train))


def trained_on(parts: Sequence[tuple[str, int]], train: np.ndarray) -> list[tuple[str, int]]:
    """Return the files that are trained on, and how many cells of each.

    Args:
        parts: File and number of cells of each part of a dataset, in order.
        train: Rows of the dataset that are trained on.

    Example:
        >>> trained_on([("a.h5ad", 3), ("b.h5ad", 2), ("a.h5ad", 2)], np.array([0, 2, 5]))
        [('a.h5ad', 3)]
    """
    bounds = np.cumsum([0, *(number for _, number in parts)])
    numbers: dict[str, int] = {}
    for (file, _), number in zip(parts, np.histogram(train, bounds)[0], strict=True):
        numbers[file] = numbers.get(file, 0) + int(number)
    return [(file, number) for file, number in numbers.items() if number]


def open_files(
    files: Sequence[str | Path],
    source: CellSource,
    held_out: HeldOut,
    tokenizer: Any,
    seed: int,
    say: Callable[[str], None],
) -> Cells:
    """Read files, and choose the cells that are held out.

    Raises:
        ValueError: If none are left to train on.
    """
    dataset, numbers = read_files(files, tokenizer, source, source.batch_key, say)
    num_held_out = max(round(len(dataset) * held_out.validation_share), 1)
    if num_held_out >= len(dataset):
        raise ValueError(f"{num_held_out} of {len(dataset)} cells held out leave none to train on: give more cells")
    order = np.random.default_rng(seed).permutation(len(dataset))
    test, train = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    return Cells(dataset, train, by_length(dataset, test), trained_on(numbers, train))


def by_length(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Return rows with cells of like length side by side: evaluation goes through them as they stand."""
    return rows[np.argsort(dataset["length"][:][rows], kind="stable")]


def read_files(
    files: Sequence[str | Path],
    tokenizer: Any,
    source: TrainingInput,
    batch_key: str | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Any, list[tuple[str, int]]]:
    """Return the cells of all files as one dataset, and the names of the files with their numbers of cells.

    Cells have the key `batch`: the number of the file, or of a value of the column `batch_key` in a file that has it.
    Their key `source` is the number of the file.

    Raises:
        ValueError: If no file has the column of the batches.
    """
    parts: list[Any] = []
    numbers: list[tuple[str, int]] = []
    num_batches, num_without = 0, 0
    for path in map(Path, files):
        data: Any = path if batch_key is None else open_anndata(path)
        with about(path.name):
            cells = tokenizer.read_counts(data, layer=source.layer, gene_column=source.gene_column)
            batches = np.zeros(cells.n_cells, np.int64)
            if batch_key is not None and batch_key in data.obs:
                batches, _ = numbered_labels(data.obs[batch_key], batch_key, path.name)
            else:
                num_without += 1
            first = sum(map(len, parts))
            part = cells_dataset(
                cells,
                batches=num_batches + batches,
                sources=np.full(cells.n_cells, len(parts)),
                empty="drop",
                first_index=first,
            )
        num_batches += int(batches.max(initial=0)) + 1
        cells.source.close()
        say_empty(cells.n_cells - len(part), cells.n_cells, path.name, source.drop_empty, say)
        say(f"{path.name}: {len(part):,} cells; {cells.description}; {cells.match.summary()}")
        parts.append(part)
        numbers.append((path.name, len(part)))
    if batch_key is not None and num_without == len(parts):
        raise ValueError(
            f"batch_key is {batch_key!r}, and obs of none of {len(parts)} files has this column: name another, "
            f"or leave it out, and each file is one batch"
        )
    return concatenate_datasets(parts).with_format("numpy"), numbers
