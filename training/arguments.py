"""Arguments of the Trainer, with the defaults of this package."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

CHECKPOINTS = "checkpoints"  # folder in the output of a run that has not ended


def run_arguments(output: Path, device: str, batch_size: int | Literal["auto"], **changes: Any) -> "TrainingArguments":
    """Return the Trainer's arguments for a run of any length: evaluated each epoch, with ten checkpoints on the way."""
    if batch_size != "auto":
        changes["per_device_train_batch_size"] = batch_size
    # Steps below 1 are shares of the run.
    often = {"eval_strategy": "epoch", "logging_steps": 0.01, "warmup_steps": 0.05}
    saved = {"save_strategy": "steps", "save_steps": 0.1}
    changes = {**often, **changes, **saved}
    return training_arguments(output / CHECKPOINTS, use_cpu=device == "cpu", disable_tqdm=True, **changes)


def event_writers(training: "TrainingArguments", folder: Path) -> list[Any]:
    """Return what writes for TensorBoard into `folder`, if `training` asks for it, in the place of the Trainer's own.

    That one would write into the folder of the checkpoints, which is deleted when the run ends.
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

    Source: AdamW, learning rate 1e-4, no weight decay, clipping at 1 (released model, 64 devices). A laptop's few steps
    want a larger rate: pass `learning_rate`. To be able to resume, pass `save_strategy="steps"` and `save_steps`; to
    follow a run elsewhere, `report_to="tensorboard"` or `"trackio"` where it is installed.
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
        # The collators read columns that are no argument of the model.
        "remove_unused_columns": False,
        # Workers copy padded batches between processes, which costs more than making them.
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available() and not torch.backends.mps.is_available(),
    }
    return TrainingArguments(**{**defaults, **changes})
