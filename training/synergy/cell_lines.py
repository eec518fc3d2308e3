"""Bulk expression of cell lines, and its embeddings."""

import importlib
import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import BatchEncoding

from ...inference.cell_model import CellModel
from ...records import first_names
from ...tokenization.expression_xtrimogene import ExpressionTokenizer
from .measurements import read_table

if TYPE_CHECKING:
    import pandas as pd


TPM_TOTAL = 1e6  # by definition the sum over all genes; the sum over a part of the genes is smaller


def read_expression(path: str | os.PathLike) -> "pd.DataFrame":
    """Return the expression of cell lines, in TPM, one row for each cell line and one column for each gene.

    Args:
        path: CSV or TSV file with the names of the cell lines in the first column and a header of gene names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a value is missing, negative or no number, or a cell line occurs twice.

    Example:
        >>> import pandas as pd
        >>> tpm = pd.DataFrame([[120.0, 0.0], [0.0, 35.5]], index=["K562", "A549"], columns=["CD3E", "LYZ"])
        >>> tpm.to_csv("tpm.csv")
        >>> read_expression("tpm.csv").loc["A549"].to_dict()
        {'CD3E': 0.0, 'LYZ': 35.5}
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


def tokenize_expression(tokenizer: ExpressionTokenizer, expression: "pd.DataFrame") -> BatchEncoding:
    """Return a batch of cell lines with the values `log1p` of TPM / 100, for the genes of the panel.

    Args:
        tokenizer: The model's tokenizer.
        expression: TPM, from `read_expression`. A column may have any name of a gene.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneTokenizer
        >>> tpm = pd.DataFrame([[120.0, 0.0], [0.0, 35.5]], index=["K562", "A549"], columns=["CD3E", "LYZ"])
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> tokenize_expression(tokenizer, tpm)["input_ids"].tolist()
        [[0], [3]]
    """
    sparse = importlib.import_module("scipy.sparse")
    rows = tokenizer.matcher.match([str(name) for name in expression.columns]).rows
    is_matched = rows >= 0
    panel = np.zeros((len(expression), tokenizer.num_genes), np.float32)
    np.add.at(panel.T, rows[is_matched], expression.to_numpy(np.float32).T[is_matched])
    # The total is that of all genes, also if `expression` has a part of them.
    return tokenizer.tokenize_counts(sparse.csr_matrix(panel), np.full(len(panel), TPM_TOTAL))


@torch.inference_mode()
def embed_cell_lines(loaded: CellModel, expression: "pd.DataFrame") -> "pd.DataFrame":
    """Return the cell embedding of each cell line, one row each.

    Args:
        loaded: Model and tokenizer, from `CellModel.load`.
        expression: TPM, from `read_expression`.

    Raises:
        ValueError: If a cell line expresses no gene of the panel.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel, XTrimoGeneTokenizer
        >>> tpm = pd.DataFrame([[120.0, 0.0], [0.0, 35.5]], index=["K562", "A549"], columns=["CD3E", "LYZ"])
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=4))
        >>> embed_cell_lines(CellModel(model, tokenizer), tpm).shape[0]
        2
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
    # One cell line at a time bounds the memory; there are few.
    parts = [
        model(**{name: part[row : row + 1].to(model.device) for name, part in batch.items()}).pooler_output
        for row in range(len(expression))
    ]
    model.train(was_training)
    return pandas.DataFrame(torch.cat(parts).float().cpu().numpy(), index=expression.index)
