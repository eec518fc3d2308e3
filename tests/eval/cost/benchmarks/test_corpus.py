"""The benchmark of reading compares the same cells, and its cells are as they are asked for."""

import anndata
import numpy as np
import pytest

from xtrimogene.eval.cost.benchmarks.corpus import COLUMNS, PEER, generate, measure_reading, table


def test_generated_cells_are_as_asked_for(tmp_path, tokenizer):
    generate(tmp_path / "cells.h5ad", 2500, 800, tokenizer.genes)  # more than are generated at a time
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert adata.shape == (2500, COLUMNS)
    assert adata.X.has_canonical_format
    assert abs(np.diff(adata.X.indptr).mean() / 800 - 1) < 0.1
    assert adata.X.data.min() == 1


@pytest.mark.slow  # all ways of reading, in processes of their own
def test_all_ways_of_reading_give_the_same_batches(tmp_path):
    found = measure_reading(tmp_path, num_cells=2000, num_nonzeros=100, repeats=1)  # it checks that itself
    assert min(found["batches: cells per second"].values()) > 0
    assert f"| {PEER} |" in table({"reading": found})
