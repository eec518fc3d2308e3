# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Anchored models: a simple method gives the answer at first, and what the transformer finds is added to it.

    values of visible genes  ->  BagOfGenes  ->  cell embedding z (B, Z)  ->  CellDecoder  ->  scores of genes (B, G)
                                     ^                                            ^
                    pooled encoder states, times 0 at first       bias of the batch, in training only

The bag of genes is an autoencoder without attention. Its embedding begins as the principal components of the training
cells, free of what differs between batches. It is fitted first, in about a minute (`training/anchoring.py`), and then
stays as it is, while the encoder, the path from it into the embedding, and the decoder are trained. With the encoder's
part switched off, the embedding is that of the bag. So an anchored model begins where the simple method ends, and what
attention adds can be measured. Both families have it: xTrimoGene and TxFM.

Letters: B cells, L tokens, G genes, D pooled width of the encoder, Z width of the embedding, W of the decoder.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from .heads_xtrimogene import ZeroLinear
from .precision_xtrimogene import LayerNorm, for_products
from .reconstruction_xtrimogene import (
    PER_CELL,
    batch_log_likelihoods,
    dense_values,
    masked_values,
    reconstructed_values,
    reconstruction_loss,
    rescaled,
)


class GlorotLinear(nn.Linear):
    """Linear layer of the reconstruction: its weights are uniform at first, after Glorot, in all families.

    With larger ones the bag of genes unlearns its principal components in its first steps (docs/txfm.md).
    """


