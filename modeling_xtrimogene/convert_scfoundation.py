# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Names of the released scFoundation checkpoint -> ours. All knowledge of the foreign layout lives here.

Source: the released checkpoint's layout. Its weights have a non-commercial licence of their own and are no part of this
package: a user who holds them converts them on their own machine.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from .configuration_xtrimogene import XTrimoGeneConfig

# Reference prefix -> ours, in `XTrimoGeneForPreTraining`.
RENAMED = [
    (r"^token_emb\.mlp\.weight$", "model.embeddings.value_embedding.weight"),
    (r"^token_emb\.mlp\.bias$", "model.embeddings.value_embedding.bias"),
    (r"^token_emb\.mlp2\.", "model.embeddings.value_embedding.mixing."),
    (r"^token_emb\.emb\.weight$", "model.embeddings.value_embedding.bins"),
    (r"^token_emb\.emb_mask\.weight$", "model.embeddings.mask_vector"),
    (r"^token_emb\.emb_pad\.weight$", "model.embeddings.padding_vector"),
    (r"^pos_emb\.", "model.embeddings.gene_embedding."),
    (
        r"^encoder\.transformer_encoder\.(\d+)\.self_attn\.out_proj\.",
        r"model.encoder.layers.\1.self_attn.o_proj.",
    ),
    (r"^encoder\.transformer_encoder\.(\d+)\.linear([12])\.", r"model.encoder.layers.\1.fc\2."),
    (r"^encoder\.transformer_encoder\.(\d+)\.norm([12])\.", r"model.encoder.layers.\1.norm\2."),
    (r"^encoder\.norm\.", "model.encoder.norm."),
    (r"^decoder_embed\.", "model.decoder.input_proj."),
    (r"^decoder\.performer\.net\.layers\.(\d+)\.0\.norm\.", r"model.decoder.layers.\1.norm1."),
    (
        r"^decoder\.performer\.net\.layers\.(\d+)\.0\.fn\.fast_attention\.projection_matrix$",
        r"model.decoder.layers.\1.self_attn.projection",
    ),
    (
        r"^decoder\.performer\.net\.layers\.(\d+)\.0\.fn\.to_([qkv])\.",
        r"model.decoder.layers.\1.self_attn.\2_proj.",
    ),
    (
        r"^decoder\.performer\.net\.layers\.(\d+)\.0\.fn\.to_out\.",
        r"model.decoder.layers.\1.self_attn.o_proj.",
    ),
    (r"^decoder\.performer\.net\.layers\.(\d+)\.1\.norm\.", r"model.decoder.layers.\1.norm2."),
    (r"^decoder\.performer\.net\.layers\.(\d+)\.1\.fn\.fn\.w([12])\.", r"model.decoder.layers.\1.fc\2."),
    (r"^decoder\.norm\.", "model.decoder.norm."),
    (r"^norm\.", "model.decoder.final_norm."),
    (r"^to_final\.", "head."),
]
FUSED = re.compile(r"^encoder\.transformer_encoder\.(\d+)\.self_attn\.in_proj_(weight|bias)$")
# The training step decides when random features are redrawn, so this saved counter has no use.
UNUSED = "decoder.performer.calls_since_last_redraw"
VECTORS = re.compile(r"value_embedding\.weight$|mask_vector$|padding_vector$")


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a scFoundation state dict under the names of `XTrimoGeneForPreTraining`.

    Args:
        state_dict: Tensors under the reference's names, with or without the leading `model.`.

    Raises:
        ValueError: If a name is not one of the reference layout.

    Example:
        >>> import torch
        >>> list(convert_state_dict({"model.to_final.weight": torch.zeros(1, 512)}))
        ['head.weight']
    """
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state_dict.items():
        name = name.removeprefix("model.")
        if name == UNUSED:
            continue
        if match := FUSED.match(name):
            layer, kind = match.groups()
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = rows.clone()
            continue
        new_name = next((re.sub(old, new, name) for old, new in RENAMED if re.match(old, name)), None)
        if new_name is None:
            raise ValueError(f"{name!r} {tuple(tensor.shape)} is not a weight of the scFoundation layout")
        converted[new_name] = tensor.flatten() if VECTORS.search(new_name) else tensor
    return converted


def convert_config(config: Mapping[str, Any], **changes: Any) -> XTrimoGeneConfig:
    """Return our configuration for the flat configuration of a scFoundation entry.

    Args:
        config: The entry's model configuration, with `encoder` and `decoder` parts.
        **changes: Fields to set otherwise, such as `favor_stabilizer="batch"` for strict parity.

    Example:
        >>> encoder = {"hidden_dim": 768, "depth": 12, "heads": 12}
        >>> decoder = {"hidden_dim": 512, "depth": 6, "heads": 8, "dim_head": 64}
        >>> entry = {"encoder": encoder, "decoder": decoder, "seq_len": 19266, "bin_num": 100, "bin_alpha": 1.0}
        >>> config = convert_config(entry)
        >>> config.num_genes, config.hidden_size
        (19264, 768)
    """
    encoder, decoder = config["encoder"], config["decoder"]
    fields = {
        "num_genes": config["seq_len"] - 2,
        "depth_tokens": True,
        "hidden_size": encoder["hidden_dim"],
        "num_hidden_layers": encoder["depth"],
        "num_attention_heads": encoder["heads"],
        "decoder_hidden_size": decoder["hidden_dim"],
        "decoder_num_hidden_layers": decoder["depth"],
        "decoder_num_attention_heads": decoder["heads"],
        "decoder_head_dim": decoder["dim_head"],
        "num_bins": config["bin_num"],
        "bin_alpha": config["bin_alpha"],
        "pooling": "all",
    }
    return XTrimoGeneConfig(**{**fields, **changes})
