"""Name the type of every cell: by a fine-tuned model or by labelled reference cells."""

import os
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .calibration import FILE, LEAST_CELLS, Calibration, check_share
from .cell_model import CellModel
from .provenance import provenance

if TYPE_CHECKING:
    from anndata import AnnData


FULL_BYTES = 4  # of float32; what is narrower is half precision or quantised


def annotate(
    query: "AnnData",
    model: str | os.PathLike | Any,
    *,
    reference: "AnnData | None" = None,
    label_key: str | None = None,
    n_neighbors: int = 15,
    unknown_threshold: float = 0.05,
    layer: str | None = None,
    gene_column: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    key_added: str = "xtrimogene",
    copy: bool = False,
    together: bool = False,
    progress: Any = None,
) -> "AnnData | None":
    """Write a cell type for every cell into `query.obs`; the query needs no labels.

    With a `reference`, labels are those of the nearest reference cells in the embedding of `model`, without training.
    Without one, `model` is a fine-tuned classifier that knows its labels.

    Writes into `obs`, each name after `key_added` and an underscore:

    * `label`: the best label; missing for cells without counts.
    * `probability`: that it is right, calibrated, and lower the farther a cell lies from what was learned
      (`inference/calibration.py`).
    * `second_label`: the next best; where no other label has any probability, that of the next nearest type.
    * `unknown`: whether the cell is of no known type: it fits no label, or lies far from all types. False for cells
      without counts.

    Calibration needs labelled cells that the labels were not learned from. `xtrimogene finetune` holds some out and
    stores what they tell beside the model. Of a reference each fifth is judged by the others, which embeds no cell
    twice. Where there is no calibration, as in folders of older versions, in references of fewer than 10 cells, and
    where a fine-tuned model computes in another precision than when it was calibrated, `probability` is not calibrated
    and `unknown` is not written; `uns[key_added]["unknown"]` says why.

    Args:
        query: See `embed`.
        model: Checkpoint folder or Hub name, or a loaded model.
        reference: Labelled cells.
        label_key: Column of `reference.obs` with the labels.
        n_neighbors: Reference cells that vote.
        unknown_threshold: Share of cells of known types that may be called unknown; 0: none is. It holds for cells like
            those calibrated with. In data of another laboratory or chemistry far more are, half of the cells or all.
        layer: See `embed`.
        gene_column: See `embed`.
        batch_size: See `embed`.
        device: See `embed`.
        dtype: See `embed`.
        key_added: Beginning of the names of the columns written.
        copy: See `embed`.
        together: See `run_cells`.
        progress: See `embed`.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: If labels are asked for that nobody gave, the threshold is no share, or the stored calibration is
            of another model.
    """
    import pandas as pd

    from ..modeling_xtrimogene.precision_xtrimogene import dtype_of_products
    from .neighbors import label_probabilities

    check_share(unknown_threshold)
    query = query.copy() if copy else query
    options = {"batch_size": batch_size, "together": together, "progress": progress}
    if reference is None and label_key is not None:
        raise ValueError(
            f"label_key is {label_key!r}, but there is no reference to take labels from: give reference=..."
        )
    if reference is not None:
        labels = reference_labels(reference, label_key)
        loaded = CellModel.load(model, device, dtype)
        known = loaded.read(reference, layer=layer, gene_column=gene_column)
        cells = loaded.read(query, layer=layer, gene_column=gene_column)
        of_reference, embeddings = loaded.embed(known, **options), loaded.embed(cells, **options)
        probabilities, names = label_probabilities(of_reference, labels, embeddings, n_neighbors)
        num_known = int((~np.isnan(of_reference).any(axis=1)).sum())
        calibration, missing = None, f"no calibration: the reference has {num_known} cells with counts"
        if num_known >= LEAST_CELLS:
            calibration = Calibration.cross_fit(of_reference, labels, n_neighbors)
    else:
        loaded = CellModel.load(model, device, dtype, task="classify")
        cells = loaded.read(query, layer=layer, gene_column=gene_column)
        config = loaded.model.config
        names = [config.id2label[index] for index in range(config.num_labels)]
        path = config.name_or_path
        calibration = Calibration.load(path)
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
        probabilities, embeddings = loaded.classify(cells, **options)
    is_empty = np.isnan(probabilities).any(axis=1)
    applied = None if calibration is None else calibration.apply(probabilities, embeddings, unknown_threshold)
    best, second = best_labels(probabilities, embeddings, calibration)
    query.obs[f"{key_added}_label"] = pd.Categorical.from_codes(best, names)
    query.obs[f"{key_added}_probability"] = probabilities.max(axis=1)
    query.obs[f"{key_added}_second_label"] = pd.Categorical.from_codes(second, names)
    if calibration is None or applied is None:
        about: dict[str, Any] = {"note": missing}
        if f"{key_added}_unknown" in query.obs:  # of an earlier call
            del query.obs[f"{key_added}_unknown"]
    else:
        query.obs[f"{key_added}_probability"] = applied.probabilities.max(axis=1)
        query.obs[f"{key_added}_unknown"] = applied.is_unknown
        about = {
            "threshold": unknown_threshold,
            "calibrated on": calibration.source,
            "temperature": calibration.temperature,
            "accuracy on these cells": calibration.accuracy,
        }
        if doubts := calibration.doubts(applied.is_unknown[~is_empty], unknown_threshold):
            about["doubts"] = doubts
            for doubt in doubts:
                warnings.warn(doubt, stacklevel=2)
    query.uns[key_added] = provenance(loaded, cells) | {"unknown": about}
    return query if copy else None


def best_labels(probabilities: np.ndarray, embeddings: np.ndarray, calibration: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the best and the second label of each cell, -1 where there is none.

    They are ordered by the probabilities as they come: calibrated ones keep the order, but no label has none. Labels
    without any probability are ordered by how near their type is, which the calibration tells.

    Args:
        probabilities: `(cells, C)`, NaN for cells without counts.
        embeddings: Of the same cells, `(cells, D)`.
        calibration: Of the annotator, or None.
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
        ValueError: If there is no such column, or labels are missing (also as the text `nan`, or blank) or differ by
            blanks only.
    """
    from ..tokenization.labels import every_label

    if label_key is None or label_key not in reference.obs:
        raise ValueError(
            f"label_key is {label_key!r}, and the reference has the columns "
            f"{', '.join(reference.obs.columns) or 'none'}: name the one with the cell types"
        )
    return every_label(reference.obs[label_key], label_key, "reference")
