"""Shards of a corpus: cells as rows of a table."""

import numpy as np
import pytest
from scipy import sparse

from xtrimogene.training.data.shards import LARGEST_COUNT, table_of, write_shard


def test_columns_of_obs_are_kept_as_text(stored, blood, to_corpus, tmp_path):
    path, adata = blood
    to_corpus(path, obs=["batch", "age"], shard_cells=250)
    table = stored(tmp_path / "corpus")[1]
    assert table["batch"].to_pylist() == adata.obs["batch"].to_list()
    assert table["age"].to_pylist()[:5] == ["0.0", "1.0", "2.0", None, "4.0"]
    with pytest.raises(ValueError, match=r"'nope' is not in blood.h5ad; its columns are batch, age"):
        to_corpus(path, obs=["nope"], strict=True, output="other")
    with pytest.raises(ValueError, match="'total' has the name of a column of the corpus"):
        to_corpus(path, obs=["total"], output="another")


def table(counts, first=0):
    """An Arrow table of some cells."""
    cells, names = sparse.csr_matrix(np.array(counts)), np.array([f"cell{row}" for row in range(9)])
    rows = np.arange(first, first + cells.shape[0])
    totals = np.asarray(cells.sum(1)).ravel()
    return table_of(cells, totals, cell_index=10 + first, source="a.h5ad", rows=rows, names=names, labels={})


def test_a_table_holds_what_the_matrix_holds():
    rows = table([[0, 3, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]], first=4).to_pylist()
    assert [row["input_ids"] for row in rows] == [[1, 3], [], [0]]
    assert [row["counts"] for row in rows] == [[3, 1], [], [2]]
    assert [(row["cell_index"], row["source_row"], row["cell_name"]) for row in rows] == [
        (14, 4, "cell4"),
        (15, 5, "cell5"),
        (16, 6, "cell6"),
    ]


def test_a_count_that_float32_cannot_hold_is_refused():
    table([[LARGEST_COUNT - 1]])
    with pytest.raises(ValueError, match="cannot be read exactly"):
        table([[LARGEST_COUNT]])


def test_a_shard_says_what_it_holds_and_one_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    shard = write_shard(tmp_path, 3, "a.h5ad", 0, iter([table([[1, 2]]), table([[0, 5]], first=1)]))
    path = tmp_path / "data" / "cells-00003.parquet"
    assert (shard.file, shard.cells, shard.nonzeros) == ("data/cells-00003.parquet", 2, 3)
    assert shard.bytes == path.stat().st_size
    assert write_shard(tmp_path, 4, "a.h5ad", 2, iter([])) is None

    def broken():
        yield table([[1, 2]])
        raise ValueError("the file ends here")

    with pytest.raises(ValueError, match="ends here"):
        write_shard(tmp_path, 5, "a.h5ad", 2, broken())
    assert list((tmp_path / "data").iterdir()) == [path]
