"""Runs that are stopped leave no model, and go on from where they were; what their pictures show."""

import json
import shutil

import anndata
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import TrainerCallback

import xtrimogene
from xtrimogene.eval.measures.trained_on import TrainedOn
from xtrimogene.inference.calibration import Calibration
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import PRESETS
from xtrimogene.options import build
from xtrimogene.recipes.finetune import finetune_file
from xtrimogene.recipes.options import Finetuning
from xtrimogene.training.adapters import ADAPTER
from xtrimogene.training.arguments import CHECKPOINTS
from xtrimogene.training.data.dataset import cells_dataset


class Stop(TrainerCallback):
    """Stops a run as a scheduler does, and notes whether its folder could be taken for a model."""

    def __init__(self, step=None, output=None):
        self.step, self.output, self.held_model = step, output, []

    def on_step_end(self, args, state, control, **kwargs):
        self.held_model.append((self.output / "config.json").exists())
        if state.global_step == self.step:
            raise SystemExit


@pytest.fixture(scope="module")
def labelled(pbmc, tmp_path_factory, measured_genes):
    """A file of 120 blood cells, and a small model that was not trained."""
    folder = tmp_path_factory.mktemp("runs")
    cells = pbmc.raw.to_adata()[:120].copy()
    names = pbmc.obs["bulk_labels"][:120].astype(str)
    cells.obs["bulk_labels"] = names.where(names == "Dendritic", "other")
    cells.write_h5ad(folder / "cells.h5ad")
    genes = measured_genes(cells.var_names)
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder / "model")
    sizes = PRESETS["tiny"] | {"hidden_size": 32, "decoder_hidden_size": 32}
    config = xtrimogene.XTrimoGeneConfig(num_genes=len(genes), **sizes)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def tune(folder, output, callback, resume=False, said=None, **options):
    options = {"label_key": "bulk_labels", "epochs": 3, "batch_size": 16, "device": "cpu"} | options
    return finetune_file(
        folder / "cells.h5ad", str(folder / "model"), output, build(Finetuning, options),
        resume=resume, say=[].append if said is None else said.append, callbacks=[callback],
    )  # fmt: skip


