"""Arguments of the Trainer, with the defaults of this package."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

CHECKPOINTS = "checkpoints"  # folder in the output of a run that has not ended


def run_arguments(output: Path, device: str, batch_size: int | Literal["auto"], **changes: Any) -> "TrainingArguments":
    """Return the Trainer's arguments for a run of any length: it evaluates each epoch and writes ten checkpoints.

    Args:
        output: Folder of the run; its checkpoints go into `output/checkpoints`.
        device: Where the run computes, such as `cpu`.
        batch_size: Cells of a training step; `auto` keeps the default of `training_arguments`.
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
    return training_arguments(output / CHECKPOINTS, use_cpu=device == "cpu", disable_tqdm=True, **changes)


def event_writers(training: "TrainingArguments", folder: Path) -> list[Any]:
    """Return a callback that writes TensorBoard events into `folder`; an empty list if `training` does not ask for it.

    It replaces the Trainer's own callback, which is removed from `training`: that one writes into the folder of the
    checkpoints, which is deleted when the run ends.

    Example:
        >>> event_writers(training_arguments("checkpoints", report_to="none"), Path("tensorboard"))
        []
    """
    if "tensorboard" not in training.report_to:
        return []
    from transformers.integrations import TensorBoardCallback

    training.report_to = [name for name in training.report_to if name != "tensorboard"]
    writer = TensorBoardCallback()
    writer.logging_dir = str(folder)
    return [writer]


def training_arguments(output_dir: str | Path, **changes: Any) -> TrainingArguments:
    """Return the Trainer's arguments with this project's defaults.

    A short run on a laptop needs a larger `learning_rate` than the default. To be able to resume, pass
    `save_strategy="steps"` and `save_steps`. To follow a run in TensorBoard or Trackio, install it and pass
    `report_to="tensorboard"` or `report_to="trackio"`.

    Args:
        output_dir: Folder of the checkpoints.
        **changes: Fields of `TrainingArguments` that replace the defaults.

    Source: AdamW, learning rate 1e-4, no weight decay, clipping at 1 (released model, trained on 64 devices).

    Example:
        >>> training_arguments("checkpoints", learning_rate=2e-3).learning_rate
        0.002
    """
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "logging_steps": 10,
        "save_strategy": "no",
        "save_total_limit": 2,
        "report_to": "none",
        # The collators read columns that the model does not take, and the Trainer would drop those.
        "remove_unused_columns": False,
        # Workers copy padded batches between processes, which costs more than making them.
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available() and not torch.backends.mps.is_available(),
    }
    return TrainingArguments(**{**defaults, **changes})
