# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Precision of each part of a model that is loaded in bfloat16 or float16.

    float32                          half precision
    embeddings, states between       products of the encoder and decoder layers,
    layers, norms, pooling, heads    softmax attention

Cell embeddings of a tissue have a large common part and small differences, and half precision rounds their sum. So sums
over layers and tokens stay in float32. Products in half precision still move an embedding by some tenths of the spread
of the cells. The shift comes from rounded weights and is nearly the same in all cells, so most cells keep their
neighbours, but distances to embeddings computed in float32 change (`eval/cost/benchmarks/precision.py`).
"""

from time import perf_counter
from typing import Any

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)
# A GPU's products in float64 may take so many times as long as those in float32. Rows of zero genes that cells share
# save the products of all their rows but the cells' own, about one in eight, which are then computed twice.
SLOWEST_FLOAT64 = 4.0
FLOAT64_TIMES: dict[str, float] = {}  # device -> measured time of a product in float64, in those of float32


def for_products(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Return states in the dtype of a layer's weights if that is half precision, else unchanged.

    Under autocast weights are in float32, and torch casts the states. Quantised layers take states of any dtype.
    """
    weight = getattr(layer, "weight", None)
    is_half = isinstance(weight, torch.Tensor) and weight.dtype in HALF
    return states.to(weight.dtype) if is_half else states


def in_float32(head: nn.Module, *states: torch.Tensor) -> Any:
    """Return `head(*states)` in float32, under autocast too.

    A head whose weights are in half precision, after `model.bfloat16()`, computes in half precision.
    """
    dtypes = [part.dtype for part in head.parameters() if part.is_floating_point()]
    dtype = dtypes[0] if dtypes and dtypes[0] in HALF else torch.float32
    with torch.autocast(states[0].device.type, enabled=False):
        return head(*(part.to(dtype) if part.dtype in (*HALF, torch.float32) else part for part in states))


def dtype_of_products(model: nn.Module) -> torch.dtype:
    """Return the dtype in which a model's layers multiply: autocast's dtype, or that of its narrowest weights.

    The weights of quantised layers are integers, and their dtype is the narrowest.
    """
    weights = list(model.parameters())
    device = weights[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    packed = [torch.qint8 for module in model.modules() if hasattr(module, "_packed_params")]
    return min((*packed, *(part.dtype for part in weights)), key=lambda dtype: dtype.itemsize)


def float64_is_fast(device: torch.device) -> bool:
    """Return whether products in float64 are quick enough to take differences in it; a GPU is measured once.

    Consumer GPUs multiply 32 or 64 times as slowly in float64, others twice, and MPS not at all.
    """
    if device.type != "cuda":
        return device.type == "cpu"
    name = str(device)
    if name not in FLOAT64_TIMES:
        if torch.compiler.is_compiling():
            return False
        FLOAT64_TIMES[name] = time_of_product(device, torch.float64) / time_of_product(device, torch.float32)
    return FLOAT64_TIMES[name] <= SLOWEST_FLOAT64


def time_of_product(device: torch.device, dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Return the shortest time of a product of square matrices, in seconds.

    >>> time_of_product(torch.device("cpu"), torch.float32, size=8) > 0
    True
    """
    matrix, times = torch.ones(size, size, device=device, dtype=dtype), []
    wait = torch.get_device_module(device).synchronize
    for _ in range(1 + repeats):  # the first also loads the library
        wait()
        began = perf_counter()
        _ = matrix @ matrix
        wait()
        times.append(perf_counter() - began)
    return min(times[1:])


class LayerNorm(nn.LayerNorm):
    """LayerNorm that computes in float32 even if its weights are in half precision."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(..., D)`."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return nn.functional.layer_norm(states, self.normalized_shape, weight, bias, self.eps)
