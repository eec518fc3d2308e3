"""Fine-tuning for cell-type annotation: labelled cells, a pre-trained checkpoint -> a classifier with label names."""

import os
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import (
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
)

from .. import families
from ..inference.cell_model import check_pooling
from ..inference.saved import Saved
from ..modeling_xtrimogene.anchor_xtrimogene import forget_encoder
from ..modeling_xtrimogene.heads_xtrimogene import FeatureNorm
from ..tokenization.collators import DataCollatorForExpression
from ..tokenization.expression_xtrimogene import ExpressionTokenizer
from .adapters import check_peft, freeze_for_tuning
from .data.dataset import SOURCE, expression, run_dataset
from .data.labelled import LabelledCells
from .objectives import objective_of
from .options import NewHead
from .scores import label_scores
from .trainer import CellTrainer

SHIFT_CELLS = 256  # more cells do not change a mean difference
STATISTICS_CELLS = 2_000  # more do not change a mean and a standard deviation
NEW_LATENTS = 8  # of an Xpressor for a checkpoint without
NARROW = 64  # width of `tiny`
EMBEDDING_SCALE = 4.0  # embeddings have standard deviation 1; with this factor they weigh about as much as the genes
FOLDS, FOLDED_CELLS = 3, 2_000  # of the cross-validation that tells whether the embedding helps a regression
STANDARD_ERRORS = 2  # by how many it has to help; with one, regressions on genes alone were better in unknown tissues
SURE = 0.8  # probability from which on a label that the annotator gives itself is learned (docs/checkpoints.md)
ABSENT_LOGIT = 10.0  # how far the logit of a label without training cells lies below the lowest other one


def balanced_class_weights(ids: np.ndarray, num_labels: int) -> list[float]:
    """Return weights inverse to the square root of class frequency, 1 on average over cells.

    The square root gives rare types more weight, but not so much that a few cells dominate the loss.

    Args:
        ids: Class id of each training cell, `(cells,)`.
        num_labels: Number of classes.

    Example:
        >>> [round(weight, 2) for weight in balanced_class_weights(np.array([0, 0, 0, 0, 1]), num_labels=2)]
        [0.83, 1.67]
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

    `finetune` calls `begin_head` before it trains; call it yourself before you train with another Trainer.

    Args:
        checkpoint: Folder or Hub name of a pre-trained model; or a configuration, for comparison without pre-training.
        label_names: Names of the classes, in the order of their ids.
        class_weights: Weight of each class in the loss; 1 for all unless given.
        trainable_layers: Number of last encoder layers to train beside the head; all layers unless given.
        **changes: Other fields of the configuration, such as `pooling`. A new head starts from a logistic regression
            unless `classifier_anchored=False` is among them.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig
        >>> model = annotation_model(XTrimoGeneConfig.preset("tiny", num_genes=20), ["B", "T"])
        >>> model.config.id2label
        {0: 'B', 1: 'T'}
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
        saved = Saved.of(checkpoint)
        before = saved.config()
        is_new = before.id2label != changes["id2label"]  # a head for other labels cannot be kept
        changes = (of_new_head if is_new else {}) | changes
        model = saved.load(AutoModelForSequenceClassification, ignore_mismatched_sizes=True, **changes)
        if is_new:
            renew_head(model)
        if changes.get("pooling", before.pooling) != before.pooling:
            forget_encoder(model.base_model)  # it was trained on what the other pooling gives
    if trainable_layers is not None:
        model.freeze_encoder(trainable_layers)
    return model


def check_head(checkpoint: str | os.PathLike, head: NewHead) -> Any:
    """Refuse a head that a checkpoint cannot have, before any cell is read; return the checkpoint's configuration.

    Raises:
        ValueError: If its family has no such pooling, or no latents to train.

    Example:
        >>> check_head("checkpoint", NewHead()).model_type
        'xtrimogene'
    """
    config = Saved.of(checkpoint).config()
    check_pooling(config, head.pooling, os.fspath(checkpoint))
    check_peft(config, head.peft, os.fspath(checkpoint))
    return config


def classifier_of(checkpoint: str | os.PathLike, known: LabelledCells, head: NewHead) -> tuple[Any, float]:
    """Return a classifier of some cells' labels on a checkpoint, and the share of its weights that learn."""
    weights = None
    if head.class_weights == "balanced":
        weights = balanced_class_weights(known.ids[known.train], len(known.names))
    changes: dict[str, Any] = {} if head.pooling is None else {"pooling": head.pooling}
    before = check_head(checkpoint, head)
    if head.peft == "xpressor":
        changes = {"pooling": "xpressor"}
        if not before.num_latents:
            changes["num_latents"] = NEW_LATENTS
    model = annotation_model(checkpoint, known.names, weights, head.trainable_layers, **changes)
    return freeze_for_tuning(model, head.peft)


