"""Pre-training with transformers' Trainer: what a family learns from cells, by accelerate on whatever is there."""

from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainingArguments

from .objectives import objective_of
from .trainer import CellTrainer


def pretrain(
    model: Any,
    tokenizer: Any,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    *,
    arguments: TrainingArguments,
    callbacks: list[Any] | None = None,
    resume: bool | str = False,
    max_tokens: int | None = None,
    train_sampler: Sampler[int] | None = None,
    ema: float | None = None,
    **options: Any,
) -> CellTrainer:
    """Pre-train `model` in place and return its Trainer, with the log in `trainer.state.log_history`.

    Args:
        model: New or pre-trained, of any family that has an objective.
        tokenizer: Its tokenizer.
        train_dataset: Cells, from `cells_dataset`.
        eval_dataset: Held-out cells, from `cells_dataset`.
        arguments: The Trainer's; their seed also seeds the masks.
        callbacks: Further callbacks of the Trainer.
        resume: Checkpoint to go on from; True is the newest whole one of `output_dir`, see `CellTrainer.train`.
        max_tokens: See `CellTrainer`.
        train_sampler: See `CellTrainer`.
        ema: See `CellTrainer`.
        **options: Of the family's collator, such as the ratios of `DataCollatorForMaskedExpression`.

    Raises:
        ValueError: See `CellTrainer`; or if the family has no objective.
    """
    objective = objective_of(model.config)
    arguments.label_names = list(objective.label_names)
    trainer = CellTrainer(
        model=model,
        args=arguments,
        data_collator=objective.collator(tokenizer, arguments.seed, **options),
        eval_collator=objective.eval_collator(tokenizer, arguments.seed, **options),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        compute_metrics=objective.scores,
        callbacks=[*objective.callbacks(), *(callbacks or [])],
        flops=objective.flops(model.config),
        max_tokens=max_tokens,
        train_sampler=train_sampler,
        ema=ema,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer
