"""Pre-training with transformers' Trainer: masked values of real cells, by accelerate on whatever is there."""

from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import EvalPrediction, TrainingArguments

from ..modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
from ..tokenization.collators import DataCollatorForMaskedExpression, Unmeasured
from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
from .callbacks import RedrawProjections
from .scores import value_scores
from .trainer import CellTrainer


def masked_value_scores(evaluation: EvalPrediction) -> dict[str, float]:
    """Return the scores of the masked values, see `value_scores`."""
    labels = evaluation.label_ids[0] if isinstance(evaluation.label_ids, tuple) else evaluation.label_ids
    return value_scores(np.asarray(labels), np.asarray(evaluation.predictions))


def pretrain(
    model: XTrimoGeneForPreTraining,
    tokenizer: XTrimoGeneTokenizer,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    *,
    arguments: TrainingArguments,
    callbacks: list[Any] | None = None,
    resume: bool = False,
    max_tokens: int | None = None,
    train_sampler: Sampler[int] | None = None,
    ema: float | None = None,
    read_depth_aware: bool = False,
    unmeasured: Unmeasured = "ignore",
    **masking: Any,
) -> CellTrainer:
    """Pre-train `model` in place and return its Trainer, with the log in `trainer.state.log_history`.

    Args:
        model: New or pre-trained.
        tokenizer: Its tokenizer.
        train_dataset: Cells, from `cells_dataset`.
        eval_dataset: Held-out cells, from `cells_dataset`.
        arguments: From `training_arguments`; their seed also seeds the masks.
        callbacks: Further callbacks of the Trainer.
        resume: Go on from the newest whole checkpoint of `arguments.output_dir`, see `CellTrainer.train`.
        max_tokens: See `CellTrainer`.
        train_sampler: See `CellTrainer`.
        ema: See `CellTrainer`.
        read_depth_aware: See `DataCollatorForMaskedExpression`; held-out cells keep their depth.
        unmeasured: See `DataCollatorForMaskedExpression`; for held-out cells too.
        **masking: Ratios of `DataCollatorForMaskedExpression`.

    Raises:
        ValueError: See `CellTrainer`.

    Source: arXiv:2311.15156, section 3.3.
    """
    masking["unmeasured"] = unmeasured
    collator = DataCollatorForMaskedExpression(
        tokenizer, **masking, seed=arguments.seed, read_depth_aware=read_depth_aware
    )
    shown = {"hidden_ratio": 1.0, "random_ratio": 0.0}
    eval_collator = DataCollatorForMaskedExpression(tokenizer, **{**masking, **shown}, seed=arguments.seed + 1)
    # What masked genes are is asked for beside their values, so that metrics can tell genes apart.
    arguments.label_names = ["labels", "masked_ids"]
    trainer = CellTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        eval_collator=eval_collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        compute_metrics=masked_value_scores,
        callbacks=[RedrawProjections(), *(callbacks or [])],
        max_tokens=max_tokens,
        train_sampler=train_sampler,
        ema=ema,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer
