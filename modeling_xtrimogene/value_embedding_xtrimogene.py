# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""From an expression value to a vector: auto-discretisation, and the alternatives of the paper's ablation.

Letters: D width of the encoder, H bins.
Source: arXiv:2311.15156, section 3.2; biases, slope and alpha as in the released scFoundation model.
"""

import torch
from torch import nn

from .configuration_xtrimogene import XTrimoGeneConfig
from .host_xtrimogene import is_at_hand
from .precision_xtrimogene import for_products

LEAKY_SLOPE = 0.1  # released model; the paper gives none


class AutoDiscretization(nn.Module):
    """Embed a value as a mixture of learned vectors: softmax weights over bins, computed from the value.

    Source: arXiv:2311.15156, section 3.2; biases, slope and alpha as released.
    """

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.alpha = config.bin_alpha
        # A vector instead of Linear(1, H): quantisers reject a matrix with one column.
        self.weight = nn.Parameter(torch.empty(config.num_bins))
        self.bias = nn.Parameter(torch.empty(config.num_bins))
        self.mixing = nn.Linear(config.num_bins, config.num_bins)
        self.bins = nn.Parameter(torch.empty(config.num_bins, config.hidden_size))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `(..., D)` for values `(...)`."""
        if not is_at_hand(values.device) or values.requires_grad or torch.compiler.is_compiling():
            return self.mixture(values)
        # A cell has some ten different values, because all genes with the same count have the same value.
        distinct, inverse = values.unique(return_inverse=True)
        return nn.functional.embedding(inverse, self.mixture(distinct))

    def mixture(self, values: torch.Tensor) -> torch.Tensor:
        """Return `(..., D)`, with each value computed on its own."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        values = values.to(dtype)
        scores = nn.functional.leaky_relu(values.unsqueeze(-1) * self.weight + self.bias, LEAKY_SLOPE)  # (..., H)
        scores = self.mixing(for_products(self.mixing, scores)) + self.alpha * scores
        return scores.softmax(-1) @ self.bins.to(dtype)


class RoundedBins(nn.Module):
    """Embed a value as the learned vector of the nearest of equal bins (ablation of the paper)."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.max_value = config.max_value
        self.bins = nn.Parameter(torch.empty(config.num_bins, config.hidden_size))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `(..., D)` for values `(...)`."""
        return self.bins[nearest_bin(values, len(self.bins), self.max_value)]


class LinearValue(nn.Module):
    """Embed a value as a multiple of one learned vector (ablation of the paper)."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `(..., D)` for values `(...)`."""
        return (values.unsqueeze(-1) * self.weight + self.bias).to(
            torch.promote_types(self.weight.dtype, torch.float32)
        )


VALUE_EMBEDDINGS = {"auto_bin": AutoDiscretization, "rounded_bin": RoundedBins, "linear": LinearValue}


def nearest_bin(values: torch.Tensor, num_bins: int, max_value: float) -> torch.Tensor:
    """Return the index of the nearest of `num_bins` points from 0 to `max_value`."""
    return (values * ((num_bins - 1) / max_value)).round().long().clamp(0, num_bins - 1)
