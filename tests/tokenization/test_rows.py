"""Rows of every kind of matrix, in parts and in any order."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from xtrimogene.tokenization.counts_xtrimogene import find_counts

GENES = [f"G{i}" for i in range(40)]


@pytest.mark.parametrize(
    "make",
    [
        lambda counts: counts,
        lambda counts: counts.tocsc().astype(np.float64),
        lambda counts: counts.tocoo(),
        lambda counts: sparse.csr_array(counts),
        lambda counts: counts.toarray(),
        lambda counts: counts.toarray().astype(np.float32),
        lambda counts: torch.tensor(counts.toarray()),
        lambda counts: pd.DataFrame(counts.toarray(), columns=GENES),
        lambda counts: anndata.AnnData(counts),
    ],
    ids=["csr", "csc", "coo", "csr_array", "array", "float", "tensor", "frame", "anndata"],
)
def test_every_kind_of_matrix(same, counts, make):
    source = find_counts(make(counts), gene_names=GENES)
    assert (source.n_cells, source.n_columns, source.state) == (30, 40, "counts")
    assert source.gene_names == GENES
    block = source.rows(2, 11)
    assert isinstance(block, sparse.csr_matrix)
    assert block.dtype == np.float32
    assert same(block, counts[2:11])


def test_rows_are_canonical_and_leave_the_data_alone():
    messy = sparse.csr_matrix(([1.0, 2, 0, 5], [2, 2, 0, 1], [0, 3, 4]), shape=(2, 3))
    block = find_counts(messy, gene_names=list("abc")).rows(0, 2)
    assert (block.indices.tolist(), block.data.tolist()) == ([2, 1], [3, 5])
    assert block.has_canonical_format
    assert messy.data.tolist() == [1, 2, 0, 5]


def test_chunks_and_chosen_rows_keep_the_order(same, normalise, adata, counts):
    source = find_counts(normalise(adata))
    assert same(sparse.vstack([source.rows(start, start + 7) for start in range(0, 30, 7)]), counts)
    chosen = [29, 3, 3, 0]
    assert same(source.rows_at(chosen), counts[chosen])
    assert source.cell_names[:2] == ["cell0", "cell1"]
