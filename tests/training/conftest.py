"""Fixtures of the scripts: cells in a file, and a model that is quick."""

import pytest

import xtrimogene
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import PRESETS


@pytest.fixture(scope="package")
def blood_folder(pbmc, tmp_path_factory, measured_genes):
    """A folder with 160 labelled blood cells in `cells.h5ad`, and in `model` a small one of 150 genes, not trained."""
    folder = tmp_path_factory.mktemp("blood")
    cells = pbmc.raw.to_adata()[:160].copy()
    names = pbmc.obs["bulk_labels"][:160].astype(str)
    cells.obs["bulk_labels"] = names.where(names.isin(["Dendritic", "CD19+ B"]), "other")
    cells.write_h5ad(folder / "cells.h5ad")
    genes = measured_genes(cells.var_names)[::4][:150]
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder / "model").save_pretrained(folder / "model")
    sizes = PRESETS["tiny"] | {"hidden_size": 32, "decoder_hidden_size": 32}
    config = xtrimogene.XTrimoGeneConfig(num_genes=len(genes), **sizes)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained(folder / "model")
    return folder
