"""What each family learns in pre-training: its batches, labels and scores, and what a step costs.

    model_type of a configuration  ->  Objective  ->  collators, names of labels, scores, FLOPs, callbacks

`register` adds the objective of a family from outside of this package; `families.register` adds the family itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, TrainerCallback

from .. import families
from ..modeling_xtrimogene.flops_xtrimogene import step_flops
from ..tokenization.collators import IGNORED, DataCollatorForMaskedExpression
from .callbacks import RedrawProjections
from .scores import value_scores


class Objective(ABC):
    """What a family learns from cells without labels.

    A batch holds `attention_mask` `(B, L)`, which counts tokens, and what the model takes; `masked_ids` and `labels`
    `(B, M)`, -100 where padded, are the genes to predict and their values, and the model's `logits` `(B, M)` what it
    says of them.

    Attributes:
        label_names: What of a batch is given to `scores` beside the predictions, `labels` first.
    """

    label_names: tuple[str, ...] = ("labels", "masked_ids")

    @abstractmethod
    def collator(self, tokenizer: Any, seed: int, **options: Any) -> Any:
        """Return what makes batches of training cells; `options` are those of the family, such as shares to mask."""

    @abstractmethod
    def eval_collator(self, tokenizer: Any, seed: int, **options: Any) -> Any:
        """Return what makes batches of held-out cells of a run with this seed and these options."""

    def scores(self, evaluation: EvalPrediction) -> dict[str, float]:
        """Return the scores of predicted values, see `value_scores`."""
        labels = evaluation.label_ids[0] if isinstance(evaluation.label_ids, tuple) else evaluation.label_ids
        return value_scores(np.asarray(labels), np.asarray(evaluation.predictions))

    def flops(self, config: Any) -> Callable[[dict[str, Any]], torch.Tensor] | None:
        """Return what gives the FLOPs of a training step for each cell of a batch, `(B,)`; None where nobody counted.

        Model FLOPs utilisation is logged where they are known.
        """
        return None

    def is_squared_error(self, config: Any) -> bool:
        """Return whether the loss is the mean squared error of values, so that baselines can stand beside its curve."""
        return False

    def callbacks(self) -> list[TrainerCallback]:
        """Return the callbacks that training needs."""
        return []


class MaskedExpression(Objective):
    """Values of masked genes, as xTrimoGene learns them.

    Source: arXiv:2311.15156, section 3.3.
    """

    def collator(self, tokenizer: Any, seed: int, **options: Any) -> DataCollatorForMaskedExpression:
        """Return the collator; `options` are those of `DataCollatorForMaskedExpression`."""
        return DataCollatorForMaskedExpression(tokenizer, **options, seed=seed)

    def eval_collator(self, tokenizer: Any, seed: int, **options: Any) -> DataCollatorForMaskedExpression:
        """Return a collator that hides all that is masked, and leaves cells at their depth."""
        changes = {"hidden_ratio": 1.0, "random_ratio": 0.0, "read_depth_aware": False}
        return DataCollatorForMaskedExpression(tokenizer, **{**options, **changes}, seed=seed + 1)

    def flops(self, config: Any) -> Callable[[dict[str, Any]], torch.Tensor]:
        """Return the formula of `flops_xtrimogene` on the seen and masked genes of a batch."""

        def of_batch(batch: dict[str, Any]) -> torch.Tensor:
            return step_flops(config, batch["attention_mask"].sum(1), (batch["labels"] != IGNORED).sum(1))

        return of_batch

    def is_squared_error(self, config: Any) -> bool:
        """Return whether it is regression and not classification of binned values."""
        return config.objective == "regression"

    def callbacks(self) -> list[TrainerCallback]:
        """Return what redraws the random features of the decoder."""
        return [RedrawProjections()]


OBJECTIVES: dict[str, Objective] = {}


def register(model_type: str, objective: Objective) -> None:
    """Set what a family learns; an earlier objective of the same `model_type` is replaced."""
    OBJECTIVES[model_type] = objective


def objective_of(config: Any) -> Objective:
    """Return what the family of a configuration learns.

    Raises:
        ValueError: If nobody registered it.
    """
    if config.model_type not in OBJECTIVES:
        raise ValueError(
            f"no objective is known for the model_type {config.model_type!r}, only for {', '.join(OBJECTIVES)}: "
            f"register one with xtrimogene.training.objectives.register"
        )
    return OBJECTIVES[config.model_type]


register(families.XTRIMOGENE.config.model_type, MaskedExpression())
