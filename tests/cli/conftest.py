"""Real cells and small models for the tests of the command line."""

import json

import anndata
import numpy as np
import pytest
import scanpy as sc

import xtrimogene
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import PRESETS

LABEL_KEY = "bulk_labels"

EMPTY = 7  # the cell that has no counts


@pytest.fixture(autouse=True)
def quick(quick_umap, quick_bag):
    """The tests of the command line are of what commands take and give."""


@pytest.fixture(scope="session")
def real_cells():
    """120 blood cells, 30 of each of 4 types, with raw values in X."""
    adata = sc.datasets.pbmc68k_reduced()
    labels = adata.obs[LABEL_KEY]
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == name)[:30] for name in labels.value_counts().index[:4]]))
    adata = adata[chosen]
    obs = adata.obs[[LABEL_KEY]].astype(str)
    obs["donor"] = [f"donor{number % 4}" for number in range(len(obs))]
    return anndata.AnnData(adata.raw.X.copy(), obs=obs, var=adata.raw.var[[]])


@pytest.fixture(scope="session")
def files(real_cells, tmp_path_factory):
    """Whole cells, the same with an empty one, and the same scaled."""
    folder = tmp_path_factory.mktemp("cells")
    real_cells.write_h5ad(folder / "whole.h5ad")
    with_empty = real_cells.copy()
    keep = np.ones(with_empty.n_obs)
    keep[EMPTY] = 0
    with_empty.X = with_empty.X.multiply(keep[:, None]).tocsr()
    with_empty.X.eliminate_zeros()
    with_empty.write_h5ad(folder / "empty.h5ad")
    scaled = real_cells.copy()
    scaled.X = scaled.X.toarray()
    sc.pp.scale(scaled)
    scaled.write_h5ad(folder / "scaled.h5ad")
    return folder


@pytest.fixture(scope="session")
def checkpoint(real_cells, tmp_path_factory, measured_genes):
    """A new model of the measured genes only, so that it is quick."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    genes = measured_genes(real_cells.var_names)
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder)
    sizes = PRESETS["tiny"] | {"hidden_size": 32, "decoder_hidden_size": 32}
    xtrimogene.XTrimoGeneForPreTraining(xtrimogene.XTrimoGeneConfig(num_genes=len(genes), **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def annotator(succeed, files, checkpoint, tmp_path_factory):
    """What `finetune` wrote, and what it printed as JSON."""
    folder = tmp_path_factory.mktemp("model") / "annotator"
    result = succeed(
        "finetune", files / "empty.h5ad", "--label-key", LABEL_KEY, "--group-key", "donor", "--model", checkpoint,
        "-o", folder, "--epochs", 1, "--test-share", 0.25, "--class-weights", "balanced", "--drop-empty", "--json",
    )  # fmt: skip
    return folder, json.loads(result.stdout), result.stderr
