"""Pre-training with transformers' Trainer: what a family learns from cells, by accelerate on whatever is there."""

from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from ..options import Options
from .objectives import objective_of
from .trainer import CellTrainer


def pretrain(
    model: Any,
    tokenizer: Any,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    *,
    arguments: TrainingArguments,
    options: Options | None = None,
    callbacks: list[Any] | None = None,
    resume: bool = False,
    **trainer_options: Any,
) -> CellTrainer:
    """Pre-train `model` in place and return its Trainer, with the log in `trainer.state.log_history`.

    Args:
        model: New or pre-trained, of any family that has an objective.
        tokenizer: Its tokenizer.
        train_dataset: Cells, from `cells_dataset`.
        eval_dataset: Held-out cells, from `cells_dataset`.
        arguments: The Trainer's; their seed also seeds the masks.
        options: What the family learns, such as `Masking(zero_ratio=0.05)`; its defaults unless given.
        callbacks: Further callbacks of the Trainer.
        resume: Go on from the newest whole checkpoint of `arguments.output_dir`, see `CellTrainer.train`.
        **trainer_options: Of `CellTrainer`: `max_tokens`, `train_sampler`, `ema`.

    Raises:
        ValueError: See `CellTrainer`; or if the family has no objective.
    """
    objective = objective_of(model.config)
    arguments.label_names = list(objective.label_names)
    trainer = CellTrainer(
        model=model,
        args=arguments,
        data_collator=objective.collator(tokenizer, arguments.seed, options),
        eval_collator=objective.eval_collator(tokenizer, arguments.seed, options),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        compute_metrics=objective.scores,
        callbacks=[*objective.callbacks(), *(callbacks or [])],
        flops=objective.flops(model.config),
        **trainer_options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer
