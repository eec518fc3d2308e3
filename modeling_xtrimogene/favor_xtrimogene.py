# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""FAVOR+: softmax attention in time linear in the number of tokens.

    softmax(q k^T) v  ~  phi(q) [phi(k)^T v] / phi(q) [phi(k)^T 1]

phi is a positive random feature map, so the [tokens, tokens] matrix never exists.

Features are computed for a few rows at a time and not kept; the backward pass computes them again. So no
[tokens, features] tensor exists either. Zero genes are the same in all cells and are computed once.

Letters: B cells, S = B or 1 where cells share, A heads, Q queries, N keys, n of them at a time, K width of a head,
V = K + 1, X = B / S V, F random features, E width of a row; P rows of all genes, C rows of which each cell has its own.
Source: Performers (arXiv:2009.14794), equations 5-8; constants as in performer-pytorch.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .gene_rows_xtrimogene import GeneRows
from .precision_xtrimogene import for_products

Stabilizer = Literal["cell", "head", "batch"]
Backend = Literal["native", "compiled", "performer-pytorch"]
Products = Literal["float32", "bfloat16"]

# Keeps features positive. It is added after the exponential, so the stabiliser changes the output a little.
FEATURE_EPS = 1e-4
# Features computed at a time: few enough for the cache of a CPU, many enough to keep a GPU busy. Products of few rows
# are slow. Products that sum over many thousands of rows lose digits (1e-4 in the embedding of a gene on a processor
# without fused multiply-add).
CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 2**20, 2**27, 64, 1024


@dataclass(frozen=True)
class Way:
    """How a chunk is computed.

    Args:
        is_compiled: Whether torch.compile fuses the steps from a product to its features, to read and write them once.
        is_half: Whether features are multiplied with values in bfloat16, into sums in float32. The exponents stay in
            float32.
    """

    is_compiled: bool = False
    is_half: bool = False

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of a chunk, compiled if so chosen."""
        return compiled(function) if self.is_compiled and not torch.compiler.is_compiling() else function

    def product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return the product of `(S, A, n, m)` and `(S, A, m, k)`, in the dtype of `left`."""
        if not self.is_half or left.dtype is not torch.float32:
            return left @ right
        left, right = left.bfloat16(), right.bfloat16()
        if left.device.type != "cuda":
            return (left @ right).float()
        found = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)  # never rounds the sum
        return found.unflatten(0, left.shape[:2])


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled for chunks of any size."""
    return torch.compile(function, dynamic=True)


PLAIN = Way()


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
    stabilizer: Stabilizer = "cell",
    way: Way = PLAIN,
) -> torch.Tensor:
    """Attend with the softmax kernel approximated by positive random features.

    Args:
        query: Shape `(B, A, Q, K)`.
        key: Shape `(B, A, N, K)`.
        value: Shape `(B, A, N, K)`.
        projection: Random features, shape `(F, K)`.
        key_mask: 1 = attend, 0 = padding, shape `(B, N)`; padding takes part neither in the sums nor in the maximum.
        stabilizer: Keys over which the maximum of the features is taken: those of each `cell`, of each `head` of each
            cell (performer-pytorch), or of the whole `batch` (the released scFoundation code).
        way: How chunks of rows are computed.

    Returns:
        Shape `(B, A, Q, K)`, in the dtype of `query`; computed in float32 or wider.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 5, 8)
        >>> favor_attention(query, key, value, orthogonal_random_features(16, 8, seed=0)).shape
        torch.Size([1, 2, 5, 8])
    """
    weights = torch.ones_like(key[:, 0, :, 0]) if key_mask is None else key_mask.bool()
    with torch.autocast(query.device.type, enabled=False):
        sums_BAFV = key_sums([Keys(key, value, weights)], projection, stabilizer, way)
        return Attend.apply(query, sums_BAFV, projection, way)


def performer_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    projection: torch.Tensor,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend as `FastAttention` of performer-pytorch does, with the given random features.

    `FastAttention` has no padding mask. With a mask each cell is therefore computed alone, on its attended keys only.

    Args:
        query: Shape `(B, A, Q, K)`.
        key: Shape `(B, A, N, K)`.
        value: Shape `(B, A, N, K)`.
        projection: Random features, shape `(F, K)`.
        key_mask: 1 = attend, 0 = padding, shape `(B, N)`.

    Returns:
        Shape `(B, A, Q, K)`, in the dtype of `query`; computed in float32 or wider. NaN where a cell has no keys, as
        `favor_attention` gives.

    Raises:
        ImportError: If performer-pytorch cannot be imported.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 5, 8)
        >>> found = performer_attention(query, key, value, orthogonal_random_features(16, 8, seed=0))
        >>> found.shape
        torch.Size([1, 2, 5, 8])
    """
    # In a `try`, because transformers refuses remote code if an import outside of `try` is not installed.
    try:
        from performer_pytorch.performer_pytorch import linear_attention, softmax_kernel
    except ImportError as error:
        raise ImportError(
            f"favor_backend is 'performer-pytorch', and that package cannot be imported ({error}): "
            f"pip install 'performer-pytorch>=1.1.4' setuptools, or load the model with favor_backend='native'"
        ) from error
    wide = torch.promote_types(query.dtype, torch.float32)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if not key.shape[2]:
            return torch.full_like(query, torch.nan, dtype=wide)
        phi_q = softmax_kernel(query.to(wide), projection_matrix=projection, is_query=True)
        phi_k = softmax_kernel(key.to(wide), projection_matrix=projection, is_query=False)
        return linear_attention(phi_q, phi_k, value.to(wide))

    with torch.autocast(query.device.type, enabled=False):
        if key_mask is None:
            return attend(query, key, value).to(query.dtype)
        cells = [
            attend(query[cell : cell + 1], key[cell : cell + 1, :, is_key_N], value[cell : cell + 1, :, is_key_N])
            for cell, is_key_N in enumerate(key_mask.bool())
        ]
        return torch.cat(cells).to(query.dtype)


