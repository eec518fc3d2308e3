# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""TxFM: a masked autoencoder on counts, which reconstructs a cell from one vector.

    input_ids, values (B, L)     K of the measured genes, zeros among them; hidden genes are absent
        |  token = [row of the codebook ; value], and the CLS token before them
        v
    hidden_states (B, 1 + L, D)  -->  encoder: pre-norm layers, full attention  -->  CLS = cell embedding (B, D)
                                                                                         |  residual MLP
                                                                                         v
    loss of all measured genes   <--  values (B, G)  <--  rectified tanh  <--  logits of all genes (B, G)

There are no positions and no mask tokens. The decoder sees the CLS vector only, so the whole cell has to be in it.
An anchored model is this instead (`anchor_xtrimogene.py`):

    known genes (B, E)  -->  BagOfGenes  -->  cell embedding (B, Z)  -->  CellDecoder  -->  shares  -->  values (B, G)
                                 ^                                            ^
                    CLS, times 0 at first                bias of the batch, in training only

Letters: B cells, L tokens, N = 1 + L tokens with CLS, G genes, E expressed genes, M masked genes, Q genes asked for,
D width, Z width of the embedding of an anchored model, P parts of a cell.

Source: Kenyon-Dean et al. 2026, TxFM. What the paper leaves open is listed in docs/txfm.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .anchor_xtrimogene import BagOfGenes, CellDecoder, GlorotLinear, ReconstructsCells
from .attention_xtrimogene import XTrimoGeneAttention, in_parts
from .configuration_txfm import TxFMConfig
from .count_loss_txfm import count_loss, logits_of, predicted_values
from .heads_xtrimogene import ZeroLinear
from .packed_xtrimogene import Packing, told_lengths, with_padded_states
from .precision_xtrimogene import LayerNorm, for_products, in_float32
from .pretrained_xtrimogene import CellPreTrainedModel, ClassifiesCells
from .reconstruction_xtrimogene import dense_values


@dataclass
class TxFMForPreTrainingOutput(ModelOutput):
    """Output of `TxFMForPreTraining`.

    Args:
        loss: Mean over cells of the loss of their measured genes, a scalar.
        logits: Predicted values, `log1p` of counts per 100,000, in float32. Shape `(B, M)` at `masked_ids`, else
            `(B, G)`.
        cell_embedding: Cell embedding, `(B, D)`, anchored `(B, Z)`.
        hidden_states: Encoder states, `num_hidden_layers + 1` of shape `(B, 1 + L, D)`, if asked for.
        attentions: Encoder attention, `num_hidden_layers` of shape `(B, A, 1 + L, 1 + L)`, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cell_embedding: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class TxFMEmbeddings(nn.Module):
    """Token of a gene: its row of the codebook, and its value as the last number; a CLS token before all."""

    def __init__(self, config: TxFMConfig):
        super().__init__()
        self.gene_embedding = nn.Embedding(config.vocab_size, config.hidden_size - 1)
        self.cls_vector = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, input_ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return `(B, 1 + L, D)` for `(B, L)`."""
        genes = self.gene_embedding(input_ids)
        dtype = torch.promote_types(genes.dtype, torch.float32)
        tokens_BLD = torch.cat([genes.to(dtype), values.unsqueeze(-1).to(dtype)], dim=-1)
        return torch.cat([self.cls_vector.to(dtype).expand(input_ids.shape[0], 1, -1), tokens_BLD], dim=1)


