"""What happens between steps and epochs of the Trainer."""

from typing import Any

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
