# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""What is computed in which precision where a model is loaded in bfloat16 or float16.

    float32                          half precision
    embeddings, states between       products of the encoder and decoder layers,
    layers, norms, pooling, heads    softmax attention

Cells of a tissue differ by a hundredth of their pooled embedding, and half precision rounds by a few thousandths. The
branches of a layer may be rounded so, since what they add is small and the errors of a cell's tokens average out. What
they are added to, and what is made of the sum, may not.
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


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose weights may be in half precision, and whose states are not."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(..., D)`."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return nn.functional.layer_norm(states, self.normalized_shape, weight, bias, self.eps)
