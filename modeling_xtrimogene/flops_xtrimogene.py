# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of training on a masked cell, and the FLOP/s that a device reaches: together the share of it that is used.

A multiply-add is two FLOPs, and only matrix products count: norms and activations are below 1 %, and so is the value
embedding, which is left out. Numbers of tokens are integers, or integer tensors with one number for each cell.

Letters: `N` genes in the decoder, `n` genes visible to the encoder, `E` width of the decoder, `A` its heads, `K` width
of a head, `m` random features.
"""

from typing import Any, TypeVar

import torch

from .configuration_xtrimogene import XTrimoGeneConfig

Number = TypeVar("Number", int, torch.Tensor)

TRAINING = 3  # forward + backward, in forwards: the backward makes two products for each one


def transformer_flops(tokens: Number, hidden_size: int, layers: int) -> Number:
    """Count one forward of dense Transformer layers with a feed-forward of four times the width."""
    return layers * (24 * tokens * hidden_size**2 + 4 * tokens**2 * hidden_size)


def encoder_flops(n: Number, hidden_size: int, layers: int) -> Number:
    """Count one forward of xTrimoGene's encoder, a dense Transformer on the `n` visible genes only."""
    return transformer_flops(n, hidden_size, layers)


def step_flops(config: XTrimoGeneConfig, num_seen: Number, num_masked: Number) -> Number:
    """Count forward and backward of one masked cell as this package computes it.

    Below the paper's procedure: queries, feed-forward and head of the decoder's last layer exist for masked genes only.
    (From three cells on, the first layer's zero genes are computed once for the batch, which is not in here.)
    """
    own = num_seen + num_masked
    zeros = config.num_positions if config.decoder_context == "all" else 0  # each gene as if it were zero
    N: Any = zeros or own
    E = config.decoder_hidden_size
    A, K, m = config.decoder_num_attention_heads, config.decoder_head_dim, config.favor_num_features or 0

    def layer(queries: Any) -> Any:
        projections = 4 * (N + queries) * E * A * K  # keys and values; queries and output
        attention = (N + queries) * A * m * (4 * K + 2)  # features, and their products with values and ones
        return projections + attention + 16 * queries * E**2

    embedded = 2 * (zeros + own) * config.hidden_size * E
    decoder = embedded + (config.decoder_num_hidden_layers - 1) * layer(N) + layer(num_masked) + 2 * num_masked * E
    # The backward computes features once more, but their random projection has no gradient: it stays at two forwards.
    return TRAINING * (encoder_flops(num_seen, config.hidden_size, config.num_hidden_layers) + decoder)