@dataclass
class Keys:
    """Keys and values, with their weights in the sums.

    Args:
        key: Shape `(S, A, N, K)`, where S = B, or 1 where the cells share them.
        value: Shape `(S, A, N, K)`.
        weights: 1 = attend, 0 = padding, -1 = subtract from the sums of the other keys; shape `(S, N)`.
        rules: Whether a key takes part in the maximum of a cell, shape `(B, N)`; keys of weight 1 do unless given.
    """

    key: torch.Tensor
    value: torch.Tensor
    weights: torch.Tensor
    rules: torch.Tensor | None = None


def key_sums(groups: list[Keys], projection: torch.Tensor, stabilizer: Stabilizer, way: Way = PLAIN) -> torch.Tensor:
    """Return the sums over all keys of `w phi(k) [v, 1]`, shape `(B, A, F, K + 1)`, float32 or wider.

    Each group is summed under its own maximum `m`; then, with M the maximum of the stabiliser over all groups,

        sum_n w_n phi_n [v_n, 1] = sum_groups e^(m - M) sum_n w_n e^(a_n - m) [v_n, 1] + eps sum_n w_n [v_n, 1]
    """
    parts, plain, maxima = [], [], []
    for group in groups:
        weights_SN = group.weights.to(torch.promote_types(group.key.dtype, torch.float32))
        sums_SAFV, max_SA, row_max_SAN = KeySums.apply(group.key, group.value, weights_SN, projection, way)
        parts.append((sums_SAFV, max_SA))
        values_SAK = torch.einsum("sn,sank->sak", weights_SN, group.value.to(weights_SN.dtype))
        counts_SA1 = weights_SN.sum(1)[:, None, None].expand(-1, values_SAK.shape[1], -1)
        plain.append(torch.cat([values_SAK, counts_SA1], -1))
        rules_BN = group.weights > 0 if group.rules is None else group.rules
        if row_max_SAN.shape[-1]:
            maxima.append(row_max_SAN.masked_fill(~rules_BN[:, None], -torch.inf).amax(-1))
    max_BA = functools.reduce(torch.maximum, maxima)
    if stabilizer == "cell":
        max_BA = max_BA.amax(1, keepdim=True)
    elif stabilizer == "batch":
        max_BA = max_BA.amax()
    scaled = [sums_SAFV * (max_SA - max_BA).exp()[..., None, None] for sums_SAFV, max_SA in parts]
    sums_BAFV = functools.reduce(torch.add, scaled) + FEATURE_EPS * functools.reduce(torch.add, plain).unsqueeze(2)
    return sums_BAFV.to(torch.promote_types(groups[-1].key.dtype, torch.float32))


