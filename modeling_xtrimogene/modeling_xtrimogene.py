# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""xTrimoGene: a masked autoencoder whose encoder sees only the expressed genes of a cell.

    input_ids, values (B, L)      expressed, unmasked genes of each cell (and T, S)
        |  value embedding + gene embedding
        v
    hidden_states (B, L, D)  -->  encoder: full attention  -->  pooling  -->  cell embedding (B, D)
        |  scattered to its genes; masked genes get the mask vector, all others the value 0
        v
    (B, P, E)                -->  decoder: FAVOR+ attention over all genes  -->  gene embeddings, predicted values

Letters: B cells, L tokens, M masked genes, P decoder positions (genes, T, S), Q positions asked for, D width of the
encoder, E width of the decoder, A heads, K width of a head, H bins, C classes.

Source: arXiv:2311.15156, section 3; the released scFoundation code for what the paper leaves open. Departures: masks
are explicit instead of special values, and a cell's output does not depend on its batch (`favor_stabilizer`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .anchor_xtrimogene import BagOfGenes, ReconstructsCells, ValueDecoder
from .attention_xtrimogene import XTrimoGeneAttention, XTrimoGeneEncoderLayer, in_parts
from .configuration_xtrimogene import XTrimoGeneConfig
from .criss_cross_xtrimogene import CrissCrossEncoder, CrissCrossLayer
from .favor_xtrimogene import FavorAttention
from .gene_rows_xtrimogene import GeneRows, decoder_rows, gather_rows
from .heads_xtrimogene import ZeroLinear
from .packed_xtrimogene import Packing, told_lengths, with_padded_states
from .precision_xtrimogene import LayerNorm, float64_is_fast, for_products, in_float32
from .pretrained_xtrimogene import IGNORED, CellPreTrainedModel, ClassifiesCells, check_masked
from .protein_xtrimogene import ProteinEmbedding
from .value_embedding_xtrimogene import VALUE_EMBEDDINGS, AutoDiscretization, LinearValue, RoundedBins, nearest_bin
from .xpressor_xtrimogene import LatentDecoder, WholeCells, Xpressor, check_gene_ids, energy_distance, latent_loss

MASK_VALUE, PADDING_VALUE = 102, 103  # released model; used under config.sentinel_values only
CELLS_THAT_SHARE = 3  # from so many cells on, it is quicker to compute zero genes once for all, with differences
WITHOUT_DECODER = {"XTrimoGeneForSequenceClassification", "XTrimoGeneForDrugSynergy"}
OWN_CLASSES = frozenset(
    {*WITHOUT_DECODER, "XTrimoGeneModel", "XTrimoGeneForPreTraining", "XTrimoGeneForPerturbationPrediction"}
)
AUTO_MAP = {
    "AutoConfig": "configuration_xtrimogene.XTrimoGeneConfig",
    "AutoModel": "modeling_xtrimogene.XTrimoGeneModel",
    "AutoModelForPreTraining": "modeling_xtrimogene.XTrimoGeneForPreTraining",
    "AutoModelForSequenceClassification": "modeling_xtrimogene.XTrimoGeneForSequenceClassification",
}


@dataclass
class XTrimoGeneModelOutput(BaseModelOutputWithPooling):
    """Output of `XTrimoGeneModel`: that of other models of transformers, and the latents of an Xpressor.

    Args:
        latents: Latents, `(B, K, Z)`; None in a model without.
        latent_kl: Divergence of Gaussian latents from a standard normal distribution, in nats, `(B,)`; else None.
    """

    latents: torch.Tensor | None = None
    latent_kl: torch.Tensor | None = None


