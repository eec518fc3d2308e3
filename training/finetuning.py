"""Fine-tuning for cell-type annotation: labelled cells, a pre-trained checkpoint -> a classifier with label names."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
)

from .. import families
from ..modeling_xtrimogene.heads_xtrimogene import FeatureNorm
from ..tokenization.collators import DataCollatorForExpression
from ..tokenization.expression_xtrimogene import ExpressionTokenizer
from .data.dataset import expression
from .data.labelled import LabelledCells
from .options import NewHead
from .scores import label_scores
from .trainer import CellTrainer

STATISTICS_CELLS, STATISTICS_BATCH = 2_000, 32  # more cells do not change a mean and a standard deviation
NARROW = 64  # width of `tiny`
ABSENT_LOGIT = 10.0  # how much lower the logit of a label is that no cell has


def balanced_class_weights(ids: np.ndarray, num_labels: int) -> list[float]:
    """Return weights inverse to the square root of class frequency, 1 on average over cells.

    The square root keeps rare types from drowning without letting a handful of cells rule the loss.
    """
    counts = np.bincount(ids, minlength=num_labels)
    weights = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1)), 0)
    return [float(weight) for weight in weights / np.average(weights, weights=counts)]


def annotation_model(
    checkpoint: str | os.PathLike | PreTrainedConfig,
    label_names: Sequence[str],
    class_weights: Sequence[float] | None = None,
    trainable_layers: int | None = None,
    **changes: Any,
) -> Any:
    """Return a classifier on top of a pre-trained checkpoint, or a new one for a configuration.

    Before another Trainer than `finetune` trains it, call `begin_head`.

    Args:
        checkpoint: Folder or Hub name of a pre-trained model; or a configuration, for comparison without pre-training.
        label_names: Names of the classes, in the order of their ids.
        class_weights: Weight of each class in the loss; all alike unless given.
        trainable_layers: Train only so many of the last encoder layers and the head; all unless given.
        **changes: Other fields of the configuration, such as `pooling`. The head is anchored unless they say otherwise.
    """
    changes |= {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "class_weights": None if class_weights is None else list(class_weights),
        "problem_type": "single_label_classification",
    }
    of_new_head = {"classifier_anchored": True, "classifier_norm": "features"}
    if isinstance(checkpoint, PreTrainedConfig):
        changes = of_new_head | changes
        config = type(checkpoint)(**{**checkpoint.to_dict(), **changes})
        model = families.model_class(config, "classify")(config)
    else:
        before = AutoConfig.from_pretrained(checkpoint)
        is_new = before.id2label != changes["id2label"]  # a head for other labels is no start
        changes = (of_new_head if is_new else {}) | changes
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, ignore_mismatched_sizes=True, **changes)
        if is_new:
            renew_head(model)
    if trainable_layers is not None:
        model.freeze_encoder(trainable_layers)
    return model


def classifier_of(checkpoint: str | os.PathLike, known: LabelledCells, head: NewHead) -> Any:
    """Return a classifier of the labels of some cells that begins with the weights of a checkpoint."""
    weights = None
    if head.class_weights == "balanced":
        weights = balanced_class_weights(known.ids[known.train], len(known.names))
    changes = {} if head.pooling is None else {"pooling": head.pooling}
    return annotation_model(checkpoint, known.names, weights, head.trainable_layers, **changes)


def renew_head(model: Any) -> None:
    """Replace the head by a new one, which has learned nothing."""
    model.classifier = type(model.classifier)(model.config).apply(model._init_weights).to(model.device)


def finetuning_rate(config: Any) -> float:
    """Return the largest learning rate that suits a model: 1e-3 for those as narrow as `tiny`, else 5e-4."""
    return 1e-3 if config.hidden_size <= NARROW else 5e-4


def logistic_classifier() -> Any:
    """Return scikit-learn's multinomial logistic regression for log-normalised counts, not fitted.

    Genes are not scaled: on sorted blood cells unit variance costs accuracy, and so does its `C` of 1.
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.1, tol=1e-3, max_iter=1000)  # smaller tol: no better, twice as long


