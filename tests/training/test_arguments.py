"""Arguments of the Trainer: the defaults of this package, with the help of transformers."""

import dataclasses

import pytest
from transformers import TrainingArguments

from xtrimogene.training import arguments
from xtrimogene.training.arguments import (
    CHECKPOINTS,
    CellTrainingArguments,
    event_writers,
    has_only_cpu,
    run_arguments,
)
from xtrimogene.training.perturbation.fit import PerturbationArguments
from xtrimogene.training.synergy.fit import SynergyArguments


@pytest.mark.parametrize("kind", [CellTrainingArguments, PerturbationArguments, SynergyArguments])
def test_every_argument_keeps_the_help_of_transformers(kind):
    theirs = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    ours = {field.name: field for field in dataclasses.fields(kind)}
    assert ours.keys() == theirs.keys()
    assert all(ours[name].metadata == theirs[name].metadata for name in theirs)


def test_only_what_this_package_wants_differs_from_transformers(tmp_path):
    theirs, ours = (kind(str(tmp_path), use_cpu=True).to_dict() for kind in (TrainingArguments, CellTrainingArguments))
    assert {name: value for name, value in ours.items() if value != theirs[name]} == {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "logging_steps": 10,
        "save_strategy": "no",
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
    }
    assert (ours["weight_decay"], ours["max_grad_norm"], ours["report_to"]) == (0, 1, [])
    assert ours["dataloader_num_workers"] == 0


def test_a_machine_without_accelerators_is_known_for_one(tmp_path):
    assert CellTrainingArguments(tmp_path).use_cpu == has_only_cpu()


@pytest.mark.parametrize(("asked", "expected"), [("auto", 16), (5, 5)])
def test_a_run_is_evaluated_each_epoch_and_leaves_ten_checkpoints_on_the_way(tmp_path, asked, expected):
    found = run_arguments(tmp_path, "cpu", asked, max_steps=100)
    assert found.per_device_train_batch_size == expected
    assert (found.eval_strategy, found.save_strategy, found.save_steps) == ("epoch", "steps", 0.1)
    assert found.output_dir == str(tmp_path / CHECKPOINTS)
    assert found.use_cpu


def test_events_are_written_beside_the_model_and_not_into_its_checkpoints(tmp_path):
    arguments = CellTrainingArguments(tmp_path)
    assert event_writers(arguments, tmp_path / "events") == []
    pytest.importorskip("tensorboard")
    arguments = CellTrainingArguments(tmp_path, report_to="tensorboard")
    (writer,) = event_writers(arguments, tmp_path / "events")
    assert writer.logging_dir == str(tmp_path / "events")
    assert arguments.report_to == []  # the Trainer's own would write into the checkpoints


def test_no_step_waits_for_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "has_only_cpu", lambda: False)
    found = CellTrainingArguments(str(tmp_path))
    assert found.accelerator_config.non_blocking
    assert found.dataloader_pin_memory
    assert not found.logging_nan_inf_filter
    asked = CellTrainingArguments(str(tmp_path), accelerator_config={"split_batches": True})
    assert not asked.accelerator_config.non_blocking  # what the user sets stays
