"""Where a result comes from is written beside it."""

import xtrimogene


def test_provenance_is_written_and_survives_h5ad(checkpoint, real_cells, tmp_path):
    import anndata

    adata = xtrimogene.tl.embed(real_cells, checkpoint, device="cpu", copy=True)
    adata.write_h5ad(tmp_path / "out.h5ad")
    trace = anndata.read_h5ad(tmp_path / "out.h5ad").uns["X_xtrimogene"]
    assert trace["model"] == str(checkpoint)
    assert trace["counts"].startswith("counts from X; ")
    assert trace["genes"]["n_matched"] > 13_000
    assert "X_xtrimogene" not in real_cells.obsm  # copy=True left the input alone
