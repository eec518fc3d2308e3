"""Which genes decide a cell type: how much each gene adds to the score of the type that a classifier names.

    score of a type = its logit - mean logit of all types
    contribution    = value of the gene x gradient of the score by that value

                     linear                                    encoder
    values (B, L) -> LinearAnchor: values . W + b  --------+-> cell embedding, and the head's network upon it
                     sums to its part of the score exactly |   gradient x value: right for small changes only

Probabilities depend on the differences between logits alone, and the mean is taken off so that a gene which raises all
of them by the same adds nothing. In an annotator that is anchored to a regression, the `linear` part of all genes and
the intercept sum to the regression's score.

Letters: B cells of a batch, L tokens, G genes, C types.

Source: Shrikumar et al. 2017 (gradient x input; exact for linear functions).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling_xtrimogene.reconstruction_xtrimogene import per_10k
from ..released import chosen
from ..tokenization.reading import CellInput
from .cell_model import CellModel
from .options import Explaining, Running

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame

AT_ONCE = 16  # cells for batch_size="auto": gradients take many times the memory of embeddings


@dataclass(frozen=True)
class Explained:
    """Means over the cells of each type; zeros for types without cells.

    Attributes:
        types: Names of the types.
        genes: Names of the genes.
        linear: Contribution of each gene by the linear path, `(C, G)`; 0 in a classifier without one.
        encoder: Contribution by the cell embedding, `(C, G)`.
        values: Value of each gene, `log1p` of counts per 10,000, `(C, G)`.
        intercepts: What the linear path adds to the score without any gene, `(C,)`.
        num_cells: Cells of each type that were looked at, `(C,)`.
    """

    types: list[str]
    genes: list[str]
    linear: np.ndarray
    encoder: np.ndarray
    values: np.ndarray
    intercepts: np.ndarray
    num_cells: np.ndarray


def explain(
    adata: "AnnData",
    model: str | os.PathLike | Any | None,
    cells: CellInput,
    how: Explaining,
    running: Running,
    *,
    say: Callable[[str], None] = print,
) -> "DataFrame":
    """Return the genes that decide each type: those that add most to the score of the type that a classifier names.

    The score of a type is its logit minus the mean logit of all types. A gene adds its value times the gradient of the
    score. The part `linear` is exact: over all genes, and with the intercept, it sums to the score of the regression
    that the annotator is anchored to. The part `encoder` comes through the cell embedding and is a first approximation.
    What a model goes by need not be what makes the cells what they are.

    Args:
        adata: Cells x genes with counts in `layers["counts"]`, `raw.X` or `X`; log1p-normalised values are undone. They
            need no labels: the types are those that the model names.
        model: Folder or Hub name of a fine-tuned classifier, or a loaded one. `blood-annotator`, which comes with the
            package, unless given.
        cells: Where the counts are.
        how: How many genes to name, and how many cells of each type to look at; they are drawn with a fixed seed.
        running: Batch size, device, precision. With `auto`, 16 cells are computed at a time.
        say: Called with one line of text if no model is given: which it is, and what it knows.

    Returns:
        A row for each type and gene, types in the order of the model and genes by contribution, with the columns
        `type`, `gene`, `contribution` (the sum of `linear` and `encoder`), `linear`, `encoder`, `mean_value` (`log1p`
        of counts per 10,000), `mean_value_of_others` (in the cells of other types) and `cells` (how many cells of the
        type were looked at). Types that no cell is named by have no rows. `attrs["intercepts"]` holds the intercept of
        each type.

    Raises:
        ValueError: If the model is no classifier of types, or no counts are found.

    Example:
        >>> xtrimogene.tl.explain(adata, "annotator", num_genes=2)["gene"].tolist()           # doctest: +SKIP
        ['CD79A', 'CD74', 'NKG7', 'GNLY']
    """
    loaded = CellModel.load(chosen(model, "classify", say), running, task="classify")
    probabilities, _ = loaded.classify(loaded.read(adata, cells), running)
    ids = np.where(np.isnan(probabilities).any(axis=1), -1, probabilities.argmax(axis=1))
    return gene_table(explained(loaded, adata, ids, cells, how.cells_per_type, running), how.num_genes)


def explained(
    loaded: CellModel, adata: "AnnData", type_ids: np.ndarray, source: CellInput, cells_per_type: int, running: Running
) -> Explained:
    """Return what genes add to the scores of the types of cells.

    Args:
        loaded: A classifier.
        adata: The cells.
        type_ids: Type of each cell whose score is explained, as a label id of the model; -1 leaves a cell out.
        source: Where the counts are.
        cells_per_type: Cells of each type to look at.
        running: Batch size.

    Raises:
        ValueError: If the model is no classifier of types.
    """
    from .running import batches, prefetch

    model, tokenizer, config = loaded.model, loaded.tokenizer, loaded.model.config
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"{config.name_or_path} predicts {config.problem_type or 'one number'}, and types are explained by the "
            f"difference between their scores: give a classifier that names one of several types"
        )
    rows_of_types = some_of_each(type_ids, cells_per_type)
    few = adata[rows_of_types]
    cells, ids = loaded.read(few.to_memory() if few.isbacked else few.copy(), source), type_ids[rows_of_types]
    shape = config.num_labels, tokenizer.num_genes
    sums = np.zeros((3, *shape))
    size = AT_ONCE if running.batch_size == "auto" else running.batch_size
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for rows, batch in prefetch(batches(tokenizer, cells, model.device.type, size, None)):
            parts = contributions(model, {name: part.to(model.device) for name, part in batch.items()}, ids[rows])
            values = per_10k(batch["values"].float(), tokenizer.target_sum)
            is_gene = (batch["attention_mask"].bool() & (batch["input_ids"] < tokenizer.num_genes)).numpy()
            at = np.broadcast_to(ids[rows][:, None], is_gene.shape)[is_gene], batch["input_ids"].numpy()[is_gene]
            for total, part in zip(sums, (*parts, values), strict=True):
                np.add.at(total, at, part.cpu().numpy()[is_gene])
            if running.progress:
                running.progress(len(rows))
    finally:
        for module in was_training:
            module.training = True
    num_cells = np.bincount(ids, minlength=shape[0])
    names = [config.id2label[index] for index in range(shape[0])]
    linear, encoder, mean_values = sums / np.maximum(num_cells, 1)[:, None]
    anchor = model.classifier.anchor
    intercepts = np.zeros(shape[0]) if anchor is None else (anchor.bias - anchor.bias.mean()).float().cpu().numpy()
    return Explained(names, tokenizer.genes, linear, encoder, mean_values, intercepts, num_cells)


def contributions(model: Any, batch: dict[str, Any], type_ids: np.ndarray) -> tuple[Any, Any]:
    """Return what each token adds to the score of its cell's type: by the linear path, and by the embedding, `(B, L)`.

    Args:
        model: A classifier, in evaluation mode.
        batch: Batch of the tokenizer, on the model's device.
        type_ids: Type of each cell, `(B,)`.
    """
    with torch.enable_grad():
        values_BL = batch["values"].float().clone().requires_grad_()
        tokens = batch | {"values": values_BL}
        logits_BC = model.classify(model.base_model(**tokens).pooler_output, **tokens).float()
        ids_B1 = torch.from_numpy(type_ids).to(logits_BC.device).unsqueeze(1)
        scores_B = logits_BC.gather(1, ids_B1).squeeze(1) - logits_BC.mean(1)
        (gradient_BL,) = torch.autograd.grad(scores_B.sum(), values_BL, materialize_grads=True)
    whole_BL = (gradient_BL * values_BL).detach()
    anchor = model.classifier.anchor
    if anchor is None:
        return torch.zeros_like(whole_BL), whole_BL
    weight_GC = anchor.weight.float()
    weight_GC = weight_GC - weight_GC.mean(1, keepdim=True)
    is_gene_BL = batch["attention_mask"].bool() & (batch["input_ids"] < anchor.num_genes)
    weights_BL = weight_GC[batch["input_ids"].clamp(max=anchor.num_genes - 1), ids_B1]
    linear_BL = (weights_BL * batch["values"]).masked_fill(~is_gene_BL, 0)
    return linear_BL, whole_BL - linear_BL


def some_of_each(type_ids: np.ndarray, number: int) -> np.ndarray:
    """Return the rows of at most `number` cells of each type, ascending, drawn with seed 0; none of type -1.

    >>> some_of_each(np.array([0, 1, -1, 1, 1]), number=3)
    array([0, 1, 3, 4])
    """
    order = np.random.default_rng(0).permutation(len(type_ids))
    kept = [order[type_ids[order] == each][:number] for each in np.unique(type_ids[type_ids >= 0])]
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, int)


def gene_table(found: Explained, num_genes: int) -> "DataFrame":
    """Return the genes that add most to the score of each type as a table; `explain` says what its columns are."""
    import pandas as pd

    whole, total, genes = found.linear + found.encoder, found.num_cells.sum(), np.array(found.genes)
    sums = found.values * found.num_cells[:, None]
    tables = []
    for index in np.flatnonzero(found.num_cells):
        first = np.argsort(-whole[index], kind="stable")[: num_genes or None]
        num_others = total - found.num_cells[index]
        others = (sums.sum(axis=0) - sums[index])[first] / num_others if num_others else np.full(len(first), np.nan)
        tables.append(
            pd.DataFrame(
                {
                    "type": found.types[index],
                    "gene": genes[first],
                    "contribution": whole[index, first],
                    "linear": found.linear[index, first],
                    "encoder": found.encoder[index, first],
                    "mean_value": found.values[index, first],
                    "mean_value_of_others": others,
                    "cells": int(found.num_cells[index]),
                }
            )
        )
    if not tables:
        raise ValueError("no cell has counts on the panel of the model, so there is nothing to explain")
    table = pd.concat(tables, ignore_index=True)
    table.attrs["intercepts"] = dict(zip(found.types, found.intercepts.tolist(), strict=True))
    return table
