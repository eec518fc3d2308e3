"""Pre-training objectives: which batches, labels and scores a model family learns with, and what a step costs.

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
from ..modeling_xtrimogene.flops_xtrimogene import reconstruction_flops, step_flops
from ..tokenization.collators import (
    IGNORED,
    DataCollatorForExpression,
    DataCollatorForMaskedExpression,
    measured_genes,
    packed,
)
from ..tokenization.masking import Masking
from ..tokenization.visible_genes import DataCollatorForReconstruction, DataCollatorForVisibleGenes
from .anchoring import begin_anchor, begin_latents
from .callbacks import RedrawProjections
from .scores import value_scores

PROFILE_CELLS, PROFILE_BATCH = 20_000, 1024  # more cells do not change a mean


class Objective(ABC):
    """What a model family learns from cells without labels.

    A batch holds the inputs of the model, among them `attention_mask` `(B, L)`, which is 1 at tokens and 0 at padding.
    It also holds `masked_ids` `(B, M)`, the genes to predict, and `labels` `(B, M)`, their values, -100 where padded.
    The model's `logits` `(B, M)` are the predicted values.

    Attributes:
        label_names: Keys of a batch that `scores` gets beside the predictions, `labels` first.
    """

    label_names: tuple[str, ...] = ("labels", "masked_ids")

    def for_config(self, config: Any) -> "Objective":
        """Return this objective for models of one configuration, if batches depend on it."""
        return self

    def begin(  # noqa: B027
        self, model: Any, tokenizer: Any, dataset: Any, seed: int, fit: bool = True, options: Any = None
    ) -> None:
        """Prepare a model for its first step, such as by a simple method that it begins with; nothing by default.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            dataset: Cells to train on.
            seed: Seed of random draws.
            fit: Whether to compute what the first step needs; False if the weights of a checkpoint replace it.
            options: The family's group of options, such as `Masking`; its defaults unless given.
        """

    @abstractmethod
    def collator(self, tokenizer: Any, seed: int, options: Any = None, epoch: int | None = None) -> Any:
        """Return the collator that makes batches of training cells.

        Args:
            tokenizer: The model's tokenizer.
            seed: Seed of random draws, such as masks.
            options: The family's group of options, such as `Masking`; its defaults unless given.
            epoch: Draw as in this epoch in all batches; as in the Trainer's current epoch unless given.
        """

    @abstractmethod
    def eval_collator(self, tokenizer: Any, seed: int, options: Any = None) -> Any:
        """Return the collator that makes batches of held-out cells, for a run with this seed and these options."""

    def recovery_collator(self, tokenizer: Any, seed: int) -> Any:
        """Return a collator that masks the same genes for all families, so that their predictions can be compared.

        Args:
            tokenizer: The model's tokenizer.
            seed: Seed of the masks, which are those of epoch 0.
        """
        return self.collator(tokenizer, seed, epoch=0)

    def task_collator(self, tokenizer: Any, seed: int) -> Any:
        """Return the collator of cells that a head on the cell embedding learns from; all their tokens by default.

        Args:
            tokenizer: The model's tokenizer.
            seed: Seed of random draws.
        """
        return DataCollatorForExpression(tokenizer)

    def settings(self, options: Any = None) -> dict[str, Any]:
        """Return what of a run's options training cells are chosen by, for the card; nothing by default.

        Args:
            options: The family's group of options, such as `Masking`; its defaults unless given.
        """
        return {}

    def scores(self, evaluation: EvalPrediction) -> dict[str, float]:
        """Return Pearson correlation, squared error and R2 of predicted values (`value_scores`)."""
        labels = evaluation.label_ids[0] if isinstance(evaluation.label_ids, tuple) else evaluation.label_ids
        return value_scores(np.asarray(labels), np.asarray(evaluation.predictions))

    def flops(self, config: Any) -> Callable[[dict[str, Any]], torch.Tensor] | None:
        """Return a function from a batch to the FLOPs of a training step for each cell, `(B,)`; None if unknown.

        Training logs model FLOPs utilisation only if the FLOPs are known.
        """
        return None

    def is_squared_error(self, config: Any) -> bool:
        """Return whether the loss is the mean squared error of values: baselines are then drawn beside its curve."""
        return False

    def callbacks(self) -> list[TrainerCallback]:
        """Return callbacks that the Trainer needs for this objective."""
        return []


class MaskedExpression(Objective):
    """Predict the values of masked genes, as xTrimoGene does.

    Source: arXiv:2311.15156, section 3.3.

    Example:
        >>> MaskedExpression().label_names
        ('labels', 'masked_ids')
    """

    def begin(
        self,
        model: Any,
        tokenizer: Any,
        dataset: Any,
        seed: int,
        fit: bool = True,
        options: Masking | None = None,
    ) -> None:
        """Set the biases that reconstruct the mean cell, and fit the bag of genes of a new anchored model."""
        if model.config.anchored:
            masking = options or Masking()
            model.config.anchor_mask_odds = masking.expressed_ratio / max(masking.zero_ratio, 1e-6)
            begin_anchor(model, tokenizer, dataset, seed, fit)
        if model.config.num_latents and fit:
            begin_latents(model, tokenizer, dataset, seed)

    def collator(
        self, tokenizer: Any, seed: int, options: Masking | None = None, epoch: int | None = None
    ) -> DataCollatorForMaskedExpression:
        """Return a collator that masks genes as `options` say."""
        return DataCollatorForMaskedExpression(tokenizer, options, seed=seed, epoch=epoch)

    def eval_collator(
        self, tokenizer: Any, seed: int, options: Masking | None = None
    ) -> DataCollatorForMaskedExpression:
        """Return a collator that hides every masked value and does not thin counts."""
        return DataCollatorForMaskedExpression(
            tokenizer, options, seed=seed + 1, hidden_ratio=1.0, random_ratio=0.0, read_depth_aware=False
        )

    def settings(self, options: Masking | None = None) -> dict[str, Any]:
        """Return which shares of genes are masked, and of which genes."""
        masking = options or Masking()
        return {name: getattr(masking, name) for name in ("expressed_ratio", "zero_ratio", "unmeasured")}

    def flops(self, config: Any) -> Callable[[dict[str, Any]], torch.Tensor] | None:
        """Return a function that counts the FLOPs of a batch from its visible, masked and expressed genes."""

        def of_batch(batch: dict[str, Any]) -> torch.Tensor:
            num_seen, labels = batch["attention_mask"].sum(1), batch["labels"]
            return step_flops(config, num_seen, (labels != IGNORED).sum(1), num_seen + (labels > 0).sum(1))

        return of_batch

    def is_squared_error(self, config: Any) -> bool:
        """Return whether the loss is that of values alone, predicted by regression, not by classification into bins."""
        return config.objective == "regression" and not config.anchored and not config.num_latents

    def callbacks(self) -> list[TrainerCallback]:
        """Return the callback that redraws the random features of the decoder."""
        return [RedrawProjections()]


class ReconstructedCells(Objective):
    """Reconstruct whole cells from some of their measured genes, as TxFM does.

    Scores are those of masked genes, as for xTrimoGene: of held-out cells, genes are masked by the shares of `Masking`,
    and the encoder sees `num_visible` of the others.

    Args:
        num_visible: Genes of a cell that the encoder sees in training.

    Source: Kenyon-Dean et al. 2026, TxFM.

    Example:
        >>> ReconstructedCells(num_visible=512).label_names
        ('labels', 'masked_ids')
    """

    def __init__(self, num_visible: int = 2048):
        self.num_visible = num_visible

    def for_config(self, config: Any) -> "ReconstructedCells":
        """Return this objective with the number of visible genes of a configuration."""
        return ReconstructedCells(config.num_visible)

    def begin(
        self, model: Any, tokenizer: Any, dataset: Any, seed: int, fit: bool = True, options: Masking | None = None
    ) -> None:
        """Set the biases that reconstruct the mean of the training cells; fit the bag of a new anchored model.

        Raises:
            ValueError: If the tokenizer normalises cells to another total than the model's.
        """
        if tokenizer.target_sum != model.config.library_size:
            raise ValueError(
                f"the tokenizer normalises cells to target_sum {tokenizer.target_sum:,}, and the model reads values of "
                f"library_size {model.config.library_size:,}: give both the same total"
            )
        if model.config.anchored:
            begin_anchor(model, tokenizer, dataset, seed, fit)
        elif fit:
            model.set_mean_profile(torch.from_numpy(mean_profile(dataset, tokenizer, seed)).to(model.device))

    def collator(
        self, tokenizer: Any, seed: int, options: Masking | None = None, epoch: int | None = None
    ) -> DataCollatorForReconstruction:
        """Return a collator that shows some genes and asks for the whole cell; `options` have no effect."""
        return DataCollatorForReconstruction(tokenizer, self.num_visible, seed=seed, epoch=epoch)

    def eval_collator(self, tokenizer: Any, seed: int, options: Masking | None = None) -> DataCollatorForReconstruction:
        """Return a collator that also masks genes as `options` say, and asks for their values."""
        return DataCollatorForReconstruction(tokenizer, self.num_visible, options or Masking(), seed=seed + 1)

    def recovery_collator(self, tokenizer: Any, seed: int) -> DataCollatorForReconstruction:
        """Return a collator that masks the genes that xTrimoGene's masks too, with this seed."""
        return DataCollatorForReconstruction(tokenizer, self.num_visible, Masking(), seed=seed, epoch=0)

    def task_collator(self, tokenizer: Any, seed: int) -> DataCollatorForVisibleGenes:
        """Return a collator that shows some genes of each cell, other ones in each epoch."""
        return DataCollatorForVisibleGenes(tokenizer, self.num_visible, seed=seed)

    def settings(self, options: Masking | None = None) -> dict[str, Any]:
        """Return how many genes of a cell the encoder sees; `options` have no effect."""
        return {"visible genes": self.num_visible}

    def flops(self, config: Any) -> Callable[[dict[str, Any]], torch.Tensor]:
        """Return a function that counts the FLOPs of a batch from its visible genes."""
        return lambda batch: reconstruction_flops(config, batch["attention_mask"].sum(1))


