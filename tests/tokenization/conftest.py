"""Small cells with counts, and what compares and normalises them."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

GENES = [f"G{i}" for i in range(40)]


@pytest.fixture
def counts():
    """30 cells x 40 genes with values up to about 100; the fourth cell is empty."""
    rng = np.random.default_rng(0)
    dense = rng.negative_binomial(0.4, 0.04, size=(30, 40))
    dense[3] = 0
    return sparse.csr_matrix(dense.astype(np.int32))


@pytest.fixture
def adata(counts):
    return anndata.AnnData(
        counts.astype(np.float32),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(30)]),
        var=pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(40)]}, index=GENES),
    )


@pytest.fixture(scope="session")
def same():
    """Tell whether two matrices are equal, sparse or not."""

    def same(left, right):
        return left.shape == right.shape and (sparse.csr_matrix(left) != sparse.csr_matrix(right)).nnz == 0

    return same


@pytest.fixture(scope="session")
def normalise():
    """Turn counts of AnnData into logarithms, as scanpy does."""

    def normalise(adata, base=None):
        scanpy.pp.normalize_total(adata, target_sum=1e4)
        scanpy.pp.log1p(adata, base=base)
        return adata

    return normalise


@pytest.fixture(scope="session")
def shared_file(shared):
    """Give a file of the development data."""

    def shared_file(*parts):
        path = shared.joinpath("data", *parts)
        if not path.exists():
            pytest.skip(f"{path.name} of the shared data is not here")
        return path

    return shared_file
