"""Arguments of the Trainer, with the defaults of this package."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import SaveStrategy, SchedulerType

from .options import CHECKPOINTS

Arguments = TypeVar("Arguments", bound=type)


def with_help(kind: Arguments) -> Arguments:
    """Return a subclass of `TrainingArguments` whose own fields have the help texts of the fields they replace."""
    for field in dataclasses.fields(kind):
        field.metadata = field.metadata or TrainingArguments.__dataclass_fields__[field.name].metadata
    return kind


@with_help
@dataclass
class CellTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of this package; their documentation is that of transformers.

    AdamW, a learning rate of 1e-4, no weight decay and clipping at 1 are those of the released model, which 64 devices
    trained. A laptop's few steps want a larger rate. To be able to resume, set `save_strategy="steps"` and
    `save_steps`; to follow a run elsewhere, `report_to="tensorboard"` or `"trackio"` where it is installed. Where there
    is nothing but a CPU, `use_cpu` is set. On a GPU no step waits for it: the host goes on while a batch is copied, and
    a loss that is no number is logged as it is (`logging_nan_inf_filter` would look at the loss of every step).

    >>> CellTrainingArguments("run", max_steps=100).per_device_train_batch_size
    16
    """

    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lr_scheduler_type: SchedulerType | str = "cosine"
    logging_steps: float = 10
    save_strategy: SaveStrategy | str = "no"
    save_total_limit: int | None = 2
    remove_unused_columns: bool = False  # the collators read columns that are no argument of the model
    ddp_find_unused_parameters: bool | None = False
    use_cpu: bool = False

    def __post_init__(self) -> None:
        """Choose the CPU where there is nothing else: processes that torchrun starts find one another only then."""
        self.use_cpu = self.use_cpu or has_only_cpu()
        if not self.use_cpu:
            self.logging_nan_inf_filter = False
            self.accelerator_config = getattr(self, "accelerator_config", None) or {"non_blocking": True}
        super().__post_init__()


def is_decayed(name: str, weight: torch.Tensor) -> bool:
    """Return whether a weight decays: matrices do, and no biases, norms, factors of branches or single vectors.

    >>> is_decayed("layers.0.fc1.weight", torch.ones(2, 2)), is_decayed("layers.0.scale1", torch.ones(2))
    (True, False)
    """
    return weight.ndim > 1 and "bias" not in name


def has_only_cpu() -> bool:
    """Return whether this machine has no accelerator."""
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def run_arguments(
    output: Path, device: str, batch_size: int | Literal["auto"], **changes: Any
) -> CellTrainingArguments:
    """Return the Trainer's arguments for a run of any length: it evaluates each epoch and writes ten checkpoints.

    Args:
        output: Folder of the run; its checkpoints go into `output/checkpoints`.
        device: Where the run computes, such as `cpu`.
        batch_size: Cells of a training step; `auto` keeps the default of `CellTrainingArguments`.
        **changes: Other fields of `TrainingArguments`.

    Example:
        >>> arguments = run_arguments(Path("run"), "cpu", batch_size=8, num_train_epochs=2)
        >>> arguments.per_device_train_batch_size, arguments.save_steps
        (8, 0.1)
    """
    if batch_size != "auto":
        changes["per_device_train_batch_size"] = batch_size
    # Numbers of steps below 1 are shares of the whole run.
    often = {"eval_strategy": "epoch", "logging_steps": 0.01, "warmup_steps": 0.05}
    saved = {"save_strategy": "steps", "save_steps": 0.1}
    changes = {**often, **changes, **saved}
    return CellTrainingArguments(str(output / CHECKPOINTS), use_cpu=device == "cpu", disable_tqdm=True, **changes)


def parsed(kinds: Iterable[type], given: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Return dataclasses filled from what is typed, or from the one .json or .yaml file that is.

    >>> from xtrimogene.tokenization.masking import Masking
    >>> parsed([Masking], ["--zero_ratio", "0.05"])[0].zero_ratio
    0.05

    Args:
        kinds: The dataclasses: `CellTrainingArguments`, and groups of options that hold no groups.
        given: What is typed behind the name of the script; that of this process unless given.

    Raises:
        ValueError: If a value is outside of its range, or a name is unknown.
    """
    parser, given = HfArgumentParser(kinds), list(sys.argv[1:] if given is None else given)
    if len(given) == 1 and given[0].endswith(".json"):
        return parser.parse_json_file(given[0])
    if len(given) == 1 and given[0].endswith((".yaml", ".yml")):
        return parser.parse_yaml_file(given[0])
    return parser.parse_args_into_dataclasses(given, look_for_args_file=False)


def event_writers(training: TrainingArguments, folder: Path) -> list[Any]:
    """Return a callback that writes TensorBoard events into `folder`; an empty list if `training` does not ask for it.

    It replaces the Trainer's own callback, which is removed from `training`: that one writes into the folder of the
    checkpoints, which is deleted when the run ends.

    Example:
        >>> event_writers(CellTrainingArguments("checkpoints", report_to="none"), Path("tensorboard"))
        []
    """
    if "tensorboard" not in training.report_to:
        return []
    from transformers.integrations import TensorBoardCallback

    training.report_to = [name for name in training.report_to if name != "tensorboard"]
    writer = TensorBoardCallback()
    writer.logging_dir = str(folder)
    return [writer]
