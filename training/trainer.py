"""transformers' Trainer with this project's defaults; distribution, precision and checkpoints are accelerate's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from .callbacks import SetEpoch
from .sampler import LengthGroupedSampler


def training_arguments(output_dir: str | Path, **changes: Any) -> TrainingArguments:
    """Return the Trainer's arguments with this project's defaults.

    Source: AdamW, learning rate 1e-4, no weight decay, clipping at 1 (released model, 64 devices). A laptop's few steps
    want a larger rate: pass `learning_rate`.
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
        "report_to": "none",
        # The collators read columns that are no argument of the model.
        "remove_unused_columns": False,
        # Workers copy padded batches between processes, which costs more than making them.
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available() and not torch.backends.mps.is_available(),
    }
    return TrainingArguments(**{**defaults, **changes})


class CellTrainer(Trainer):
    """Trainer with batches of cells of like length, and where wanted another collator for evaluation.

    (transformers' own grouping by length does not cover every cell when there are several processes.)

    Args:
        *args: Of `Trainer`.
        eval_collator: Collator for evaluation; that for training unless given.
        **kwargs: Of `Trainer`; without `train_dataset` it evaluates and predicts only.

    Raises:
        ValueError: If workers are to persist and masks to change: each worker has a copy of the collator.
    """

    data_collator: Any

    def __init__(self, *args: Any, eval_collator: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # What it prints goes to stdout, among the user's results; the log stays in `state.log_history`.
        self.remove_callback(PrinterCallback)
        if self.args.dataloader_persistent_workers and hasattr(self.data_collator, "epoch"):
            raise ValueError(
                f"dataloader_persistent_workers is True, and workers that persist keep the first epoch of their "
                f"{type(self.data_collator).__name__}, and so its masks: set it to False"
            )
        self.eval_collator = eval_collator or self.data_collator
        if self.train_dataset is None:  # to evaluate and predict only
            return
        batch_size = self.args.per_device_train_batch_size * max(self.args.n_gpu, 1) * self.args.world_size
        self.train_sampler = LengthGroupedSampler(self.train_dataset["length"], batch_size, self.args.seed)
        self.add_callback(SetEpoch(self.train_sampler, self.data_collator))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return self.train_sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of held-out cells."""
        with self.evaluating():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the loader of cells to predict."""
        with self.evaluating():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the collator for evaluation in the place of the one for training."""
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            yield
        finally:
            self.data_collator = train_collator