class DropPath(nn.Module):
    """Skip a residual branch in a share of the cells, in training; the others are scaled up to the same mean.

    Source: Huang et al. 2016, stochastic depth.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor, packing: Packing | None = None) -> torch.Tensor:
        """Return the branch `(B, N, D)`, or that of packed cells, `(1, T, D)`."""
        if not self.training or not self.rate:
            return branch
        kept = torch.rand(len(branch if packing is None else packing.lengths), device=branch.device) >= self.rate
        factors = kept.to(branch.dtype) / (1 - self.rate)
        if packing is None:
            return branch * factors[:, None, None]
        return branch * factors.repeat_interleave(packing.starts.diff(), output_size=branch.shape[1])[None, :, None]


class TxFMLayer(GradientCheckpointingLayer):
    """Pre-norm Transformer layer of a ViT: GELU, a learned factor for each residual branch, and drop-path."""

    def __init__(self, config: TxFMConfig, drop_path_rate: float):
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = XTrimoGeneAttention(config)
        self.scale1 = nn.Parameter(torch.empty(config.hidden_size))
        self.norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.scale2 = nn.Parameter(torch.empty(config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Return `(B, N, D)`, or `(1, T, D)` for packed states with their `packing`."""
        packing = kwargs.get("packing")
        attended = self.dropout(self.self_attn(self.norm1(hidden_states), attention_mask, **kwargs)[0])
        hidden_states = hidden_states + self.drop_path(self.scale1 * attended, packing)
        return hidden_states + self.drop_path(self.scale2 * in_parts(self.feed_forward, hidden_states), packing)

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward branch."""
        wide_states = nn.functional.gelu(self.fc1(for_products(self.fc1, self.norm2(hidden_states))))
        return self.dropout(self.fc2(wide_states))


class TxFMDecoderLayer(nn.Module):
    """Residual layer of two products."""

    def __init__(self, config: TxFMConfig):
        super().__init__()
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `(B, D)`."""
        return hidden_states + self.fc2(nn.functional.gelu(self.fc1(self.norm(hidden_states))))


