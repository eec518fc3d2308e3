"""Shards of a corpus: cells as rows of a Parquet file."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ...atomic import UNFINISHED, file_hash, sync_folder, writing
from .manifest import Shard

LARGEST_COUNT = 1 << 24  # float32, in which counts are read, holds all integers up to here
ROW_GROUP = 512  # cells; a Parquet reader decodes a whole row group to get one cell


def as_text(column: Any) -> Any:
    """Return a column of obs as Arrow strings; missing values stay missing."""
    import pyarrow as pa

    return pa.array(column.astype("string"), pa.string(), from_pandas=True)


def table_of(
    cells: Any,
    totals: np.ndarray,
    cell_index: int,
    source: str,
    rows: np.ndarray,
    names: np.ndarray,
    labels: dict[str, Any],
) -> Any:
    """Return cells as an Arrow table.

    Args:
        cells: Counts on the panel, CSR `(cells, G)`.
        totals: Total counts of each cell, `(cells,)`.
        cell_index: Index in the corpus of the first cell.
        source: Name of the source.
        rows: Row of each cell in the source, `(cells,)`.
        names: Names of all cells of the source.
        labels: Column of obs -> its values for all cells of the source, as Arrow strings.

    Raises:
        ValueError: If a count is too large for float32.
    """
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
    """Write tables of cells as a shard and return it, None without cells. A shard has its name only when complete."""
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
                    # Ids ascend: their small differences take half of the space. Counts and sources repeat, so a
                    # dictionary makes them small.
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
