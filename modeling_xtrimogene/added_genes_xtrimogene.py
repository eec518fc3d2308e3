# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Genes that are added to the panel of a model: one more row in everything that has a row for each gene.

    | row of a new gene in               | value                                              |
    |------------------------------------|----------------------------------------------------|
    | the gene table                     | what is given, or the mean of the genes there were |
    | the bag of genes, a regression     | 0: the gene does not count before training         |
    | whether a batch expresses the gene | true                                               |
    | anything else (`BY_GENE`)          | the mean of the genes there were                   |

Letters: G genes before, N new genes, D width of the gene table, P width of a protein embedding.
"""

from typing import Any

import torch
from torch import nn

from .protein_xtrimogene import ProteinEmbedding, check_proteins

# Ends of the names of weights and buffers with a row for each gene: the axis of the genes, and the value of a new one.
BY_GENE: dict[str, tuple[int, float | str]] = {
    "bag.components": (0, 0.0),
    "classifier.anchor.weight": (0, 0.0),
    "cell_decoder.to_genes.weight": (0, "mean"),
    "cell_decoder.to_genes.bias": (0, "mean"),
    "cell_decoder.direct.weight": (0, "mean"),
    "cell_decoder.batch_bias.weight": (1, "mean"),
    "cell_decoder.is_expressed": (1, 1.0),
    "cell_decoder.value_offset": (0, "mean"),
    "cell_decoder.value_slope": (0, "mean"),
    "latent_decoder.gene_bias": (0, "mean"),
    "decoder.output.weight": (0, "mean"),
    "decoder.output.bias": (0, "mean"),
    "log_dispersion": (0, "mean"),
}


@torch.no_grad()
def grow_panel(model: Any, new: int | torch.Tensor) -> None:
    """Add genes to a model in place; `CellPreTrainedModel.add_genes` says what `new` is and what follows."""
    config, table = model.config, model.get_input_embeddings()
    number = new if isinstance(new, int) else len(new)
    if number < 1:
        raise ValueError(f"{number} genes are to be added: give at least 1")
    if isinstance(table, ProteinEmbedding):
        if isinstance(new, int):
            raise ValueError(
                f"protein_size is {config.protein_size}, so each gene needs a protein: give their embeddings "
                f"({number}, {config.protein_size})"
            )
        check_proteins(model, new, number)
        table.proteins = torch.cat([table.proteins, new.to(table.proteins)])
    else:
        add_rows(table, config.num_genes, new)
    for name, old in [*model.named_parameters(), *model.named_buffers()]:
        ends = [end for end in BY_GENE if name == end or name.endswith(f".{end}")]
        if ends and old.shape[BY_GENE[ends[0]][0]] == config.num_genes:
            lengthen(model, name, *BY_GENE[ends[0]], number)
    config.num_genes += number
    config.vocab_size += number
    config.pad_token_id += number


def add_rows(table: nn.Embedding, at: int, new: int | torch.Tensor) -> None:
    """Insert rows into a gene table: `new` `(N, D)`, or so many means of the first `at` rows.

    Raises:
        ValueError: If rows are given that have another width or are not finite.
    """
    old = table.weight
    if isinstance(new, int):
        new = old[:at].mean(0, keepdim=True).expand(new, -1)
    elif new.shape[1:] != old.shape[1:] or not new.isfinite().all():
        raise ValueError(
            f"the vectors of new genes are {tuple(new.shape)}, and each needs {old.shape[1]} finite numbers: give "
            f"(genes, {old.shape[1]}), or the number of genes, which then begin as the mean of the others"
        )
    table.weight = nn.Parameter(torch.cat([old[:at], new.to(old), old[at:]]), requires_grad=old.requires_grad)
    table.num_embeddings = len(table.weight)


def lengthen(model: nn.Module, name: str, axis: int, value: float | str, number: int) -> None:
    """Add entries for new genes to a weight or buffer along an axis, and tell its layer the new size."""
    path, _, own_name = name.rpartition(".")
    layer: Any = model.get_submodule(path)
    old = getattr(layer, own_name)
    shape = [number if place == axis else size for place, size in enumerate(old.shape)]
    filling = old.mean(axis, keepdim=True).expand(shape) if value == "mean" else torch.full(shape, float(value)).to(old)
    longer = torch.cat([old, filling], dim=axis)
    setattr(layer, own_name, nn.Parameter(longer, old.requires_grad) if isinstance(old, nn.Parameter) else longer)
    sizes = {nn.Linear: "out_features", nn.Embedding: "embedding_dim"}
    for kind, size in sizes.items():
        if isinstance(layer, kind):
            setattr(layer, size, longer.shape[axis])
    if hasattr(layer, "num_genes"):  # a classifier's regression
        layer.num_genes += number
