"""Pre-training with transformers' Trainer, on one device or on several through accelerate."""

from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from ..options import Options
from .checkpoints import newest_whole
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
    resume: bool | str = False,
    **trainer_options: Any,
) -> CellTrainer:
    """Pre-train `model` in place and return its Trainer, with the log in `trainer.state.log_history`.

    Args:
        model: A new or a pre-trained model, of any family that has an objective.
        tokenizer: The model's tokenizer.
        train_dataset: Cells, from `cells_dataset`.
        eval_dataset: Held-out cells, from `cells_dataset`.
        arguments: The Trainer's; their seed also seeds the masks.
        options: Options of the family's objective, such as `Masking(zero_ratio=0.05)`; their defaults unless given.
        callbacks: Further callbacks of the Trainer.
        resume: Checkpoint to go on from. True goes on from the newest complete one in `arguments.output_dir`, and
            starts anew if there is none.
        **trainer_options: Arguments of `CellTrainer`: `max_tokens`, `train_sampler`, `ema`.

    Raises:
        ValueError: If the family has no objective, both `train_sampler` and `max_tokens` are given, `ema` is not
            between 0 and 1, or a run is resumed with other settings than it began with.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> from xtrimogene.training.arguments import CellTrainingArguments
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> dataset = cells_dataset(tokenizer.read_counts(counts))
        >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=4))
        >>> arguments = CellTrainingArguments("run", max_steps=1, disable_tqdm=True)
        >>> pretrain(model, tokenizer, dataset, arguments=arguments).state.global_step
        1
    """
    objective = objective_of(model.config)
    arguments.label_names = list(objective.label_names)
    is_begun = resume if isinstance(resume, str) else resume and newest_whole(arguments.output_dir) is not None
    objective.begin(model, tokenizer, train_dataset, arguments.seed, not is_begun, options)
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