def mean_profile(dataset: Any, tokenizer: Any, seed: int) -> np.ndarray:
    """Return `log1p` of the mean normalised counts of each gene over cells in which it was measured, float32 `(G,)`.

    Args:
        dataset: Cells, from `cells_dataset` or `read_corpus`; of many, some are drawn.
        tokenizer: Its `target_sum` is the total of the normalised counts.
        seed: Seed of the draw.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import TxFMTokenizer
        >>> tokenizer = TxFMTokenizer.from_genes(["CD3E", "MS4A1"], "panel")
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> dataset = cells_dataset(tokenizer.read_counts(pd.DataFrame([[3, 1], [1, 1]], columns=tokenizer.genes)))
        >>> np.expm1(mean_profile(dataset, tokenizer, seed=0)).round().tolist()
        [62500.0, 37500.0]
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:PROFILE_CELLS])
    sums, times = np.zeros((2, tokenizer.num_genes))
    for start in range(0, len(rows), PROFILE_BATCH):
        examples = dataset.__getitems__(rows[start : start + PROFILE_BATCH].tolist())
        ids, counts, lengths, totals = packed(examples)
        values = tokenizer.packed_values(counts, lengths, totals).astype(np.float64)
        sums += np.bincount(ids, np.expm1(values), tokenizer.num_genes)
        measured = measured_genes(examples, tokenizer.num_genes)
        times += len(examples) if measured is None else measured.sum(0)
    return np.log1p(sums / np.maximum(times, 1)).astype(np.float32)


OBJECTIVES: dict[str, Objective] = {}


def register(model_type: str, objective: Objective) -> None:
    """Set the objective of a model family; it replaces an earlier one of the same `model_type`.

    Example:
        >>> register("my_model", MaskedExpression())
        >>> OBJECTIVES.pop("my_model")  # doctest: +ELLIPSIS
        <xtrimogene.training.objectives.MaskedExpression object at 0x...>
    """
    OBJECTIVES[model_type] = objective


def objective_of(config: Any) -> Objective:
    """Return the objective of a configuration's model family.

    Raises:
        ValueError: If no objective is registered for its `model_type`.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig
        >>> objective_of(XTrimoGeneConfig()).is_squared_error(XTrimoGeneConfig())
        True
    """
    if config.model_type not in OBJECTIVES:
        raise ValueError(
            f"no objective is known for the model_type {config.model_type!r}, only for {', '.join(OBJECTIVES)}: "
            f"register one with xtrimogene.training.objectives.register"
        )
    return OBJECTIVES[config.model_type].for_config(config)


register(families.XTRIMOGENE.config.model_type, MaskedExpression())
register(families.TXFM.config.model_type, ReconstructedCells())