class ResidualBlock(nn.Module):
    """Pre-norm feed-forward layer: x + W2 GELU(W1 LN(x))."""

    def __init__(self, size: int, inner_size: int, eps: float):
        super().__init__()
        self.norm = LayerNorm(size, eps)
        self.fc1 = GlorotLinear(size, inner_size)
        self.fc2 = GlorotLinear(inner_size, size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `(B, W)`."""
        wide_states = nn.functional.gelu(self.fc1(for_products(self.fc1, self.norm(hidden_states))))
        return hidden_states + self.fc2(wide_states)


class BagOfGenes(nn.Module):
    """Embed a cell by the sum of the vectors of its genes, each times its value.

        c = sum_g value_g * C_g + b                principal components at first
        z = LN(c + W_p pooled)                     W_p = 0 at first

    Values are `log1p` of counts per 10,000 in all families, unless the configuration says otherwise: of more, single
    counts weigh more (docs/txfm.md). The norm has no weights. A mean instead of the sum, or a norm before it, would
    lose how much of a gene there is. In a new model `C` is random: `training/anchoring.py` fits it and `b`. They are
    buffers, which other training leaves as they are: masked values and few labelled cells would spoil them
    (docs/embedding.md).

    Args:
        config: Configuration of an anchored model.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig
        >>> bag = BagOfGenes(XTrimoGeneConfig.preset("tiny", num_genes=50, anchored=True))
        >>> ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
        >>> bag(ids, values, is_token=torch.ones(1, 3, dtype=torch.bool)).shape
        torch.Size([1, 64])
    """

    components: torch.Tensor
    bias: torch.Tensor

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.register_buffer("components", torch.zeros(config.num_genes, config.embedding_size))
        self.register_buffer("bias", torch.zeros(config.embedding_size))
        self.from_encoder = ZeroLinear(config.encoder_pooled_size, config.embedding_size, bias=False)
        self.scale = config.anchor_scale

    def forward(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        is_token: torch.Tensor,
        pooled: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return cell embeddings `(B, Z)`.

        Args:
            input_ids: Ids of the visible genes; other tokens are left out. Shape `(B, L)`.
            values: Their values, as of the family's tokenizer. Shape `(B, L)`.
            is_token: Whether a token is no padding, bool. Shape `(B, L)`.
            pooled: What the encoder found, `(B, D)`; nothing is added unless given.
        """
        # Other tokens count 0: to leave them out, the host would have to wait for a GPU to count them.
        is_other_BL = ~is_token | (input_ids >= len(self.components))
        starts_B = torch.arange(input_ids.shape[0], device=input_ids.device) * input_ids.shape[1]
        with torch.autocast(values.device.type, enabled=False):
            values = rescaled(values.to(self.components.dtype), self.scale)
            embedding_BZ = self.bias + nn.functional.embedding_bag(
                input_ids.masked_fill(is_other_BL, 0).flatten(),
                self.components,
                starts_B,  # computed from the shape, so that an exported model takes one cell too
                per_sample_weights=values.masked_fill(is_other_BL, 0).flatten(),
                mode="sum",
            )
        if pooled is not None:
            embedding_BZ = embedding_BZ + self.from_encoder(for_products(self.from_encoder, pooled))
        return nn.functional.layer_norm(embedding_BZ.float(), embedding_BZ.shape[-1:])


class CellDecoder(nn.Module):
    """Reconstruct all genes of a cell from its embedding: how the counts are shared out.

        scores_g = L_g z + W_g LN(block(W_d z)) + bias_g                       L = 0 at first

    Each batch of the training cells (a data set, a donor, a chemistry) has a bias of its own for every gene. So the
    embedding need not say which batch a cell is of. Nor has it to say which genes no cell of the batch expresses: they
    are left out of the loss of its cells (`is_expressed`). Outside of training the batch is inferred from the visible
    genes.

    Args:
        config: Configuration of an anchored model.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig
        >>> decoder = CellDecoder(XTrimoGeneConfig.preset("tiny", num_genes=50, anchored=True, num_batches=2))
        >>> scores, values = decoder(torch.zeros(1, 64)), torch.rand(1, 50)
        >>> decoder.loss(scores, values, measured=None, batch_ids=torch.tensor([1])).shape
        torch.Size([1])
    """

    is_expressed: torch.Tensor

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        size = config.anchor_decoder_size
        self.dense = GlorotLinear(config.embedding_size, size)
        self.block = ResidualBlock(size, size, config.layer_norm_eps)
        self.norm = LayerNorm(size, config.layer_norm_eps)
        self.to_genes = GlorotLinear(size, config.num_genes)
        self.direct = ZeroLinear(config.embedding_size, config.num_genes, bias=False)
        self.config = config
        self.set_num_batches(config.num_batches)

    def set_num_batches(self, number: int) -> None:
        """Replace what is known of batches: biases 0 and all genes expressed, for each of so many; none if 0."""
        self.batch_bias, is_expressed_NG = None, None
        if number:
            device = self.to_genes.weight.device
            self.batch_bias = nn.Embedding(number, self.config.num_genes, device=device)
            nn.init.zeros_(self.batch_bias.weight)
            is_expressed_NG = torch.ones(number, self.config.num_genes, dtype=torch.bool, device=device)
        self.register_buffer("is_expressed", is_expressed_NG)

    @property
    def is_set(self) -> bool:
        """Whether the biases of genes are set; before, they are all 0."""
        return bool(self.to_genes.bias.any())

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Return scores of all genes `(B, G)` for embeddings `(B, Z)`; `reconstruction_loss` says what scores are."""
        hidden_BW = self.norm(self.block(self.dense(for_products(self.dense, embedding))))
        scores_BG = self.to_genes(for_products(self.to_genes, hidden_BW))
        return (scores_BG + self.direct(for_products(self.direct, embedding))).float()

    def loss(
        self, scores: torch.Tensor, values: torch.Tensor, measured: torch.Tensor | None, batch_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss `(B,)` of the reconstruction of whole cells.

        Args:
            scores: Scores of all genes without a batch, `(B, G)`.
            values: True values of all genes, `(B, G)`.
            measured: Whether a gene was measured in the cell, `(B, G)`; all were if None.
            batch_ids: Batch of each cell `(B,)`; nothing is known of batches if None.
        """
        scores, measured = self.in_batches(scores, measured, batch_ids)
        return reconstruction_loss(scores, values, measured, self.config.reconstruction_likelihood)

    def in_batches(
        self, scores: torch.Tensor, measured: torch.Tensor | None, batch_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scores of cells in their batches, and the genes that count in the loss; arguments as of `loss`."""
        if self.batch_bias is None:
            return scores, measured
        if batch_ids is None:
            # 0, so that the biases have a gradient: processes that train together wait for that of every weight.
            return scores + 0 * self.batch_bias.weight[0], measured
        is_expressed_BG = self.is_expressed[batch_ids]
        measured = is_expressed_BG if measured is None else measured.bool() & is_expressed_BG
        return scores + self.batch_bias(batch_ids), measured

    def in_likely_batch(self, scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return the scores of cells in the batches that they are likely of, `(B, G)`.

        Args:
            scores: Scores of all genes without a batch, `(B, G)`.
            visible: Values of the visible genes, 0 elsewhere, `(B, G)`.
        """
        if self.batch_bias is None:
            return scores
        biases_NG, likelihood = self.batch_bias.weight.float(), self.config.reconstruction_likelihood
        with torch.no_grad():
            fits_BN = batch_log_likelihoods(scores, biases_NG, visible, depths(visible), likelihood)
        return scores + fits_BN.softmax(-1) @ biases_NG


class ValueDecoder(CellDecoder):
    """Reconstruct a cell, and tell the values of its masked genes, as xTrimoGene does.

        value_g = offset_g + slope_g E[value | masked], counts being Poisson about what the scores say

    The offsets, 0 at first, and the slopes, 1 at first, say how a gene departs from Poisson counts.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig
        >>> decoder = ValueDecoder(XTrimoGeneConfig.preset("tiny", num_genes=50, anchored=True))
        >>> ids, values, is_token = torch.tensor([[3, 7]]), torch.tensor([[1.2, 0.7]]), torch.ones(1, 2).bool()
        >>> decoder.values(decoder(torch.zeros(1, 64)), ids, values, is_token).shape
        torch.Size([1, 50])
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.value_offset = nn.Parameter(torch.zeros(config.num_genes))
        self.value_slope = nn.Parameter(torch.ones(config.num_genes))

    def values(
        self, scores: torch.Tensor, input_ids: torch.Tensor, values: torch.Tensor, is_token: torch.Tensor
    ) -> torch.Tensor:
        """Return the values `(B, G)` that masked genes have by their scores, `log1p` of counts per 10,000.

        No gradient flows back to the scores: squared errors of values would spoil the embedding (docs/embedding.md).
        """
        expected_BG = self.expected_values(scores, input_ids, values, is_token)
        return self.value_offset + self.value_slope * expected_BG

    @torch.no_grad()
    def expected_values(
        self, scores: torch.Tensor, input_ids: torch.Tensor, values: torch.Tensor, is_token: torch.Tensor
    ) -> torch.Tensor:
        """Return the expected values `(B, G)` of masked genes, if counts are Poisson.

        Args:
            scores: Scores of all genes without a batch, `(B, G)`.
            input_ids: Ids of the visible genes; other tokens are left out. Shape `(B, L)`.
            values: Their values, `log1p` of counts per 10,000. Shape `(B, L)`.
            is_token: Whether a token is no padding, bool. Shape `(B, L)`.
        """
        visible_BG = dense_values(scores.shape[1], input_ids, values, is_token)
        scores = self.in_likely_batch(scores, visible_BG)
        rates_BG = reconstructed_values(scores, self.config.reconstruction_likelihood).expm1()
        return masked_values(rates_BG, depths(visible_BG), self.config.anchor_mask_odds)


class ReconstructsCells:
    """What anchored models for pre-training of all families do with `self.cell_decoder`, a `CellDecoder`."""

    config: Any
    cell_decoder: Any

    def set_num_batches(self, number: int) -> None:
        """Replace the biases of batches by new ones, all 0, for so many batches; a single batch has none.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
            >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=50))
            >>> model.set_num_batches(3)
            >>> model.cell_decoder.batch_bias.weight.shape
            torch.Size([3, 50])
        """
        if self.cell_decoder is None:
            raise ValueError(f"{type(self).__name__} is not anchored and reconstructs no cells: it has no batches")
        self.config.num_batches = number if number > 1 else 0
        self.cell_decoder.set_num_batches(self.config.num_batches)


def depths(visible: torch.Tensor) -> torch.Tensor:
    """Return the total counts of cells `(B, 1)`, if values `(B, G)` are `log1p` of counts per 10,000.

    One count is the smallest value that a gene can have: it tells how many counts the cell has. Of values of another
    total, `expm1(value) * depth / 10,000` is the number of counts of a gene all the same.

    >>> depths(torch.tensor([[0.0, 5.0, 10.0]]).log1p()).round()
    tensor([[2000.]])
    """
    least_B1 = visible.masked_fill(visible <= 0, torch.inf).amin(1, keepdim=True)
    return PER_CELL / least_B1.expm1()


def forget_encoder(base: nn.Module) -> None:
    """Let an anchored model embed by its bag of genes alone again (`W_p = 0`), in place; other models stay as they are.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
        >>> model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=50, anchored=True))
        >>> _ = model.bag.from_encoder.weight.data.fill_(1)
        >>> forget_encoder(model)
        >>> bool(model.bag.from_encoder.weight.any())
        False
    """
    if (bag := getattr(base, "bag", None)) is not None:
        nn.init.zeros_(bag.from_encoder.weight)


def is_of_anchor(name: str) -> bool:
    """Return whether a weight or buffer of a model is a part of its anchor.

    >>> [is_of_anchor(name) for name in ("model.bag.components", "cell_decoder.is_expressed", "head.weight")]
    [True, True, False]
    """
    return {"bag", "cell_decoder"}.intersection(name.split(".")) != set()


def refuse_half_an_anchor(
    folder: str, saved: Mapping[str, Any], missing: Collection[str], names: Collection[str]
) -> None:
    """Refuse an anchored checkpoint that lacks parts of its anchor: new ones would give wrong numbers.

    What the saved configuration does not have may be missing: a plain model gets a new anchor, an anchored one new
    biases of batches, and one that was saved without its reconstruction, such as a classifier, a new reconstruction.

    Args:
        folder: Where the checkpoint is, for the message.
        saved: Its `config.json`.
        missing: Names of weights and buffers that the model has and the checkpoint lacks.
        names: All names of the model.

    Raises:
        ValueError: If a part is missing.

    Example:
        >>> names = ["bag.components", "bag.bias"]
        >>> refuse_half_an_anchor("plain", {"anchored": False}, missing=names, names=names)
        >>> refuse_half_an_anchor("old", {"anchored": True}, missing=names[:1], names=names)
        Traceback (most recent call last):
        ValueError: old is anchored and lacks bag.components: ...
    """
    saved = saved.get("encoder_config") or saved  # drug synergy
    reconstruction = {name for name in names if name.startswith("cell_decoder.")}
    of_batches = {"cell_decoder.batch_bias.weight", "cell_decoder.is_expressed"}
    allowed = set() if saved.get("num_batches") else of_batches
    if not reconstruction - of_batches - set(missing):
        allowed = reconstruction
    lacking = sorted(name for name in missing if is_of_anchor(name) and name not in allowed)
    if saved.get("anchored") and lacking:
        raise ValueError(
            f"{folder} is anchored and lacks {', '.join(lacking)}: an earlier version saved it, or its weights are "
            f"incomplete, and with new values it would give wrong numbers; copy the folder again, or pre-train again "
            f"with `xtrimogene pretrain`"
        )
