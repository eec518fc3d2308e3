"""Arguments of the Trainer, with the defaults of this package."""

import pytest

from xtrimogene.training.arguments import CHECKPOINTS, CellTrainingArguments, event_writers, run_arguments


def test_defaults_are_those_of_the_released_model_and_give_way(tmp_path):
    found = CellTrainingArguments(tmp_path, learning_rate=3e-4)
    assert (found.learning_rate, found.weight_decay, found.max_grad_norm) == (3e-4, 0, 1)
    assert (found.save_strategy, found.remove_unused_columns) == ("no", False)


@pytest.mark.parametrize(("asked", "expected"), [("auto", 16), (5, 5)])
def test_a_run_is_evaluated_each_epoch_and_leaves_ten_checkpoints_on_the_way(tmp_path, asked, expected):
    found = run_arguments(tmp_path, "cpu", asked, max_steps=100)
    assert found.per_device_train_batch_size == expected
    assert (found.eval_strategy, found.save_strategy, found.save_steps) == ("epoch", "steps", 0.1)
    assert found.output_dir == str(tmp_path / CHECKPOINTS)
    assert found.use_cpu


def test_events_are_written_beside_the_model_and_not_into_its_checkpoints(tmp_path):
    arguments = CellTrainingArguments(tmp_path, report_to="none")
    assert event_writers(arguments, tmp_path / "events") == []
    pytest.importorskip("tensorboard")
    arguments = CellTrainingArguments(tmp_path, report_to="tensorboard")
    (writer,) = event_writers(arguments, tmp_path / "events")
    assert writer.logging_dir == str(tmp_path / "events")
    assert arguments.report_to == []  # the Trainer's own would write into the checkpoints