def renew_head(model: Any) -> None:
    """Replace the head of a classifier by an untrained one."""
    model.classifier = type(model.classifier)(model.config).apply(model._init_weights).to(model.device)


def finetuning_rate(config: Any) -> float:
    """Return the peak learning rate for fine-tuning: that of the family, or by the kind of the model.

    Without a rate of the family it is 1e-4 if the model is anchored, else 1e-3 if it is narrow, else 5e-4. Narrow is a
    model of the width of `tiny`. An annotator of an anchored model begins at a regression on genes and embedding; with
    few cells, larger steps unlearn it.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig
        >>> finetuning_rate(XTrimoGeneConfig.preset("tiny", anchored=True))
        0.0001
    """
    family = families.FAMILIES.get(config.model_type)
    if family is not None and family.finetuning_rate is not None:
        return family.finetuning_rate
    if getattr(config, "anchored", False):
        return 1e-4
    return 1e-3 if config.hidden_size <= NARROW else 5e-4


def logistic_classifier() -> Any:
    """Return an unfitted scikit-learn multinomial logistic regression for log-normalised counts.

    Do not scale genes to unit variance: on sorted blood cells that costs accuracy, and so does scikit-learn's default
    of `C=1`.

    Example:
        >>> values = np.array([[0.0, 9.0], [8.0, 0.0], [0.0, 8.0], [9.0, 0.0]])
        >>> logistic_classifier().fit(values, ["B", "T", "B", "T"]).predict([[7.0, 1.0]]).tolist()
        ['T']
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.1, tol=1e-3, max_iter=1000)  # a smaller tol takes twice as long and is no better


def begin_head(model: Any, tokenizer: ExpressionTokenizer, dataset: Dataset) -> None:
    """Prepare a new head for its first step: set the statistics of its features and the regression it starts from.

    A head that has them already is left as it is.

    Args:
        model: A classifier from `annotation_model`, on any device.
        tokenizer: The model's tokenizer.
        dataset: Cells to train on, with `labels`.

    Raises:
        ValueError: If all cells have the same label.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> model = annotation_model(XTrimoGeneConfig.preset("tiny", num_genes=4), ["T", "B"])
        >>> begin_head(model, tokenizer, cells_dataset(tokenizer.read_counts(counts), labels=[0, 1, 0, 1]))
        >>> bool(model.classifier.anchor.is_set)
        True
    """
    norm, anchor = model.classifier.norm, model.classifier.anchor
    embedded = None
    if anchor is not None and not anchor.is_set:
        embedded = embeddings(model, tokenizer, dataset) if model.config.anchored else None
        of_cells = None if embedded is None else embedded.cpu().numpy()
        anchor.set_regression(*regression(model.config, tokenizer, dataset, of_cells))
    if isinstance(norm, FeatureNorm) and not norm.is_set:
        cells = np.unique(np.linspace(0, len(dataset) - 1, STATISTICS_CELLS).astype(int))  # evenly spread
        if embedded is None:
            norm.set_statistics(embeddings(model, tokenizer, dataset.select(cells)))
        else:
            norm.set_statistics(embedded[torch.from_numpy(cells).to(embedded.device)])


def end_head(model: Any, tokenizer: ExpressionTokenizer, dataset: Dataset) -> None:
    """Shift what the head expects of embeddings by what those of whole cells differ from those of training.

    Training may show fewer genes of a cell than inference does, as for TxFM. Embeddings then differ by a vector that is
    much the same in all cells, which the head would take for a difference between types. So would the regression on
    embeddings that it adds to in an anchored model.

    Args:
        model: A classifier that was trained.
        tokenizer: The model's tokenizer.
        dataset: Cells that it was trained on.
    """
    norm, anchor = model.classifier.norm, model.classifier.anchor
    if not tokenizer.shows_zeros or not isinstance(norm, FeatureNorm):
        return
    cells = dataset.select(np.unique(np.linspace(0, len(dataset) - 1, SHIFT_CELLS).astype(int)))
    whole = embeddings(model, tokenizer, cells, DataCollatorForExpression(tokenizer))
    shift = (whole - embeddings(model, tokenizer, cells)).mean(0).to(norm.mean)
    norm.mean.add_(shift)
    if anchor is not None and anchor.embedding_weight is not None:
        anchor.bias.sub_(shift @ anchor.embedding_weight)


def embeddings(model: Any, tokenizer: ExpressionTokenizer, dataset: Dataset, collator: Any = None) -> torch.Tensor:
    """Return embeddings of cells, float32 `(cells, D)`, as training sees the cells unless a collator is given."""
    collator = collator or objective_of(model.config).task_collator(tokenizer, seed=0)
    was_training = model.training
    model.eval()
    found = run_dataset(dataset, collator, model.device, lambda batch: model.model(**batch).pooler_output)
    model.train(was_training)
    return found.float()


def classified(model: Any, tokenizer: ExpressionTokenizer, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return class probabilities `(cells, C)` and embeddings `(cells, D)` of whole cells, float32."""

    def forward(batch: dict[str, Any]) -> torch.Tensor:
        pooled_BD = model.model(**batch).pooler_output
        return torch.cat([model.classify(pooled_BD, **batch).float().softmax(-1), pooled_BD.float()], dim=1)

    was_training = model.training
    model.eval()
    found = run_dataset(dataset, DataCollatorForExpression(tokenizer), model.device, forward).float().cpu().numpy()
    model.train(was_training)
    return found[:, : model.config.num_labels], found[:, model.config.num_labels :]


