"""Bars of a training: steps, cells a second, the last scores."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import TrainerState

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification
from xtrimogene.training.progress import RichProgress, cell_progress


@pytest.mark.parametrize(
    ("cls", "name"),
    [(XTrimoGeneForPreTraining, "Pre-training"), (XTrimoGeneForSequenceClassification, "Fine-tuning")],
)
def test_a_bar_moves_by_steps_counts_cells_and_shows_the_last_scores(tiny_config, cls, name):
    state = TrainerState(max_steps=8, global_step=2, epoch=1.0)
    file = io.StringIO()
    with RichProgress(Console(file=file, width=120)) as progress:
        loader = SimpleNamespace(dataset=range(100))
        progress.on_train_begin(None, state, None, model=cls(tiny_config()), train_dataloader=loader)
        (bar,) = progress.progress.tasks
        assert (bar.description, bar.completed, bar.total) == (name, 2, 8)
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
