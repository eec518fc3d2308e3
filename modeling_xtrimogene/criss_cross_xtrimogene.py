# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Criss-cross attention: genes read latents while latents read genes, in time linear in the number of genes.

    genes X (B, L, D), latents V (B, M, C)
        |  X' = X + attention of X to V,  V' = V + attention of V to X     both read the old X and V
        |  X'' = X' + MLP(X')
        v
    genes X'' (B, L, D), latents V' (B, M, C)

What a gene writes into the latents in one layer, other genes read in the next. So one layer leaves genes apart, and two
connect all of them. Nothing reads the latents of the last layer, which it does not compute.

Letters: B cells, L tokens, D width of the encoder, M latents, C their width, A heads, H width of a head.

Source: criss-cross attention of scPRINT-2 (Kalfon, Peyré and Cantini, 2025), the parallel update; related are Set
Transformer (arXiv:1810.00825) and Perceiver (arXiv:2103.03206).
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_xtrimogene import in_parts
from .configuration_xtrimogene import XTrimoGeneConfig
from .precision_xtrimogene import LayerNorm, for_products


class CrissCrossLayer(GradientCheckpointingLayer):
    """Pre-norm layer in which genes and latents read each other at the same time.

    Args:
        config: The configuration.
        is_last: Whether no layer follows, so that the latents are read and not updated.
    """

    def __init__(self, config: XTrimoGeneConfig, is_last: bool):
        super().__init__()
        D, C = config.hidden_size, config.criss_cross_size
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_last = is_last
        self.norm1 = LayerNorm(D, config.layer_norm_eps)
        self.latent_norm = LayerNorm(C, config.layer_norm_eps)
        self.q_proj = nn.Linear(D, D)
        self.latent_k_proj = nn.Linear(C, D)
        self.latent_v_proj = nn.Linear(C, D)
        self.o_proj = nn.Linear(D, D)
        if not is_last:
            self.latent_q_proj = nn.Linear(C, D)
            self.k_proj = nn.Linear(D, D)
            self.v_proj = nn.Linear(D, D)
            self.latent_o_proj = nn.Linear(D, C)
        self.norm2 = LayerNorm(D, config.layer_norm_eps)
        self.fc1 = nn.Linear(D, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, D)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, latents: torch.Tensor, is_key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the new states of genes `(B, L, D)` and of latents `(B, M, C)`.

        Args:
            hidden_states: States of genes, `(B, L, D)`.
            latents: States of latents, `(B, M, C)`.
            is_key: Which genes the latents read, bool `(B, L)`; padding they do not.
        """
        genes_BLD, normed_BMC = self.norm1(hidden_states), self.latent_norm(latents)
        genes_BLD, normed_BMC = for_products(self.q_proj, genes_BLD), for_products(self.q_proj, normed_BMC)
        read_BLD = self.attend(
            self.q_proj(genes_BLD), self.latent_k_proj(normed_BMC), self.latent_v_proj(normed_BMC), None
        )
        if not self.is_last:
            written_BMD = self.attend(
                self.latent_q_proj(normed_BMC), self.k_proj(genes_BLD), self.v_proj(genes_BLD), is_key[:, None, None]
            )
            latents = latents + self.dropout(self.latent_o_proj(written_BMD))
        hidden_states = hidden_states + self.dropout(self.o_proj(read_BLD))
        return in_parts(lambda rows: rows + self.feed_forward(self.norm2(rows)), hidden_states), latents

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return softmax attention in the shape of `query`, `(B, L or M, D)`."""
        query, key, value = (rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for rows in (query, key, value))
        dropout = self.attention_dropout if self.training else 0.0
        found_BALH = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout)
        return found_BALH.transpose(1, 2).flatten(-2)

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward branch."""
        return self.dropout(self.fc2(nn.functional.gelu(self.fc1(for_products(self.fc1, hidden_states)))))


class CrissCrossEncoder(nn.Module):
    """Criss-cross layers with learned latents, then a LayerNorm."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.empty(config.criss_cross_latents, config.criss_cross_size))
        last = config.num_hidden_layers - 1
        self.layers = nn.ModuleList([CrissCrossLayer(config, index == last) for index in range(last + 1)])
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, is_key: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return `(B, L, D)`.

        Args:
            hidden_states: Embeddings of genes, `(B, L, D)`.
            is_key: Which of them are read, bool `(B, L)`; padding is not.
            **kwargs: `output_attentions`.

        Raises:
            ValueError: If attention maps are asked for.
        """
        if kwargs.get("output_attentions", self.config.output_attentions):
            raise ValueError(
                "output_attentions is True, and criss-cross attention has no map of genes by genes: leave it out, or "
                "take a model with encoder_attention='full'"
            )
        latents = self.latents.to(torch.promote_types(self.latents.dtype, torch.float32))
        latents = latents.expand(hidden_states.shape[0], -1, -1)
        for layer in self.layers:
            hidden_states, latents = layer(hidden_states, latents, is_key)
        return self.norm(hidden_states)
