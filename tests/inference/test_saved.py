"""Weights, tokenizer and what lies beside them come from one commit of the Hub, whatever was pushed since."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

import xtrimogene
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.saved import Saved
from xtrimogene.modeling_xtrimogene.sharing_xtrimogene import push_folder
from xtrimogene.recipes.finetune import finetune_file
from xtrimogene.recipes.options import Finetuning

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


@pytest.fixture
def commits(hub, tmp_path):
    """Two commits of a classifier on the Hub: the later has other weights, genes in another order and other metrics."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_genes": len(GENES)}
    oids = []
    for number, genes in enumerate((GENES, GENES[::-1])):
        torch.manual_seed(number)
        folder = tmp_path / f"{number}"
        xtrimogene.TxFMForSequenceClassification(xtrimogene.TxFMConfig(**sizes, num_labels=2)).save_pretrained(folder)
        xtrimogene.TxFMTokenizer.from_genes(genes, folder).save_pretrained(folder)
        (folder / "metrics.json").write_text(json.dumps({"number": number}))
        oids.append(push_folder(folder, "me/types").commit.oid)
    return oids


@pytest.fixture
def cells():
    import anndata
    import pandas as pd

    return anndata.AnnData(np.eye(6, dtype=np.float32) + 1, var=pd.DataFrame(index=GENES))


def test_all_files_of_a_revision_are_of_its_commit(commits, cells):
    first, last = commits
    wanted = xtrimogene.TxFMModel.from_pretrained("me/types", revision=first).state_dict()
    for model in (
        f"me/types@{first}",
        AutoModelForSequenceClassification.from_pretrained("me/types", revision=first).eval(),
    ):
        loaded = CellModel.load(model)
        assert all(torch.equal(part, wanted[name]) for name, part in loaded.model.state_dict().items())
        assert loaded.tokenizer.genes == GENES
        assert json.loads(open(Saved.of(model).file("metrics.json")).read()) == {"number": 0}
        xtrimogene.tl.embed(cells, model, device="cpu")
        about = cells.uns["X_xtrimogene"]
        assert (about["model"], about["revision"]) == ("me/types", first)
    assert CellModel.load("me/types").tokenizer.genes == GENES[::-1]
    assert Saved.of("me/types") == Saved("me/types", last)
    assert Saved.of(AutoModel.from_pretrained("me/types")) == Saved("me/types", last)
    assert Saved.of(str(Saved("me/types", first))) == Saved("me/types", first)


def test_a_later_push_changes_nothing_of_a_model_that_is_loaded(commits, tmp_path):
    model = AutoModel.from_pretrained("me/types")
    push_folder(tmp_path / "0", "me/types")
    assert CellModel.load(model).tokenizer.genes == GENES[::-1]
    assert Saved.of("me/types").tokenizer().genes == GENES


def test_fine_tuning_begins_with_the_commit_that_is_named(commits):
    from xtrimogene.training.finetuning import annotation_model

    first, _ = commits
    model = annotation_model(f"me/types@{first}", ["B", "T"])
    wanted = xtrimogene.TxFMModel.from_pretrained("me/types", revision=first).state_dict()
    assert all(torch.equal(part, wanted[name]) for name, part in model.base_model.state_dict().items())


def test_a_fine_tuning_asks_the_hub_once_for_the_commit(hub, commits, cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    hub.requests.clear()
    with pytest.raises(ValueError, match="label_key is 'type', and obs"):
        finetune_file(tmp_path / "cells.h5ad", "me/types", tmp_path / "out", Finetuning(label_key="type"))
    assert hub.requests.count("GET /api/models/me/types") == 1


def test_a_folder_is_taken_before_a_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs@home").mkdir()
    assert Saved.of("runs@home") == Saved("runs@home")
    assert Saved.of("runs@home").file("metrics.json") is None
