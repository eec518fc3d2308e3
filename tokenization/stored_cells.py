"""Cells that stay on disk, whose rows are read in parts, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .sparse_xtrimogene import CellsError

BUCKET_ROWS = 4096  # rows of a temporary file; so many dense cells still fit in memory
BLOCK = 1 << 22  # values read at a time where the size of a row is unknown
TRIPLET = np.dtype([("row", np.int64), ("column", np.int32), ("value", np.float64)])


class StoredCells:
    """The parts of an AnnData that `find_counts` needs, with matrices that are opened on first use.

    Args:
        matrix: Function that opens `X`, or returns None if there is none.
        obs: Columns of the cells, with their names as index.
        var: Columns of the genes, with their names as index.
        layers: Further matrices by name, as they are stored.
        raw: The same cells with other columns.
        uns: Unstructured data, of which only `log1p` is used.
    """

    def __init__(
        self,
        matrix: Callable[[], Any],
        obs: Any,
        var: Any,
        layers: Mapping[str, Any] | None = None,
        raw: Any = None,
        uns: Mapping[str, Any] | None = None,
    ):
        self._matrix = matrix
        self.obs, self.var, self.raw = obs, var, raw
        self.layers, self.uns = layers or {}, uns or {}

    @cached_property
    def X(self) -> Any:
        """The main matrix."""
        return self._matrix()

    @property
    def obs_names(self) -> Any:
        """Names of the cells."""
        return self.obs.index

    @property
    def var_names(self) -> Any:
        """Names of the columns."""
        return self.var.index


class OpenedWhenAsked(Mapping[str, Any]):
    """Matrices by name, opened on first use."""

    def __init__(self, group: Any, read: Callable[[Any], Any]):
        self._group, self._read = group, read

    def __getitem__(self, name: str) -> Any:
        return self._read(self._group[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)


class StoredRows:
    """Sparse rows on disk, `(cells, columns)`, read by slices.

    Args:
        read: Function that returns rows `start ... stop` as CSR.
        shape: Shape `(cells, columns)`.
        dtype: Dtype of the values.
    """

    def __init__(self, read: Callable[[int, int], Any], shape: tuple[int, int], dtype: Any):
        self._read, self.shape, self.dtype = read, shape, np.dtype(dtype)

    def __getitem__(self, rows: slice) -> Any:
        start, stop, _ = rows.indices(self.shape[0])
        return self._read(start, stop)


class MissingColumns(CellsError):
    """Columns of obs are not there.

    Attributes:
        names: The columns.
    """

    def __init__(self, message: str, names: Sequence[str]):
        super().__init__(message)
        self.names = list(names)


def missing_columns(path: Path, wanted: Sequence[str], present: Iterable[str]) -> None:
    """Refuse columns of obs that are not there."""
    present = list(present)
    if missing := [name for name in wanted if name not in present]:
        raise MissingColumns(
            f"obs column {', '.join(map(repr, missing))} is not in {path.name}; its columns are "
            f"{', '.join(present) or '(none)'}",
            missing,
        )


# -- from any order to rows -------------------------------------------------------------------------------------------


def rewritten_by_rows(
    triplets: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    shape: tuple[int, int],
    dtype: Any,
    stack: ExitStack,
) -> StoredRows:
    """Write entries that come in any order into temporary files of a few thousand rows each.

    Args:
        triplets: Blocks of rows, columns and values.
        shape: Shape `(cells, columns)`.
        dtype: Dtype of the values.
        stack: Removes the temporary folder when it is closed. The folder needs 20 bytes for each entry.
    """
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="xtrimogene-")))
    for rows, columns, values in triplets:
        if not len(rows):
            continue
        entries = np.empty(len(rows), TRIPLET)
        entries["row"], entries["column"], entries["value"] = rows, columns, values
        inside = [0 <= places.min() <= places.max() < size for places, size in zip((rows, columns), shape, strict=True)]
        if not all(inside):
            raise ValueError(f"an entry lies outside of {shape[0]:,} cells x {shape[1]:,} genes")
        buckets = rows // BUCKET_ROWS
        order = np.argsort(buckets, kind="stable")
        entries, buckets = entries[order], buckets[order]
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        for start, stop in pairwise([*starts.tolist(), len(entries)]):
            with (folder / str(buckets[start])).open("ab") as file:
                entries[start:stop].tofile(file)

    last: dict[int, Any] = {}

    def bucket(index: int) -> Any:
        from scipy.sparse import csr_matrix

        if index not in last:
            last.clear()
            file = folder / str(index)
            entries = np.fromfile(file, TRIPLET) if file.exists() else np.empty(0, TRIPLET)
            first = index * BUCKET_ROWS
            size = min(BUCKET_ROWS, shape[0] - first)
            where = entries["row"] - first, entries["column"]
            last[index] = csr_matrix((entries["value"], where), shape=(size, shape[1]))
        return last[index]

    def read(start: int, stop: int) -> Any:
        from scipy.sparse import vstack

        parts = []
        for index in range(start // BUCKET_ROWS, (max(stop, start + 1) - 1) // BUCKET_ROWS + 1):
            first = index * BUCKET_ROWS
            parts.append(bucket(index)[max(start - first, 0) : max(stop - first, 0)])
        return vstack(parts, format="csr")

    return StoredRows(read, shape, dtype)


def open_text(path: Path) -> Any:
    """Open a text file, compressed or not."""
    import gzip

    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