@pytest.mark.slow  # three trainings
def test_a_fine_tuning_run_holds_no_model_until_its_end_and_resumes_exactly(labelled, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    callback = Stop(output=whole)
    tune(labelled, whole, callback)
    assert callback.held_model == [False] * 18  # six steps of 16 cells in each of three epochs
    with pytest.raises(SystemExit):
        tune(labelled, stopped, Stop(11, stopped))
    assert [path.name for path in stopped.iterdir()] == [CHECKPOINTS]
    tune(labelled, stopped, Stop(output=stopped), resume=True)
    assert not (stopped / CHECKPOINTS).exists()
    weights, others = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all(np.array_equal(weights[name], others[name]) for name in weights)
    assert {file.name for file in whole.iterdir()} == {file.name for file in stopped.iterdir()}


@pytest.mark.parametrize(("option", "value"), [("peft", "xpressor"), ("pooling", "mean")])
def test_what_a_family_cannot_have_is_found_before_cells_are_read(tmp_path, option, value):
    xtrimogene.TxFMForPreTraining(xtrimogene.TxFMConfig.preset("txfm-tiny", num_genes=4)).save_pretrained(tmp_path)
    recipe = build(Finetuning, {"label_key": "bulk_labels", option: value, "device": "cpu"})
    with pytest.raises(ValueError, match=f"{option} is '{value}', and .* is of the family TxFM"):
        finetune_file("not_there.h5ad", str(tmp_path), tmp_path / "out", recipe)


def test_unlabelled_cells_that_are_sure_are_learned_and_calibrate(labelled, pbmc, tmp_path):
    others = pbmc.raw.to_adata()[120:400]
    others.obs = others.obs[[]]
    others.write_h5ad(tmp_path / "others.h5ad")
    said = []
    options = {"epochs": 0, "unlabelled": [str(tmp_path / "others.h5ad")]}
    metrics = tune(labelled, tmp_path / "both", Stop(output=tmp_path / "both"), said=said, **options)
    alone = tune(labelled, tmp_path / "alone", Stop(output=tmp_path / "alone"), epochs=0)
    numbers = metrics["unlabelled cells"]
    num_sure = numbers["learned from"] + numbers["held out"]
    assert numbers["read"] == 280
    assert numbers["by file"] == {"others.h5ad": numbers["learned from"]}
    assert 100 < num_sure < 280
    assert f"{num_sure:,} of 280 unlabelled cells get a label with a probability of at least 0.8" in said
    assert "unlabelled cells" not in alone
    card = (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    assert f"with {numbers['learned from']:,} cells without labels" in card
    assert f"| others.h5ad, without labels | {numbers['learned from']:,} |" in card
    assert "The head is a logistic regression" in card
    assert not any(name in card for name in ("cross-entropy", "learning rate", "batch size", "drug response"))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("both", "alone")]
    assert not any(each["classifier.out_proj.weight"].any() for each in weights)  # no epoch: the regression is all
    assert not np.array_equal(*(each["classifier.anchor.weight"] for each in weights))
    found = [Calibration.load(tmp_path / name) for name in ("both", "alone")]
    assert len(found[0].distances) == len(found[1].distances) + numbers["held out"]
    assert len(found[0].label_scores) == len(found[1].label_scores)
    assert (
        found[0].source == f"{len(found[0].label_scores)} held-out cells with labels and {numbers['held out']} without"
    )
    assert metrics["calibration"]["cells"]["to calibrate with, without labels"] == numbers["held out"]


def test_an_annotator_knows_the_cells_that_it_and_its_checkpoint_were_trained_on(labelled, tmp_path):
    folder = shutil.copytree(labelled, tmp_path / "runs")
    tune(folder, tmp_path / "unknown", Stop(output=tmp_path / "unknown"), epochs=0)
    assert not (tmp_path / "unknown/trained_on.safetensors").exists()  # the checkpoint does not tell its part
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_pretrained(folder / "model")
    cells = tokenizer.read_counts(anndata.read_h5ad(folder / "cells.h5ad"))
    TrainedOn.of(cells_dataset(cells).select(range(10)), tokenizer).save(folder / "model")
    metrics = tune(folder, tmp_path / "known", Stop(output=tmp_path / "known"), epochs=0)
    found = TrainedOn.load(tmp_path / "known", tokenizer)
    assert TrainedOn.load(folder / "model", tokenizer).share_of(cells) == "10 of 120"
    assert metrics["cells"]["train"] < len(found.keys) < 120  # not the cells that were held out
    assert metrics["cells"]["train"] + 10 >= len(found.keys)


@pytest.mark.parametrize("peft", ["xpressor", "lora"])
def test_a_part_of_the_weights_learns_and_the_run_says_how_large_it_is(labelled, tmp_path, peft):
    whole, stopped, said = tmp_path / "whole", tmp_path / "stopped", []
    tune(labelled, whole, Stop(output=whole), said=said, peft=peft, epochs=1)
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["peft"] == peft
    assert 0 < metrics["trained share"] < 0.9
    assert f"{metrics['trained share']:.1%} of the weights learn (--peft {peft})" in said
    assert (whole / ADAPTER / "adapter_model.safetensors").exists() == (peft == "lora")
    before, after = (load_file(folder / "model.safetensors") for folder in (labelled / "model", whole))
    layer = "model.encoder.layers.0"
    for name, is_kept in ((f"{layer}.self_attn.q_proj.weight", peft == "xpressor"), (f"{layer}.fc1.weight", True)):
        assert np.array_equal(before[name], after[name]) == is_kept
    loaded = CellModel.load(whole, task="classify")
    assert loaded.classify(loaded.read(anndata.read_h5ad(labelled / "cells.h5ad")))[0].shape == (120, 2)
    if peft == "xpressor":
        return
    with pytest.raises(SystemExit):
        tune(labelled, stopped, Stop(4, stopped), peft=peft, epochs=1)
    tune(labelled, stopped, Stop(output=stopped), resume=True, peft=peft, epochs=1)
    resumed = load_file(stopped / "model.safetensors")
    assert all(np.array_equal(after[name], resumed[name]) for name in after)


def test_cells_held_out_of_the_labelled_file_are_not_learned_as_unlabelled_ones(labelled, tmp_path):
    (tmp_path / "same.h5ad").symlink_to(labelled / "cells.h5ad")
    with pytest.raises(ValueError, match=r"cells\.h5ad is the labelled file and unlabelled names it too"):
        tune(labelled, tmp_path / "out", Stop(output=tmp_path), unlabelled=[str(tmp_path / "same.h5ad")])


def test_unlabelled_cells_of_which_none_is_sure_are_told(labelled, pbmc, tmp_path, monkeypatch):
    monkeypatch.setattr("xtrimogene.training.finetuning.SURE", 1.1)
    pbmc.raw.to_adata()[120:140].write_h5ad(tmp_path / "others.h5ad")
    options = {"epochs": 0, "unlabelled": [str(tmp_path / "others.h5ad")]}
    with pytest.raises(ValueError, match="none of 20 unlabelled cells gets a label"):
        tune(labelled, tmp_path / "out", Stop(output=tmp_path), **options)
