# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of training on a masked cell.

A multiply-add is two FLOPs. Only matrix products are counted: norms, activations and the value embedding are below 1 %.
Numbers of tokens are integers, or integer tensors with one number for each cell.

Letters: `N` genes in the decoder, `n` genes visible to the encoder, `E` width of the decoder, `A` its heads, `K` width
of a head, `m` random features.
"""

from typing import Any, TypeVar

import torch

from .configuration_txfm import TxFMConfig
from .configuration_xtrimogene import XTrimoGeneConfig

Number = TypeVar("Number", int, torch.Tensor)

TRAINING = 3  # forward + backward, in forwards: the backward makes two products for each one


def transformer_flops(tokens: Number, hidden_size: int, layers: int) -> Number:
    """Return the FLOPs of one forward of dense Transformer layers with a feed-forward of four times the width.

    >>> transformer_flops(1_000, hidden_size=64, layers=2)
    708608000
    """
    return layers * (24 * tokens * hidden_size**2 + 4 * tokens**2 * hidden_size)


def encoder_flops(n: Number, hidden_size: int, layers: int) -> Number:
    """Return the FLOPs of one forward of xTrimoGene's encoder, a dense Transformer on the `n` visible genes only.

    >>> encoder_flops(1_000, hidden_size=64, layers=2)
    708608000
    """
    return transformer_flops(n, hidden_size, layers)


def criss_cross_flops(config: XTrimoGeneConfig, n: Number) -> Number:
    """Return the FLOPs of one forward of criss-cross layers on the `n` visible genes.

    >>> config = XTrimoGeneConfig.preset("tiny", encoder_attention="criss_cross")
    >>> full = encoder_flops(5_000, config.hidden_size, config.num_hidden_layers)
    >>> round(full / criss_cross_flops(config, 5_000))
    13
    """
    D, C, M = config.hidden_size, config.criss_cross_size, config.criss_cross_latents
    one_way = 4 * n * D**2 + 4 * M * C * D + 4 * n * M * D  # from latents to genes, or back, which the last layer lacks
    layers = config.num_hidden_layers
    return (2 * layers - 1) * one_way + layers * 4 * n * D * config.intermediate_size


def step_flops(config: XTrimoGeneConfig, num_seen: Number, num_masked: Number) -> Number:
    """Return the FLOPs of forward and backward of one masked cell, as this package computes it.

    They are fewer than those of the paper's procedure, because the decoder's last layer computes queries, feed-forward
    and head for masked genes only. Batches of three cells and more need a little less still: the first layer's zero
    genes are computed once for the batch, which this count ignores. An Xpressor is not counted.

    Args:
        config: The configuration of the model.
        num_seen: Visible genes `n`.
        num_masked: Masked genes.

    Example:
        >>> config = XTrimoGeneConfig.preset("tiny")
        >>> step_flops(config, num_seen=1_000, num_masked=400) < step_flops(config, num_seen=2_000, num_masked=400)
        True
    """
    own = num_seen + num_masked
    zeros = config.num_positions if config.decoder_context == "all" else 0  # rows of all genes as zero genes
    N: Any = zeros or own
    E = config.decoder_hidden_size
    A, K, m = config.decoder_num_attention_heads, config.decoder_head_dim, config.favor_num_features or 0

    def layer(queries: Any) -> Any:
        projections = 4 * (N + queries) * E * A * K  # keys and values; queries and output
        attention = (N + queries) * A * m * (4 * K + 2)  # features, and their products with [v, 1]
        return projections + attention + 16 * queries * E**2

    embedded = 2 * (zeros + own) * config.hidden_size * E
    decoder = embedded + (config.decoder_num_hidden_layers - 1) * layer(N) + layer(num_masked) + 2 * num_masked * E
    # The backward computes the features again, but their random projection has no gradient: it costs two forwards.
    if config.encoder_attention == "criss_cross":
        return TRAINING * (criss_cross_flops(config, num_seen) + decoder)
    return TRAINING * (encoder_flops(num_seen, config.hidden_size, config.num_hidden_layers) + decoder)


def reconstruction_flops(config: TxFMConfig, num_seen: Number) -> Number:
    """Return the FLOPs of forward and backward of one cell of TxFM, which is reconstructed from its embedding.

    Args:
        config: The configuration of the model.
        num_seen: Visible genes; the CLS token is counted with them.

    Example:
        >>> config = TxFMConfig.preset("txfm-S")
        >>> round(reconstruction_flops(config, 4_096) / reconstruction_flops(config, 2_048), 1)
        2.9
    """
    encoder = transformer_flops(num_seen + 1, config.hidden_size, config.num_hidden_layers)
    layers = config.decoder_num_hidden_layers
    body = 2 * config.hidden_size**2 * (2 * layers + (layers > 0))
    return TRAINING * (encoder + body + 2 * config.hidden_size * config.num_genes)