@dataclass
class XTrimoGeneForPreTrainingOutput(ModelOutput):
    """Output of `XTrimoGeneForPreTraining`.

    Args:
        loss: Mean squared error (or cross-entropy) over the masked genes, a scalar; with latents, their loss is added
            (`latent_loss`).
        logits: Predicted values, `log1p` of counts per 10,000. Shape `(B, M)` at `masked_ids`, else `(B, G)`.
        hidden_states: Encoder states, `num_hidden_layers + 1` of shape `(B, L, D)`, if asked for.
        attentions: Encoder attention, `num_hidden_layers` of shape `(B, A, L, L)`, if asked for.
        latents: Latents of the Xpressor, `(B, K, Z)`; None in a model without.
        cell_embedding: Cell embedding by `config.pooling`, in a model with latents.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    latents: torch.Tensor | None = None
    cell_embedding: torch.Tensor | None = None


class XTrimoGeneEmbeddings(nn.Module):
    """Gene embedding + value embedding of a token; encoder and decoder share them."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.gene_embedding: nn.Embedding | ProteinEmbedding = (
            ProteinEmbedding(config) if config.protein_size else nn.Embedding(config.vocab_size, config.hidden_size)
        )
        self.value_embedding = VALUE_EMBEDDINGS[config.value_embedding](config)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size))
        self.padding_vector = nn.Parameter(torch.empty(config.hidden_size))

    def forward(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        is_masked: torch.Tensor | None = None,
        is_padding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return `(B, L, D)`; masked and padded tokens get a learned vector instead of a value embedding."""
        value_BLD = self.value_embedding(values)
        if torch.is_grad_enabled():
            # 0, so that the vectors of masks and padding have a gradient where a batch or a model uses none of them:
            # processes that train together wait for the gradient of every weight.
            value_BLD = value_BLD + 0 * (self.mask_vector + self.padding_vector)
        if is_masked is not None:
            value_BLD = torch.where(is_masked.unsqueeze(-1), self.mask_vector, value_BLD)
        if is_padding is not None:
            value_BLD = torch.where(is_padding.unsqueeze(-1), self.padding_vector, value_BLD)
        genes_BLD = self.gene_embedding(input_ids)
        return value_BLD + genes_BLD.to(torch.promote_types(genes_BLD.dtype, torch.float32))


class XTrimoGeneEncoder(nn.Module):
    """Encoder layers, then a LayerNorm."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.layers = nn.ModuleList([XTrimoGeneEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Return `(B, L, D)`."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return self.norm(hidden_states)


ENCODERS: dict[str, type[XTrimoGeneEncoder] | type[CrissCrossEncoder]] = {
    "full": XTrimoGeneEncoder, "criss_cross": CrissCrossEncoder
}  # fmt: skip


class XTrimoGeneDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm Performer layer with GELU and no dropout."""

    def __init__(self, config: XTrimoGeneConfig, layer_idx: int):
        super().__init__()
        self.norm1 = LayerNorm(config.decoder_hidden_size, config.layer_norm_eps)
        self.self_attn = FavorAttention(
            config.decoder_hidden_size,
            config.decoder_num_attention_heads,
            config.decoder_head_dim,
            config.favor_num_features,
            config.favor_stabilizer,
            seed=config.favor_seed + layer_idx,
            backend=config.favor_backend,
            products=config.favor_products,
        )
        self.norm2 = LayerNorm(config.decoder_hidden_size, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.decoder_hidden_size, config.decoder_intermediate_size)
        self.fc2 = nn.Linear(config.decoder_intermediate_size, config.decoder_hidden_size)

    def forward(
        self,
        rows: torch.Tensor,
        positions: torch.Tensor | None = None,
        *own: torch.Tensor,
        key_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return `(B, N, E)` for all rows, or `(B, Q, E)` for the rows at positions `(B, Q)`.

        `rows` are `(B, N, E)`, and queries attend to those where `key_mask` `(B, N)` is 1. Or `rows` is the field
        `shared` of a `GeneRows` and `own` are its other fields: gradient checkpointing needs tensors as arguments.
        """
        if own:
            gene_rows = GeneRows(rows, *own)
            hidden_states, normed_rows = gene_rows.at(positions), gene_rows.map(self.norm1)
            queries = normed_rows if positions is None else normed_rows.at(positions)
        else:
            hidden_states, normed_rows = gather_rows(rows, positions), self.norm1(rows)
            queries = gather_rows(normed_rows, positions)
        return in_parts(self.with_feed_forward, hidden_states + self.self_attn(queries, normed_rows, key_mask))

    def with_feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return rows with the feed-forward branch added."""
        wide_states = self.fc1(for_products(self.fc1, self.norm2(hidden_states)))
        if not self.training:
            return hidden_states + self.project(wide_states)
        # To save memory, the backward pass keeps the input of the GELU and computes its output again.
        return hidden_states + checkpoint(self.project, wide_states, use_reentrant=False)

    def project(self, wide_states: torch.Tensor) -> torch.Tensor:
        """Return the second half of the feed-forward branch."""
        return self.fc2(nn.functional.gelu(wide_states))


class XTrimoGeneDecoder(nn.Module):
    """Performer over all genes, or over those that are not zero (`config.decoder_context`)."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        config.validate_favor_backend()  # `from_pretrained` sets fields without asking
        self.input_proj = nn.Linear(config.hidden_size, config.decoder_hidden_size)
        self.layers = nn.ModuleList(
            [XTrimoGeneDecoderLayer(config, index) for index in range(config.decoder_num_hidden_layers)]
        )
        # The released model has two norms in a row.
        self.norm = LayerNorm(config.decoder_hidden_size, config.layer_norm_eps)
        self.final_norm = LayerNorm(config.decoder_hidden_size, config.layer_norm_eps)

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Project rows of the encoder's width `(..., D)` to the decoder's, `(..., E)`."""
        narrow = self.input_proj(for_products(self.input_proj, rows))
        # Under autocast the rows of all genes are kept in half precision, because float32 would take twice the memory.
        is_trained = torch.is_grad_enabled() and torch.is_autocast_enabled(rows.device.type)
        return narrow if is_trained else narrow.to(rows.dtype)

    def forward(
        self,
        rows: GeneRows | torch.Tensor,
        positions: torch.Tensor | None = None,
        key_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return `(B, P, E)` for the rows of all genes, or `(B, Q, E)` at the given positions `(B, Q)`.

        Queries attend to all rows of `GeneRows`, or to the rows of a tensor `(B, N, E)` where `key_mask` `(B, N)` is 1.
        """
        own: tuple[torch.Tensor, ...] = ()
        if isinstance(rows, torch.Tensor):
            hidden_states = rows
        elif (
            torch.compiler.is_exporting()  # an exported batch has no bound
            or rows.own.shape[0] < CELLS_THAT_SHARE
            or not float64_is_fast(rows.own.device)
        ):
            hidden_states = rows.at()
        else:
            hidden_states, own = rows.shared, (rows.own, rows.positions, rows.slots)
        for layer in self.layers[:-1]:
            hidden_states, own = layer(hidden_states, None, *own, key_mask=key_mask), ()
        # The last layer computes only the rows asked for.
        hidden_states = self.layers[-1](hidden_states, positions, *own, key_mask=key_mask)
        return self.final_norm(self.norm(hidden_states))


class XTrimoGenePreTrainedModel(CellPreTrainedModel):
    """Base class of all xTrimoGene models: configuration and initial values."""

    config: XTrimoGeneConfig
    auto_map = AUTO_MAP
    own_classes = OWN_CLASSES
    _no_split_modules = [
        "XTrimoGeneEncoderLayer", "XTrimoGeneDecoderLayer", "CrissCrossLayer", "CrossAttentionLayer", "ReadLatents"
    ]  # fmt: skip
    # Modules, weights and buffers that stay in float32 when a model is loaded in half precision.
    _keep_in_fp32_modules_strict = [
        "embeddings", r"(?:\w+_)?norm\d?", "input_proj", "head", "classifier", "synergy", "bag", "cell_decoder",
        "latents", "projection", "bottleneck", "direction", "gene_bias",
    ]  # fmt: skip
    _can_record_outputs = {
        "hidden_states": [OutputRecorder(XTrimoGeneEncoderLayer, index=0), OutputRecorder(CrissCrossLayer, index=0)],
        "attentions": OutputRecorder(XTrimoGeneAttention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set initial values.

        | what | value |
        |---|---|
        | gene table, mask and padding vector, bins | normal, std `initializer_range` |
        | components of genes in the bag of genes (training sets them) | normal, std `initializer_range` |
        | weights of linear layers | uniform, Glorot |
        | mean of a classifier's features (training sets it) | 0 |
        | standard deviation of a classifier's features (training sets it) | 1 |
        | a classifier's anchor (training sets it), and the last layer of the head that is added to it | 0 |
        | bag of genes: bias and offsets of values (training sets them), the encoder's part | 0 |
        | bag of genes: slopes of values (training sets them) | 1 |
        | biases of batches, and whether a batch expresses a gene (training sets them) | 0, true |
        | biases of linear layers and of the linear value embedding | 0 |
        | weights of norms | 1 |
        | auto-discretisation: value -> bins | uniform in +-1 |
        | auto-discretisation: mixing | uniform in +-1/sqrt(H) |
        | FAVOR+ features | orthogonal, from `favor_seed` + layer |
        | latents, of the Xpressor and of criss-cross attention | normal, std 1 |
        | output of the attention to latents that is put before trained layers | 0 |
        | table of protein embeddings (`set_proteins` sets it) | 0 |
        | last layer of the decoder of latents, and a gene's bias in it (pre-training sets that) | 0 |
        """
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # The sources do not give the initial weights. With these, states differ more from cell to cell than with
            # normal weights: 12 epochs on 700 blood cells gave a Pearson of 0.611 instead of 0.570.
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        if isinstance(module, AutoDiscretization):
            # With `initializer_range` all values would get nearly the same weights of the bins.
            init.uniform_(module.weight, -1.0, 1.0)
            init.uniform_(module.bias, -1.0, 1.0)
            init.uniform_(module.mixing.weight, -(module.mixing.in_features**-0.5), module.mixing.in_features**-0.5)
            init.normal_(module.bins, std=self.config.initializer_range)
        elif isinstance(module, RoundedBins):
            init.normal_(module.bins, std=self.config.initializer_range)
        elif isinstance(module, LinearValue):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, XTrimoGeneEmbeddings):
            init.normal_(module.mask_vector, std=self.config.initializer_range)
            init.normal_(module.padding_vector, std=self.config.initializer_range)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, FavorAttention):
            init.copy_(module.projection, module.drawn_projection())
        elif isinstance(module, (Xpressor, CrissCrossEncoder)):
            init.normal_(module.latents)
        elif isinstance(module, LatentDecoder):
            init.zeros_(module.gene_bias)
        elif isinstance(module, ProteinEmbedding):
            init.zeros_(module.proteins)

    def redraw_projections(self, number: int) -> None:
        """Replace the random features of every decoder layer by their draw `number`, in place.

        The draw depends on `favor_seed`, the layer and the number only, so processes and resumed runs agree.
        """
        for module in self.modules():
            if isinstance(module, FavorAttention):
                module.projection.copy_(module.drawn_projection(number))


class XTrimoGeneModel(XTrimoGenePreTrainedModel):
    """Encoder with cell embeddings, and the decoder that gives gene embeddings.

    Args:
        config: The configuration.
        add_decoder: Whether to build the decoder. Unless given, it is built except for checkpoints of classifiers and
            of drug synergy, which hold no weights of it.
    """

    # Checkpoints of the other models hold these heads beside the weights of this model.
    _keys_to_ignore_on_load_unexpected = [
        r"^head\.", r"^cell_decoder\.", r"^latent_decoder\.", r"^classifier\.", r"^synergy\."
    ]  # fmt: skip

    def __init__(self, config: XTrimoGeneConfig, add_decoder: bool | None = None):
        super().__init__(config)
        self.embeddings = XTrimoGeneEmbeddings(config)
        self.encoder = ENCODERS[config.encoder_attention](config)
        self.xpressor = Xpressor(config) if config.num_latents else None
        self.bag = BagOfGenes(config) if config.anchored else None
        if add_decoder is None:
            add_decoder = not WITHOUT_DECODER.intersection(config.architectures or ())
        self.decoder = XTrimoGeneDecoder(config) if add_decoder else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding | ProteinEmbedding:
        """Return the gene table, `(vocab_size, D)`."""
        return self.embeddings.gene_embedding

    def set_input_embeddings(self, value: nn.Embedding | ProteinEmbedding) -> None:
        """Replace the gene table."""
        self.embeddings.gene_embedding = value

    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> XTrimoGeneModelOutput | tuple[Any, ...]:
        """Encode the expressed genes of each cell.

        Args:
            input_ids: Ids of the expressed, unmasked genes, then T and S where the model has them. Shape `(B, L)`.
            values: Their expression, `log1p` of counts per 10,000 (not counts); T and S as log10 of a total count.
                Shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            lengths: Tokens of each cell, B numbers of the host: without them it waits for a GPU to count (`CellBatch`).
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention) and `return_dict`.

        Returns:
            `last_hidden_state` `(B, L, D)`, 0 for padding, and `pooler_output`, the cell embedding: `(B, D)`, with
            `pooling="all"` `(B, 2 D)` or `(B, 4 D)`, anchored `(B, embedding_size)`. The embedding of a cell without a
            token is NaN. A model with an Xpressor also gives `latents` `(B, K, Z)`.

        Raises:
            ValueError: If the shapes of the inputs differ, or attention is asked for that is no map of genes by genes.

        Source: arXiv:2311.15156, section 3.2.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
            >>> model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=50)).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
            >>> model(input_ids, values).pooler_output.shape
            torch.Size([1, 64])
        """
        if input_ids.shape != values.shape:
            raise ValueError(
                f"input_ids {tuple(input_ids.shape)} and values {tuple(values.shape)} differ in shape: "
                f"both come from the tokenizer, one value for each gene"
            )
        is_token_BL = self.is_token(input_ids, attention_mask)
        given = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if given is None else given
        lengths = told_lengths(is_token_BL, lengths)
        output = self.encode(input_ids, values, is_token_BL, lengths, **kwargs, return_dict=True)
        output = with_padded_states(output, is_token_BL)
        return output if return_dict else output.to_tuple()

    @capture_outputs
    def encode(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        is_token: torch.Tensor,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> XTrimoGeneModelOutput:
        """Return the output for tokens `(B, L)`; states of all layers are packed if the batch was packed."""
        is_masked_BL, is_padding_BL = None, ~is_token
        if self.config.sentinel_values:
            is_masked_BL, is_padding_BL = values == MASK_VALUE, is_padding_BL | (values == PADDING_VALUE)
        if self.packs(input_ids.device, **kwargs):
            packing = Packing.of(is_token, lengths)
            packed_1TD = self.embeddings(packing.pack(input_ids), packing.pack(values))
            packed_1TD = self.encoder(packed_1TD, packing=packing, **kwargs)
            hidden_BLD = packing.unpack(packed_1TD, input_ids.shape[1])
            return self.with_pooled(hidden_BLD, input_ids, values, is_token)
        hidden_BLD = self.embeddings(input_ids, values, is_masked_BL, is_padding_BL)

        # A cell without tokens attends to its padding; else its NaN would reach the gradients of the other cells.
        is_key_BL = ~is_padding_BL | ~is_token.any(1, keepdim=True)
        mask = is_key_BL
        if self.config.encoder_attention == "full":
            mask = create_bidirectional_mask(self.config, inputs_embeds=hidden_BLD, attention_mask=is_key_BL)
        hidden_BLD = self.encoder(hidden_BLD, mask, **kwargs)
        if not self.looks_at_padding:
            hidden_BLD = hidden_BLD.masked_fill(~is_token.unsqueeze(-1), 0)
        return self.with_pooled(hidden_BLD, input_ids, values, is_token)

    @property
    def looks_at_padding(self) -> bool:
        """Whether states of padding reach the outputs, as in the released code."""
        return self.config.sentinel_values or self.config.pool_includes_padding

    def packs(self, device: torch.device, **kwargs: Any) -> bool:
        """Return whether to compute without padding, which states of padding and of all layers, and attention, need."""
        is_plain = self.config.encoder_attention == "full" and not self.looks_at_padding
        return is_plain and super().packs(device, **kwargs)

    def with_pooled(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor, values: torch.Tensor, is_token: torch.Tensor
    ) -> XTrimoGeneModelOutput:
        """Return states, the latents that read them, and the cell embeddings: pooled from either, added to the bag."""
        latents_BKZ, kl_B = (None, None) if self.xpressor is None else self.xpressor(hidden_states, is_token)
        if self.config.pooling == "xpressor":
            pooled = latents_BKZ.flatten(1).masked_fill(~is_token.any(1, keepdim=True), torch.nan)
        else:
            pooled = self.pool(hidden_states, input_ids, is_token)
        if self.bag is not None:
            pooled = in_float32(self.bag, input_ids, values, is_token, pooled)
        return XTrimoGeneModelOutput(hidden_states, pooled, latents=latents_BKZ, latent_kl=kl_B)

    def pool(self, hidden_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return cell embeddings pooled by `config.pooling`, `(B, D)` or for `all` `(B, 4 D)`; NaN without tokens.

        Source: the released scFoundation inference code.
        """
        config = self.config
        hidden_states = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        is_token_BL = attention_mask.bool()
        is_gene_BL = is_token_BL & (input_ids < config.num_genes)

        def maximum(is_counted_BL: torch.Tensor) -> torch.Tensor:
            return hidden_states.masked_fill(~is_counted_BL.unsqueeze(-1), -torch.inf).amax(1)

        def mean(is_counted_BL: torch.Tensor) -> torch.Tensor:
            counted_BL = is_counted_BL.to(hidden_states.dtype)
            weights_BL = counted_BL / counted_BL.sum(1, keepdim=True)
            with torch.autocast(hidden_states.device.type, enabled=False):
                return torch.einsum("bl,bld->bd", weights_BL, hidden_states)

        if config.pooling == "max":
            pooled = maximum(torch.ones_like(is_token_BL) if config.pool_includes_padding else is_token_BL)
        elif config.pooling == "mean":
            pooled = mean(is_gene_BL)
        else:
            depth = {"S": config.source_token_id, "T": config.target_token_id} if config.depth_tokens else {}
            at = {name: mean(is_token_BL & (input_ids == token)) for name, token in depth.items()}
            if config.pooling == "all":
                pooled = torch.cat([*at.values(), maximum(is_gene_BL), mean(is_gene_BL)], dim=-1)
            else:
                pooled = at[config.pooling]
        return pooled.masked_fill(~is_token_BL.any(1, keepdim=True), torch.nan)

    def decode(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        masked_ids: torch.Tensor | None = None,
        masked_values: torch.Tensor | None = None,
        is_hidden: torch.Tensor | None = None,
        positions: torch.Tensor | Literal["masked"] | None = None,
    ) -> torch.Tensor:
        """Decode all genes from the encoder's states of the visible ones.

        Args:
            hidden_states: Encoder outputs, shape `(B, L, D)`.
            input_ids: Ids of the same genes, shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            masked_ids: Genes withheld from the encoder, padded with `pad_token_id`, shape `(B, M)`. Genes in neither
                list are zero.
            masked_values: Values of the masked genes that are not hidden, random or unchanged ones. Shape `(B, M)`.
            is_hidden: 1 = the decoder sees the mask vector, 0 = it sees `masked_values`, shape `(B, M)`; all hidden
                unless given.
            positions: Ids to return, shape `(B, Q)`, or `masked` for `masked_ids`; all unless given.

        Returns:
            Contextual gene embeddings, shape `(B, P, E)` or `(B, Q, E)`; position = id.

        Raises:
            ValueError: If this model was built without a decoder.

        Source: arXiv:2311.15156, section 3.3; visible genes overwrite their position, as released.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
            >>> model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=50)).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
            >>> encoded = model(input_ids, values)
            >>> model.decode(encoded.last_hidden_state, input_ids).shape
            torch.Size([1, 50, 64])
        """
        if self.decoder is None:
            raise ValueError(
                f"{type(self).__name__} was built without a decoder: load the checkpoint with AutoModel or "
                f"AutoModelForPreTraining for gene embeddings and reconstruction"
            )
        num_positions = self.config.num_positions
        zero_1 = torch.zeros(1, device=input_ids.device)  # the value of all zero genes
        groups = []
        if masked_ids is not None:
            hidden_BM = torch.ones_like(masked_ids, dtype=torch.bool) if is_hidden is None else is_hidden.bool()
            shown_BM = torch.zeros_like(masked_ids, dtype=zero_1.dtype) if masked_values is None else masked_values
            masked_BMD = self.embeddings(masked_ids, shown_BM, is_masked=hidden_BM)
            groups.append((masked_ids.clamp(max=num_positions), self.decoder.project(masked_BMD)))
        visible_ids_BL = input_ids.masked_fill(~self.is_token(input_ids, attention_mask), num_positions)
        # The gene embedding is added a second time here, as released.
        visible_BLD = hidden_states + self.embeddings.gene_embedding(input_ids)
        groups.append((visible_ids_BL, self.decoder.project(visible_BLD)))

        if self.config.decoder_context == "all":
            all_ids_P = torch.arange(num_positions, device=input_ids.device)
            shared_PE = self.decoder.project(self.embeddings(all_ids_P, zero_1))
            asked_BQ = masked_ids.clamp(max=num_positions - 1) if positions == "masked" else positions
            return self.decoder(GeneRows.build(shared_PE, groups), asked_BQ)
        if positions == "masked":
            return self.decode_nonzero(groups, masked_ids)
        if positions is None:
            positions = torch.arange(num_positions, device=input_ids.device).expand(input_ids.shape[0], -1)
        zeros_BQE = self.decoder.project(self.embeddings(positions, zero_1))
        return self.decode_nonzero([(positions, zeros_BQE), *groups], positions, positions.shape[1])

    def decode_nonzero(
        self, groups: list[tuple[torch.Tensor, torch.Tensor]], positions: torch.Tensor, num_zero: int = 0
    ) -> torch.Tensor:
        """Decode with the genes that are not zero as context; return rows `(B, Q, E)` at `positions` `(B, Q)`.

        Zero genes have a row only if they are asked for, and no gene attends to them.

        Args:
            groups: Ids `(B, c)` and rows `(B, c, E)`; the first group holds those asked for. A later group may hold a
                gene again, and its row is taken then.
            positions: Ids to return.
            num_zero: How many rows of the first group are of zero genes.
        """
        num_positions = self.config.num_positions
        row_ids_BC, slots_BP = decoder_rows([ids for ids, _ in groups], num_positions)
        is_key_BC = row_ids_BC < num_positions
        is_key_BC[:, :num_zero].fill_(False)
        rows_BCE = torch.cat([rows for _, rows in groups], dim=1)
        # Padding is in no other group and keeps its place.
        place_Q = torch.arange(positions.shape[1], device=positions.device)
        slots_BQ = torch.where(positions < num_positions, slots_BP.gather(1, positions), place_Q)
        return self.decoder(rows_BCE, slots_BQ, is_key_BC)

    def contextual_gene_embeddings(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        gene_ids: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Return gene embeddings in the context of each cell: `(B, G, E)`, or `(B, Q, E)` for `gene_ids` `(Q,)`.

        Args:
            input_ids: Ids of the expressed, unmasked genes, then T and S where the model has them. Shape `(B, L)`.
            values: Their expression, `log1p` of counts per 10,000; T and S as log10 of a total count. Shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            gene_ids: Genes to embed, shape `(Q,)`; all unless given.
            lengths: Tokens of each cell, B numbers of the host, as of `forward`.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
            >>> model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=50)).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
            >>> model.contextual_gene_embeddings(input_ids, values, gene_ids=torch.tensor([0, 7])).shape
            torch.Size([1, 2, 64])
        """
        hidden_BLD = self(input_ids, values, attention_mask, lengths, return_dict=True).last_hidden_state
        if gene_ids is None:
            return self.decode(hidden_BLD, input_ids, attention_mask)[:, : self.config.num_genes]
        positions_BQ = gene_ids.unsqueeze(0).expand(input_ids.shape[0], -1)
        return self.decode(hidden_BLD, input_ids, attention_mask, positions=positions_BQ)

    def static_gene_embeddings(self) -> torch.Tensor:
        """Return the gene embeddings `(G, D)` without context, the same in every cell; row = gene id.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
            >>> XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=50)).static_gene_embeddings().shape
            torch.Size([50, 64])
        """
        return self.embeddings.gene_embedding.weight[: self.config.num_genes]


class XTrimoGeneForPreTraining(ReconstructsCells, XTrimoGenePreTrainedModel):
    """Masked autoencoder: predict the values of the masked genes."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__(config)
        self.model = XTrimoGeneModel(config, add_decoder=True)
        outputs = 1 if config.objective == "regression" else config.num_value_classes
        self.head = (ZeroLinear if config.anchored else nn.Linear)(config.decoder_hidden_size, outputs)
        self.cell_decoder = ValueDecoder(config) if config.anchored else None
        self.latent_decoder = LatentDecoder(config) if config.num_latents else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        masked_ids: torch.Tensor | None = None,
        masked_values: torch.Tensor | None = None,
        is_hidden: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        measured: torch.Tensor | None = None,
        batch_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> XTrimoGeneForPreTrainingOutput:
        """Predict the values of the masked genes, or of all genes without `masked_ids`.

        A model with an Xpressor also learns to reconstruct the cell from its latents, if there are labels.

        Args:
            input_ids: Ids of the expressed, unmasked genes, then T and S where the model has them. Shape `(B, L)`.
            values: Their expression, `log1p` of counts per 10,000; T and S as log10 of a total count. Shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            masked_ids: Genes to predict, withheld from the encoder, shape `(B, M)`; all genes unless given.
            masked_values: Values that the decoder sees of masked genes that are not hidden, shape `(B, M)`.
            is_hidden: 1 = the decoder sees the mask vector, 0 = it sees `masked_values`, shape `(B, M)`; all hidden
                unless given.
            labels: True values at `masked_ids`, `log1p` of counts per 10,000; -100 at padding. Shape `(B, M)`.
            measured: 1 = the gene was measured in the cell, shape `(B, G)`; all were unless given. The loss of
                reconstructed cells regards it, in anchored models and in models with latents.
            batch_ids: Batch of each cell in training, shape `(B,)`. Anchored models then use the biases of batches, and
                with `mixing_weight` the distance between batches is a part of the loss.
            num_items_in_batch: Masked genes over which the loss is averaged, where a batch is spread over processes or
                accumulation steps; those of this call unless given.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: If labels come without `masked_ids` or in another shape.

        Source: arXiv:2311.15156, section 3.3, equation of the regression loss.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
            >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=50)).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
            >>> masked_ids, labels = torch.tensor([[5, 20]]), torch.tensor([[1.1, 0.0]])
            >>> output = model(input_ids, values, masked_ids=masked_ids, labels=labels)
            >>> output.logits.shape, output.loss.shape
            (torch.Size([1, 2]), torch.Size([]))
        """
        if labels is not None:
            check_masked(labels, masked_ids)
        encoded = self.model(input_ids, values, attention_mask, **{**kwargs, "return_dict": True})
        states = self.model.decode(
            encoded.last_hidden_state,
            input_ids,
            attention_mask,
            masked_ids,
            masked_values,
            is_hidden,
            positions=None if masked_ids is None else "masked",
        )
        visible = input_ids, values, self.is_token(input_ids, attention_mask)
        cell_scores_BG = None if self.cell_decoder is None else self.cell_decoder(encoded.pooler_output)
        scores = self.gene_scores(states, cell_scores_BG, visible, masked_ids)
        loss = None if labels is None else self.masked_loss(scores, labels, num_items_in_batch)
        if loss is not None and (self.cell_decoder is not None or self.latent_decoder is not None):
            is_labelled_BM = labels != IGNORED
            masked = masked_ids, labels, is_labelled_BM
            cells = WholeCells.of_masked(self.config.num_genes, visible, masked, measured)
            # A batch may be spread over processes or accumulation steps; this is the share of it in this call.
            share = 1 if num_items_in_batch is None else is_labelled_BM.sum() / num_items_in_batch
            loss = loss + share * self.cell_loss(cells, encoded, cell_scores_BG, batch_ids)
        return XTrimoGeneForPreTrainingOutput(
            loss=loss,
            logits=self.predicted_values(scores),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            latents=encoded.latents,
            cell_embedding=None if encoded.latents is None else encoded.pooler_output,
        )

    def cell_loss(
        self,
        cells: WholeCells,
        encoded: XTrimoGeneModelOutput,
        cell_scores: torch.Tensor | None,
        batch_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the mean over cells of the loss of their reconstruction, from the embedding and from latents.

        With `mixing_weight`, the energy distance between the batches of these cells is added.

        Args:
            cells: True values of all genes.
            encoded: Output of the encoder, with latents if the model has them.
            cell_scores: Scores of all genes `(B, G)` from the embedding, in an anchored model.
            batch_ids: Batch of each cell `(B,)`. It counts in training only: of other cells nothing is known by it.
        """
        loss = torch.zeros((), device=cells.values.device)
        batch_ids = batch_ids if self.training else None
        if cell_scores is not None:
            loss = loss + self.cell_decoder.loss(cell_scores, cells.values, cells.measured, batch_ids).mean()
        if self.latent_decoder is not None:
            loss = loss + latent_loss(self.latent_decoder, self.model, encoded.latents, encoded.latent_kl, cells)
        if self.config.mixing_weight and batch_ids is not None:
            embeddings = encoded.pooler_output if self.config.anchored else encoded.latents.flatten(1)
            loss = loss + self.config.mixing_weight * energy_distance(embeddings, batch_ids)
        return loss

    def decode_latents(self, latents: torch.Tensor, gene_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return scores of genes, decoded from the latents of cells alone.

        `reconstructed_values` turns scores of all genes into values. With `xpressor_decoder` `cross_only`, the score of
        a gene does not depend on which others are asked for.

        Args:
            latents: Latents `(B, K, Z)` of an output, or changed ones (`replace_latent`).
            gene_ids: Genes `(Q,)`, or `(B, Q)` for other genes in each cell; all unless given.

        Returns:
            Scores `(B, Q)`: logarithms of shares but for a constant a cell, logarithms of counts per 10,000, or values,
            as `config.reconstruction_likelihood` is `multinomial`, `poisson` or `squared_error`.

        Raises:
            ValueError: If the model has no latents or others, genes are none of the panel, or with `shared` more than
                4,096 are asked for.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
            >>> config = XTrimoGeneConfig.preset("tiny", num_genes=50, num_latents=4)
            >>> model = XTrimoGeneForPreTraining(config).eval()
            >>> latents = model(torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])).latents
            >>> model.decode_latents(latents, torch.tensor([0, 7])).shape
            torch.Size([1, 2])
        """
        if self.latent_decoder is None:
            raise ValueError(
                "num_latents is 0, so there are no latents to decode from: add them by add_xpressor(model), and train"
            )
        if gene_ids is not None:
            check_gene_ids(gene_ids, len(latents), self.config.num_genes)
        return self.latent_decoder(self.model, latents, gene_ids)

    def predict_expression(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        gene_ids: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return predicted values of genes, and cell embeddings, from one run of the encoder.

        Args:
            input_ids: Ids of the expressed, unmasked genes, then T and S where the model has them. Shape `(B, L)`.
            values: Their expression, `log1p` of counts per 10,000; T and S as log10 of a total count. Shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            gene_ids: Genes to predict, shape `(Q,)`; all unless given.
            lengths: Tokens of each cell, B numbers of the host, as of `XTrimoGeneModel`.

        Returns:
            `log1p` of counts per 10,000, `(B, Q)`, and the cell embedding, `(B, D)`.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
            >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=50)).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
            >>> expression, embedding = model.predict_expression(input_ids, values)
            >>> expression.shape, embedding.shape
            (torch.Size([1, 50]), torch.Size([1, 64]))
        """
        encoded = self.model(input_ids, values, attention_mask, lengths, return_dict=True)
        embedding = encoded.pooler_output
        positions_BQ = None if gene_ids is None else gene_ids.expand(input_ids.shape[0], -1)
        states = self.model.decode(encoded.last_hidden_state, input_ids, attention_mask, positions=positions_BQ)
        visible = input_ids, values, self.is_token(input_ids, attention_mask)
        cell_scores_BG = None if self.cell_decoder is None else self.cell_decoder(embedding)
        return self.predicted_values(self.gene_scores(states, cell_scores_BG, visible, positions_BQ)), embedding

    def decoder_gene_embeddings(self) -> torch.Tensor | None:
        """Return the rows by which an anchored model reconstructs genes, `(G, W)`, row = gene id; else None.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
            >>> config = XTrimoGeneConfig.preset("tiny", num_genes=50, anchored=True)
            >>> XTrimoGeneForPreTraining(config).decoder_gene_embeddings().shape
            torch.Size([50, 256])
        """
        return None if self.cell_decoder is None else self.cell_decoder.to_genes.weight

    def gene_scores(
        self,
        states: torch.Tensor,
        cell_scores: torch.Tensor | None,
        visible: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        gene_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the outputs of the head, added to the anchor: `(B, Q, 1)`, or `(B, Q, C)` for classes of values.

        Args:
            states: States of the decoder: of `gene_ids`, or of all positions. `(B, Q, E)`.
            cell_scores: Scores of all genes `(B, G)` from the embedding; None in a model without an anchor.
            visible: Ids, values, and which of them are tokens, `(B, L)` each.
            gene_ids: Genes `(B, Q)`; all if None.
        """
        if gene_ids is None:
            states = states[:, : self.config.num_genes]
        scores = in_float32(self.head, states)
        if self.cell_decoder is None:
            return scores
        values_BG = self.cell_decoder.values(cell_scores, *visible)
        if gene_ids is not None:
            values_BG = values_BG.gather(1, gene_ids.clamp(max=self.config.num_genes - 1))
        return scores + values_BG.unsqueeze(-1)

    def masked_loss(
        self, scores: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Return the mean over masked genes of the squared error, or of the cross-entropy over value bins."""
        is_counted_BM = labels != IGNORED
        if self.config.objective == "regression":
            losses_BM = (scores.squeeze(-1).float() - labels.float()).square()
        else:
            classes_BM = nearest_bin(labels, self.config.num_value_classes, self.config.max_value)
            losses_BM = nn.functional.cross_entropy(scores.float().movedim(-1, 1), classes_BM, reduction="none")
        total = losses_BM.masked_fill(~is_counted_BM, 0).sum()
        return total / (is_counted_BM.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)

    def predicted_values(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the values that outputs of the head stand for; with classes, their expectation over the bins."""
        if self.config.objective == "regression":
            return scores.squeeze(-1)
        bins_C = torch.linspace(0, self.config.max_value, scores.shape[-1], device=scores.device)
        return scores.float().softmax(-1) @ bins_C


class XTrimoGeneForSequenceClassification(ClassifiesCells, XTrimoGenePreTrainedModel):
    """Predict one label, several labels or numbers for each cell, by `config.problem_type`."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__(config)
        self.model = XTrimoGeneModel(config, add_decoder=False)
        self.add_classifier()
        self.post_init()

    def freeze_encoder(self, trainable_layers: int) -> None:
        """Train only the last `trainable_layers` encoder layers, the final norm and the classifier.

        In an anchored model, the path from the encoder into the embedding learns with these layers.

        Raises:
            ValueError: If the encoder has fewer layers.

        Source: scFoundation fine-tunes one late encoder layer and the head.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForSequenceClassification
            >>> model = XTrimoGeneForSequenceClassification(XTrimoGeneConfig.preset("tiny", num_genes=50))
            >>> model.freeze_encoder(trainable_layers=1)
            >>> [layer.fc1.weight.requires_grad for layer in model.model.encoder.layers]
            [False, True]
        """
        encoder = self.model.encoder
        self.train_last_layers(encoder.layers, encoder.norm, trainable_layers)


XTrimoGeneModel.register_for_auto_class("AutoModel")
XTrimoGeneForPreTraining.register_for_auto_class("AutoModelForPreTraining")
XTrimoGeneForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
