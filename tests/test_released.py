"""Checkpoints that come with the package are found by name, whole and small, and load as what they are."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer

import xtrimogene
from xtrimogene import released

with_annotator = pytest.mark.skipif(
    "blood-annotator" not in released.names(), reason="needs the annotator: make checkpoints ONLY=blood-annotator"
)
MOST_BYTES, MOST_BYTES_OF_ALL = 8e6, 23e6  # of a checkpoint, and in the wheel, which may have 25 MB


@pytest.mark.parametrize("name", released.names())
def test_a_checkpoint_is_whole_and_small_and_computes_in_float32(name):
    folder = xtrimogene.checkpoint(name)
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "metrics.json", "genes.txt"} <= files
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md", ".txt", ".gz"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = {file.get_slice(key).get_dtype() for key in file.keys()}
    assert stored <= {"F16", "BOOL"}
    is_annotator = "annotator" in name
    auto = AutoModelForSequenceClassification if is_annotator else AutoModelForPreTraining
    model, told = auto.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert {part.dtype for part in model.parameters()} == {torch.float32}
    assert AutoModel.from_pretrained(folder).config.anchored
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size


def test_all_fit_into_the_wheel():
    files = [path for name in released.names() for path in xtrimogene.checkpoint(name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES_OF_ALL


@pytest.mark.parametrize("name", released.names())
def test_a_card_names_every_data_set_with_its_licence_and_source(name):
    card = (xtrimogene.checkpoint(name) / "README.md").read_text(encoding="utf-8")
    assert released.knows(name).split(" For other")[0] in card
    assert "| CC BY 4.0 (10x Genomics) | Zheng et al. 2017 |" in card
    assert ("GSE111672" in card) == ("annotator" not in name)
    assert "not stated" not in card
    assert "adapt" in card or "finetune" in card


def test_a_wrong_name_is_told_what_there_is():
    with pytest.raises(ValueError, match=r"no checkpoint called 'large' comes with the package, only .*small"):
        xtrimogene.checkpoint("large")


def test_a_folder_is_taken_before_a_name(tmp_path, monkeypatch):
    assert released.located("small") == xtrimogene.checkpoint("small")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert released.located("small") == "small"


def test_no_line_is_said_where_a_model_is_given():
    said = []
    assert released.chosen("owner/model", "embed", said.append) == "owner/model"
    assert not said
    assert released.chosen(None, "embed", said.append).name == "small"
    assert said == [f"Model: small, which comes with xtrimogene. {released.knows('small')}"]


def test_tools_use_them_where_no_model_is_named(pbmc):
    cells, said = pbmc[:40].copy(), []
    with pytest.warns(UserWarning, match="xtrimogene adapt"):  # the file has 765 genes, and whole cells were learned
        xtrimogene.tl.embed(cells, say=said.append, device="cpu")
    known = cells.copy()
    xtrimogene.tl.annotate(
        cells, reference=known, label_key="bulk_labels", say=said.append, device="cpu", n_neighbors=1
    )
    assert [line.split(",")[0] for line in said] == ["Model: small", "Model: small"]
    assert np.isfinite(cells.obsm["X_xtrimogene"]).all()
    assert cells.uns["X_xtrimogene"]["unfamiliar"]["share"] == cells.obs["X_xtrimogene_unfamiliar"].mean()
    assert (cells.obs["xtrimogene_label"].astype(str) == cells.obs["bulk_labels"].astype(str)).all()


@with_annotator
def test_cells_are_named_by_the_annotator_where_neither_model_nor_reference_is_given(pbmc):
    cells, said = pbmc[:40].copy(), []
    with pytest.warns(UserWarning, match="are called unknown"):  # the file has 765 genes, and whole cells were learned
        xtrimogene.tl.annotate(cells, say=said.append, device="cpu")
    assert said[0].startswith("Model: blood-annotator, which comes with xtrimogene. It was trained on")
    assert "CD19+ B" in cells.obs["xtrimogene_label"].cat.categories
    assert cells.obs["xtrimogene_label"].notna().all()
