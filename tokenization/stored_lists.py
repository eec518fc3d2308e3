"""Cells stored as lists of genes and values: Parquet files and `datasets` folders of other projects."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .stored_cells import StoredCells, StoredRows, missing_columns

CLS_VALUE = -2  # value of the token <cls>, which Tahoe-100M puts before the genes of a cell
SIDE_FILES = ("gene_metadata.parquet", "genes.txt")  # files with the names of gene ids, beside Parquet files
# Names of the columns of gene ids and of counts: of Tahoe-100M, ours, and other common ones.
LIST_COLUMNS = (("genes", "expressions"), ("input_ids", "counts"), ("input_ids", "values"))


# -- lists of ids and counts ------------------------------------------------------------------------------------------


def parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files of a path: the file itself, or the files in the folder or in its folder `data`."""
    if path.is_file():
        return [path]
    for folder in (path, path / "data"):
        if found := sorted(file for file in folder.glob("*.parquet") if file.name not in SIDE_FILES):
            return found
    return []


def open_lists(path: Path, obs: tuple[str, ...], stack: ExitStack) -> StoredCells:
    """Open Parquet, or a folder of `datasets`, whose rows are lists of gene ids and of counts."""
    import pandas as pd

    read, schema, num_cells = arrow_rows(path)
    present = {name for name in schema.names if "list" in str(schema.field(name).type)}
    columns = next((pair for pair in LIST_COLUMNS if present.issuperset(pair)), None)
    if columns is None and "input_ids" in present:
        raise ValueError(
            f"{path.name} holds input_ids and no values (columns {', '.join(schema.names)}), as Geneformer's rank "
            f"tokens: ranks do not tell counts; convert the counts they were made of"
        )
    if columns is None:
        raise ValueError(
            f"{path.name} has the columns {', '.join(schema.names)}: lists of gene ids and of counts are needed, "
            f"{' or '.join(' and '.join(pair) for pair in LIST_COLUMNS)}"
        )
    var, place_of_id = names_of_ids(path)
    scalars = [name for name in schema.names if name not in present]
    missing_columns(path, obs, scalars)
    labels = next((name for name in ("cell_name", "BARCODE_SUB_LIB_ID", "barcode", "cell_id") if name in scalars), None)
    cells = pd.Index(read(0, num_cells, [labels]).column(labels).to_pandas() if labels else range(num_cells)).astype(
        str
    )
    frame = pd.DataFrame({name: read(0, num_cells, [name]).column(name).to_numpy() for name in obs}, index=cells)

    def rows(start: int, stop: int) -> Any:
        from scipy.sparse import csr_matrix

        table = read(start, stop, list(columns))
        ids, counts = (packed_lists(table.column(name)) for name in columns)
        if not np.array_equal(ids[1], counts[1]):
            raise ValueError(f"{path.name}, cells {start:,} to {stop:,}: {' and '.join(columns)} differ in length")
        lengths, tokens, values = ids[1], ids[0], counts[0]
        firsts = (np.cumsum(lengths) - lengths)[lengths > 0]
        is_gene = np.ones(len(tokens), bool)
        is_gene[firsts[values[firsts] == CLS_VALUE]] = False
        per_cell = np.add.reduceat(np.append(~is_gene, 0), np.cumsum(lengths) - lengths) * (lengths > 0)
        tokens, values, lengths = tokens[is_gene], values[is_gene], lengths - per_cell
        is_known = (tokens >= 0) & (tokens < len(place_of_id))
        places = np.where(is_known, place_of_id[np.where(is_known, tokens, 0)], -1)
        if (places < 0).any():
            raise ValueError(
                f"{path.name}, cells {start:,} to {stop:,}: gene id {tokens[places < 0][0]} has no name in the "
                f"{len(var):,} genes beside it"
            )
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return csr_matrix((values, places, starts), shape=(stop - start, len(var)))

    matrix = StoredRows(rows, (num_cells, len(var)), np.float64)
    return StoredCells(lambda: matrix, frame, var)


def packed_lists(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column of lists, and the length of each."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column).to_numpy()
    if column.null_count:
        raise ValueError(f"{column.null_count:,} cells have no list of genes")
    return pc.list_flatten(column).to_numpy(), lengths.astype(np.int64)


def arrow_rows(path: Path) -> tuple[Callable[[int, int, list[str]], Any], Any, int]:
    """Return a function that reads rows `start ... stop` of columns as Arrow, the schema and the number of rows."""
    if path.is_dir() and (path / "state.json").exists():
        import datasets

        data = datasets.load_from_disk(str(path))
        if not isinstance(data, datasets.Dataset):
            raise ValueError(f"{path.name} holds the splits {', '.join(data)}: give the folder of one")
        # Through `datasets`, because its table ignores that rows were selected or shuffled before saving.
        return (
            lambda start, stop, names: data.with_format("arrow", columns=names)[start:stop],
            data.features.arrow_schema,
            len(data),
        )
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [pq.ParquetFile(file) for file in parquet_files(path)]
    groups = [(file, index) for file in files for index in range(file.num_row_groups)]
    bounds = [0, *np.cumsum([file.metadata.row_group(index).num_rows for file, index in groups]).tolist()]
    schema = files[0].schema_arrow

    @lru_cache(maxsize=1)  # consecutive reads often fall into one row group
    def group(number: int, names: tuple[str, ...]) -> Any:
        file, index = groups[number]
        return file.read_row_group(index, columns=list(names))

    def read(start: int, stop: int, names: list[str]) -> Any:
        parts = [
            group(number, tuple(names)).slice(max(start - first, 0), min(stop, last) - max(start, first))
            for number, (first, last) in enumerate(pairwise(bounds))
            if first < stop and last > start
        ]
        return pa.concat_tables(parts) if parts else schema.empty_table().select(names)

    return read, schema, bounds[-1]


def names_of_ids(path: Path) -> tuple[Any, np.ndarray]:
    """Return the genes listed beside a Parquet file, and the place of each id among them, -1 for an unknown id."""
    import pandas as pd

    folders = [path, path.parent, path.parent.parent] if path.is_file() else [path, path.parent]
    beside = [folder / part for folder in folders for part in (".", "metadata")]
    found = next((folder / name for folder in beside for name in SIDE_FILES if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{path.name} holds gene ids, and neither {' nor '.join(SIDE_FILES)} lies beside it to tell their names: "
            f"put it there (columns gene_symbol, ensembl_id and token_id)"
        )
    if found.suffix == ".txt":
        names = found.read_text(encoding="utf-8").split()
        return pd.DataFrame(index=pd.Index(names)), np.arange(len(names))
    genes = pd.read_parquet(found)
    missing_columns(found, ["gene_symbol", "token_id"], genes.columns)
    place_of_id = np.full(int(genes["token_id"].max()) + 1, -1)
    place_of_id[genes["token_id"]] = np.arange(len(genes))
    symbols = genes["gene_symbol"].astype(str)
    columns = {}
    if "ensembl_id" in genes:  # a gene without an id gets its symbol, because empty names are refused
        columns["ensembl_id"] = genes["ensembl_id"].where(genes["ensembl_id"].astype(bool), symbols).to_numpy()
    return pd.DataFrame(columns, index=pd.Index(symbols)), place_of_id
