"""Real cells with labels: in a file beside a model that is quick, and on a panel of their own genes."""

import numpy as np
import pytest

import xtrimogene
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import PRESETS
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.data.splits import encode_labels


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


@pytest.fixture(scope="session")
def sizes():
    """Sizes of a model that a test can train."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_head_dim": 8,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pooling": "all",
    }


@pytest.fixture(scope="session")
def blood_panel(tmp_path_factory, pbmc, tokenizer):
    from xtrimogene import XTrimoGeneTokenizer

    rows = tokenizer.matcher.match(list(pbmc.raw.var_names)).rows
    names = [tokenizer.genes[row] for row in np.unique(rows[rows >= 0])]
    return XTrimoGeneTokenizer.from_genes(names, tmp_path_factory.mktemp("blood_panel"))


@pytest.fixture(scope="session")
def labelled(blood_panel, pbmc):
    ids, names = encode_labels(pbmc.obs["bulk_labels"])
    return cells_dataset(blood_panel.read_counts(pbmc), ids), ids, names
