"""A run that is killed goes on as if it had not been, and only from what is whole."""

import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from xtrimogene.training import checkpoints

# One interpreter imports everything; each run is a copy of it that is killed, so that no test waits for many imports.
KILLED = """
import json, os, signal, sys
import numpy as np
import scipy.stats, sklearn.metrics  # which each copy would import for its scores
import torch
from transformers import TrainerCallback, set_seed
import xtrimogene
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training import checkpoints
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.pretraining import pretrain
from xtrimogene.training.arguments import CellTrainingArguments

torch.set_num_threads(1)
folder, sizes = sys.argv[1], json.loads(sys.argv[2])
genes = [f"GENE{index}" for index in range(60)]
tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder + "/panel", depth_tokens=True)
counts = np.random.default_rng(0).poisson(30, (61, 60)) * (np.random.default_rng(1).random((61, 60)) < 0.6)
cells = cells_dataset(tokenizer.read_counts(counts, gene_names=genes))


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(name, kill_at=None, kill_in=None, **changes):
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    finish = checkpoints.finish

    def half_written(unfinished, run):
        if unfinished.name.endswith(f"checkpoint-{kill_in}"):
            os.kill(os.getpid(), signal.SIGKILL)
        finish(unfinished, run)

    checkpoints.finish = half_written
    try:
        set_seed(3)
        config = xtrimogene.XTrimoGeneConfig(num_genes=60, depth_tokens=True, favor_redraw_interval=3, **sizes)
        arguments = CellTrainingArguments(
            f"{folder}/{name}", num_train_epochs=3, per_device_train_batch_size=8, learning_rate=1e-2, logging_steps=2,
            save_strategy="steps", save_steps=4, eval_strategy="epoch", disable_tqdm=True, use_cpu=True, seed=3,
        )
        model = xtrimogene.XTrimoGeneForPreTraining(config)
        trainer = pretrain(model, tokenizer, cells, cells.select(range(8)), arguments=arguments, resume=True,
                           options=Masking(read_depth_aware=True), callbacks=[Kill(kill_at)], **changes)
        trainer.save_model(f"{folder}/{name}/end")
        with open(f"{folder}/{name}/log.json", "w") as file:
            json.dump([trainer.state.log_history, trainer.state.log_history[-1]["train_loss"]], file)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)


for name, changes in {"cells": {}, "tokens": {"max_tokens": 200, "ema": 0.9}}.items():
    codes = [run(f"{name} at once", **changes), run(f"{name} killed", kill_at=5, **changes),
             run(f"{name} killed", kill_in=12, **changes), run(f"{name} killed", kill_at=17, **changes)]
    newest = f"{folder}/{name} killed/checkpoint-16/optimizer.safetensors"
    os.truncate(newest, os.path.getsize(newest) // 2)
    codes.append(run(f"{name} killed", **changes))
    print(name, codes)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with a run that was never stopped and one that was killed three times, for both kinds of batches."""
    if not hasattr(os, "fork"):
        pytest.skip("needs a system on which processes can be copied")
    folder = tmp_path_factory.mktemp("runs")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_head_dim": 8,
    }  # with dropout
    (folder / "script.py").write_text(KILLED)
    command = [sys.executable, str(folder / "script.py"), str(folder), json.dumps(sizes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    for name in ("cells", "tokens"):
        assert f"{name} [0, -9, -9, -9, 0]" in done.stdout, done.stdout + done.stderr[-3000:]
        assert f"{name} killed/checkpoint-16 is passed over: optimizer.safetensors has" in done.stderr
    return folder


def without_times(entry):
    times = ("runtime", "per_second", "mfu", "memory_gib", "train_loss")
    return {key: value for key, value in entry.items() if not any(time in key for time in times)}


@pytest.mark.parametrize("batches", ["cells", "tokens"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(runs, batches):
    at_once, killed = (
        json.loads((runs / f"{batches} {name}" / "log.json").read_text()) for name in ("at once", "killed")
    )
    assert len(at_once[0]) > 15
    assert [without_times(entry) for entry in killed[0]] == [without_times(entry) for entry in at_once[0]]
    weights = [load_file(runs / f"{batches} {name}" / "end" / "model.safetensors") for name in ("at once", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # The mean loss is of the steps since the last start, the 13th to the last.
    last = [entry for entry in at_once[0] if "loss" in entry and entry["step"] > 12]
    steps = np.diff([12, *(entry["step"] for entry in last)])
    if last[-1]["step"] == at_once[0][-1]["step"]:
        np.testing.assert_allclose(killed[1], np.average([entry["loss"] for entry in last], weights=steps), rtol=1e-5)


def test_no_file_is_a_pickle_and_old_checkpoints_go(runs):
    for name in ("cells at once", "cells killed", "tokens killed"):
        kinds = {path.suffix for path in (runs / name).rglob("*") if path.is_file()}
        assert kinds == {".json", ".safetensors", ".txt", ".gz", ".py"}
        assert len(list((runs / name).glob("*checkpoint-*"))) == 2


def break_file(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda folder: os.truncate(folder / "model.safetensors", 100), r"model.safetensors has 100 of [\d,]+ bytes"),
    (lambda folder: (folder / "process-0.safetensors").unlink(), "process-0.safetensors is missing"),
    (lambda folder: break_file(folder / "trainer_state.json"), "trainer_state.json was changed"),
    (lambda folder: os.truncate(folder / "checkpoint.json", 10), "checkpoint.json cannot be read"),
    (lambda folder: (folder / "checkpoint.json").unlink(), "has no checkpoint.json"),
])  # fmt: skip
def test_what_is_not_whole_is_passed_over(runs, tmp_path, caplog, break_it, message):
    shutil.copytree(runs / "cells at once", tmp_path / "run")
    older, newest = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert checkpoints.newest_whole(tmp_path / "run") == newest
    break_it(newest)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_whole(tmp_path / "run") == older
    assert re.search(f"{re.escape(str(newest))} is passed over: .*{message}", caplog.text)


def test_states_come_back_as_they_were(tmp_path):
    state = {
        "state": {0: {"step": torch.tensor(3.0), "mean": torch.randn(2, 3)}, 7: {}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "name": "all", "fused": None, "on": True}],
        "large": [float("inf"), 2**70],
    }
    checkpoints.save_state(state, tmp_path / "state.safetensors")
    again = checkpoints.load_state(tmp_path / "state.safetensors")
    assert torch.equal(again["state"][0].pop("mean"), state["state"][0].pop("mean"))
    assert again == state
    with pytest.raises(TypeError, match=r"other\.lambda is a function"):
        checkpoints.save_state({"lambda": without_times}, tmp_path / "other.safetensors")


def test_random_numbers_go_on(tmp_path):
    draws = [lambda: random.random(), lambda: np.random.rand(), lambda: np.random.randn(), lambda: torch.rand(1).item()]  # noqa: NPY002
    draws[2]()  # the generator of numpy keeps a second one for later
    checkpoints.save_state(checkpoints.random_state(torch.device("cpu")), tmp_path / "random.safetensors")
    first = [draw() for draw in draws]
    checkpoints.set_random_state(checkpoints.load_state(tmp_path / "random.safetensors"), torch.device("cpu"))
    assert [draw() for draw in draws] == first


def test_the_best_and_the_newest_checkpoints_stay(tmp_path):
    for step in (10, 20, 30, 40, 100):
        checkpoints.checkpoint_folder(tmp_path, step).mkdir()
    newest, best = (checkpoints.checkpoint_folder(tmp_path, step) for step in (40, 10))
    checkpoints.remove_old(tmp_path, newest, None, None)
    assert len(checkpoints.checkpoints(tmp_path)) == 5
    checkpoints.remove_old(tmp_path, newest, 3, str(best))
    assert [path.name[11:] for path in checkpoints.checkpoints(tmp_path)] == ["100", "40", "30", "10"]
    checkpoints.remove_old(tmp_path, newest, 1, None)
    assert [path.name[11:] for path in checkpoints.checkpoints(tmp_path)] == ["100", "40"]
