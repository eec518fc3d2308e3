"""`adapt` from cells to a checkpoint: through Python and the command line, from memory, backed files and corpora."""

import json

import anndata
import numpy as np
import pytest
from transformers import AutoModel

import xtrimogene
from xtrimogene import (
    TxFMConfig,
    TxFMForPreTraining,
    TxFMTokenizer,
    XTrimoGeneConfig,
    XTrimoGeneForPreTraining,
    XTrimoGeneTokenizer,
)
from xtrimogene.eval.measures.trained_on import TrainedOn
from xtrimogene.inference.familiarity import Familiarity
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import PRESETS
from xtrimogene.training import adapting
from xtrimogene.training.data.corpus import read_corpus

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "decoder_hidden_size": 16}


@pytest.fixture(scope="module")
def checkpoint(pbmc, tmp_path_factory, measured_genes):
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    tokenizer = XTrimoGeneTokenizer.from_genes(measured_genes(pbmc.raw.var_names), folder)
    config = XTrimoGeneConfig(num_genes=tokenizer.num_genes, **{**PRESETS["tiny"], **SIZES})
    XTrimoGeneForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def cells(pbmc, monkeypatch):
    monkeypatch.setattr(adapting, "LEAST_STEPS", 25)
    adata = pbmc[:120].copy()
    adata.obs["donor"] = np.where(np.arange(120) % 2, "a", "b")
    return adata


def test_a_checkpoint_learns_the_cells_and_says_what_it_gained(cells, checkpoint, tmp_path):
    output = tmp_path / "adapted"
    said = []
    gained = xtrimogene.tl.adapt(cells, checkpoint, output, batch_key="donor", say=said.append)
    assert gained["nats of a count after"] < gained["nats of a count before"]
    assert 0 <= gained["mixing of batches after"] <= 1.05
    assert gained == json.loads((output / "metrics.json").read_text())
    assert AutoModel.from_pretrained(output).config.num_batches == 2
    xtrimogene.tl.embed(cells, output)
    assert np.isfinite(cells.obsm["X_xtrimogene"]).all()
    assert Familiarity.load(output) is None  # of 120 cells too few are held out
    assert "12 cells were held out, and 100 are needed to tell which cells are unfamiliar" in said[-1]
    card = (output / "README.md").read_text()
    assert "adapted to 108 unlabelled cells" in card  # the other 12 were held out
    tokenizer = XTrimoGeneTokenizer.from_pretrained(output)
    assert TrainedOn.load(output, tokenizer) is None  # the first checkpoint does not say what it was trained on


def test_a_txfm_is_adapted_and_one_without_an_anchor_is_refused(cells, checkpoint, tmp_path):
    genes = XTrimoGeneTokenizer.from_pretrained(checkpoint).genes
    for name, anchored in (("first", True), ("plain", False)):
        TxFMTokenizer.from_genes(genes, tmp_path / "panel").save_pretrained(tmp_path / name)
        config = TxFMConfig.preset("txfm-tiny", num_genes=len(genes), anchored=anchored)
        TxFMForPreTraining(config).save_pretrained(tmp_path / name)
    options = {"batch_key": "donor", "say": lambda line: None}
    gained = xtrimogene.tl.adapt(cells, tmp_path / "first", tmp_path / "adapted", **options)
    assert gained["nats of a count after"] < gained["nats of a count before"]
    xtrimogene.tl.embed(cells, tmp_path / "adapted")
    assert np.isfinite(cells.obsm["X_xtrimogene"]).all()
    with pytest.raises(ValueError, match="plain is not anchored"):
        xtrimogene.tl.adapt(cells, tmp_path / "plain", tmp_path / "other", **options)


def test_backed_files_and_corpora_give_what_memory_gives(cells, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "MOST_CELLS", 60)
    monkeypatch.setattr(adapting, "LEAST_STEPS", 5)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    found = {}
    for name, adata in {"memory": cells, "backed": anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")}.items():
        found[name] = xtrimogene.tl.adapt(adata, checkpoint, tmp_path / name, say=lambda line: None)
        assert sum(found[name]["cells"].values()) == 60
    from xtrimogene.training.data.convert import convert_files

    tokenizer = XTrimoGeneTokenizer.from_pretrained(checkpoint)
    convert_files([tmp_path / "cells.h5ad"], tmp_path / "corpus", tokenizer=tokenizer, min_genes=0, say=lambda _: None)
    corpus = read_corpus(tmp_path / "corpus", tokenizer, cache_dir=str(tmp_path / "cache"))
    found["corpus"] = xtrimogene.tl.adapt(corpus, checkpoint, tmp_path / "from corpus", say=lambda line: None)
    for name in ("backed", "corpus"):
        assert found[name]["nats of a count after"] == pytest.approx(found["memory"]["nats of a count after"], abs=1e-4)


def test_the_command_says_what_was_gained(cells, checkpoint, tmp_path, succeed, fail):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    asked = ["adapt", tmp_path / "cells.h5ad", "--model", checkpoint, "--batch-key"]
    result = succeed(*asked, "donor", "-o", tmp_path / "adapted", "--json")
    gained = json.loads(result.stdout)["gained"]
    assert gained["nats of a count after"] < gained["nats of a count before"]
    assert AutoModel.from_pretrained(tmp_path / "adapted").config.anchored
    with pytest.raises(ValueError, match="is the checkpoint that is adapted, and would be replaced"):
        xtrimogene.tl.adapt(cells, tmp_path / "adapted", tmp_path / "." / "adapted")
    error = fail(*asked, "patient", "-o", tmp_path / "other")
    assert "--batch-key is 'patient', and obs of cells.h5ad has the columns" in error


def test_a_checkpoint_without_an_anchor_is_refused(cells, checkpoint, tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_pretrained(checkpoint)
    config = XTrimoGeneConfig(num_genes=tokenizer.num_genes, **{**PRESETS["tiny"], **SIZES, "anchored": False})
    XTrimoGeneForPreTraining(config).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="plain is not anchored"):
        xtrimogene.tl.adapt(cells, tmp_path / "plain", tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()
