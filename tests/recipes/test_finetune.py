"""Runs that are stopped leave no model, and go on from where they were; what their pictures show."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import TrainerCallback

import xtrimogene
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import PRESETS
from xtrimogene.options import build
from xtrimogene.recipes.finetune import finetune_file
from xtrimogene.recipes.options import Finetuning
from xtrimogene.training.arguments import CHECKPOINTS


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


def tune(folder, output, callback, resume=False):
    recipe = build(Finetuning, {"label_key": "bulk_labels", "epochs": 3, "batch_size": 16, "device": "cpu"})
    return finetune_file(
        folder / "cells.h5ad", str(folder / "model"), output, recipe,
        resume=resume, say=lambda _: None, callbacks=[callback],
    )  # fmt: skip


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
