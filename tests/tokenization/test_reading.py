"""Cells of a file: all of them or some, and what is said of those without counts."""

import anndata
import numpy as np
import pandas as pd
import pytest

from xtrimogene.tokenization.reading import annotated, cells_of, cells_with_counts, check_columns, read_cells, say_empty


@pytest.fixture
def path(tmp_path, adata):
    adata.obs["half"] = ["a" if row % 3 else "b" for row in range(adata.n_obs)]
    adata.obs["batch"] = np.arange(adata.n_obs) % 2
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_cells_with_given_values_are_read_in_their_order(path):
    every = anndata.read_h5ad(path)
    found = cells_of(path, {"half": "b", "batch": 0})
    assert list(found.obs_names) == [f"cell{row}" for row in range(0, 30, 6)]
    np.testing.assert_array_equal(found.X.toarray(), every.X[::6].toarray())
    drawn = cells_of(path, max_cells=10)
    rows = [int(name.removeprefix("cell")) for name in drawn.obs_names]
    assert rows == sorted(rows)
    assert len(set(rows)) == 10
    assert list(cells_of(path, max_cells=10).obs_names) == list(drawn.obs_names)


@pytest.mark.parametrize(
    ("where", "message"),
    [({"donor": 1}, "has no column 'donor' in obs, only half, batch"), ({"half": "c"}, "no cell has half = c")],
)
def test_cells_that_are_not_there_are_said_to_be_missing(path, where, message):
    with pytest.raises(ValueError, match=message):
        cells_of(path, where)


def test_a_table_has_no_labels_and_is_refused_where_they_are_needed(tmp_path, counts):
    pd.DataFrame(counts.toarray()).to_csv(tmp_path / "cells.csv")
    with pytest.raises(ValueError, match=r"cells\.csv holds no obs with labels: give an \.h5ad or \.zarr file"):
        annotated(tmp_path / "cells.csv")


def test_columns_that_are_there_are_fine(path):
    check_columns(path, anndata.read_h5ad(path), ["half", "batch"])


def test_cells_without_counts_are_refused_or_left_out_and_said(tokenizer, pbmc):
    cells = pbmc.raw.to_adata()[:5]
    cells.X[2] = 0
    lines = []
    with pytest.raises(ValueError, match=r"blood: 1 of 5 cells have no counts on the panel.*--drop-empty"):
        cells_with_counts(tokenizer.read_counts(cells), "blood", drop_empty=False, say=lines.append)
    assert lines == []
    is_there = cells_with_counts(tokenizer.read_counts(cells), "blood", drop_empty=True, say=lines.append)
    assert is_there.tolist() == [True, True, False, True, True]
    assert lines == ["blood: 1 of 5 cells have no counts on the panel and are left out"]
    say_empty(0, 5, "blood", drop_empty=False, say=lines.append)
    assert len(lines) == 1


def test_a_file_without_x_is_read_into_memory(adata, tmp_path):
    counts = anndata.AnnData(obs=adata.obs, var=adata.var, layers={"counts": adata.X})
    counts.write_h5ad(tmp_path / "a.h5ad")
    assert (read_cells(tmp_path / "a.h5ad").layers["counts"] != adata.X).nnz == 0
    assert cells_of(tmp_path / "a.h5ad", max_cells=7).shape == (7, 40)
