"""What happens between steps and epochs of the Trainer."""

import math
import os
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


class SaveOnTheWay(TrainerCallback):
    """Save model and tokenizer ten times in a run, so that little is lost if it stops.

    (The Trainer's own checkpoints hold pickles.)

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
