"""Cell lines: bulk expression, and embeddings of it."""

import importlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import BatchEncoding

from ...inference.cell_model import CellModel
from ...records import first_names
from .measurements import read_table

if TYPE_CHECKING:
    import pandas as pd


TPM_TOTAL = 1e6  # by definition, over all genes: of a part of the genes the sum says nothing of the scale


# -- cell lines -------------------------------------------------------------------------------------------------------


def read_expression(path: str | os.PathLike) -> "pd.DataFrame":
    """Return expression in TPM from a CSV or TSV file: one row for each cell line, its name first, a gene a column.

    Raises:
        ValueError: If a value is missing, negative or no number, or a cell line occurs twice.
    """
    table = read_table(path, [])
    table = table.set_index(table.columns[0])
    table.index = table.index.astype(str)
    repeated = table.index[table.index.duplicated()]
    if len(repeated):
        raise ValueError(
            f"{path}: {len(repeated)} cell lines occur more than once: {first_names(repeated)}; keep one of each"
        )
    not_numbers = table.columns[[column.dtype.kind not in "iuf" for _, column in table.items()]]
    if len(not_numbers):
        raise ValueError(
            f"{path}: {len(not_numbers)} of {table.shape[1]} columns hold no numbers: {first_names(not_numbers)}"
        )
    wrong = table.index[~((table >= 0) & np.isfinite(table)).all(axis=1)]
    if len(wrong):
        raise ValueError(
            f"{path}: {len(wrong)} of {len(table)} cell lines have missing or negative values: {first_names(wrong)}; "
            f"give TPM, neither logarithms nor z-scores"
        )
    return table


def tokenize_expression(tokenizer: Any, expression: "pd.DataFrame") -> BatchEncoding:
    """Return a batch of cell lines: `log1p` of TPM per 10,000 of the genes that are on the panel.

    Args:
        tokenizer: Of the model.
        expression: TPM, from `read_expression`; columns are matched to the panel by any of their names.
    """
    sparse = importlib.import_module("scipy.sparse")
    rows = tokenizer.matcher.match([str(name) for name in expression.columns]).rows
    is_matched = rows >= 0
    panel = np.zeros((len(expression), tokenizer.num_genes), np.float32)
    np.add.at(panel.T, rows[is_matched], expression.to_numpy(np.float32).T[is_matched])
    # Spread over a part of the genes, TPM keep their scale: their total is that of all genes.
    return tokenizer.tokenize_counts(sparse.csr_matrix(panel), np.full(len(panel), TPM_TOTAL))


@torch.inference_mode()
def embed_cell_lines(loaded: CellModel, expression: "pd.DataFrame") -> "pd.DataFrame":
    """Return the cell embedding of each cell line, one row each; `expression` as of `tokenize_expression`.

    Raises:
        ValueError: If a cell line expresses no gene of the panel.
    """
    pandas = importlib.import_module("pandas")
    model, batch = loaded.model.base_model, tokenize_expression(loaded.tokenizer, expression)
    empty = expression.index[~batch["attention_mask"].bool().any(1).numpy()]
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {len(expression)} cell lines express no gene of the panel: {first_names(empty)}; leave "
            "them out"
        )
    was_training = model.training
    model.eval()
    # One at a time: there are few, and memory is bounded by the longest.
    parts = [
        model(**{name: part[row : row + 1].to(model.device) for name, part in batch.items()}).pooler_output
        for row in range(len(expression))
    ]
    model.train(was_training)
    return pandas.DataFrame(torch.cat(parts).float().cpu().numpy(), index=expression.index)
