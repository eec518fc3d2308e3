"""A folder with a PEFT adapter is as good as the whole model: it embeds and labels cells, and provenance names it."""

import json

import numpy as np
import pytest
import torch

import xtrimogene
from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification, XTrimoGeneTokenizer
from xtrimogene.inference.adapters import AdapterFolder
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.saved import Saved
from xtrimogene.training.adapters import freeze_for_tuning, save_tuned

peft = pytest.importorskip("peft", reason="needs peft")
GENES = ["CD3E", "MS4A1", "NKG7", "LYZ", "GNLY", "CD8A"]


@pytest.fixture
def base(tiny_config, tmp_path):
    torch.manual_seed(0)
    XTrimoGeneForPreTraining(tiny_config(num_genes=len(GENES))).save_pretrained(tmp_path / "base")
    XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def cells():
    import anndata
    import pandas as pd

    counts = np.random.default_rng(0).poisson(2, (4, len(GENES))).astype(np.float32)
    return anndata.AnnData(counts, var=pd.DataFrame(index=GENES))


def annotator(base, **changes):
    """An adapter of a classifier of three types that changes outputs, and the logits that it must give."""
    model = XTrimoGeneForSequenceClassification.from_pretrained(base, num_labels=3)
    model.config.id2label = {0: "B", 1: "T", 2: "NK"}
    lora = peft.LoraConfig(
        target_modules=["q_proj"], modules_to_save=["classifier"], init_lora_weights=False, **changes
    )
    return peft.get_peft_model(model, lora).eval()


def embedding(model, adata):
    xtrimogene.tl.embed(adata, model, device="cpu")
    return adata.obsm["X_xtrimogene"]


@pytest.mark.parametrize("changes", [{}, {"task_type": "SEQ_CLS"}], ids=["by its class", "by its task"])
def test_an_adapter_of_an_annotator_labels_and_embeds(base, cells, tmp_path, changes):
    tuned = annotator(base, **changes)
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = CellModel.load(tmp_path / "adapter", task="classify")
    read = loaded.read(cells)
    batch = loaded.tokenizer(cells)
    with torch.no_grad():
        expected = tuned(**batch).logits.softmax(-1).numpy()
    np.testing.assert_allclose(loaded.classify(read)[0], expected, rtol=1e-4)
    xtrimogene.tl.annotate(cells, tmp_path / "adapter", device="cpu")
    assert set(cells.obs["xtrimogene_label"]) <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert np.abs(embedding(tmp_path / "adapter", cells) - embedding(base, cells.copy())).max() > 1e-4
    for key in ("xtrimogene", "X_xtrimogene"):
        trace = cells.uns[key]
        assert (trace["model"], trace["adapter"]) == (str(base), str(tmp_path / "adapter"))
    assert cells.uns["xtrimogene"]["unknown"]["note"].startswith(f"no calibration: {tmp_path / 'adapter'} has no")


def test_an_adapter_of_the_encoder_embeds_and_labels_nothing(base, cells, tmp_path):
    encoder = xtrimogene.XTrimoGeneModel.from_pretrained(base)
    lora = peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(encoder, lora)
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = embedding(tmp_path / "adapter", cells)
    np.testing.assert_allclose(loaded, embedding(tuned, cells.copy()), atol=1e-5)
    assert AdapterFolder.find(Saved.of(base)) is None
    with pytest.raises(ValueError, match="is a XTrimoGeneModel and knows no cell types"):
        xtrimogene.tl.annotate(cells, tmp_path / "adapter")


def test_what_finetune_saves_names_its_labels(base, cells, tmp_path):
    model = XTrimoGeneForSequenceClassification.from_pretrained(base, num_labels=2)
    model.config.id2label = {0: "B", 1: "T"}
    tuned, _ = freeze_for_tuning(model, "lora")
    save_tuned(tuned, tmp_path / "tuned")
    XTrimoGeneTokenizer.from_pretrained(base).save_pretrained(tmp_path / "tuned")
    xtrimogene.tl.annotate(cells, tmp_path / "tuned" / "adapter", device="cpu")
    assert set(cells.obs["xtrimogene_label"]) <= {"B", "T"}
    whole = cells.copy()
    xtrimogene.tl.annotate(whole, tmp_path / "tuned", device="cpu")
    np.testing.assert_allclose(whole.obs["xtrimogene_probability"], cells.obs["xtrimogene_probability"], rtol=1e-4)
    assert whole.uns["xtrimogene"]["adapter"] == ""


def test_a_loaded_model_of_peft_names_its_adapter(base, cells):
    xtrimogene.tl.embed(cells, annotator(base), device="cpu")
    assert cells.uns["X_xtrimogene"]["adapter"] == "default"


def test_what_is_wrong_is_said(base, cells, tmp_path):
    annotator(base).save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    told = json.loads(settings.read_text())
    settings.write_text(json.dumps(told | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(ValueError, match=r"is an adapter of ./gone, which is not here: write the folder of its base"):
        xtrimogene.tl.embed(cells, tmp_path / "adapter")
    model = XTrimoGeneForSequenceClassification.from_pretrained(base)
    headless = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    headless.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"adapter without a classification head, and .*base has none"):
        xtrimogene.tl.annotate(cells, tmp_path / "headless")
    assert embedding(tmp_path / "headless", cells).shape == (4, 16)
