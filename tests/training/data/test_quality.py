"""Quality control leaves out the cells that scanpy would, and counts them."""

import numpy as np
import pytest
import scanpy as sc


def test_quality_control_is_scanpys_and_counted(stored, shared, to_corpus, tmp_path):
    path = shared / "data" / "format_fixtures" / "10x_h5" / "real_pbmc_182cells_GRCh38_36601genes.h5"
    done = to_corpus(path, min_genes=2000, max_mt_percent=5)
    adata = sc.read_10x_h5(path)
    adata.var["mt"] = adata.var_names.str.startswith("MT-")
    sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False, inplace=True)
    has_genes = (adata.obs["n_genes_by_counts"] >= 2000).to_numpy()
    is_healthy = (adata.obs["pct_counts_mt"] <= 5).to_numpy()
    assert 0 < (has_genes & is_healthy).sum() < has_genes.sum() < 182
    np.testing.assert_array_equal(
        stored(tmp_path / "corpus")[1]["source_row"].to_numpy(), np.flatnonzero(has_genes & is_healthy)
    )
    (source,) = done.manifest.sources
    assert source.left_out == {
        "fewer than 2000 genes": int((~has_genes).sum()),
        "more than 5 % mitochondrial counts": int((has_genes & ~is_healthy).sum()),
        "no counts on the panel": 0,
    }
    assert source.cells_kept + sum(source.left_out.values()) == source.cells == 182


def test_a_share_of_mitochondrial_counts_needs_mitochondrial_genes(blood, to_corpus, tmp_path):
    adata = blood[1][:, [not name.startswith("MT-") for name in blood[1].var_names]].copy()
    adata.write_h5ad(tmp_path / "none.h5ad")
    with pytest.raises(ValueError, match=r"none of 7.. columns is mitochondrial"):
        to_corpus(tmp_path / "none.h5ad", max_mt_percent=5, strict=True)
