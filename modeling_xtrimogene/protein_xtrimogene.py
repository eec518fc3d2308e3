# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Gene tokens from proteins: a frozen table of protein embeddings, and an adapter that turns its rows into tokens.

    ids of genes (B, L)  ->  rows of the table (U, P), frozen  ->  Linear, ReLU, Linear  ->  gene embeddings (B, L, D)

A gene that was in no training cell has a token as soon as its protein has a row, so genes can be added to a trained
model, such as those of another species. Experimental: the authors found no gain of quality in their larger comparison.

Letters: B cells, L tokens, G genes, U different ids of a batch, P width of a protein embedding, D width of the encoder.

Source: Xpressor (Kalfon, Peyré and Cantini, 2025), whose rows are means over the residues of ESM2.
"""

from typing import Any

import torch
from torch import nn

from .configuration_xtrimogene import XTrimoGeneConfig


class ProteinEmbedding(nn.Module):
    """Gene embeddings `W2 ReLU(W1 p + b1) + b2` of rows `p` of a frozen table, in place of a learned table.

    Depth tokens and padding have no protein: their vectors are learned. The table is empty until `set_proteins`.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig
        >>> embedding = ProteinEmbedding(XTrimoGeneConfig.preset("tiny", num_genes=50, protein_size=6))
        >>> embedding.proteins = torch.randn(50, 6)
        >>> embedding(torch.tensor([[3, 7, 50]])).shape
        torch.Size([1, 3, 64])
    """

    proteins: torch.Tensor

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.register_buffer("proteins", torch.zeros(config.num_genes, config.protein_size))
        self.fc1 = nn.Linear(config.protein_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)
        vocab_size: Any = config.vocab_size  # __post_init__ has set it
        self.others = nn.Embedding(vocab_size - config.num_genes, config.hidden_size)

    @property
    def weight(self) -> torch.Tensor:
        """The embeddings of all ids, `(vocab_size, D)`; it is computed, and is no parameter."""
        number = len(self.proteins) + self.others.num_embeddings
        return self.vectors(torch.arange(number, device=self.proteins.device))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(B, L, D)` of ids `(B, L)`; each different id is embedded once.

        Raises:
            ValueError: If the table is empty.
        """
        ids_U, places = input_ids.unique(return_inverse=True)
        return nn.functional.embedding(places, self.vectors(ids_U))

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(U, D)` of ids `(U,)`."""
        if not self.proteins[:1].any():
            raise ValueError(
                f"protein_size is {self.proteins.shape[1]} and the table of protein embeddings is empty: set it by "
                f"set_proteins(model, proteins)"
            )
        num_genes = len(self.proteins)
        rows_UP = self.proteins[ids.clamp(max=num_genes - 1)]
        genes_UD = self.fc2(self.fc1(rows_UP.to(self.fc1.weight.dtype)).relu())
        others_UD = self.others((ids - num_genes).clamp(min=0))
        return torch.where((ids < num_genes).unsqueeze(-1), genes_UD, others_UD)


def set_proteins(model: Any, proteins: torch.Tensor) -> Any:
    """Set the table of protein embeddings of a new model, in place, and return the model.

    Args:
        model: A model with `config.protein_size`.
        proteins: Embedding of the protein of each gene, in the order of the panel, `(G, protein_size)`.

    Raises:
        ValueError: If the table has another shape, or a gene has no protein.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
        >>> model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=50, protein_size=6))
        >>> set_proteins(model, torch.randn(50, 6)).static_gene_embeddings().shape
        torch.Size([50, 64])
    """
    embedding = model.get_input_embeddings()
    check_proteins(model, proteins, model.config.num_genes)
    embedding.proteins = proteins.to(embedding.proteins)
    return model


def check_proteins(model: Any, proteins: torch.Tensor, number: int) -> None:
    """Refuse a table of another shape than `(number, protein_size)`, and rows that are no protein embedding.

    Raises:
        ValueError: If it is so.
    """
    size = model.config.protein_size
    if not size:
        raise ValueError(
            f"protein_size is 0, so this {type(model).__name__} learns a vector for each gene: make a new model with "
            f"protein_size={proteins.shape[-1]}"
        )
    if proteins.shape != (number, size):
        raise ValueError(
            f"proteins is {tuple(proteins.shape)}, and {number} genes with protein_size {size} need {(number, size)}: "
            f"give one row for each gene"
        )
    is_there = proteins.isfinite().all(1) & proteins.any(1)
    if not is_there.all():
        raise ValueError(
            f"{int((~is_there).sum())} of {number} genes have no protein embedding, the first is number "
            f"{int((~is_there).nonzero()[0])}: its row is zero or not finite; leave these genes out of the panel"
        )
