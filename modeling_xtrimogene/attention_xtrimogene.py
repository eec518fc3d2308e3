# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Softmax attention and the encoder layer.

Letters: B cells, N tokens, D width, A heads, K width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_xtrimogene import XTrimoGeneConfig
from .precision_xtrimogene import LayerNorm, for_products
from .varlen_xtrimogene import VARLEN

FEED_FORWARD_ROWS, GPU_FEED_FORWARD_ROWS = 2048, 65_536  # at a time; a GPU needs many to be busy


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention output `(B, L, A, K)` and the attention weights `(B, A, L, L)`."""
    scores_BALL = query @ key.mT * scaling
    if attention_mask is not None:
        scores_BALL = scores_BALL + attention_mask
    weights_BALL = scores_BALL.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights_BALL = nn.functional.dropout(weights_BALL, dropout, module.training)
    return (weights_BALL @ value).transpose(1, 2).contiguous(), weights_BALL


class XTrimoGeneAttention(nn.Module):
    """Full softmax attention among the tokens of a cell, through transformers' attention interface."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return `(B, L, D)` and, with eager attention, the weights `(B, A, L, L)`."""
        hidden_states = for_products(self.q_proj, hidden_states)
        query_BALK = self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key_BALK = self.k_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        value_BALK = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        name = VARLEN if "packing" in kwargs else self.config._attn_implementation
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        context_BLAK, weights_BALL = attend(
            self,
            query_BALK,
            key_BALK,
            value_BALK,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.o_proj(context_BLAK.flatten(-2)), weights_BALL


def in_parts(function: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor) -> torch.Tensor:
    """Return `function(hidden_states)`, computed for a part of the rows at a time to save memory.

    `function` has the widest layer of the model. Computed in parts, the output and gradient of that layer never exist
    for all rows. In training under autocast all rows are computed at once: the gradients of a weight would otherwise be
    summed over the parts in half precision.
    """
    device = hidden_states.device.type
    most = FEED_FORWARD_ROWS if device == "cpu" else max(GPU_FEED_FORWARD_ROWS // len(hidden_states), 1)
    is_half = torch.is_grad_enabled() and torch.is_autocast_enabled(device)
    if torch.compiler.is_compiling() or is_half or hidden_states.shape[1] <= most:  # an exported length has no bound
        return function(hidden_states)
    return torch.cat([function(rows) for rows in hidden_states.split(most, dim=1)], dim=1)


class XTrimoGeneEncoderLayer(GradientCheckpointingLayer):
    """Transformer layer with ReLU; post-norm as released, or pre-norm."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.norm_first = config.norm_first
        self.self_attn = XTrimoGeneAttention(config)
        self.norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Return `(B, L, D)`."""
        if self.norm_first:
            hidden_states = hidden_states + self.attention(self.norm1(hidden_states), attention_mask, **kwargs)
            return in_parts(lambda rows: rows + self.feed_forward(self.norm2(rows)), hidden_states)
        hidden_states = self.norm1(hidden_states + self.attention(hidden_states, attention_mask, **kwargs))
        return in_parts(lambda rows: self.norm2(rows + self.feed_forward(rows)), hidden_states)

    def attention(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """Return the attention branch."""
        return self.dropout(self.self_attn(hidden_states, attention_mask, **kwargs)[0])

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward branch."""
        return self.dropout(self.fc2(self.dropout(self.fc1(for_products(self.fc1, hidden_states)).relu())))
