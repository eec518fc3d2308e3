"""Progress bars on stderr: cells done, cells a second, time left; and the same for transformers' Trainer."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import families


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
        console: Where the bars are drawn; stderr unless given. A terminal shows them moving, a file their last state.
        disable: Draw nothing.

    Example:
        >>> with cell_progress(disable=True) as progress:
        ...     bar = progress.add_task("Embedding", total=100, unit="cells", note="")
        ...     progress.update(bar, advance=40)
        >>> progress.tasks[0].completed
        40
    """
    return Progress(
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

    def __enter__(self) -> "RichProgress":
        self.progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.progress.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add a bar."""
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
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
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
