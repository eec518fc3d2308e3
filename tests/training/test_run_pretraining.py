"""The script that pre-trains: options as typed and from a file, and a model that Auto classes load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer

from xtrimogene.training import run_pretraining


def given(folder, output, **changes):
    options = {
        "files": [str(folder / "cells.h5ad")],
        "drop_empty": True,
        "checkpoint": str(folder / "model"),
        "zero_ratio": 0.05,
        "validation_share": 0.2,
        "output_dir": str(output),
        "max_steps": 8,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return {**options, **changes}


def typed(options):
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


@pytest.fixture(scope="module")
def trained(blood_folder, tmp_path_factory):
    """The Trainer of a run as typed."""
    return run_pretraining.main(typed(given(blood_folder, tmp_path_factory.mktemp("typed"))))


def test_the_script_trains_and_saves_what_auto_classes_load(trained, blood_folder):
    output = Path(trained.args.output_dir)
    start = AutoModelForPreTraining.from_pretrained(blood_folder / "model").state_dict()
    saved = AutoModelForPreTraining.from_pretrained(output).state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in trained.model.state_dict().items())
    assert any(not torch.equal(saved[name], start[name]) for name in saved)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert AutoModel.from_pretrained(output).config.num_genes == tokenizer.num_genes == 150
    scores = json.loads((output / "eval_results.json").read_text())
    assert {"eval_loss", "eval_pearson", "eval_pearson_expressed"} <= scores.keys()
    assert trained.data_collator.masking.zero_ratio == 0.05
    assert len(trained.train_dataset) == 4 * len(trained.eval_dataset)


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_file_of_options_gives_the_run_that_typing_them_gives(trained, blood_folder, tmp_path, ending):
    import yaml

    options = given(blood_folder, tmp_path / "out")
    written = tmp_path / f"run.{ending}"
    written.write_text(json.dumps(options) if ending == "json" else yaml.safe_dump(options))
    again = run_pretraining.main([str(written)])
    losses = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (trained, again)]
    assert len(losses[0]) == 8
    assert losses[0] == losses[1]


@pytest.mark.slow  # the whole panel
def test_a_new_model_of_a_size_is_trained_on_the_whole_panel(blood_folder, tmp_path):
    options = given(blood_folder, tmp_path, config="tiny", max_steps=1, per_device_train_batch_size=2)
    options |= {"validation_share": 0.02}
    del options["checkpoint"]
    trainer = run_pretraining.main(typed(options))
    assert trainer.model.config.hidden_size == 64
    assert trainer.processing_class.num_genes == trainer.model.config.num_genes > 19_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_ratio": 2}, "zero_ratio is 2.0: give at least 0 and at most 1"),
        ({"corpus": "corpus"}, "files and corpus exclude each other"),
        ({"validation_by": "donor"}, "validation_by and balance_by name columns of a corpus"),
        ({"zero_share": 0.1}, "not used by the HfArgumentParser"),
    ],
)
def test_wrong_options_are_refused_by_name(blood_folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_pretraining.main(typed(given(blood_folder, tmp_path, **changes)))


def test_a_run_that_was_stopped_goes_on(blood_folder, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    run_pretraining.main(typed(given(blood_folder, tmp_path, max_steps=4, **saving)))
    with pytest.raises(ValueError, match="holds checkpoint-4 of an earlier run: resume it"):
        run_pretraining.main(typed(given(blood_folder, tmp_path, **saving)))
    last = str(tmp_path / "checkpoint-4")
    trainer = run_pretraining.main(typed(given(blood_folder, tmp_path, resume_from_checkpoint=last, **saving)))
    steps = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert steps == [*range(1, 9)]


@pytest.mark.slow  # processes of their own
def test_it_runs_as_a_plain_file_from_any_folder(tmp_path):
    command = [sys.executable, run_pretraining.__file__, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--zero_ratio" in done.stdout
    assert "Share of zero genes to mask." in done.stdout
    assert "The initial learning rate for the optimizer. (default: 0.0001)" in " ".join(done.stdout.split())
