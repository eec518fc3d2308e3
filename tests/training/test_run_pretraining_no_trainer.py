"""The loop without a Trainer: its losses and scores are the Trainer's, on one process and on two."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoTokenizer

from xtrimogene.training import run_pretraining, run_pretraining_no_trainer

STEPS = 20  # more than two epochs


def typed(folder, output, **changes):
    options = {
        "files": folder / "cells.h5ad",
        "drop_empty": True,
        "checkpoint": folder / "model",
        "validation_share": 0.125,  # 20 cells, which are no whole batches
        "output_dir": output,
        "max_steps": STEPS,
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "seed": 3,
    }
    return [word for name, value in {**options, **changes}.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def run(blood_folder, tmp_path_factory):
    """The log of a run, and its folder."""
    output = tmp_path_factory.mktemp("loop")
    return run_pretraining_no_trainer.main(typed(blood_folder, output, schedule="cosine", warmup=0.1)), output


def test_losses_and_scores_are_those_of_the_trainer(run, blood_folder, tmp_path):
    log, output = run
    trainer = run_pretraining.main(
        typed(
            blood_folder, tmp_path, lr_scheduler_type="cosine", warmup_steps=0.1, logging_steps=1, use_cpu=True,
            disable_tqdm=True,
        )
    )  # fmt: skip
    expected = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses = [entry["loss"] for entry in log]
    assert len(losses) == STEPS
    assert log[-1]["epoch"] == 2
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-6)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    scores = {name: score for name, score in trainer.state.log_history[-1].items() if name in log[-1]}
    assert {"eval_pearson", "eval_mse", "eval_r2_expressed"} <= scores.keys()
    del scores["epoch"], scores["step"]
    assert {name: log[-1][name] for name in scores} == pytest.approx(scores, abs=1e-5)
    saved = AutoModelForPreTraining.from_pretrained(output).state_dict()
    for name, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(saved[name], weight, rtol=0, atol=1e-5)


def test_what_is_saved_is_the_model_and_the_log(run):
    log, output = run
    assert json.loads((output / "log.json").read_text()) == log
    assert AutoModel.from_pretrained(output).config.num_genes == 150


@pytest.mark.slow  # the launcher and two processes import everything: half a minute
def test_two_processes_learn_as_one_at_equal_global_batch(blood_folder, tmp_path):
    # Not anchored: an anchored model weighs the cells of a process by its masked genes, which is equal but nearly.
    config = AutoConfig.from_pretrained(blood_folder / "model", anchored=False)
    torch.manual_seed(0)
    AutoModelForPreTraining.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(blood_folder / "model").save_pretrained(tmp_path / "model")
    options = {"warmup": 0.1, "checkpoint": tmp_path / "model"}
    one = run_pretraining_no_trainer.main(typed(blood_folder, tmp_path / "one", **options))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    script = [run_pretraining_no_trainer.__file__, *typed(blood_folder, tmp_path / "two", **options, batch_size=8)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *script], env=environment, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout, done.stderr[-5000:])  # pytest shows it where the test fails
    two = json.loads((tmp_path / "two/log.json").read_text())
    np.testing.assert_allclose([entry["loss"] for entry in two], [entry["loss"] for entry in one], rtol=1e-5)
    assert two[-1]["eval_pearson"] == pytest.approx(one[-1]["eval_pearson"], abs=1e-4)
