"""Bars of a training: steps, cells a second, the last scores."""

import io
import threading
from types import SimpleNamespace

import pytest
from datasets import Dataset
from rich.console import Console
from transformers import TrainerState

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification
from xtrimogene.training.progress import Beat, RichProgress, cell_progress, heartbeat


@pytest.mark.parametrize(
    ("cls", "name"),
    [(XTrimoGeneForPreTraining, "Pre-training"), (XTrimoGeneForSequenceClassification, "Fine-tuning")],
)
def test_a_bar_moves_by_steps_counts_cells_and_shows_the_last_scores(tiny_config, cls, name):
    state = TrainerState(max_steps=8, global_step=2, epoch=1.0)
    file = io.StringIO()
    with RichProgress(Console(file=file, width=120)) as progress:
        loader = SimpleNamespace(dataset=Dataset.from_dict({"length": [70] * 99 + [300]}))
        progress.on_train_begin(None, state, None, model=cls(tiny_config()), train_dataloader=loader)
        (bar,) = progress.progress.tasks
        assert (bar.description, bar.completed, bar.total) == (name, 2, 8)
        assert (
            "Training on 100 cells in 8 steps; a cell has 70 expressed genes (median; the largest 300)"
            in file.getvalue()
        )
        assert "Going on from step 2 of 8" in file.getvalue()
        state.global_step, state.epoch = 5, 2.5
        progress.on_step_end(None, state, None)
        assert (bar.completed, bar.fields["cells"]) == (5, 150)  # those before a resume do not count
        progress.on_log(None, state, None, logs={"loss": 0.5, "grad_norm": 3.0})
        progress.on_log(None, state, None, logs={"eval_pearson": 0.25, "loss": 0.125})
        assert bar.fields["note"] == "loss 0.125 · Pearson 0.250"
        progress.on_train_end(None, state, None)
        assert bar.stop_time is not None
    assert name in file.getvalue()


def test_nothing_is_drawn_where_it_is_disabled():
    file = io.StringIO()
    with cell_progress(Console(file=file), disable=True) as bars:
        bars.add_task("Embedding", total=5, unit="cells", note="")
    assert file.getvalue() == ""


def test_the_time_of_a_training_is_told_by_its_first_steps(tiny_config, monkeypatch):
    times = iter([100.0, 110.0])
    state, file = TrainerState(max_steps=1006, epoch=0.0), io.StringIO()
    with RichProgress(Console(file=file, width=120)) as progress:
        loader = SimpleNamespace(dataset=Dataset.from_dict({"length": [70]}))
        progress.on_train_begin(
            None, state, None, model=XTrimoGeneForPreTraining(tiny_config()), train_dataloader=loader
        )
        monkeypatch.setattr(progress.progress, "update", lambda *_, **__: None)
        monkeypatch.setattr("xtrimogene.training.progress.monotonic", lambda: next(times))
        for state.global_step in range(1, 7):
            progress.on_step_end(None, state, None)
    assert "About 33 min of training are left, by the first 5 steps" in file.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_log_gets_lines_with_the_time_left_and_a_terminal_does_not(monkeypatch, is_terminal):
    monkeypatch.setattr("xtrimogene.training.progress.EVERY", 0.0)
    file = io.StringIO()
    with cell_progress(Console(file=file, width=120, force_terminal=is_terminal)) as bars:
        bar = bars.add_task("Embedding", total=5000, unit="cells", note="loss 0.1")
        bars.update(bar, advance=1000)
    lines = [line for line in file.getvalue().splitlines() if line.startswith("Embedding: 1,000 of 5,000 cells, ")]
    assert len(lines) == (not is_terminal)
    assert is_terminal or (lines[0].endswith(" left · loss 0.1"))


def test_what_cannot_tell_how_far_it_is_says_that_it_runs(monkeypatch):
    monkeypatch.setattr("xtrimogene.training.progress.EVERY", 0.001)
    said = threading.Event()
    console = Console(file=io.StringIO(), width=120)
    monkeypatch.setattr(console, "print", lambda line, **_: said.set() if "Baselines: for" in line else None)
    with heartbeat(console, "Baselines"):
        assert said.wait(20)
    number = threading.active_count()
    with heartbeat(Console(file=io.StringIO(), force_terminal=True), "Baselines"):
        assert threading.active_count() == number


def test_the_time_left_is_that_of_the_shares_told_so_far(monkeypatch):
    times = iter([0.0, 60.0, 90.0, 120.0, 180.0])
    monkeypatch.setattr("xtrimogene.training.progress.monotonic", lambda: next(times))
    beat = Beat("Evaluation")
    beat.tell(0.0)  # after a minute in which all was prepared
    beat.tell(0.1)
    beat.tell(0.25)
    assert beat.line == "Evaluation: for 3 min so far, 25% done, about 2 min left"
