# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of training on a masked cell.

A multiply-add is two FLOPs. Only matrix products are counted: norms, activations, pooling and the value embedding are
below 1 %. So is the adapter of gene embeddings from proteins, unless cells are short.
Numbers of tokens are integers, or integer tensors with one number for each cell.

Letters: `N` genes in the decoder, `n` genes visible to the encoder, `D` width of the encoder, `E` width of the decoder,
`A` its heads, `K` width of a head, `m` random features. Of latents: `K` their number, `Z` their width, `Q` genes that
are decoded from them. Of an anchored model: `Z` width of the embedding, `W` of the network that reconstructs the cell.
"""

from typing import Any, TypeVar

import torch

from .configuration_txfm import TxFMConfig
from .configuration_xtrimogene import XTrimoGeneConfig
from .xpressor_xtrimogene import GENES_IN_TRAINING

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


def favor_layer_flops(config: XTrimoGeneConfig, keys: Any, queries: Any) -> Any:
    """Return the FLOPs of one forward of a layer of the decoder, whose `queries` genes attend to `keys` genes."""
    E, A, K = config.decoder_hidden_size, config.decoder_num_attention_heads, config.decoder_head_dim
    m = config.favor_num_features or 0
    projections = 4 * (keys + queries) * E * A * K  # keys and values; queries and output
    attention = (keys + queries) * A * m * (4 * K + 2)  # features, and their products with [v, 1]
    return projections + attention + 16 * queries * E**2


def read_flops(readers: Any, size: int, rows: Any, row_size: int) -> Any:
    """Return the FLOPs of one forward of the attention of `readers` rows of width `size` to rows of another width.

    >>> read_flops(8, size=64, rows=1_000, row_size=64)
    18563072
    """
    return 4 * readers * size**2 + 4 * rows * row_size * size + 4 * readers * rows * size


def anchor_flops(config: XTrimoGeneConfig | TxFMConfig) -> int:
    """Return the FLOPs of one forward of what an anchored model adds; the bag of genes itself is no matrix product.

    >>> config = XTrimoGeneConfig.preset("tiny")
    >>> anchor_flops(config) < 0.1 * encoder_flops(1_000, config.hidden_size, config.num_hidden_layers)
    True
    """
    Z, W = config.embedding_size, config.anchor_decoder_size
    return 2 * config.encoder_pooled_size * Z + 2 * Z * W + 4 * W**2 + 2 * (W + Z) * config.num_genes


def latent_flops(config: XTrimoGeneConfig, n: Number, num_expressed: Number) -> Number:
    """Return the FLOPs of one forward of an Xpressor and of the genes that a training step decodes from its latents.

    Args:
        config: The configuration, with latents.
        n: Visible genes, which the latents read.
        num_expressed: Expressed genes of the cell, visible or masked.

    Example:
        >>> config = XTrimoGeneConfig.preset("tiny", num_latents=8)
        >>> latent_flops(config, 1_000, 1_400) < latent_flops(config, 1_000, 2_000)
        False
    """
    K, Z, D, E = config.num_latents, config.latent_size or 0, config.hidden_size, config.decoder_hidden_size
    read = config.xpressor_layers * (read_flops(K, Z, n, D) + read_flops(K, Z, K, Z) + 16 * K * Z**2)
    read = read + {"none": 0, "gaussian": 4, "fsq": 2}[config.latent_bottleneck] * K * Z**2
    if config.xpressor_decoder == "cross_only":
        taken = clamped(num_expressed, GENES_IN_TRAINING // 2)
        Q: Any = taken + clamped(config.num_genes - num_expressed, taken)
    else:
        Q = min(config.num_genes, GENES_IN_TRAINING)
    size = D if config.xpressor_decoder == "shared" else E
    if config.xpressor_decoder == "shared":
        layers = config.num_hidden_layers * read_flops(Q, D, K, Z) + encoder_flops(Q, D, config.num_hidden_layers)
    else:
        of_layer = favor_layer_flops(config, Q, Q) if config.xpressor_decoder == "decoder" else 16 * Q * E**2
        layers = 2 * Q * D * E + config.decoder_num_hidden_layers * (read_flops(Q, E, K, Z) + of_layer)
    return (
        read + layers + 2 * K * Z * size + 4 * Q * size
    )  # the direction; the head, and the product with the direction


def clamped(number: Any, most: Any) -> Any:
    """Return the smaller of two numbers, for integers and for tensors."""
    if isinstance(number, torch.Tensor):
        return number.clamp(max=most)
    return min(number, most)


def step_flops(
    config: XTrimoGeneConfig, num_seen: Number, num_masked: Number, num_expressed: Number | None = None
) -> Number:
    """Return the FLOPs of forward and backward of one masked cell, as this package computes it.

    They are fewer than those of the paper's procedure, because the decoder's last layer computes queries, feed-forward
    and head for masked genes only. Batches of three cells and more need a little less still: the first layer's zero
    genes are computed once for the batch, which this count ignores.

    Args:
        config: The configuration of the model.
        num_seen: Visible genes `n`.
        num_masked: Masked genes.
        num_expressed: Expressed genes, visible or masked: as many are decoded from latents, and as many others. All
            masked genes are expressed unless given.

    Example:
        >>> config = XTrimoGeneConfig.preset("tiny")
        >>> step_flops(config, num_seen=1_000, num_masked=400) < step_flops(config, num_seen=2_000, num_masked=400)
        True
    """
    own = num_seen + num_masked
    zeros = config.num_positions if config.decoder_context == "all" else 0  # rows of all genes as zero genes
    N: Any = zeros or own
    D, E = config.hidden_size, config.decoder_hidden_size
    forward: Any = 2 * (zeros + own) * D * E
    forward = forward + (config.decoder_num_hidden_layers - 1) * favor_layer_flops(config, N, N)
    forward = forward + favor_layer_flops(config, N, num_masked) + 2 * num_masked * E
    # The backward computes the features again, but their random projection has no gradient: it costs two forwards.
    if config.encoder_attention == "criss_cross":
        forward = forward + criss_cross_flops(config, num_seen)
    else:
        forward = forward + encoder_flops(num_seen, D, config.num_hidden_layers)
    if config.anchored:
        forward = forward + anchor_flops(config)
    if config.num_latents:
        forward = forward + latent_flops(config, num_seen, own if num_expressed is None else num_expressed)
    # Which batch a cell is of is inferred without gradients.
    inferred = 6 * config.num_batches * config.num_genes if config.anchored else 0
    return TRAINING * forward + inferred


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
    if config.anchored:
        return TRAINING * (encoder + anchor_flops(config))
    layers = config.decoder_num_hidden_layers
    body = 2 * config.hidden_size**2 * (2 * layers + (layers > 0))
    return TRAINING * (encoder + body + 2 * config.hidden_size * config.num_genes)
