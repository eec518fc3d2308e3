"""What happens between steps and epochs of the Trainer."""

import math
import os
import sys
from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SetEpoch(TrainerCallback):
    """Tell sampler and collator the epoch, so that each epoch has another order and other masks, also after a resume.

    (accelerate passes the epoch on to some samplers and not to others.)

    Args:
        followers: Objects whose `epoch` is set.
    """

    def __init__(self, *followers: Any):
        self.followers = list(followers)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch that begins."""
        for follower in self.followers:
            follower.epoch = int((state.epoch or 0) + 1e-6)


class SaveBehindEpoch(TrainerCallback):
    """Write the checkpoint of an epoch's last step behind the evaluation of that epoch, so that it holds its scores."""

    def __init__(self) -> None:
        self.is_due = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put it off."""
        if control.should_save and float(state.epoch or 0).is_integer():
            self.is_due, control.should_save = True, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Catch up on it."""
        control.should_save |= self.is_due
        self.is_due = False


class Throughput:
    """Count cells and tokens between one log and the next."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin to count."""
        self.began, self.cells, self.tokens = perf_counter(), 0, torch.tensor(0)

    def count(self, batch: dict[str, Any]) -> None:
        """Add a batch to the count."""
        self.cells += len(batch["input_ids"])
        self.tokens = self.tokens.to(batch["input_ids"].device) + batch["attention_mask"].sum()  # waits for no device

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self.began += seconds

    def figures(self, accelerator: Any) -> dict[str, float]:
        """Return cells and tokens a second of all processes and the peak memory of this one, and begin anew."""
        seconds = max(perf_counter() - self.began, 1e-9)
        counts = torch.tensor([self.cells, int(self.tokens)], dtype=torch.float32, device=accelerator.device)
        cells, tokens = accelerator.reduce(counts).tolist()
        self.begin()
        return {
            "cells_per_second": round(cells / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
            "memory_gib": round(peak_memory(accelerator.device) / 2**30, 3),
        }


def peak_memory(device: torch.device) -> float:
    """Return the most bytes that this process had on its GPU, or of the machine's memory where it uses none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        from psutil import Process

        return Process().memory_info().peak_wset
    from resource import RUSAGE_SELF, getrusage

    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class SaveOnTheWay(TrainerCallback):
    """Save model and tokenizer ten times in a run, so that little is lost if it stops.

    They are weights alone: a run goes on from the checkpoints of `save_strategy`.

    Args:
        folder: Where; later weights replace earlier ones.
        tokenizer: Of the model.
    """

    def __init__(self, folder: str | os.PathLike, tokenizer: Any):
        self.folder = folder
        self.tokenizer = tokenizer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save after each tenth of the steps."""
        if state.is_world_process_zero and state.global_step % math.ceil(state.max_steps / 10) == 0:
            kwargs["model"].save_pretrained(self.folder)
            self.tokenizer.save_pretrained(self.folder)


class RedrawProjections(TrainerCallback):
    """Redraw the random features of FAVOR+ every `config.favor_redraw_interval` steps; 0 never does.

    Which draw is due follows from the step alone, so processes and resumed runs agree without further state.
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Redraw where a new interval begins."""
        model = kwargs["model"]
        interval = model.config.favor_redraw_interval
        if interval and state.global_step and state.global_step % interval == 0:
            model.redraw_projections(state.global_step // interval)