class TxFMDecoder(nn.Module):
    """From the cell embedding alone to a logit of each gene; row g of `output.weight` is the decoder's vector of g."""

    def __init__(self, config: TxFMConfig):
        super().__init__()
        number = config.decoder_num_hidden_layers
        self.input_proj = nn.Linear(config.hidden_size, config.hidden_size) if number else nn.Identity()
        self.layers = nn.ModuleList([TxFMDecoderLayer(config) for _ in range(number)])
        self.output = nn.Linear(config.hidden_size, config.num_genes)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Return `(B, G)` for `(B, D)`."""
        hidden_BD = self.input_proj(embedding)
        for layer in self.layers:
            hidden_BD = layer(hidden_BD)
        return self.output(hidden_BD)


class TxFMPreTrainedModel(CellPreTrainedModel):
    """Base class of all TxFM models: configuration and initial values."""

    config: TxFMConfig
    auto_map = {
        "AutoConfig": "configuration_txfm.TxFMConfig",
        "AutoModel": "modeling_txfm.TxFMModel",
        "AutoModelForPreTraining": "modeling_txfm.TxFMForPreTraining",
        "AutoModelForSequenceClassification": "modeling_txfm.TxFMForSequenceClassification",
    }
    own_classes = frozenset({"TxFMModel", "TxFMForPreTraining", "TxFMForSequenceClassification"})
    _no_split_modules = ["TxFMLayer"]
    # Modules and weights that stay in float32 when a model is loaded in half precision.
    _keep_in_fp32_modules_strict = [
        "embeddings", r"(?:\w+_)?norm\d?", r"scale\d", "decoder", "log_dispersion", "classifier", "bag", "cell_decoder",
    ]  # fmt: skip
    _can_record_outputs = {
        "hidden_states": OutputRecorder(TxFMLayer, index=0),
        "attentions": OutputRecorder(XTrimoGeneAttention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set initial values.

        | what | value |
        |---|---|
        | codebook | normal, std `gene_initializer_range` |
        | CLS vector | normal, std `initializer_range` |
        | weights of linear layers | normal, std `initializer_range`, cut off at two of them |
        | weights of an anchored model's reconstruction | uniform, Glorot |
        | biases of linear layers; of the last one pre-training sets them | 0 |
        | weights of norms | 1 |
        | factors of residual branches | `layerscale_value` |
        | logarithm of inverse dispersions (loss `nb`) | 0 |
        | mean of a classifier's features (training sets it) | 0 |
        | standard deviation of a classifier's features (training sets it) | 1 |
        | a classifier's anchor (training sets it), and the last layer of the head that is added to it | 0 |
        | components of genes in the bag of genes (training sets them) | normal, std `initializer_range` |
        | bag of genes: bias (training sets it), the encoder's part; the decoder's linear path | 0 |
        | biases of batches, and whether a batch expresses a gene (training sets them) | 0, true |
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, GlorotLinear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            init.zeros_(module.bias)
        elif isinstance(module, TxFMEmbeddings):
            init.normal_(module.gene_embedding.weight, std=self.config.gene_initializer_range)
            init.normal_(module.cls_vector, std=std)
        elif isinstance(module, TxFMLayer):
            init.constant_(module.scale1, self.config.layerscale_value)
            init.constant_(module.scale2, self.config.layerscale_value)
        elif isinstance(module, TxFMForPreTraining) and module.log_dispersion is not None:
            init.zeros_(module.log_dispersion)


class TxFMModel(TxFMPreTrainedModel):
    """Encoder with cell embeddings.

    Args:
        config: The configuration.
    """

    # Checkpoints of the other models hold these heads beside the weights of this model.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^cell_decoder\.", r"^log_dispersion", r"^classifier\."]

    def __init__(self, config: TxFMConfig):
        super().__init__(config)
        self.embeddings = TxFMEmbeddings(config)
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList([TxFMLayer(config, rate) for rate in rates])
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bag = BagOfGenes(config) if config.anchored else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the codebook, `(vocab_size, D - 1)`."""
        return self.embeddings.gene_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the codebook."""
        self.embeddings.gene_embedding = value

    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        known_ids: torch.Tensor | None = None,
        known_values: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode the genes shown of each cell.

        Args:
            input_ids: Ids of genes that were measured, expressed or not. Their order does not matter. Shape `(B, L)`.
            values: Their expression, `log1p` of counts per 100,000 (not counts), 0 where not expressed. Shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            known_ids: Expressed genes that the bag of genes of an anchored model reads, padded with `pad_token_id`,
                shape `(B, E)`. Training gives them, since it shows the encoder only some genes. The bag reads the
                tokens unless they are given. Other models do not look at them.
            known_values: Their values, shape `(B, E)`.
            lengths: Tokens of each cell, B numbers of the host: without them it waits for a GPU to count (`CellBatch`).
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention) and `return_dict`.

        Returns:
            `last_hidden_state` `(B, 1 + L, D)`, CLS first and 0 for padding, and `pooler_output`, the cell embedding:
            the state of CLS `(B, D)`, and in an anchored model the bag of genes with what it adds, `(B, Z)`. The
            embedding of a cell without a token is NaN. Outside of training, cells of more than `num_visible` genes are
            encoded in parts if `inference_passes` is set, and there is no `last_hidden_state`.

        Raises:
            ValueError: If the shapes of the inputs differ, or states are asked for of cells that are encoded in parts.

        Source: Kenyon-Dean et al. 2026, TxFM.

        Example:
            >>> from xtrimogene import TxFMConfig, TxFMModel
            >>> model = TxFMModel(TxFMConfig.preset("txfm-tiny", num_genes=50)).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.0, 2.5]])
            >>> model(input_ids, values).pooler_output.shape
            torch.Size([1, 64])
        """
        if input_ids.shape != values.shape:
            raise ValueError(
                f"input_ids {tuple(input_ids.shape)} and values {tuple(values.shape)} differ in shape: "
                f"both come from the tokenizer, one value for each gene"
            )
        is_token_BL = self.is_token(input_ids, attention_mask)
        known = self.known(input_ids, values, attention_mask, known_ids, known_values)
        given = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if given is None else given
        lengths = told_lengths(is_token_BL, lengths)
        output = self.embed(input_ids, values, is_token_BL, known, lengths, **kwargs, return_dict=True)
        output = with_padded_states(output, nn.functional.pad(is_token_BL, (1, 0), value=True))
        return output if return_dict else output.to_tuple()

    @capture_outputs
    def embed(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        is_token: torch.Tensor,
        known: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Return the output for tokens `(B, L)`; states of all layers are packed if the batch was packed.

        Args:
            input_ids: Ids of the tokens, `(B, L)`.
            values: Their values, `(B, L)`.
            is_token: Which of them are no padding, `(B, L)`.
            known: Ids of the genes that the bag reads, their values, and which are no padding, `(B, E)` each.
            lengths: Tokens of each cell, B numbers.
            **kwargs: `output_hidden_states` and `output_attentions`.

        Raises:
            ValueError: If states are asked for of cells that are encoded in parts.
        """
        is_empty_B1 = ~is_token.any(1, keepdim=True)
        most, number = self.config.num_visible, self.config.inference_passes
        if number and not self.training and input_ids.shape[1] > most:
            if asked := [name for name in ("output_hidden_states", "output_attentions") if kwargs.get(name)]:
                raise ValueError(
                    f"{asked[0]} is set, and cells of {input_ids.shape[1]:,} genes are encoded in parts of {most}, "
                    f"which have no states in common: load the model with inference_passes=0"
                )
            part_lengths = None if lengths is None else lengths_of_parts(lengths, number, most)
            cell_ids, part_ids, part_values, is_there = parts_of_cells(
                input_ids, values, is_token, number, most, None if part_lengths is None else len(part_lengths)
            )
            cls_PD = self.encode(part_ids, part_values, is_there, part_lengths, **kwargs)[:, 0]
            sums_BD = cls_PD.new_zeros(len(input_ids), cls_PD.shape[1]).index_add(0, cell_ids, cls_PD)
            parts_B = cell_ids.new_zeros(len(input_ids)).index_add(0, cell_ids, torch.ones_like(cell_ids))
            pooled_BD = sums_BD / parts_B.clamp(min=1).unsqueeze(1)
            pooled_BD = pooled_BD.masked_fill(is_empty_B1, torch.nan)
            return BaseModelOutputWithPooling(pooler_output=self.with_bag(pooled_BD, known))
        hidden_BND = self.encode(input_ids, values, is_token, lengths, **kwargs)
        pooled_BD = hidden_BND[:, 0].masked_fill(is_empty_B1, torch.nan)
        return BaseModelOutputWithPooling(hidden_BND, self.with_bag(pooled_BD, known))

    def known(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        known_ids: torch.Tensor | None = None,
        known_values: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids of the known genes, their values, and which are no padding: the tokens, if none are given.

        Raises:
            ValueError: If ids are given and no values, or the reverse.
        """
        if known_ids is None and known_values is None:
            return input_ids, values, self.is_token(input_ids, attention_mask)
        if known_ids is None or known_values is None or known_ids.shape != known_values.shape:
            raise ValueError("known_ids and known_values belong together, one value for each gene: give both")
        return known_ids, known_values, self.is_token(known_ids, None)

    def with_bag(self, pooled: torch.Tensor, known: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the cell embeddings: states of CLS `(B, D)`, in an anchored model added to the bag of genes, `(B, Z)`.

        Args:
            pooled: States of CLS, `(B, D)`.
            known: Ids of the genes that the bag reads, their values, and which are no padding, `(B, E)` each.
        """
        return pooled if self.bag is None else in_float32(self.bag, *known, pooled)

    def encode(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        is_token: torch.Tensor,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the states `(B, 1 + L, D)` of the CLS token and of genes `(B, L)`."""
        hidden_BND = self.embeddings(input_ids, values)
        is_key_BN = nn.functional.pad(is_token, (1, 0), value=True)
        if lengths is None:
            is_full = not torch.compiler.is_compiling() and bool(is_key_BN.all())
        else:
            lengths = [1 + length for length in lengths]  # with CLS
            is_full = min(lengths) == is_key_BN.shape[1]
        if is_full:  # the quickest attention takes no mask
            return self.layers_of(hidden_BND, None, **kwargs)
        if self.packs(input_ids.device, **kwargs):
            packing = Packing.of(is_key_BN, lengths)
            packed_1TD = hidden_BND.flatten(0, 1)[packing.index].unsqueeze(0)
            packed_1TD = self.layers_of(packed_1TD, None, packing=packing, **kwargs)
            return packing.unpack(packed_1TD, is_key_BN.shape[1])
        mask = create_bidirectional_mask(self.config, inputs_embeds=hidden_BND, attention_mask=is_key_BN)
        return self.layers_of(hidden_BND, mask, **kwargs).masked_fill(~is_key_BN.unsqueeze(-1), 0)

    def layers_of(self, hidden_states: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        """Return the normalised output of the layers, of the shape of `hidden_states`."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        return self.norm(hidden_states)

    def static_gene_embeddings(self) -> torch.Tensor:
        """Return the codebook `(G, D - 1)`, the same in every cell; row = gene id.

        Example:
            >>> from xtrimogene import TxFMConfig, TxFMModel
            >>> TxFMModel(TxFMConfig.preset("txfm-tiny", num_genes=50)).static_gene_embeddings().shape
            torch.Size([50, 63])
        """
        return self.embeddings.gene_embedding.weight[: self.config.num_genes]


def lengths_of_parts(lengths: Sequence[int], number: int, most: int) -> list[int]:
    """Return the lengths of the parts of `parts_of_cells`, from those of the cells.

    >>> lengths_of_parts([5, 0, 2], number=2, most=3)
    [3, 2, 2]
    """
    taken = [min(length, number * most) for length in lengths]
    parts = [-(-size // most) for size in taken]
    return [-(-(size - part) // count) for size, count in zip(taken, parts, strict=True) for part in range(count)]


def parts_of_cells(
    input_ids: torch.Tensor,
    values: torch.Tensor,
    is_token: torch.Tensor,
    number: int,
    most: int,
    num_parts: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Divide the genes of each cell into disjoint parts of like size, in an order that follows from the ids alone.

    Args:
        input_ids: Genes, `(B, L)`.
        values: Their values, `(B, L)`.
        is_token: Which of them are no padding, `(B, L)`.
        number: Largest number of parts of a cell; genes beyond `number * most` are left out.
        most: Largest number of genes of a part.
        num_parts: Number of all parts; without it the host waits for a GPU to count them.

    Returns:
        The cell of each part `(P,)`, and ids, values and which are no padding, `(P, most)` each. A cell without genes
        has no part.

    Example:
        >>> ids, values = torch.tensor([[0, 1, 2, 3]]), torch.zeros(1, 4)
        >>> cell_ids, part_ids, _, _ = parts_of_cells(ids, values, torch.ones(1, 4, dtype=torch.bool), 2, most=2)
        >>> cell_ids.tolist(), sorted(part_ids.flatten().tolist())
        ([0, 0], [0, 1, 2, 3])
    """
    keys_BL = scattered(input_ids).masked_fill(~is_token, torch.iinfo(torch.int64).max)
    order_BL = keys_BL.argsort(dim=1)
    taken_B = is_token.sum(1).clamp(max=number * most)
    parts_B = -(-taken_B // most)
    cells_B = torch.arange(len(parts_B), device=parts_B.device)
    cell_ids = torch.repeat_interleave(cells_B, parts_B, output_size=num_parts)
    firsts_B = parts_B.cumsum(0) - parts_B
    part_P = torch.arange(len(cell_ids), device=parts_B.device) - firsts_B[cell_ids]
    # Part p of n takes the genes p, p + n, p + 2 n, ... of the order: parts of a cell differ by one gene at most.
    places = part_P[:, None] + torch.arange(most, device=parts_B.device) * parts_B[cell_ids, None]
    is_there = places < taken_B[cell_ids, None]
    columns = order_BL[cell_ids].gather(1, places.clamp(max=input_ids.shape[1] - 1))
    return cell_ids, input_ids[cell_ids].gather(1, columns), values[cell_ids].gather(1, columns), is_there


def scattered(ids: torch.Tensor) -> torch.Tensor:
    """Return a number below 2**32 for each id: always the same, in no order (a multiplicative hash)."""
    low = 0xFFFFFFFF
    bits = (ids * 0x9E3779B1) & low
    bits = ((bits ^ (bits >> 15)) * 0x85EBCA77) & low
    return bits ^ (bits >> 13)


class TxFMForPreTraining(ReconstructsCells, TxFMPreTrainedModel):
    """Masked autoencoder: reconstruct all measured genes of a cell from its embedding.

    It has one of two decoders: `decoder`, the paper's, or in an anchored model `cell_decoder`, that of the bag.
    """

    def __init__(self, config: TxFMConfig):
        super().__init__(config)
        config.validate_anchor()  # `from_pretrained` sets fields without asking
        self.model = TxFMModel(config)
        self.decoder = None if config.anchored else TxFMDecoder(config)
        self.cell_decoder = CellDecoder(config) if config.anchored else None
        self.log_dispersion = nn.Parameter(torch.empty(config.num_genes)) if config.loss == "nb" else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        expressed_ids: torch.Tensor | None = None,
        expressed_values: torch.Tensor | None = None,
        measured: torch.Tensor | None = None,
        totals: torch.Tensor | None = None,
        masked_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        known_ids: torch.Tensor | None = None,
        known_values: torch.Tensor | None = None,
        batch_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TxFMForPreTrainingOutput:
        """Reconstruct cells.

        Args:
            input_ids: Ids of genes that were measured, expressed or not. Their order does not matter. Shape `(B, L)`.
            values: Their expression, `log1p` of counts per 100,000, 0 where not expressed. Shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            expressed_ids: All expressed genes of the cell, visible and hidden, padded with `pad_token_id`. Shape
                `(B, E)`. With them there is a loss.
            expressed_values: Their values, shape `(B, E)`.
            measured: 1 = the gene was measured in the cell, shape `(B, G)`; all were unless given. Others are left out
                of the loss. A measured gene that is not among `expressed_ids` is zero.
            totals: Total count of each cell, `(B,)`, for the loss `nb`.
            masked_ids: Genes whose values to return, shape `(B, M)`; all genes unless given.
            labels: True values at `masked_ids`, shape `(B, M)`. They are for scores: the loss does not depend on them.
            known_ids: Expressed genes that the bag of genes of an anchored model reads, padded with `pad_token_id`,
                shape `(B, E)`; the tokens unless given.
            known_values: Their values, shape `(B, E)`.
            batch_ids: Batch of each cell in training, shape `(B,)`, for the biases of batches of an anchored model.
                Outside of training batches are inferred from the known genes.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Source: Kenyon-Dean et al. 2026, TxFM.

        Example:
            >>> from xtrimogene import TxFMConfig, TxFMForPreTraining
            >>> model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=50)).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.0, 2.5]])
            >>> expressed_ids, expressed_values = torch.tensor([[3, 11, 20]]), torch.tensor([[1.2, 2.5, 0.8]])
            >>> output = model(input_ids, values, expressed_ids=expressed_ids, expressed_values=expressed_values)
            >>> output.logits.shape, output.loss.shape
            (torch.Size([1, 50]), torch.Size([]))
        """
        kwargs.pop("num_items_in_batch", None)  # the loss is a mean over cells
        encoded = self.model(
            input_ids, values, attention_mask, known_ids, known_values, **{**kwargs, "return_dict": True}
        )
        known = self.model.known(input_ids, values, attention_mask, known_ids, known_values)
        logits_BG, measured = self.in_batches(self.gene_logits(encoded.pooler_output), known, measured, batch_ids)
        predicted_BG = self.predicted_values(logits_BG, measured)
        loss = None
        if expressed_ids is not None:
            is_there_BE = expressed_ids < self.config.num_genes
            true_BG = dense_values(self.config.num_genes, expressed_ids, expressed_values, is_there_BE)
            config = self.config
            with torch.autocast(true_BG.device.type, enabled=False):
                losses_B = count_loss(
                    predicted_BG, true_BG, measured, config.loss, self.log_dispersion, totals, config.library_size
                )
            loss = losses_B.mean()
        if masked_ids is not None:
            predicted_BG = predicted_BG.gather(1, masked_ids.clamp(max=self.config.num_genes - 1))
        return TxFMForPreTrainingOutput(
            loss=loss,
            logits=predicted_BG,
            cell_embedding=encoded.pooler_output,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def reconstruct(self, embedding: torch.Tensor, measured: torch.Tensor | None = None) -> torch.Tensor:
        """Return the values `(B, G)` that cell embeddings `(B, D)` stand for, `log1p` of counts per 100,000, float32.

        Args:
            embedding: Cell embeddings, such as those of `TxFMModel` or changed ones.
            measured: Whether a gene was measured, `(B, G)`, for the activation `softmax`; all were unless given.

        Example:
            >>> from xtrimogene import TxFMConfig, TxFMForPreTraining
            >>> model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=50)).eval()
            >>> model.reconstruct(torch.zeros(1, 64)).shape
            torch.Size([1, 50])
        """
        return self.predicted_values(self.gene_logits(embedding), measured)

    def gene_logits(self, embedding: torch.Tensor) -> torch.Tensor:
        """Return the logits of all genes `(B, G)` for cell embeddings `(B, D)`; no batch is in them."""
        return in_float32(self.decoder if self.cell_decoder is None else self.cell_decoder, embedding)

    def in_batches(
        self,
        logits: torch.Tensor,
        known: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        measured: torch.Tensor | None = None,
        batch_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits of cells in their batches, and which genes count in the loss, all of them if None.

        Args:
            logits: Logits of all genes without a batch, `(B, G)`.
            known: Ids of known genes, their values, and which are no padding, `(B, E)` each.
            measured: Whether a gene was measured in the cell, `(B, G)`.
            batch_ids: Batch of each cell `(B,)`. It counts in training only; else the batch is inferred.
        """
        if self.cell_decoder is None:
            return logits, measured
        if self.training:
            return self.cell_decoder.in_batches(logits, measured, batch_ids)
        return self.cell_decoder.in_likely_batch(logits, dense_values(self.config.num_genes, *known)), measured

    def predicted_values(self, logits: torch.Tensor, measured: torch.Tensor | None = None) -> torch.Tensor:
        """Return the values `(B, G)` that logits stand for, `log1p` of counts per 100,000, float32."""
        config = self.config
        with torch.autocast(logits.device.type, enabled=False):
            return predicted_values(
                logits, config.count_activation, config.library_size, config.activation_scale, measured
            )

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
            input_ids: Ids of genes that were measured, expressed or not. Shape `(B, L)`.
            values: Their expression, `log1p` of counts per 100,000. Shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            gene_ids: Genes to predict, shape `(Q,)`; all unless given.
            lengths: Tokens of each cell, B numbers of the host, as of `TxFMModel`.

        Returns:
            `log1p` of counts per 100,000, `(B, Q)`, and the cell embedding, `(B, D)`.

        Example:
            >>> from xtrimogene import TxFMConfig, TxFMForPreTraining
            >>> model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=50)).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.0, 2.5]])
            >>> expression, embedding = model.predict_expression(input_ids, values)
            >>> expression.shape, embedding.shape
            (torch.Size([1, 50]), torch.Size([1, 64]))
        """
        embedding = self.model(input_ids, values, attention_mask, lengths=lengths, return_dict=True).pooler_output
        known = self.model.known(input_ids, values, attention_mask)
        predicted_BG = self.predicted_values(self.in_batches(self.gene_logits(embedding), known)[0])
        return predicted_BG if gene_ids is None else predicted_BG[:, gene_ids], embedding

    @torch.no_grad()
    def set_mean_profile(self, values: torch.Tensor) -> None:
        """Begin at the mean cell: set the biases of the last layer so that a zero vector reconstructs it.

        An anchored model begins by `begin_anchor` of `xtrimogene.training.anchoring` instead.

        Args:
            values: `log1p` of the mean counts per 100,000 of each gene, `(G,)`.

        Raises:
            ValueError: If the model is anchored.

        Example:
            >>> from xtrimogene import TxFMConfig, TxFMForPreTraining
            >>> model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=3, anchored=False))
            >>> model.set_mean_profile(torch.tensor([0.0, 1.0, 5.0]))
            >>> model.decoder.output.bias.round(decimals=2).tolist()
            [0.0, 0.94..., 5.05...]
        """
        config = self.config
        if self.decoder is None:
            raise ValueError(
                "anchored is True, so the mean cell is that of the bag of genes: call begin_anchor instead"
            )
        self.decoder.output.bias.copy_(
            logits_of(values, config.count_activation, config.library_size, config.activation_scale)
        )

    def decoder_gene_embeddings(self) -> torch.Tensor:
        """Return the rows of the decoder's last layer, `(G, D)`, anchored `(G, anchor_decoder_size)`; row = gene id.

        Example:
            >>> from xtrimogene import TxFMConfig, TxFMForPreTraining
            >>> TxFMForPreTraining(TxFMConfig.preset("txfm-S", num_genes=50)).decoder_gene_embeddings().shape
            torch.Size([50, 384])
        """
        return self.decoder.output.weight if self.cell_decoder is None else self.cell_decoder.to_genes.weight


class TxFMForSequenceClassification(ClassifiesCells, TxFMPreTrainedModel):
    """Predict one label, several labels or numbers for each cell, by `config.problem_type`."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^cell_decoder\.", r"^log_dispersion"]

    def __init__(self, config: TxFMConfig):
        super().__init__(config)
        self.model = TxFMModel(config)
        self.add_classifier()
        self.post_init()

    def freeze_encoder(self, trainable_layers: int) -> None:
        """Train only the last `trainable_layers` encoder layers, the final norm and the classifier.

        Raises:
            ValueError: If the encoder has fewer layers.

        Example:
            >>> from xtrimogene import TxFMConfig, TxFMForSequenceClassification
            >>> model = TxFMForSequenceClassification(TxFMConfig.preset("txfm-tiny", num_genes=50))
            >>> model.freeze_encoder(trainable_layers=1)
            >>> [layer.fc1.weight.requires_grad for layer in model.model.layers]
            [False, True]
        """
        self.train_last_layers(self.model.layers, self.model.norm, trainable_layers)


TxFMModel.register_for_auto_class("AutoModel")
TxFMForPreTraining.register_for_auto_class("AutoModelForPreTraining")
TxFMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
