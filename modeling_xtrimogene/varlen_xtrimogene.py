# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Attention within the cells of a packed row, by the quickest way that a device has.

    packed states (1, A, T, K)  -->  varlen     torch's kernel for segments: GPU, half precision
                                     flash      flash-attention, where the user chose it
                                     by cell    one cell after the other: CPU
                                     padded     (B, A, L, K) with a mask: float32 on a GPU, and GPUs without the kernel
                                          |
                                          v
                                     (1, T, A, K)

All ways give the attention of each cell alone; `kernel_for` chooses. The linear layers see packed rows in all of them.

Letters: B cells, L tokens with padding, T tokens without, A heads, K width of a head.
"""

import functools
import inspect
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .packed_xtrimogene import Packing, attention_by_cell
from .precision_xtrimogene import HALF

try:
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None
try:
    from torch.nn.attention import current_flash_attention_impl
except ImportError:  # early versions have one kernel only
    current_flash_attention_impl = None

flash_kernel: Any = torch.ops.aten._flash_attention_forward
VARLEN = "xtrimogene_varlen"  # its name among transformers' attention functions
LEAST_CAPABILITY = (8, 0)  # of GPUs that torch's kernel for segments runs on
LARGEST_HEAD = 192  # wider ones are not trained with dropout on all of these GPUs


def varlen_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each cell of packed states `(1, A, T, K)`; return `(1, T, A, K)`.

    Without a `packing` the states are padded, `(B, A, L, K)`, and attend under `attention_mask`.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    kernel = kernel_for(module, query, dropout)
    if kernel == "by cell":
        is_eager = module.config._attn_implementation == "eager"
        return attention_by_cell(query, key, value, packing.lengths, scaling, dropout, is_eager).transpose(1, 2), None
    if kernel == "flash":
        return by_flash_attention(module, query, key, value, packing, scaling, dropout), None
    if kernel == "varlen":
        return by_varlen(query, key, value, packing, scaling, dropout), None
    return by_padding(query, key, value, packing, scaling, dropout), None


def kernel_for(module: Any, query: torch.Tensor, dropout: float) -> str:
    """Return how to attend within cells: `by cell`, `flash`, `varlen` or `padded`.

    Args:
        module: The attention layer; its configuration names the attention that the user chose.
        query: Queries `(1, A, T, K)`.
        dropout: Share of attention weights to drop.
    """
    if "flash" in module.config._attn_implementation:
        return "flash"
    if query.device.type == "cpu":
        return "by cell"
    return "varlen" if query.shape[2] and has_varlen(query, dropout) else "padded"


def has_varlen(query: torch.Tensor, dropout: float = 0.0) -> bool:
    """Return whether torch's kernel for segments runs here on queries `(1, A, T, K)`, with dropout if so asked."""
    fits = query.dtype in HALF and query.shape[-1] % 8 == 0 and query.shape[-1] <= LARGEST_HEAD
    # What a user may activate in place of torch's own kernel, such as flash-attention 3, has no dropout.
    drops = not dropout or current_flash_attention_impl is None or current_flash_attention_impl() is None
    return (
        varlen_attn is not None
        and fits
        and drops
        and query.device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= LEAST_CAPABILITY
    )


def by_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return `(1, T, A, K)` by torch's kernel for segments of a row."""
    rows = (part[0].transpose(0, 1) for part in (query, key, value))  # (T, A, K)
    segments = packing.starts, packing.starts, packing.longest, packing.longest
    if dropout:
        # `varlen_attn` calls this operator with a dropout of 0. It has a derivative; nested tensors call it as here.
        found_TAK = flash_kernel(*rows, *segments, dropout, False, False, scale=scale)[0]
        return found_TAK.unsqueeze(0)
    # One split of the keys: else a cell's digits would depend on the longest cell beside it.
    known = arguments_of(varlen_attn)  # early versions have neither; their scale is this, K ** -0.5
    options = {name: given for name, given in (("scale", scale), ("num_splits", 1)) if name in known}
    return varlen_attn(*rows, *segments, **options).unsqueeze(0)


@functools.cache
def arguments_of(kernel: Any) -> frozenset[str]:
    """Return the names of a function's arguments."""
    return frozenset(inspect.signature(kernel).parameters)


def by_flash_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """Return `(1, T, A, K)` by the flash-attention that transformers found under the name that the user chose."""
    attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    segments = {"cu_seq_lens_q": packing.starts, "cu_seq_lens_k": packing.starts}
    longest = {"max_length_q": packing.longest, "max_length_k": packing.longest}
    return attend(
        module, query, key, value, None, scaling=scale, dropout=dropout, is_causal=False, **segments, **longest
    )[0]


def by_padding(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scale: float, dropout: float
) -> torch.Tensor:
    """Return `(1, T, A, K)` by fused attention on padded states with a mask; only attention sees the padding."""
    B, L = packing.is_token.shape

    def padded(packed_1ATK: torch.Tensor) -> torch.Tensor:
        rows_TAK = packed_1ATK[0].transpose(0, 1)
        spread = rows_TAK.new_zeros(B * L, *rows_TAK.shape[1:]).index_copy(0, packing.index, rows_TAK)
        return spread.unflatten(0, (B, L)).transpose(1, 2)

    is_key_B11L = None if min(packing.lengths) == L else packing.is_token[:, None, None, :]
    found_BALK = nn.functional.scaled_dot_product_attention(
        padded(query), padded(key), padded(value), is_key_B11L, dropout, scale=scale
    )
    return found_BALK.transpose(1, 2).flatten(0, 1).index_select(0, packing.index).unsqueeze(0)


ALL_ATTENTION_FUNCTIONS.register(VARLEN, varlen_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, sdpa_mask)
