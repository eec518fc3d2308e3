# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""FAVOR+: softmax attention in time linear in the number of tokens.

    softmax(q k^T) v  ~  phi(q) [phi(k)^T v] / phi(q) [phi(k)^T 1]

phi is a positive random feature map, so the [tokens, tokens] matrix never exists.

Letters: B cells, A heads, Q queries, N keys, K width of a head, F random features; P keys that cells share, C keys of
which each cell has its own.
Source: Performers (arXiv:2009.14794), equations 5-8; constants as in performer-pytorch.
"""

import math
from dataclasses import dataclass
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
    with torch.autocast(query.device.type, enabled=False):
        return attend(query, *key_sums(key, value, projection, key_mask, stabilizer), projection)


def exponents(vectors: torch.Tensor, projection: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `c u P^T - c^2 |u|^2 / 2` and the detached `c u P^T`, `(..., F)`, whose maximum is the stabiliser.

    Maxima are constants: they cancel but for `FEATURE_EPS`, so no gradient flows through them.
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    scale = vectors.shape[-1] ** -0.25
    products = vectors @ (scale * projection.to(vectors.dtype)).mT
    return products - vectors.square().sum(-1, keepdim=True) * (scale**2 / 2), products.detach()


def attend(query: torch.Tensor, context: torch.Tensor, total: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Return `phi(q) context / phi(q) total`, `(B, A, Q, K)`.

    Args:
        query: Shape `(B, A, Q, K)`.
        context: Sum over keys of `phi(k)^T v`, shape `(B, A, F, K)`.
        total: Sum over keys of `phi(k)`, shape `(B, A, F)`.
        projection: Random features, shape `(F, K)`.
    """
    exponents_BAQF, products_BAQF = exponents(query, projection)
    features_BAQF = (exponents_BAQF - products_BAQF.amax(-1, keepdim=True)).exp() + FEATURE_EPS
    return (features_BAQF @ context / (features_BAQF @ total.unsqueeze(-1))).to(query.dtype)


