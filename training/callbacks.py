"""What happens between steps and epochs of the Trainer."""

from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SetEpoch(TrainerCallback):
    """Tell a sampler which epoch begins, so that each epoch has its own order, also after a resume.

    accelerate does this for some samplers only.

    Args:
        sampler: The sampler; this callback sets its attribute `epoch`.

    Example:
        >>> from xtrimogene.training.data.sampler import ShuffledCells
        >>> sampler = ShuffledCells(num_cells=3)
        >>> SetEpoch(sampler).on_epoch_begin(None, TrainerState(epoch=2.0), TrainerControl())
        >>> sampler.epoch
        2
    """

    def __init__(self, sampler: Any):
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch that begins."""
        self.sampler.epoch = int((state.epoch or 0) + 1e-6)


class SaveBehindEpoch(TrainerCallback):
    """Write the checkpoint of an epoch's last step after the epoch's evaluation, so that it holds the scores.

    Example:
        >>> callback, control = SaveBehindEpoch(), TrainerControl(should_save=True)
        >>> callback.on_step_end(None, TrainerState(epoch=1.0), control)
        >>> control.should_save
        False
        >>> callback.on_epoch_end(None, TrainerState(epoch=1.0), control)
        >>> control.should_save
        True
    """

    def __init__(self) -> None:
        self.is_due = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Delay a checkpoint that is due at the end of an epoch."""
        if control.should_save and float(state.epoch or 0).is_integer():
            self.is_due, control.should_save = True, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the delayed checkpoint."""
        control.should_save |= self.is_due
        self.is_due = False


class WeightAverage(TrainerCallback):
    """Keep an exponential moving average of the trained weights, and put it into the model when training ends.

    After step t the average becomes d x average + (1 - d) x weights, with d = min(decay, (1 + t) / (10 + t)). The first
    steps have a smaller d, so that the initial weights do not dominate the average of a short run.

    Args:
        decay: Weight of the old average in each step, above 0 and below 1.

    Raises:
        ValueError: If `decay` is not above 0 and below 1.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(1.0)
        >>> average = WeightAverage(decay=0.9)
        >>> average.on_train_begin(None, TrainerState(), TrainerControl(), model=model)
        >>> _ = model.weight.data.fill_(3.0)
        >>> average.on_step_end(None, TrainerState(global_step=1), TrainerControl(), model=model)
        >>> average.on_train_end(None, TrainerState(), TrainerControl(), model=model)
        >>> round(model.weight.item(), 2)  # 2/11 of 1 and 9/11 of 3
        2.64
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema is {decay}: it is the decay of an average, above 0 and below 1, such as 0.999")
        self.decay = decay
        self.average: list[torch.Tensor] = []  # one tensor for each trained weight; empty before and after training

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with a copy of the weights, unless a checkpoint was loaded together with its average."""
        self.average = self.average or [weight.detach().clone() for weight in trained(kwargs["model"])]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the average towards the new weights."""
        step = state.global_step
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        update(self.average, trained(kwargs["model"]), step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the average into the model."""
        self.swap(kwargs["model"])
        self.average = []

    @torch.no_grad()
    def swap(self, model: torch.nn.Module) -> None:
        """Exchange average and weights exactly; do nothing outside of a training."""
        for average, weight in zip(self.average, trained(model), strict=False):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the weights of a model that have `requires_grad` set.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> _ = layer.bias.requires_grad_(False)
        >>> [tuple(weight.shape) for weight in trained(layer)]
        [(1, 2)]
    """
    return [weight for weight in model.parameters() if weight.requires_grad]


class RedrawProjections(TrainerCallback):
    """Redraw the random features of FAVOR+ every `config.favor_redraw_interval` steps; never if that is 0.

    The number of the step alone decides the draw, so all processes and resumed runs have the same features.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
        >>> config = XTrimoGeneConfig.preset("tiny", num_genes=20, favor_redraw_interval=10)
        >>> model = XTrimoGeneForPreTraining(config)
        >>> before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        >>> RedrawProjections().on_step_begin(None, TrainerState(global_step=10), TrainerControl(), model=model)
        >>> any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        True
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Redraw the features if a new interval begins with this step."""
        model = kwargs["model"]
        interval = model.config.favor_redraw_interval
        if interval and state.global_step and state.global_step % interval == 0:
            model.redraw_projections(state.global_step // interval)
