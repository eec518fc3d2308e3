# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""What is computed in which precision where a model is loaded in bfloat16 or float16.

    float32                          half precision
    embeddings, states between       products of the encoder and decoder layers,
    layers, norms, pooling, heads    softmax attention

Cells of a tissue differ by little beside what their embeddings have in common, and half precision rounds the whole. So
what is added up over layers and tokens stays in float32. The products that remain still move an embedding by some
tenths of the spread of the cells, most of it alike in all cells, since it is the weights that are rounded:
neighbours mostly stay, distances to what was measured in float32 do not (`eval/cost/benchmarks/precision.py`).
"""

from typing import Any

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)


def for_products(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Return states in the dtype of a layer's weights if that is half precision, else as they are.

    Under autocast weights are in float32 and torch casts. Quantised layers hold integers, and take what comes.
    """
    weight = getattr(layer, "weight", None)
    is_half = isinstance(weight, torch.Tensor) and weight.dtype in HALF
    return states.to(weight.dtype) if is_half else states


def in_float32(head: nn.Module, *states: torch.Tensor) -> Any:
    """Return `head(*states)` in float32, under autocast too.

    Only a head whose weights are in half precision themselves, after `model.bfloat16()`, computes in that.
    """
    dtypes = [part.dtype for part in head.parameters() if part.is_floating_point()]
    dtype = dtypes[0] if dtypes and dtypes[0] in HALF else torch.float32
    with torch.autocast(states[0].device.type, enabled=False):
        return head(*(part.to(dtype) if part.dtype in (*HALF, torch.float32) else part for part in states))


def dtype_of_products(model: nn.Module) -> torch.dtype:
    """Return what the products of a model's layers are in: autocast's dtype, or that of its narrowest weights.

    Of quantised layers it is that of the integers that their weights are.
    """
    weights = list(model.parameters())
    device = weights[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    packed = [torch.qint8 for module in model.modules() if hasattr(module, "_packed_params")]
    return min((*packed, *(part.dtype for part in weights)), key=lambda dtype: dtype.itemsize)


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose weights may be in half precision, and whose states are not."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(..., D)`."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return nn.functional.layer_norm(states, self.normalized_shape, weight, bias, self.eps)