def self_labelled(model: Any, tokenizer: ExpressionTokenizer, labelled: Dataset, unlabelled: Dataset) -> Dataset:
    """Return unlabelled cells with the labels that a regression on labelled cells gives them, where it is sure.

    The labelled cells are of one laboratory and chemistry, and what sets these apart from others would be taken for a
    difference between types, or for an unknown type. Cells of others that look much like a type teach what it varies
    by (docs/checkpoints.md).

    Args:
        model: A classifier from `annotation_model` with a new head, which it keeps.
        tokenizer: Its tokenizer.
        labelled: Cells with `labels`.
        unlabelled: Cells of other experiments; labels and batches that they may have are left out.

    Source: Lee 2013, "Pseudo-label".

    Example:
        >>> model = annotation_model(checkpoint, names)                           # doctest: +SKIP
        >>> sure = self_labelled(model, tokenizer, train, others)                 # doctest: +SKIP
        >>> finetune(model, tokenizer, joined(train, sure), arguments=arguments)  # doctest: +SKIP
    """
    new_head = deepcopy(model.classifier)
    begin_head(model, tokenizer, labelled)
    probabilities, _ = classified(model, tokenizer, unlabelled)
    model.classifier = new_head  # it is to begin at a regression on the cells that are sure too
    rows = np.flatnonzero(probabilities.max(axis=1) >= SURE)
    numbers = [name for name in ("labels", "batch", SOURCE) if name in unlabelled.column_names]
    bare = unlabelled.remove_columns(numbers)
    sure = bare.select(rows).add_column("labels", probabilities.argmax(axis=1)[rows])
    return sure.with_format("numpy")