def key_sums(
    key: torch.Tensor,
    value: torch.Tensor,
    projection: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    stabilizer: Literal["cell", "head", "batch"] = "cell",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `phi(k)^T v` `(B, A, F, K)` and the sum of `phi(k)` `(B, A, F)`; arguments as in `favor_attention`."""
    exponents_BANF, products_BANF = exponents(key, projection)
    is_padding_BAN1 = None if key_mask is None else ~key_mask.bool()[:, None, :, None]
    if is_padding_BAN1 is not None:
        products_BANF = products_BANF.masked_fill(is_padding_BAN1, -torch.inf)
    over = {"head": (-2, -1), "cell": (-3, -2, -1), "batch": (-4, -3, -2, -1)}[stabilizer]
    features_BANF = (exponents_BANF - products_BANF.amax(over, keepdim=True)).exp() + FEATURE_EPS
    if is_padding_BAN1 is not None:
        features_BANF = features_BANF.masked_fill(is_padding_BAN1, 0)
    return features_BANF.mT @ value.to(features_BANF.dtype), features_BANF.sum(-2)


def shared_key_sums(
    shared_key: torch.Tensor,
    shared_value: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    projection: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `key_sums` for cells whose keys are shared, but for some positions where each cell has its own.

    Shared features are computed once for all cells; each cell subtracts the ones that it replaces and adds its own.
    Equal to `key_sums` of the written-out keys with `stabilizer="cell"`: with M the cell's own maximum,

        sum_p phi_p = e^(M0 - M) [sum_all e^(a_p - M0) - sum_replaced e^(a_p - M0)] + sum_own e^(a_c - M) + eps P

    The difference is taken in float64: where a replaced key had by far the largest feature, little is left of it.

    Args:
        shared_key: Shape `(A, P, K)`.
        shared_value: Shape `(A, P, K)`.
        key: Shape `(B, A, C, K)`.
        value: Shape `(B, A, C, K)`.
        positions: Which shared position each own key replaces, each at most once in a cell; P = padding. `(B, C)`.
        projection: Random features, shape `(F, K)`.
    """
    num_shared = shared_key.shape[1]
    is_own_BC = positions < num_shared
    at_BC = positions.clamp(max=num_shared - 1)
    is_own_B1C1 = is_own_BC[:, None, :, None]

    exponents_APF, products_APF = exponents(shared_key, projection)
    exponents_BACF, products_BACF = exponents(key, projection)
    value = value.to(exponents_BACF.dtype).masked_fill(~is_own_B1C1, 0)

    # The maximum of a cell runs over the shared keys that it keeps and over its own.
    max_P = products_APF.amax((0, 2))
    kept_BP = max_P.expand(len(positions), -1)
    if positions.shape[1]:
        replaced_BP = torch.zeros_like(kept_BP).scatter_add(1, at_BC, is_own_BC.to(kept_BP.dtype))
        kept_BP = kept_BP.masked_fill(replaced_BP > 0, -torch.inf)
        own_BC = products_BACF.amax((1, 3)).masked_fill(~is_own_BC, -torch.inf)
        max_B111 = torch.maximum(kept_BP.amax(1), own_BC.amax(1))[:, None, None, None]
    else:
        max_B111 = kept_BP.amax(1)[:, None, None, None]

    wide = exponents_APF.dtype if exponents_APF.device.type == "mps" else torch.float64  # MPS has no float64
    features_APF = (exponents_APF.to(wide) - max_P.max()).exp()
    wide_value_APK = shared_value.to(wide)
    replaced_ABCF = features_APF[:, at_BC].masked_fill(~is_own_BC[..., None], 0)
    replaced_value_ABCK = wide_value_APK[:, at_BC].masked_fill(~is_own_BC[..., None], 0)
    own_BACF = (exponents_BACF - max_B111).exp().masked_fill(~is_own_B1C1, 0)

    rescale_B111 = (max_P.max() - max_B111).to(wide).exp()
    kept_BAFK = features_APF.mT @ wide_value_APK - (replaced_ABCF.mT @ replaced_value_ABCK).transpose(0, 1)
    kept_BAF = features_APF.sum(1) - replaced_ABCF.sum(2).transpose(0, 1)
    kept_BAK = wide_value_APK.sum(1) - replaced_value_ABCK.sum(2).transpose(0, 1)
    context_BAFK = (rescale_B111 * kept_BAFK).to(value.dtype) + own_BACF.mT @ value
    total_BAF = (rescale_B111[..., 0] * kept_BAF).to(value.dtype) + own_BACF.sum(2)
    values_BAK = kept_BAK.to(value.dtype) + value.sum(2)
    return context_BAFK + FEATURE_EPS * values_BAK.unsqueeze(2), total_BAF + FEATURE_EPS * num_shared


class FavorAttention(nn.Module):
    """Multi-head FAVOR+ attention of queries to rows.

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
        num_features, head_dim = self.projection.shape
        return orthogonal_random_features(num_features, head_dim, self.seed + 1_000_003 * number)

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `(..., A, N, K)` for `(..., N, A K)`."""
        return rows.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)

    def forward(
        self,
        queries: torch.Tensor,
        rows: torch.Tensor,
        own_rows: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what queries find in rows, `(B, Q, E)`.

        Args:
            queries: Shape `(B, Q, E)`.
            rows: Shape `(B, P, E)`; `(P, E)` where the cells share them.
            own_rows: With shared rows: those of each cell, shape `(B, C, E)`.
            positions: Which shared row each own row replaces; P = padding. Shape `(B, C)`.
        """
        query_BAQK = self.heads(self.q_proj(queries))
        key, value = self.heads(self.k_proj(rows)), self.heads(self.v_proj(rows))
        own = None if own_rows is None else (self.heads(self.k_proj(own_rows)), self.heads(self.v_proj(own_rows)))
        with torch.autocast(queries.device.type, enabled=False):
            if own is None or positions is None:
                sums = key_sums(key, value, self.projection, stabilizer=self.stabilizer)
            else:
                sums = shared_key_sums(key, value, *own, positions, self.projection)
            context_BAQK = attend(query_BAQK, *sums, self.projection)
        return self.o_proj(context_BAQK.transpose(1, 2).flatten(-2))


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
        ids_BC = torch.cat([ids for ids, _ in groups], dim=1)
        own_BCE = torch.cat([rows.to(shared.dtype) for _, rows in groups], dim=1)
        num_positions = len(shared)
        slots_BP = torch.full((len(ids_BC), num_positions + 1), -1, device=ids_BC.device)
        place_C = torch.arange(ids_BC.shape[1], device=ids_BC.device)
        for (ids, _), place in zip(groups, place_C.split([ids.shape[1] for ids, _ in groups]), strict=True):
            slots_BP = slots_BP.scatter(1, ids, place.expand_as(ids))
        positions_BC = ids_BC.masked_fill(slots_BP.gather(1, ids_BC) != place_C, num_positions)
        return cls(shared, own_BCE, positions_BC, slots_BP)

    def at(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids `(B, Q)`, shape `(B, Q, E)`."""
        slots_BQ1 = self.slots.gather(1, ids).unsqueeze(-1)
        own_BQE = self.own.gather(1, slots_BQ1.clamp(min=0).expand(-1, -1, self.own.shape[-1]))
        return torch.where(slots_BQ1 >= 0, own_BQE, self.shared[ids])

    def all(self) -> torch.Tensor:
        """Return all rows, shape `(B, P, E)`."""
        rows_BPE = torch.cat([self.shared, self.shared[:1]]).expand(len(self.own), -1, -1)
        return rows_BPE.scatter(1, self.positions.unsqueeze(-1).expand_as(self.own), self.own)[:, :-1]


def gather_rows(hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return `(B, Q, E)`, the rows of `(B, P, E)` at positions `(B, Q)`."""
    return hidden_states.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1]))
