# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""FAVOR+: softmax attention in time linear in the number of tokens.

    softmax(q k^T) v  ~  phi(q) [phi(k)^T v] / phi(q) [phi(k)^T 1]

phi is a positive random feature map, so the [tokens, tokens] matrix never exists.

Letters: B cells, A heads, Q queries, N keys, K width of a head, F random features.
Source: Performers (arXiv:2009.14794), equations 5-8; constants as in performer-pytorch.
"""

import math
from typing import Literal

import torch
from torch import nn

# Keeps features positive. It is added after the exponential, so the choice of the stabiliser shows in the output.
FEATURE_EPS = 1e-4


def orthogonal_random_features(num_features: int, head_dim: int, seed: int) -> torch.Tensor:
    """Draw the random features of one layer: orthogonal in blocks, with the norms of Gaussian vectors.

    Always drawn on the CPU in float32 from its own generator, so the same seed gives the same features on every machine
    and under `torch.device("meta")`.

    Returns:
        Shape `(num_features, head_dim)`.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    num_blocks = math.ceil(num_features / head_dim)
    blocks = torch.randn(num_blocks, head_dim, head_dim, generator=generator, device="cpu", dtype=torch.float32)
    directions_FK = torch.linalg.qr(blocks).Q.mT.reshape(-1, head_dim)[:num_features]
    gaussian_FK = torch.randn(num_features, head_dim, generator=generator, device="cpu", dtype=torch.float32)
    return directions_FK * gaussian_FK.norm(dim=1, keepdim=True)


def favor_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    projection: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    stabilizer: Literal["cell", "head", "batch"] = "cell",
) -> torch.Tensor:
    """Attend with the softmax kernel approximated by positive random features.

    Args:
        query: Shape `(B, A, Q, K)`.
        key: Shape `(B, A, N, K)`.
        value: Shape `(B, A, N, K)`.
        projection: Random features, shape `(F, K)`.
        key_mask: 1 = attend, 0 = padding, shape `(B, N)`; padding takes part neither in the sums nor in the maximum.
        stabilizer: Over what the maximum of the key features is taken: each cell, each head of each cell
            (performer-pytorch), or the whole batch (the released scFoundation code).

    Returns:
        Shape `(B, A, Q, K)`, in the dtype of `query`; computed in float32 or wider.
    """
    given_dtype = query.dtype
    dtype = torch.promote_types(given_dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        scale = query.shape[-1] ** -0.25
        scaled_projection_KF = scale * projection.to(dtype).mT

        # Maxima are constants: they cancel but for FEATURE_EPS, so no gradient flows through them.
        logits_BAQF = query @ scaled_projection_KF
        norm_BAQ1 = query.square().sum(-1, keepdim=True) * (scale**2 / 2)
        max_BAQ1 = logits_BAQF.detach().amax(-1, keepdim=True)
        query_features_BAQF = (logits_BAQF - norm_BAQ1 - max_BAQ1).exp() + FEATURE_EPS

        logits_BANF = key @ scaled_projection_KF
        norm_BAN1 = key.square().sum(-1, keepdim=True) * (scale**2 / 2)
        is_key_BAN1 = None if key_mask is None else key_mask.bool()[:, None, :, None]
        visible_BANF = logits_BANF.detach()
        if is_key_BAN1 is not None:
            visible_BANF = visible_BANF.masked_fill(~is_key_BAN1, -torch.inf)
        over = {"head": (-2, -1), "cell": (-3, -2, -1), "batch": (-4, -3, -2, -1)}[stabilizer]
        key_features_BANF = (logits_BANF - norm_BAN1 - visible_BANF.amax(over, keepdim=True)).exp() + FEATURE_EPS
        if is_key_BAN1 is not None:
            key_features_BANF = key_features_BANF.masked_fill(~is_key_BAN1, 0)

        context_BAFK = key_features_BANF.mT @ value
        normaliser_BAQ1 = query_features_BAQF @ key_features_BANF.sum(-2).unsqueeze(-1)
        return (query_features_BAQF @ context_BAFK / normaliser_BAQ1).to(given_dtype)


class FavorAttention(nn.Module):
    """Multi-head FAVOR+ attention from `queries` to `hidden_states`.

    The random features are a persistent buffer: they belong to the checkpoint.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        num_features: int,
        stabilizer: Literal["cell", "head", "batch"],
        seed: int,
    ):
        super().__init__()
        self.head_dim = head_dim
        self.stabilizer: Literal["cell", "head", "batch"] = stabilizer
        self.seed = seed
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim)
        self.k_proj = nn.Linear(hidden_size, num_heads * head_dim)
        self.v_proj = nn.Linear(hidden_size, num_heads * head_dim)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size)
        self.projection = nn.Buffer(orthogonal_random_features(num_features, head_dim, seed))

    def drawn_projection(self, number: int = 0) -> torch.Tensor:
        """Return the random features of draw `number` of this layer; 0 is the initial one."""
        return orthogonal_random_features(*self.projection.shape, seed=self.seed + 1_000_003 * number)

    def forward(self, queries: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `(B, Q, E)` for queries `(B, Q, E)` and hidden_states `(B, N, E)`."""
        query_BAQK = self.q_proj(queries).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key_BANK = self.k_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        value_BANK = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        context_BAQK = favor_attention(
            query_BAQK, key_BANK, value_BANK, self.projection, stabilizer=self.stabilizer
        )
        return self.o_proj(context_BAQK.transpose(1, 2).flatten(-2))
