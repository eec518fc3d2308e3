"""Progress on stderr: cells done, cells a second, time left; and the same for transformers' Trainer.

A terminal shows moving bars. A file, such as the log of a job, gets a line every 30 seconds.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import families

EVERY = 30.0  # seconds between two lines where there is no terminal
MEASURED_STEPS = 5  # first steps of a training by whose speed its minutes are estimated; the very first is slower


def duration(seconds: float) -> str:
    """Return a number of seconds for people.

    >>> duration(42), duration(200), duration(20_000)
    ('42 s', '3 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


class LinesOrBars(Progress):
    """Bars on a terminal; elsewhere a line every `EVERY` seconds with the time left, and the bars as they end."""

    last_line = 0.0

    def update(self, task_id: Any, **fields: Any) -> None:
        """Move a bar, and print a line if one is due."""
        super().update(task_id, **fields)
        now = monotonic()
        if self.disable or self.console.is_terminal:
            return
        self.last_line = self.last_line or now
        if now - self.last_line >= EVERY:
            self.last_line = now
            self.console.print(line_of(self._tasks[task_id]), markup=False, soft_wrap=True)


def line_of(task: Task) -> str:
    """Return how far a task is, and the time that is left by its speed so far."""
    total, unit = task.total or 0, task.fields["unit"]
    done = task.completed - task.fields.get("first", 0)
    left = ""
    if task.elapsed and done > 0:
        left = f", {duration(task.elapsed * (total - task.completed) / done)} left"
    note = f" · {task.fields['note']}" if task.fields["note"] else ""
    return f"{task.description}: {task.completed:,.0f} of {total:,.0f} {unit}{left}{note}"


class Beat:
    """A line on something that runs: since when, and how long it will take, by the shares that were told so far.

    Args:
        what: What runs.

    Example:
        >>> beat = Beat("Evaluation")
        >>> beat.line
        'Evaluation: for 0 s so far'
    """

    def __init__(self, what: str):
        self.what, self.began = what, monotonic()
        self.told: list[tuple[float, float]] = []  # the first and the last share, each with its time

    def tell(self, share: float) -> None:
        """Say which share is done. The first share may be 0: the time is counted from it on."""
        self.told = [*self.told[:1], (share, monotonic())]

    @property
    def line(self) -> str:
        """The line."""
        now, left = monotonic(), ""
        (first, began), (share, last) = (self.told[0], self.told[-1]) if self.told else ((0.0, 0.0), (0.0, 0.0))
        if share > first:
            seconds = (last - began) * (1 - share) / (share - first) - (now - last)
            left = f", {share:.0%} done, about {duration(max(seconds, 0))} left"
        return f"{self.what}: for {duration(now - self.began)} so far{left}"


@contextmanager
def heartbeat(console: Console, what: str) -> Iterator[Beat]:
    """Print a line every `EVERY` seconds, where there is no terminal, on something that has no bar.

    It gives a `Beat`, which may be told how far it is.

    Args:
        console: Where the lines are printed.
        what: What runs.

    Example:
        >>> with heartbeat(Console(stderr=True), "Baselines on the same cells"):
        ...     pass
    """
    beat, ended = Beat(what), threading.Event()

    def say() -> None:
        while not ended.wait(EVERY):
            console.print(beat.line, markup=False, soft_wrap=True)

    if console.is_terminal or console.quiet:
        yield beat
        return
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        ended.set()
        thread.join()


class CellsPerSecond(ProgressColumn):
    """Cells a second since the bar began; it stays when the bar is full."""

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        cells = task.fields.get("cells", task.completed)
        return Text(f"{cells / task.elapsed:,.0f} cells/s" if cells and task.elapsed else "", style="cyan")


def cell_progress(console: Console | None = None, disable: bool = False) -> Progress:
    """Return progress bars with a column of cells a second.

    A task counts cells; or it counts steps, and gives the number of cells as the field `cells`. Each task needs the
    fields `unit` and `note`, which are shown as text.

    Args:
        console: Where the bars are drawn; stderr unless given. A terminal shows them moving; a file gets a line every
            30 seconds and their last state.
        disable: Draw nothing.

    Example:
        >>> with cell_progress(disable=True) as progress:
        ...     bar = progress.add_task("Embedding", total=100, unit="cells", note="")
        ...     progress.update(bar, advance=40)
        >>> progress.tasks[0].completed
        40
    """
    return LinesOrBars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        CellsPerSecond(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console or Console(stderr=True),
        disable=disable,
    )


class RichProgress(TrainerCallback):
    """One bar for each training: steps, cells a second, the last loss and the last held-out score, time left.

    Before a training, lines say how much there is to do and where a resumed run goes on. After the first steps, a line
    says how long it will take. In a log, what comes before and after the training says that it runs.

    Use it in a `with` statement, which also removes the bar if training fails, and turn the Trainer's own bar off by
    `disable_tqdm=True`.

    Args:
        console: Where the bars are drawn; stderr unless given.
        disable: Draw nothing.

    Example:
        >>> with RichProgress(disable=True) as progress:
        ...     pretrain(model, tokenizer, dataset, arguments=arguments, callbacks=[progress])  # doctest: +SKIP
    """

    def __init__(self, console: Console | None = None, disable: bool = False):
        self.progress = cell_progress(console, disable)
        self.scores: dict[str, float] = {}
        self.beating = ExitStack()

    def __enter__(self) -> "RichProgress":
        self.progress.start()
        self.beat("Reading cells and preparing the model")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.beating.close()
        self.progress.stop()

    def beat(self, what: str) -> None:
        """Begin to say that something runs, until the next training or the end."""
        self.beating.close()
        if not self.progress.disable:
            self.beating.enter_context(heartbeat(self.progress.console, what))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add a bar."""
        self.beating.close()
        self.scores = {}
        if not state.is_world_process_zero:
            self.progress.disable = True
        is_pretraining = "reconstruct" in families.abilities_of(kwargs["model"])
        self.num_cells = len(kwargs["train_dataloader"].dataset)
        self.epochs_before = state.epoch or 0  # above 0 if the run was resumed
        self.task = self.progress.add_task(
            "Pre-training" if is_pretraining else "Fine-tuning",
            total=state.max_steps,
            completed=state.global_step,
            unit="steps",
            note="",
            cells=0,
            first=state.global_step,
        )
        self.say(cost_line(kwargs["train_dataloader"].dataset, state.max_steps))
        if state.global_step:
            self.say(f"Going on from step {state.global_step:,} of {state.max_steps:,}, of the last whole checkpoint")
        self.first_step, self.first_time = state.global_step + 1, 0.0

    def say(self, line: str) -> None:
        """Print a line, above the bars if there are any."""
        if not self.progress.disable:
            self.progress.console.print(line, markup=False, soft_wrap=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if state.global_step == self.first_step:
            self.first_time = monotonic()
        elif state.global_step == self.first_step + MEASURED_STEPS:
            seconds = (monotonic() - self.first_time) / MEASURED_STEPS * (state.max_steps - state.global_step)
            self.say(f"About {duration(seconds)} of training are left, by the first {MEASURED_STEPS} steps")
        cells = ((state.epoch or 0) - self.epochs_before) * self.num_cells
        self.progress.update(self.task, completed=state.global_step, cells=cells)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the last loss and the last held-out score."""
        shown = {"loss": "loss", "eval_pearson": "Pearson", "eval_accuracy": "accuracy", "mfu": "MFU"}
        self.scores |= {name: logs[key] for key, name in shown.items() if logs and key in logs}
        if not self.progress.finished:
            self.progress.update(
                self.task, note=" · ".join(f"{name} {score:.3f}" for name, score in self.scores.items())
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the bar as it is."""
        self.progress.stop_task(self.task)
        self.beat("Held-out cells, baselines, calibration and pictures")


def cost_line(dataset: Any, num_steps: int) -> str:
    """Return a line on what there is to train on: a cell of 6,000 expressed genes costs ten times one of 1,000.

    Args:
        dataset: Training cells, with the number of expressed genes of each as `length`.
        num_steps: Steps of the training.

    Example:
        >>> cost_line({"length": np.array([900, 1100, 6000])}, num_steps=40)
        'Training on 3 cells in 40 steps; a cell has 1,100 expressed genes (median; the largest 6,000)'
    """
    lengths = np.asarray(dataset["length"][:])
    return (
        f"Training on {len(lengths):,} cells in {num_steps:,} steps; a cell has {np.median(lengths):,.0f} expressed "
        f"genes (median; the largest {lengths.max():,})"
    )