def begin_head(model: Any, tokenizer: ExpressionTokenizer, dataset: Dataset) -> None:
    """Set what a new head has before its first step: statistics of its features, and the regression that it adds to.

    A head that has them keeps them.

    Args:
        model: On any device.
        tokenizer: Of the model.
        dataset: Cells to train on, with `labels`.
    """
    norm, anchor = model.classifier.norm, model.classifier.anchor
    if isinstance(norm, FeatureNorm) and not norm.is_set:
        norm.set_statistics(some_features(model, tokenizer, dataset))
    if anchor is not None and not anchor.is_set:
        anchor.set_regression(*regression(model.config, tokenizer, dataset))


@torch.inference_mode()
def some_features(model: Any, tokenizer: ExpressionTokenizer, dataset: Dataset) -> torch.Tensor:
    """Return embeddings of at most 2,000 cells, evenly spread over the dataset, as the model gives them now."""
    collator, was_training = DataCollatorForExpression(tokenizer), model.training
    cells = np.unique(np.linspace(0, len(dataset) - 1, STATISTICS_CELLS).astype(int))
    model.eval()
    features = []
    for start in range(0, len(cells), STATISTICS_BATCH):
        batch = collator([dataset[int(cell)] for cell in cells[start : start + STATISTICS_BATCH]])
        batch.pop("labels", None)
        features.append(model.model(**{name: part.to(model.device) for name, part in batch.items()}).pooler_output)
    model.train(was_training)
    return torch.cat(features).float()


def regression(config: Any, tokenizer: ExpressionTokenizer, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights `(G, C)` and intercepts `(C,)` of a logistic regression of the labels on expression values."""
    labels = np.asarray(dataset["labels"][:])
    if len(present := np.unique(labels)) < 2:
        names = [config.id2label[int(index)] for index in present]
        raise ValueError(
            f"the {len(labels):,} cells to train on are all {', '.join(names)}: at least 2 types are needed there; "
            f"split by another column than this group key, or by cell"
        )
    weights = None if config.class_weights is None else np.asarray(config.class_weights)[labels]
    fitted = logistic_classifier().fit(expression(dataset, tokenizer), labels, sample_weight=weights)
    of_genes, of_labels = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn has one row, the logit of the second class
        of_genes, of_labels = np.concatenate([-of_genes, of_genes]) / 2, np.concatenate([-of_labels, of_labels]) / 2
    weight = torch.zeros(config.num_genes, config.num_labels)
    weight[:, fitted.classes_] = torch.from_numpy(of_genes.T).float()
    # A label without a cell to train on, which a split by donor may leave, is not to win over those with some.
    bias = torch.full((config.num_labels,), float(of_labels.min()) - ABSENT_LOGIT)
    bias[fitted.classes_] = torch.from_numpy(of_labels).float()
    return weight, bias


def annotation_scores(evaluation: EvalPrediction) -> dict[str, float]:
    """Return accuracy and macro-F1."""
    return label_scores(evaluation.label_ids, evaluation.predictions.argmax(-1))


def finetune(
    model: PreTrainedModel,
    tokenizer: ExpressionTokenizer,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    *,
    arguments: TrainingArguments,
    callbacks: list[Any] | None = None,
    resume: bool | str = False,
) -> CellTrainer:
    """Fine-tune `model` in place and return its Trainer.

    Args:
        model: From `annotation_model`; or with adapters of peft around it, whose `modules_to_save` hold `classifier`.
        tokenizer: Its tokenizer.
        train_dataset: Labelled cells, from `cells_dataset`; a new head begins with what they tell (`begin_head`).
        eval_dataset: Held-out labelled cells, from `cells_dataset`.
        arguments: The Trainer's.
        callbacks: Further callbacks of the Trainer.
        resume: Checkpoint to go on from; True is the newest whole one of `output_dir`, see `CellTrainer.train`.

    Source: arXiv:2311.15156, section 4 (annotation).
    """
    begin_head(model.get_base_model() if hasattr(model, "get_base_model") else model, tokenizer, train_dataset)
    # The mask vector, and what is frozen, take no part here.
    arguments.ddp_find_unused_parameters = True
    trainer = CellTrainer(
        model=model,
        args=arguments,
        data_collator=DataCollatorForExpression(tokenizer),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        compute_metrics=annotation_scores,
        callbacks=list(callbacks or []),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer
