# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Rows of genes that the decoder computes: what cells share is computed once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


def decoder_rows(groups: list[torch.Tensor], num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which row stands for which gene; where a gene is in several groups, the last one counts.

    Args:
        groups: Ids of rows side by side, P = padding, each of shape `(B, c)`.
        num_positions: P.

    Returns:
        The id that each row stands for, P = none, `(B, C)`, and the row of each id, -1 = none, `(B, P + 1)`.
    """
    ids_BC = torch.cat(groups, dim=1)
    slots_BP = torch.full((len(ids_BC), num_positions + 1), -1, device=ids_BC.device)
    place_C = torch.arange(ids_BC.shape[1], device=ids_BC.device)
    for ids, place in zip(groups, place_C.split([ids.shape[1] for ids in groups]), strict=True):
        slots_BP = slots_BP.scatter(1, ids, place.expand_as(ids))
    return ids_BC.masked_fill(slots_BP.gather(1, ids_BC) != place_C, num_positions), slots_BP


@dataclass
class GeneRows:
    """Rows of all genes `(B, P, E)`, not written out: most are zero genes, whose row is the same in every cell.

    Args:
        shared: Rows of the zero genes, shape `(P, E)`.
        own: Rows of the other genes of each cell, shape `(B, C, E)`.
        positions: Their ids, each once in a cell; P = padding. Shape `(B, C)`.
        slots: Place in `own` of each id, -1 = zero gene. Shape `(B, P + 1)`.
    """

    shared: torch.Tensor
    own: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def build(cls, shared: torch.Tensor, groups: list[tuple[torch.Tensor, torch.Tensor]]) -> "GeneRows":
        """Return the rows for groups of `(ids, rows)`; where a gene is in several groups, the last one counts."""
        positions_BC, slots_BP = decoder_rows([ids for ids, _ in groups], len(shared))
        own_BCE = torch.cat([rows.to(shared.dtype) for _, rows in groups], dim=1)
        return cls(shared, own_BCE, positions_BC, slots_BP)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "GeneRows":
        """Return the rows after a function that treats each alike."""
        return GeneRows(function(self.shared), function(self.own), self.positions, self.slots)

    def at(self, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return the rows of ids `(B, Q)`, shape `(B, Q, E)`; all of them, `(B, P, E)`, unless given."""
        if ids is None:
            return self.written_over(self.shared.expand(len(self.own), -1, -1), self.own)
        slots_BQ1 = self.slots.gather(1, ids).unsqueeze(-1)
        own_BQE = self.own.gather(1, slots_BQ1.clamp(min=0).expand(-1, -1, self.own.shape[-1]))
        return torch.where(slots_BQ1 >= 0, own_BQE, self.shared[ids])

    def written_over(self, rows: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return rows `(B, P, E)` with own rows `(B, C, E)` in their places."""
        index_BCE = self.positions.unsqueeze(-1).expand_as(own)
        return nn.functional.pad(rows, (0, 0, 0, 1)).scatter(1, index_BCE, own)[:, :-1]


def gather_rows(rows: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Return `(B, Q, E)`, the rows of `(B, P, E)` at positions `(B, Q)`; all unless given."""
    return rows if positions is None else rows.gather(1, positions.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