def exponents(vectors: torch.Tensor, projection: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `c u P^T` `(..., F)` and `c^2 |u|^2 / 2` `(..., 1)`; phi(u) = exp of their difference, stabilised.

    The stabilising maximum is taken over the first. It cancels except beside `FEATURE_EPS`, so it has no gradient.
    """
    scale = vectors.shape[-1] ** -0.25
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors @ (scale * projection).mT, norms.square_().mul_(scale**2 / 2)


def query_features(query: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Return the features `(S, A, n, F)` of queries, each under its own maximum."""
    products_SAnF, half_SAn1 = exponents(query, projection)
    return products_SAnF.sub_(half_SAn1 + products_SAnF.amax(-1, keepdim=True)).exp_()


def key_features(
    key: torch.Tensor, is_padding: torch.Tensor, projection: torch.Tensor, maximum: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the features `(S, A, n, F)` of keys, the maximum of each `(S, A, n)`, and that of all so far.

    Args:
        key: Keys of a chunk, `(S, A, n, K)`.
        is_padding: Which of them are none, bool `(S, 1, n)`.
        projection: Random features, `(F, K)`.
        maximum: That of earlier chunks, `(S, A, 1, 1)`.
    """
    products_SAnF, half_SAn1 = exponents(key, projection)
    half_SAn1.masked_fill_(is_padding[..., None], torch.inf)  # features of padding become 0
    row_max_SAn = products_SAnF.amax(-1).masked_fill_(is_padding, -torch.inf)
    higher_SA11 = torch.maximum(maximum, row_max_SAn.amax(-1)[..., None, None])
    return products_SAnF.sub_(half_SAn1 + higher_SA11).exp_(), row_max_SAn, higher_SA11


def key_features_again(
    key: torch.Tensor, is_padding: torch.Tensor, projection: torch.Tensor, maximum: torch.Tensor
) -> torch.Tensor:
    """Return the features of `key_features` under the maximum of all chunks."""
    products_SAnF, half_SAn1 = exponents(key, projection)
    half_SAn1.masked_fill_(is_padding[..., None], torch.inf)
    return products_SAnF.sub_(half_SAn1 + maximum).exp_()


def exponents_backward(vectors: torch.Tensor, grad: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Return the gradient of `vectors`, given the gradient of `c u P^T - c^2 |u|^2 / 2`."""
    scale = vectors.shape[-1] ** -0.25
    found = grad @ nn.functional.pad(scale * projection, (0, 1), value=1.0)  # the last column is the sum over features
    return torch.addcmul(found[..., :-1], vectors, found[..., -1:], value=-(scale**2))


def chunks(rows: torch.Tensor, num_features: int) -> list[slice]:
    """Return slices of rows `(S, A, N, K)` whose features fit into the cache."""
    is_cpu = rows.device.type == "cpu"
    most = CHUNK_ELEMENTS if is_cpu else GPU_CHUNK_ELEMENTS
    step = max(most // max(rows.shape[0] * rows.shape[1] * num_features, 1), MIN_CHUNK_ROWS)
    step = min(step, MAX_CHUNK_ROWS) if is_cpu else step
    if torch.compiler.is_exporting():  # an exported number of rows has no bound
        return [slice(None)]
    return [slice(start, start + step) for start in range(0, rows.shape[2], step)]


def side_by_side(parts: torch.Tensor, num_shared: int) -> torch.Tensor:
    """Return `(B, A, N, V)` as `(S, A, N, B / S V)`, so that one product with shared features serves all cells."""
    return parts if num_shared == parts.shape[0] else parts.permute(1, 2, 0, 3).flatten(2).unsqueeze(0)


def one_by_one(parts: torch.Tensor, num_cells: int) -> torch.Tensor:
    """Undo `side_by_side`: return `(B, A, N, V)`."""
    return parts if num_cells == parts.shape[0] else parts[0].unflatten(-1, (num_cells, -1)).permute(2, 0, 1, 3)


class KeySums(torch.autograd.Function):
    """`sum_n w_n e^(a_n - m) [v_n, 1]`, chunk by chunk, with m the maximum so far; features are never kept.

    Takes key and value `(S, A, N, K)`, weights `(S, N)`, projection `(F, K)`. Returns the sums `(S, A, F, K + 1)`, m
    `(S, A)`, and the maximum of each key `(S, A, N)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        weights: torch.Tensor,
        projection: torch.Tensor,
        way: Way = PLAIN,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum over chunks."""
        (S, A, N, K), F, dtype = key.shape, len(projection), weights.dtype
        projection = projection.to(dtype)
        max_SA11 = weights.new_full((S, A, 1, 1), torch.finfo(dtype).min / 4)
        sums_SAFV = weights.new_zeros((S, A, F, K + 1))
        row_max_SAN = weights.new_empty((S, A, N))
        for rows in chunks(key, F):
            features_SAnF, row_max_SAN[:, :, rows], higher_SA11 = way.of(key_features)(
                key[:, :, rows].to(dtype), weights[:, None, rows] == 0, projection, max_SA11
            )
            sums_SAFV.mul_((max_SA11 - higher_SA11).exp_())
            sums_SAFV += way.product(features_SAnF.mT, weighted(value, weights, rows))
            max_SA11 = higher_SA11
        ctx.way = way
        ctx.save_for_backward(key, value, weights, projection, max_SA11)
        max_SA = max_SA11[..., 0, 0]
        ctx.mark_non_differentiable(max_SA, row_max_SAN)
        return sums_SAFV, max_SA, row_max_SAN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Compute the features once more."""
        with torch.autocast(grad.device.type, enabled=False):
            return *KeySums.gradients(ctx.way, grad, *ctx.saved_tensors), None, None, None

    @staticmethod
    def gradients(
        way: Way,
        grad: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        weights: torch.Tensor,
        projection: torch.Tensor,
        max_SA11: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of key and value."""
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
        for rows in chunks(key, len(projection)):
            weights_S1n1 = weights[:, None, rows, None]
            key_SAnK = key[:, :, rows].to(weights.dtype)
            is_padding_S1n = weights[:, None, rows] == 0
            features_SAnF = way.of(key_features_again)(key_SAnK, is_padding_S1n, projection, max_SA11)
            grad_value[:, :, rows] = way.product(features_SAnF, grad[..., :-1]).mul_(weights_S1n1)
            grad_SAnF = way.product(weighted(value, weights, rows), grad.mT).mul_(features_SAnF)
            grad_key[:, :, rows] = exponents_backward(key_SAnK, grad_SAnF, projection)
        return grad_key, grad_value


def weighted(value: torch.Tensor, weights: torch.Tensor, rows: slice) -> torch.Tensor:
    """Return `w [v, 1]` of some rows, `(S, A, n, K + 1)`."""
    value_SAnK, weights_S1n1 = value[:, :, rows], weights[:, None, rows, None]
    found_SAnV = weights.new_empty((*value_SAnK.shape[:-1], value.shape[-1] + 1))
    found_SAnV[..., :-1] = value_SAnK
    found_SAnV[..., :-1] *= weights_S1n1
    found_SAnV[..., -1:] = weights_S1n1
    return found_SAnV


class Attend(torch.autograd.Function):
    """`phi(q) sums`, its first K columns divided by the last, chunk by chunk; features are never kept.

    Takes query `(S, A, Q, K)`, where S = B, or 1 where the cells share them, sums `(B, A, F, K + 1)` and projection
    `(F, K)`. Returns `(B, A, Q, K)`.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, sums: torch.Tensor, projection: torch.Tensor, way: Way = PLAIN
    ) -> torch.Tensor:
        """Divide chunk by chunk."""
        (S, A, Q, K), B = query.shape, sums.shape[0]
        projection = projection.to(sums.dtype)
        sums_SAFX = side_by_side(sums, S)
        eps_SA1X = FEATURE_EPS * sums_SAFX.sum(-2, keepdim=True)
        out = query.new_empty((B, Q, A, K)).transpose(1, 2)  # in memory (B, Q, A, K), as o_proj reads it
        totals = sums.new_empty((B, A, Q, 1))
        for rows in chunks(query, len(projection)):
            features_SAnF = way.of(query_features)(query[:, :, rows].to(sums.dtype), projection)
            found_BAnV = one_by_one(way.product(features_SAnF, sums_SAFX).add_(eps_SA1X), B)
            totals[:, :, rows] = found_BAnV[..., -1:]
            out[:, :, rows] = found_BAnV[..., :-1] / found_BAnV[..., -1:]
        ctx.way = way
        ctx.save_for_backward(query, sums, projection, out, totals)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the features once more."""
        with torch.autocast(grad.device.type, enabled=False):
            return *Attend.gradients(ctx.way, grad, *ctx.saved_tensors), None, None

    @staticmethod
    def gradients(
        way: Way,
        grad: torch.Tensor,
        query: torch.Tensor,
        sums: torch.Tensor,
        projection: torch.Tensor,
        out: torch.Tensor,
        totals: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of query and sums."""
        S, dtype = query.shape[0], sums.dtype
        sums_SAFX = side_by_side(sums, S)
        grad_sums_SAFX = torch.zeros_like(sums_SAFX)
        grad_query = torch.empty_like(query)
        for rows in chunks(query, len(projection)):
            query_SAnK = query[:, :, rows].to(dtype)
            features_SAnF = way.of(query_features)(query_SAnK, projection)
            grad_BAnK = grad[:, :, rows].to(dtype)
            found = torch.cat([grad_BAnK, -(grad_BAnK * out[:, :, rows]).sum(-1, keepdim=True)], -1)
            found_SAnX = side_by_side(found / totals[:, :, rows], S)
            grad_sums_SAFX += way.product(features_SAnF.mT, found_SAnX)
            grad_sums_SAFX += FEATURE_EPS * found_SAnX.sum(-2, keepdim=True)
            grad_SAnF = way.product(found_SAnX, sums_SAFX.mT).mul_(features_SAnF)
            grad_query[:, :, rows] = exponents_backward(query_SAnK, grad_SAnF, projection)
        return grad_query, one_by_one(grad_sums_SAFX, sums.shape[0])


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
        stabilizer: Stabilizer,
        seed: int,
        backend: Backend = "native",
        products: Products = "float32",
    ):
        super().__init__()
        self.head_dim = head_dim
        self.stabilizer: Stabilizer = stabilizer
        self.backend: Backend = backend
        self.way = Way(is_compiled=backend == "compiled", is_half=products == "bfloat16")
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
        """Return `(B, A, N, K)` for `(B, N, A K)`."""
        return rows.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        queries: torch.Tensor | GeneRows,
        rows: torch.Tensor | GeneRows,
        key_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the attention of queries `(B, Q, E)` to rows `(B, N, E)`, shape `(B, Q, E)`.

        Queries attend to the rows where `key_mask` `(B, N)` is 1; without a mask, and in `GeneRows`, to all rows.
        """
        if self.backend == "performer-pytorch":
            return self.by_performer(queries, rows, key_mask)
        if isinstance(rows, GeneRows):
            rows = rows.map(partial(for_products, self.k_proj))
        else:
            rows = for_products(self.k_proj, rows)
        groups = self.keys(rows, key_mask)
        with torch.autocast(self.projection.device.type, enabled=False):
            sums_BAFV = key_sums(groups, self.projection, self.stabilizer, self.way)
        if isinstance(queries, GeneRows):
            found = self.find(queries.shared.unsqueeze(0), sums_BAFV), self.find(queries.own, sums_BAFV)
            return self.o_proj(queries.written_over(*found))
        return self.o_proj(self.find(queries, sums_BAFV))

    def by_performer(
        self, queries: torch.Tensor | GeneRows, rows: torch.Tensor | GeneRows, key_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the result of `forward` by performer-pytorch, for which `GeneRows` are written out."""
        queries, rows = (part.at() if isinstance(part, GeneRows) else part for part in (queries, rows))
        queries, rows = for_products(self.q_proj, queries), for_products(self.k_proj, rows)
        query_BAQK = self.heads(self.q_proj(queries))
        key_BANK, value_BANK = self.heads(self.k_proj(rows)), self.heads(self.v_proj(rows))
        found_BAQK = performer_attention(query_BAQK, key_BANK, value_BANK, self.projection, key_mask)
        return self.o_proj(found_BAQK.transpose(1, 2).flatten(-2))

    def keys(self, rows: torch.Tensor | GeneRows, key_mask: torch.Tensor | None = None) -> list[Keys]:
        """Return the keys and values of rows.

        Of `GeneRows` there are three groups: every gene as a zero gene, once for all cells; the same rows of the genes
        that are not zero in a cell, with weight -1, which takes them away again; and the cell's own rows.
        """
        if not isinstance(rows, GeneRows):
            weights_BN = torch.ones(rows.shape[:2], device=rows.device) if key_mask is None else key_mask
            return [Keys(self.heads(self.k_proj(rows)), self.heads(self.v_proj(rows)), weights_BN)]
        # In float64, because a difference loses digits where the subtracted key has by far the largest feature.
        keys_PI, values_PI = self.k_proj(rows.shared).double(), self.v_proj(rows.shared).double()
        is_own_BC = rows.positions < len(rows.shared)
        at_BC = rows.positions.clamp(max=len(rows.shared) - 1)
        every_1P, is_zero_BP = torch.ones_like(rows.slots[:1, :-1]), rows.slots[:, :-1] < 0

        def group(keys_BNI: torch.Tensor, values_BNI: torch.Tensor, *counts: torch.Tensor) -> Keys:
            return Keys(self.heads(keys_BNI), self.heads(values_BNI), *counts)

        taken = nn.functional.embedding(at_BC, keys_PI), nn.functional.embedding(at_BC, values_PI)
        return [
            group(keys_PI.unsqueeze(0), values_PI.unsqueeze(0), every_1P, is_zero_BP),
            group(*taken, -is_own_BC.long(), torch.zeros_like(is_own_BC)),
            group(self.k_proj(rows.own), self.v_proj(rows.own), is_own_BC),
        ]

    def find(self, queries: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Return the attention of queries `(S, Q, E)` to the keys in `sums`, shape `(B, Q, A K)`."""
        query_SAQK = self.heads(self.q_proj(for_products(self.q_proj, queries)))
        with torch.autocast(queries.device.type, enabled=False):
            return Attend.apply(query_SAQK, sums, self.projection, self.way).transpose(1, 2).flatten(-2)
