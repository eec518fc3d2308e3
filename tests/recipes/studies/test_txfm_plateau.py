"""The study of the plateau trains its variants on the same cells, and writes what came out."""

import json

import anndata
import numpy as np
import pytest

from xtrimogene.modeling_xtrimogene.configuration_txfm import TxFMConfig
from xtrimogene.recipes.studies import txfm_plateau


def test_it_writes_curve_and_scores_of_each_run(tmp_path, pbmc, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(txfm_plateau, "HELD_OUT", 10)
    adata = anndata.AnnData(pbmc.raw.X, pbmc.obs[[]], pbmc.raw.var[[]])
    files = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    adata[:30].write_h5ad(files[0])
    adata[30:50].write_h5ad(files[1])
    txfm_plateau.main(files, tmp_path / "found.json", steps=300, visible=256, seeds="0", variants="", quick=True)
    found = json.loads((tmp_path / "found.json").read_text())
    (run,) = found["variants"]["as specified"]
    assert found["cells"] == {"train": 40, "held out": 10}
    assert run["held-out loss"] == pytest.approx(found["loss of the mean profile"], rel=0.05)
    assert np.isfinite(run["seconds"])


def test_every_variant_is_a_configuration():
    for changes, learning_rate, _ in txfm_plateau.VARIANTS.values():
        assert TxFMConfig.preset(txfm_plateau.SIZE, **{**txfm_plateau.AS_SPECIFIED, **changes}).num_genes
        assert learning_rate > 0
