# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Rows of genes for the decoder: the rows of zero genes are the same in all cells and are computed once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


def decoder_rows(groups: list[torch.Tensor], num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gene of each row and the row of each gene; if a gene is in several groups, the last one counts.

    Args:
        groups: Ids of the genes of rows, P = padding, each of shape `(B, c)`; C is the sum of all c.
        num_positions: P.

    Returns:
        The id of each row `(B, C)`, P where it has none; and the row of each id `(B, P + 1)`, -1 where it has none.
    """
    ids_BC = torch.cat(groups, dim=1)
    slots_BP = torch.full((ids_BC.shape[0], num_positions + 1), -1, device=ids_BC.device)
    place_C = torch.arange(ids_BC.shape[1], device=ids_BC.device)
    for ids, place in zip(groups, place_C.split([ids.shape[1] for ids in groups]), strict=True):
        slots_BP = slots_BP.scatter(1, ids, place.expand_as(ids))
    return ids_BC.masked_fill(slots_BP.gather(1, ids_BC) != place_C, num_positions), slots_BP


@dataclass
class GeneRows:
    """Rows of all genes `(B, P, E)`, stored compactly: most genes are zero, and their row is the same in every cell.

    Args:
        shared: Rows of all genes as zero genes, shape `(P, E)`.
        own: Rows of the genes of each cell that are not zero, shape `(B, C, E)`.
        positions: Ids of the rows in `own`, each once in a cell; P = padding. Shape `(B, C)`.
        slots: Place in `own` of each id, -1 = zero gene. Shape `(B, P + 1)`.
    """

    shared: torch.Tensor
    own: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def build(cls, shared: torch.Tensor, groups: list[tuple[torch.Tensor, torch.Tensor]]) -> "GeneRows":
        """Return the rows for groups of `(ids, rows)`; if a gene is in several groups, the last one counts."""
        positions_BC, slots_BP = decoder_rows([ids for ids, _ in groups], len(shared))
        own_BCE = torch.cat([rows.to(shared.dtype) for _, rows in groups], dim=1)
        return cls(shared, own_BCE, positions_BC, slots_BP)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "GeneRows":
        """Apply a function of single rows to all rows."""
        return GeneRows(function(self.shared), function(self.own), self.positions, self.slots)

    def at(self, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return the rows of ids `(B, Q)`, shape `(B, Q, E)`; without ids all rows, `(B, P, E)`."""
        if ids is None:
            return self.written_over(self.shared.expand(self.own.shape[0], -1, -1), self.own)
        slots_BQ1 = self.slots.gather(1, ids).unsqueeze(-1)
        own_BQE = self.own.gather(1, slots_BQ1.clamp(min=0).expand(-1, -1, self.own.shape[-1]))
        return torch.where(slots_BQ1 >= 0, own_BQE, self.shared[ids])

    def written_over(self, rows: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return rows `(B, P, E)` in which `own` `(B, C, E)` replaces the rows at `positions`."""
        index_BCE = self.positions.unsqueeze(-1).expand_as(own)
        return nn.functional.pad(rows, (0, 0, 0, 1)).scatter(1, index_BCE, own)[:, :-1]


def gather_rows(rows: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Return the rows of `(B, P, E)` at positions `(B, Q)`, shape `(B, Q, E)`; without positions all rows."""
    return rows if positions is None else rows.gather(1, positions.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
