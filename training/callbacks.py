"""What happens between steps and epochs of the Trainer."""

from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SetEpoch(TrainerCallback):
    """Tell a sampler the epoch, so that each epoch has another order, also after a resume.

    (accelerate passes the epoch on to some samplers and not to others.)

    Args:
        sampler: Its `epoch` is set.
    """

    def __init__(self, sampler: Any):
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch that begins."""
        self.sampler.epoch = int((state.epoch or 0) + 1e-6)


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


class WeightAverage(TrainerCallback):
    """Keep an exponential moving average of the weights that are trained, and leave it in their place at the end.

    After step t it is d x average + (1 - d) x weights with d = min(decay, (1 + t) / (10 + t)): a smaller d at first, so
    that a short run does not end close to where its weights began.

    Args:
        decay: Above 0 and below 1.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema is {decay}: it is the decay of an average, above 0 and below 1, such as 0.999")
        self.decay = decay
        self.average: list[torch.Tensor] = []  # in the order of the weights; empty where nothing is being trained

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with the weights, unless a checkpoint has brought an average."""
        self.average = self.average or [weight.detach().clone() for weight in trained(kwargs["model"])]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move towards the weights."""
        step = state.global_step
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        update(self.average, trained(kwargs["model"]), step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the average in the model."""
        self.swap(kwargs["model"])
        self.average = []

    @torch.no_grad()
    def swap(self, model: torch.nn.Module) -> None:
        """Exchange average and weights, bit for bit; does nothing where nothing is being trained."""
        for average, weight in zip(self.average, trained(model), strict=False):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the weights that are trained."""
    return [weight for weight in model.parameters() if weight.requires_grad]


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
