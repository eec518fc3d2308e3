"""Name the type of every cell: by a fine-tuned model or by labelled reference cells."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..modeling_xtrimogene.precision_xtrimogene import dtype_of_products
from ..released import chosen
from ..tokenization.files_xtrimogene import about
from ..tokenization.labels import every_label
from ..tokenization.reading import CellInput
from .calibration import FILE, LEAST_CELLS, Calibration
from .cell_model import CellModel
from .familiarity import FULL_BYTES
from .neighbors import label_probabilities
from .options import Labelling, Running
from .provenance import provenance

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Judged:
    """Predicted types of cells.

    Attributes:
        model: The model that predicted them.
        cells: Counts of the cells.
        names: The labels.
        probabilities: Probability of each label, `(cells, C)`; NaN for cells without counts.
        embeddings: Embeddings of the cells, `(cells, D)`.
        calibration: Calibration of the probabilities; None if there is none.
        missing: Why there is no calibration.
        decided_by: What decided the labels.
    """

    model: CellModel
    cells: Any
    names: list[str]
    probabilities: np.ndarray
    embeddings: np.ndarray
    calibration: Calibration | None
    missing: str
    decided_by: Literal["classifier", "reference"]


def annotate(
    query: "AnnData",
    model: str | os.PathLike | Any | None,
    cells: CellInput,
    how: Labelling,
    running: Running,
    *,
    reference: "AnnData | None" = None,
    key_added: str = "xtrimogene",
    copy: bool = False,
    say: Callable[[str], None] = print,
) -> "AnnData | None":
    """Write a cell type for every cell into `query.obs`; the query needs no labels.

    With a `reference`, labels are those of the nearest reference cells in the embedding of `model`, without training.
    Without one, `model` is a fine-tuned classifier that knows its labels.

    Writes into `obs`, each name after `key_added` and an underscore:

    * `label`: the most probable label; missing for cells without counts.
    * `probability`: calibrated probability that the label is right. It is lower for cells that lie unusually far from
      all known types (`inference/calibration.py`).
    * `second_label`: the second most probable label; if no other label has any probability, the next nearest type.
    * `unknown`: whether the cell is of no known type, because it fits no label or lies far from all types. False for
      cells without counts.

    Calibration needs labelled cells that the annotator was not trained on. `xtrimogene finetune` holds some out and
    stores the calibration beside the model. A reference is split into five parts, and the labels of each part are
    predicted from the other four. There is no calibration in folders of older versions, with references of fewer than
    10 cells, and if a fine-tuned model computes in another precision than when it was calibrated. Then
    `probability` is not calibrated and `unknown` is not written; `uns[key_added]["unknown"]` says why.

    `unknown_threshold` holds for cells like the calibration cells. In data of another laboratory or chemistry far more
    cells are called unknown, from half to all of them, unless `xtrimogene finetune --unlabelled` was given such cells.

    Args:
        query: Cells x genes with counts in `layers["counts"]`, `raw.X` or `X`; log1p-normalised values are undone.
        model: Checkpoint folder, Hub name or name of a checkpoint of `xtrimogene.checkpoint`; or a loaded model. A
            checkpoint that comes with the package unless given: `small` with a reference, `blood-annotator` without.
        reference: Labelled cells.
        key_added: Beginning of the names of the columns written.
        copy: Return a changed copy instead of changing `query`.
        say: Called with one line of text if no model is given: which it is, and what it knows.
        cells: Where the counts of query and reference are.
        how: Column of the labels, how many neighbours vote, how many cells may be called unknown.
        running: Batch size, device, precision.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: If `label_key` is given without a reference, the threshold is no share, or the stored calibration is
            for other labels than the model.

    Example:
        >>> known = adata  # labelled cells, here the query itself
        >>> xtrimogene.tl.annotate(adata, "checkpoint", reference=known, label_key="bulk_labels", n_neighbors=1)
        >>> list(adata.obs.columns[-3:])  # 5 cells are too few to calibrate, so there is no xtrimogene_unknown
        ['xtrimogene_label', 'xtrimogene_probability', 'xtrimogene_second_label']
        >>> xtrimogene.tl.annotate(adata)  # an annotator of blood comes with the package    # doctest: +SKIP
    """
    query = query.copy() if copy else query
    if reference is None and how.label_key is not None:
        raise ValueError(
            f"label_key is {how.label_key!r}, but there is no reference to take labels from: give reference=..."
        )
    model = chosen(model, "classify" if reference is None else "embed", say)
    judged = judge(query, model, cells, how, running, reference)
    write_labels(query, judged, how.unknown_threshold, key_added)
    return query if copy else None


def judge(
    query: "AnnData", model: Any, cells: CellInput, how: Labelling, running: Running, reference: "AnnData | None" = None
) -> Judged:
    """Predict the types of cells as `annotate` does, and change nothing: by a reference, or else by a classifier."""
    if reference is None:
        return by_classifier(query, model, cells, running)
    return by_reference(query, reference, model, cells, how, running)


def by_reference(
    query: "AnnData", reference: "AnnData", model: Any, source: CellInput, how: Labelling, running: Running
) -> Judged:
    """Predict the types of cells from their nearest reference cells.

    Raises:
        ValueError: If the reference has no column of labels, or labels are missing or differ only by blanks.
    """
    labels = reference_labels(reference, how.label_key)
    loaded = CellModel.load(model, running)
    cells = loaded.read(query, source)
    with about("reference"):
        of_reference = loaded.embed(loaded.read(reference, source), running)
    embeddings = loaded.embed(cells, running)
    number, standardize = how.n_neighbors, not loaded.has_own_scale
    probabilities, names = label_probabilities(of_reference, labels, embeddings, number, standardize)
    num_known = int((~np.isnan(of_reference).any(axis=1)).sum())
    calibration, missing = None, f"no calibration: the reference has {num_known} cells with counts"
    if num_known >= LEAST_CELLS:
        calibration = Calibration.cross_fit(of_reference, labels, number, standardize)
    return Judged(loaded, cells, names, probabilities, embeddings, calibration, missing, "reference")


def by_classifier(query: "AnnData", model: Any, source: CellInput, running: Running) -> Judged:
    """Predict the types of cells with a fine-tuned model.

    Raises:
        ValueError: If the model is no classifier, or the stored calibration is for other labels.
    """
    loaded = CellModel.load(model, running, task="classify")
    cells, config = loaded.read(query, source), loaded.model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    path = loaded.adapter or config.name_or_path  # a calibration of the base does not hold for what was tuned
    calibration = None if hasattr(model, "get_base_model") else Calibration.load(loaded.adapter or loaded.model)
    missing = f"no calibration: {path} has no {FILE}; `xtrimogene finetune` writes one"
    if calibration is not None and calibration.names != names:
        raise ValueError(
            f"{FILE} of {path} is for the labels {', '.join(calibration.names)}, and the model has "
            f"{', '.join(names)}: fine-tune again, or delete that file"
        )
    computed_in = dtype_of_products(loaded.model)
    if calibration is not None and computed_in.itemsize < FULL_BYTES:
        name = str(computed_in).removeprefix("torch.")
        calibration = None
        missing = f"no calibration: {FILE} of {path} holds for float32, and this is {name}: choose float32"
        warnings.warn(f"{missing}; probabilities are not calibrated, and unknown cells are not told", stacklevel=2)
    probabilities, embeddings = loaded.classify(cells, running)
    return Judged(loaded, cells, names, probabilities, embeddings, calibration, missing, "classifier")


def write_labels(query: "AnnData", judged: Judged, unknown_threshold: float, key: str) -> None:
    """Write labels, probabilities and unknown cells into `obs`, and their provenance into `uns`."""
    import pandas as pd

    calibration, probabilities = judged.calibration, judged.probabilities
    applied = None
    if calibration is not None:
        applied = calibration.apply(probabilities, judged.embeddings, unknown_threshold)
    best, second = best_labels(probabilities, judged.embeddings, calibration)
    query.obs[f"{key}_label"] = pd.Categorical.from_codes(best, judged.names)
    query.obs[f"{key}_probability"] = probabilities.max(axis=1)
    query.obs[f"{key}_second_label"] = pd.Categorical.from_codes(second, judged.names)
    if calibration is None or applied is None:
        about: dict[str, Any] = {"note": judged.missing}
        if f"{key}_unknown" in query.obs:  # of an earlier call
            del query.obs[f"{key}_unknown"]
    else:
        query.obs[f"{key}_probability"] = applied.probabilities.max(axis=1)
        query.obs[f"{key}_unknown"] = applied.is_unknown
        about = {
            "threshold": unknown_threshold,
            "calibrated on": calibration.source,
            "temperature": calibration.temperature,
            "accuracy on these cells": calibration.accuracy,
        }
        is_empty = np.isnan(probabilities).any(axis=1)
        if doubts := calibration.doubts(applied.is_unknown[~is_empty], unknown_threshold):
            about["doubts"] = doubts
            for doubt in doubts:
                warnings.warn(doubt, stacklevel=2)
    made_by = provenance(judged.model, judged.cells)
    query.uns[key] = made_by | {"decided_by": judged.decided_by, "unknown": about}


def best_labels(probabilities: np.ndarray, embeddings: np.ndarray, calibration: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the best and the second label of each cell, -1 where there is none.

    Labels are ordered by the uncalibrated probabilities. Calibration keeps their order, but gives every label some
    probability. Labels with probability 0 are ordered by the distance to their type, if there is a calibration.

    Args:
        probabilities: Uncalibrated, `(cells, C)`; NaN for cells without counts.
        embeddings: Embeddings of the same cells, `(cells, D)`.
        calibration: Calibration of the annotator, or None.
    """
    num_cells, num_labels = probabilities.shape
    is_there = ~np.isnan(probabilities).any(axis=1)
    nearness = np.zeros((num_cells, num_labels))
    knows_types = calibration is not None and len(calibration.space.means) == num_labels
    if knows_types:
        nearness[is_there] = -calibration.space.type_distances(embeddings[is_there])
    order = np.lexsort((-nearness, -np.nan_to_num(probabilities)))
    best = np.where(is_there, order[:, 0], -1)
    if num_labels < 2:
        return best, np.full(num_cells, -1)
    is_known = is_there & (knows_types | (np.take_along_axis(probabilities, order[:, 1:2], axis=1)[:, 0] > 0))
    return best, np.where(is_known, order[:, 1], -1)


def reference_labels(reference: "AnnData", label_key: str | None) -> np.ndarray:
    """Return the labels of the reference cells as text.

    Raises:
        ValueError: If there is no such column, or labels are missing, blank or the text `nan`, or differ only by
            blanks.
    """
    if label_key is None or label_key not in reference.obs:
        raise ValueError(
            f"label_key is {label_key!r}, and the reference has the columns "
            f"{', '.join(reference.obs.columns) or 'none'}: name the one with the cell types"
        )
    return every_label(reference.obs[label_key], label_key, "reference")
