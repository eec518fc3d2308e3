# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Ragged batches without padding: the tokens of all cells in one row, attention cell by cell.

    (B, L) padded  ->  (1, T) packed  ->  linear layers on T rows, attention on each cell's segment  ->  (B, L)

Cells differ several times in length, so padding would cost 1.5 to 4 times the work. On a CPU, attention takes the cells
one after the other; `varlen_xtrimogene.py` has the ways of a GPU.

Letters: B cells, L tokens with padding, T tokens without, A heads, K width of a head, D width of the encoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .host_xtrimogene import found_wrong, is_at_hand, sent

QUERY_ROWS = 512  # at a time: their scores stay in the cache of a CPU, and memory stays linear in L


@dataclass
class Packing:
    """Where the tokens of a padded batch are.

    Args:
        index: Places of the tokens in the flattened batch, cell after cell, shape `(T,)`.
        lengths: Tokens of each cell, B numbers.
        is_token: Which places of the batch are tokens, bool `(B, L)`.
    """

    index: torch.Tensor
    lengths: list[int]
    is_token: torch.Tensor

    @classmethod
    def of(cls, is_token: torch.Tensor, lengths: Sequence[int] | None = None) -> "Packing":
        """Return the packing of `(B, L)` booleans.

        Args:
            is_token: Which places of the batch are tokens.
            lengths: Tokens of each cell, B numbers, from `told_lengths`. The host waits for the device unless they are
                given.
        """
        if lengths is None:
            return cls(is_token.flatten().nonzero().squeeze(1), is_token.sum(1).tolist(), is_token)
        number, is_token_N = sum(lengths), is_token.flatten()
        rank_N = torch.where(is_token_N, is_token_N.cumsum(0) - 1, number)  # of a token among all; padding comes behind
        places_N = torch.arange(len(is_token_N), device=is_token.device)
        index = places_N.new_empty(number + 1).scatter_(0, rank_N, places_N)[:number]
        return cls(index, list(lengths), is_token)

    @cached_property
    def starts(self) -> torch.Tensor:
        """Where each cell begins in the packed row, and the end of the last, int32 `(B + 1,)`."""
        return nn.functional.pad(self.is_token.sum(1).cumsum(0, dtype=torch.int32), (1, 0))

    @property
    def longest(self) -> int:
        """Tokens of the longest cell."""
        return max(self.lengths)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """Return `(1, T)` for `(B, L)`."""
        return padded.flatten()[self.index].unsqueeze(0)

    def unpack(self, packed: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Return `(B, L, D)` for packed states `(1, T, D)`; states of padding are 0."""
        padded = packed.new_zeros(len(self.lengths) * num_tokens, packed.shape[-1])
        return padded.index_copy(0, self.index, packed[0]).unflatten(0, (len(self.lengths), num_tokens))


def told_lengths(is_token: torch.Tensor, lengths: Sequence[int] | None) -> Sequence[int] | None:
    """Return the lengths that came with a batch, or None where the mask has to tell them.

    On a CPU the mask tells, so that a batch whose rows were changed without their lengths gives right numbers. On a GPU
    lengths that are not those of the mask are an error of the device; the host does not wait for it. Lengths of another
    number of cells, such as those of a batch that was divided among devices, do not count.

    Args:
        is_token: Which places of the batch are no padding, `(B, L)`.
        lengths: Tokens of each cell, B numbers.
    """
    if lengths is None or len(lengths) != is_token.shape[0] or is_at_hand(is_token.device):
        return None
    if is_token.device.type == "cuda" and not torch.compiler.is_compiling():
        found_wrong((is_token.sum(1) == sent(lengths, is_token.device, torch.int64)).all())
    return lengths


def with_padded_states(output: Any, is_token: torch.Tensor) -> Any:
    """Return a model's output with states of all layers padded, where the layers saw packed ones.

    Args:
        output: It may hold `hidden_states`, a tuple; padded ones have the shape of its `last_hidden_state`.
        is_token: Which places of the batch are no padding, `(B, N)`, as many as states.
    """
    states = output.hidden_states
    if states is None or all(part is None or part.shape[:2] == is_token.shape for part in states):
        return output
    packing = Packing.of(is_token)

    def padded(part: torch.Tensor | None) -> torch.Tensor | None:
        if part is None or part.shape[:2] == is_token.shape:
            return part
        return packing.unpack(part, is_token.shape[1])

    output.hidden_states = tuple(padded(part) for part in states)
    return output


def attention_by_cell(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scale: float,
    dropout: float,
    is_eager: bool = False,
) -> torch.Tensor:
    """Attend within each cell of packed states `(1, A, T, K)`, one cell after the other; return the same shape."""
    segments = [part.split(list(lengths), dim=2) for part in (query, key, value)]
    is_half = query.dtype is torch.bfloat16 and query.device.type == "cpu"
    attend: Callable[..., torch.Tensor] = nn.functional.scaled_dot_product_attention
    if dropout:
        attend = partial(attention_with_dropout, dropout_p=dropout)
    elif is_eager or (is_half and not torch.is_grad_enabled() and not torch.cpu._is_amx_tile_supported()):
        attend = blocked_attention
    return torch.cat([attend(q, k, v, scale=scale) for q, k, v in zip(*segments, strict=True)], dim=2)


def attention_with_dropout(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float, scale: float
) -> torch.Tensor:
    """Return softmax attention of `(1, A, L, K)` with dropout, computed for blocks of queries.

    CPUs have no fused attention with dropout, and the weights of a cell of 6,000 genes take 300 MB a layer and head. So
    the weights are not kept: the backward pass computes each block again.
    """
    attend = partial(nn.functional.scaled_dot_product_attention, dropout_p=dropout_p, scale=scale)
    blocks = [checkpoint(attend, block, key, value, use_reentrant=False) for block in query.split(QUERY_ROWS, dim=2)]
    return torch.cat(blocks, dim=2)


def blocked_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Return softmax attention of `(1, A, L, K)` by plain matrix products over blocks of queries.

    In bfloat16 on a CPU without tile registers (AMX) this is 1.5 times as fast as torch's fused attention, which
    computes in bfloat16 only with such registers. With them, the fused attention is twice as fast.
    """
    query, key_t, value = (query[0] * scale).contiguous(), key[0].contiguous().mT, value[0].contiguous()
    blocks = [(block @ key_t).softmax(-1) @ value for block in query.split(QUERY_ROWS, dim=1)]
    return torch.cat(blocks, dim=1).unsqueeze(0)