def joined(labelled: Dataset, others: Dataset) -> Dataset:
    """Return the cells of both datasets, with indices of their own, from which masks are drawn."""
    both = concatenate_datasets([labelled, others])
    numbered = both.remove_columns("cell_index").add_column("cell_index", np.arange(len(both)))
    return numbered.with_format("numpy")


def regression(
    config: Any, tokenizer: ExpressionTokenizer, dataset: Dataset, embedded: np.ndarray | None = None
) -> tuple[torch.Tensor, ...]:
    """Return a logistic regression of the labels: weights `(G, C)` of genes, intercepts `(C,)`, weights `(D, C)`.

    The penalty is one for all weights, so genes tell apart what the embedding cannot. The weights of the embedding are
    0 if it does not help (`names_better`).

    Args:
        config: Configuration of the classifier.
        tokenizer: Its tokenizer.
        dataset: Cells with `labels`.
        embedded: Their embeddings, `(cells, D)`; without them the regression is on genes alone.

    Raises:
        ValueError: If all cells have the same label.
    """
    labels = np.asarray(dataset["labels"][:])
    if len(present := np.unique(labels)) < 2:
        names = [config.id2label[int(index)] for index in present]
        raise ValueError(
            f"the {len(labels):,} cells to train on are all {', '.join(names)}: at least 2 types are needed there; "
            f"split by another column than this group key, or by cell"
        )
    weights = None if config.class_weights is None else np.asarray(config.class_weights)[labels]
    features = expression(dataset, tokenizer)
    if embedded is not None:
        both = with_embedding(features, embedded)
        features = both if names_better(both, features, labels, weights) else features
    fitted = logistic_classifier().fit(features, labels, sample_weight=weights)
    of_features, of_labels = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # for two classes scikit-learn has one row, the logit of the second
        of_features = np.concatenate([-of_features, of_features]) / 2
        of_labels = np.concatenate([-of_labels, of_labels]) / 2
    num_features = config.num_genes + (0 if embedded is None else embedded.shape[1])
    weight = torch.zeros(num_features, config.num_labels)
    weight[: features.shape[1], fitted.classes_] = torch.from_numpy(of_features.T).float()
    # A split by donor may leave a label without training cells; it must not win over labels that have some.
    bias = torch.full((config.num_labels,), float(of_labels.min()) - ABSENT_LOGIT)
    bias[fitted.classes_] = torch.from_numpy(of_labels).float()
    of_genes, of_embedding = weight[: config.num_genes], EMBEDDING_SCALE * weight[config.num_genes :]
    return (of_genes, bias) if embedded is None else (of_genes, bias, of_embedding)


def with_embedding(values: Any, embedded: np.ndarray) -> Any:
    """Return the features of a regression on genes and embedding, CSR `(cells, G + D)`.

    Args:
        values: Log-normalised expression, CSR `(cells, G)`.
        embedded: Embeddings of the same cells, `(cells, D)`.

    Example:
        >>> from scipy.sparse import csr_matrix
        >>> with_embedding(csr_matrix([[2.0, 0.0]]), np.array([[0.5]])).toarray().tolist()
        [[2.0, 0.0, 2.0]]
    """
    from scipy.sparse import csr_matrix, hstack

    return hstack([values, csr_matrix(EMBEDDING_SCALE * embedded)], format="csr")


def names_better(features: Any, others: Any, labels: np.ndarray, weights: np.ndarray | None) -> bool:
    """Return whether a regression on `features` names held-out cells better than one on `others`, beyond chance.

    Better is a mean log likelihood that is higher by more than two standard errors of the difference, in a
    cross-validation with at most 2,000 cells. Labels with fewer than 3 cells take no part in it.

    Args:
        features: CSR `(cells, F)`.
        others: Other features of the same cells.
        labels: Ids of their labels, `(cells,)`.
        weights: Weights of the cells in the regression, `(cells,)`; 1 for all if None.
    """
    from sklearn.model_selection import StratifiedKFold

    rows = np.unique(np.linspace(0, len(labels) - 1, FOLDED_CELLS).astype(int))
    rows = rows[np.bincount(labels[rows])[labels[rows]] >= FOLDS]  # so that each fold has all labels
    names, ids = np.unique(labels[rows], return_inverse=True)
    if len(names) < 2:
        return False
    of_cells = None if weights is None else weights[rows]
    both = [coordinates(each[rows]) for each in (features, others)]
    gain = np.zeros(len(rows))
    for learned, tested in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(ids, ids):
        log_likelihoods = [
            logistic_classifier()
            .fit(each[learned], ids[learned], sample_weight=None if of_cells is None else of_cells[learned])
            .predict_log_proba(each[tested])[np.arange(len(tested)), ids[tested]]
            for each in both
        ]
        gain[tested] = log_likelihoods[0] - log_likelihoods[1]
    return bool(gain.mean() > STANDARD_ERRORS * gain.std(ddof=1) / np.sqrt(len(gain)))


def coordinates(features: Any) -> np.ndarray:
    """Return the coordinates `(cells, at most cells)` of cells in the space that they span.

    A regression with an L2 penalty is the same on them as on the features, and takes a tenth of the time.

    Args:
        features: CSR `(cells, F)`.
    """
    features = features.astype(np.float64)
    sizes, directions = np.linalg.eigh((features @ features.T).toarray())
    is_there = sizes > 1e-10 * sizes[-1]
    return directions[:, is_there] * np.sqrt(sizes[is_there])


def annotation_scores(evaluation: EvalPrediction) -> dict[str, float]:
    """Return accuracy and macro-F1 of the logits of an evaluation."""
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
        model: A classifier from `annotation_model`. It may be wrapped in peft adapters whose `modules_to_save` names
            `classifier`.
        tokenizer: The model's tokenizer.
        train_dataset: Labelled cells, from `cells_dataset`; a new head starts from a regression on them (`begin_head`).
        eval_dataset: Held-out labelled cells, from `cells_dataset`.
        arguments: The Trainer's.
        callbacks: Further callbacks of the Trainer.
        resume: Checkpoint to go on from. True goes on from the newest complete one in `arguments.output_dir`, and
            starts anew if there is none.

    Source: arXiv:2311.15156, section 4 (annotation).

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> from xtrimogene.training.arguments import CellTrainingArguments
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> dataset = cells_dataset(tokenizer.read_counts(counts), labels=[0, 1, 0, 1])
        >>> model = annotation_model(XTrimoGeneConfig.preset("tiny", num_genes=4), ["T", "B"])
        >>> arguments = CellTrainingArguments("run", max_steps=1, disable_tqdm=True)
        >>> trainer = finetune(model, tokenizer, dataset, arguments=arguments)
        >>> trainer.evaluate(dataset)["eval_accuracy"]
        1.0
    """
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    begin_head(classifier, tokenizer, train_dataset)
    if getattr(classifier.config, "num_latents", 0) and classifier.config.pooling != "xpressor":
        arguments.ddp_find_unused_parameters = True  # latents that are not pooled get no gradient
    trainer = CellTrainer(
        model=model,
        args=arguments,
        data_collator=objective_of(model.config).task_collator(tokenizer, arguments.seed),
        eval_collator=DataCollatorForExpression(tokenizer),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        compute_metrics=annotation_scores,
        callbacks=list(callbacks or []),
    )
    if arguments.num_train_epochs > 0:
        trainer.train(resume_from_checkpoint=resume)
    end_head(classifier, tokenizer, train_dataset)
    return trainer
