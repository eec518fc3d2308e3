# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Xpressor: latents that read the encoder's states, and a decoder that reconstructs the cell from them alone.

    states of the encoder (B, L, D)
        |  Xpressor: learned latents attend to the states, then to each other
        v
    latents (B, K, Z)  -->  side by side, the cell embedding (B, K Z)
        |  LatentDecoder: embeddings of genes, without their values, attend to the latents
        v
    scores of any genes (B, Q)  -->  loss of the whole cell (`reconstruction_loss`)

Letters: B cells, L tokens, G genes of the panel, Q genes asked for, D width of the encoder, E width of the decoder,
K latents, Z width of a latent, N rows that are attended to, A heads, H width of a head.

Source: Xpressor (Kalfon, Peyré and Cantini, 2025), which calls the encoder's layers a second time to decode; that is
`xpressor_decoder="shared"`. Departures are listed in docs/model.md.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_xtrimogene import in_parts
from .configuration_xtrimogene import XTrimoGeneConfig
from .heads_xtrimogene import ZeroLinear
from .host_xtrimogene import is_at_hand
from .precision_xtrimogene import LayerNorm, for_products, in_float32
from .reconstruction_xtrimogene import dense_values, reconstruction_loss

HEAD_SIZE, LEAST_HEADS = 64, 4  # as in the paper, whose latents are 256 and 512 wide; narrow ones learn sooner with 4
GENES_IN_TRAINING = 2048  # of a cell, at most: expressed genes and as many others
GENES_OF_SHARED = 4096  # at a time: the encoder's attention is quadratic in the number of genes
FIELDS = {  # of the configuration, that `add_xpressor` may set
    "pooling", "latent_size", "xpressor_layers", "xpressor_decoder", "latent_bottleneck", "reconstruction_likelihood",
    "independence_weight", "kl_weight", "mixing_weight",
}  # fmt: skip
LEAST_LOG_VARIANCE = -10.0


class LatentAttention(nn.Module):
    """Softmax attention of rows to rows of another width, or to themselves.

    Args:
        size: Width of the rows that attend.
        key_size: Width of the rows that are attended to.
        dropout: Dropout of the attention weights in training.
        is_zero: Whether the output is zero at first, so that layers that were trained without it do what they did.
    """

    def __init__(self, size: int, key_size: int, dropout: float, is_zero: bool = False):
        super().__init__()
        num_heads = max(size // HEAD_SIZE, LEAST_HEADS)
        self.num_heads = num_heads if size % num_heads == 0 else 1
        self.dropout = dropout
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(key_size, size)
        self.v_proj = nn.Linear(key_size, size)
        self.o_proj = (ZeroLinear if is_zero else nn.Linear)(size, size)

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `(B, A, N, H)` for `(B, N, A H)`."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, queries: torch.Tensor, rows: torch.Tensor, is_key: torch.Tensor | None = None) -> torch.Tensor:
        """Return the attention of queries to rows `(B, N, key_size)` where `is_key` `(B, N)`, in the queries' shape."""
        queries, rows = for_products(self.q_proj, queries), for_products(self.k_proj, rows)
        found_BANH = nn.functional.scaled_dot_product_attention(
            self.heads(self.q_proj(queries)),
            self.heads(self.k_proj(rows)),
            self.heads(self.v_proj(rows)),
            attn_mask=None if is_key is None else is_key[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.o_proj(found_BANH.transpose(1, 2).flatten(-2))


class CrossAttentionLayer(GradientCheckpointingLayer):
    """Pre-norm layer: attention to other rows, attention among its own rows unless they stay apart, feed-forward.

    Source: Xpressor, the released blocks, in which the attention to other rows is first.
    """

    def __init__(self, config: XTrimoGeneConfig, size: int, key_size: int, is_mixing: bool):
        super().__init__()
        dropout = config.attention_probs_dropout_prob
        self.norm1 = LayerNorm(size, config.layer_norm_eps)
        self.cross_attn = LatentAttention(size, key_size, dropout)
        if is_mixing:
            self.norm2 = LayerNorm(size, config.layer_norm_eps)
        self.self_attn = LatentAttention(size, size, dropout) if is_mixing else None
        self.norm3 = LayerNorm(size, config.layer_norm_eps)
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, rows: torch.Tensor, is_key: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the new states of `(B, Q, size)`, which read rows `(B, N, key_size)` where `is_key` `(B, N)`."""
        found = self.cross_attn(self.norm1(hidden_states), rows, is_key)
        hidden_states = hidden_states + self.dropout(found)
        if self.self_attn is not None:
            normed = self.norm2(hidden_states)
            hidden_states = hidden_states + self.dropout(self.self_attn(normed, normed))
        normed = for_products(self.fc1, self.norm3(hidden_states))
        return hidden_states + self.dropout(self.fc2(nn.functional.gelu(self.fc1(normed))))


class ReadLatents(nn.Module):
    """Attention to latents that is put before a layer which was trained without it; zero at first."""

    def __init__(self, config: XTrimoGeneConfig, size: int):
        super().__init__()
        self.norm1 = LayerNorm(size, config.layer_norm_eps)
        self.cross_attn = LatentAttention(size, config.latent_size, config.attention_probs_dropout_prob, is_zero=True)

    def forward(self, hidden_states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return `(B, Q, size)`, which read latents `(B, K, Z)`."""
        return hidden_states + self.cross_attn(self.norm1(hidden_states), latents)


class GaussianBottleneck(nn.Module):
    """Latents of a variational autoencoder: a mean and a variance each; a draw in training, the mean outside of it."""

    def __init__(self, size: int):
        super().__init__()
        self.mean = nn.Linear(size, size)
        self.log_variance = nn.Linear(size, size)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return latents `(B, K, Z)` and their divergence from a standard normal distribution, `(B,)`, in nats."""
        latents = for_products(self.mean, latents)
        mean_BKZ, log_variance_BKZ = self.mean(latents).float(), self.log_variance(latents).float()
        log_variance_BKZ = log_variance_BKZ.clamp(min=LEAST_LOG_VARIANCE)
        kl_B = 0.5 * (mean_BKZ.square() + log_variance_BKZ.exp() - 1 - log_variance_BKZ).sum((1, 2))
        if self.training:
            mean_BKZ = mean_BKZ + (0.5 * log_variance_BKZ).exp() * torch.randn_like(mean_BKZ)
        return mean_BKZ, kl_B


class FiniteScalarBottleneck(nn.Module):
    """Latents of two levels an entry, -1 and 1; their gradient is that of a tanh.

    Source: finite scalar quantisation (arXiv:2309.15505), with the two levels that Xpressor has for small latents.
    """

    def __init__(self, size: int):
        super().__init__()
        self.scores = nn.Linear(size, size)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return latents `(B, K, Z)` of -1 and 1, and None for the divergence that they do not have."""
        bounded_BKZ = self.scores(for_products(self.scores, latents)).float().tanh()
        levels_BKZ = torch.where(bounded_BKZ > 0, 1.0, -1.0)
        return bounded_BKZ + (levels_BKZ - bounded_BKZ).detach(), None


BOTTLENECKS = {"gaussian": GaussianBottleneck, "fsq": FiniteScalarBottleneck}


class Xpressor(nn.Module):
    """Learned latents that read the encoder's states. The states never see the latents."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        size = config.latent_size
        self.latents = nn.Parameter(torch.empty(config.num_latents, size))
        self.layers = nn.ModuleList(
            [
                CrossAttentionLayer(config, size, config.hidden_size, is_mixing=True)
                for _ in range(config.xpressor_layers)
            ]
        )
        self.norm = LayerNorm(size, config.layer_norm_eps)
        kind = BOTTLENECKS.get(config.latent_bottleneck)
        self.bottleneck = None if kind is None else kind(size)

    def forward(self, states: torch.Tensor, is_token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return latents `(B, K, Z)`, and their divergence `(B,)` if they are Gaussian.

        Args:
            states: States of the encoder, `(B, L, D)`.
            is_token: Which of them are no padding, bool `(B, L)`.
        """
        # A cell without tokens reads its padding; else its NaN would reach the gradients of the other cells.
        is_key_BL = is_token | ~is_token.any(1, keepdim=True)
        latents_BKZ = self.latents.to(torch.promote_types(self.latents.dtype, torch.float32))
        latents_BKZ = latents_BKZ.expand(states.shape[0], -1, -1)
        for layer in self.layers:
            latents_BKZ = layer(latents_BKZ, states, is_key_BL)
        latents_BKZ = self.norm(latents_BKZ)
        return (latents_BKZ, None) if self.bottleneck is None else self.bottleneck(latents_BKZ)


class LatentDecoder(nn.Module):
    """Scores of genes from the latents of a cell and the embeddings of the genes; no value of a gene is looked at.

    A score is the gene's bias, plus the product of its embedding with a direction that is linear in the latents, plus
    what the layers add, which is zero at first.

    | `xpressor_decoder` | layers | a gene's score depends on the other genes asked for |
    |---|---|---|
    | `cross_only` | its own | no |
    | `decoder` | the decoder's, each behind a cross-attention | yes |
    | `shared` | the encoder's, each behind a cross-attention | yes |
    """

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.mode = config.xpressor_decoder
        self.latent_shape = (config.num_latents, config.latent_size)
        is_shared = self.mode == "shared"
        size = config.hidden_size if is_shared else config.decoder_hidden_size
        number = config.num_hidden_layers if is_shared else config.decoder_num_hidden_layers
        # Embeddings of genes are small beside what is read from the latents: without a norm all genes would look alike.
        self.query_norm = LayerNorm(size, config.layer_norm_eps)
        if self.is_mixing:
            self.layers = nn.ModuleList([ReadLatents(config, size) for _ in range(number)])
        else:
            self.layers = nn.ModuleList(
                [CrossAttentionLayer(config, size, config.latent_size, is_mixing=False) for _ in range(number)]
            )
            self.norm = LayerNorm(size, config.layer_norm_eps)
        # The linear path. Without it training stays at the mean profile for hundreds of steps, because attention to
        # latents that differ little from cell to cell has next to no gradient.
        self.direction = nn.Linear(config.num_latents * config.latent_size, size)
        self.head = ZeroLinear(size, 1, bias=False)
        self.gene_bias = nn.Parameter(torch.empty(config.num_genes))

    @property
    def is_mixing(self) -> bool:
        """Whether the genes asked for attend to each other."""
        return self.mode != "cross_only"

    def forward(self, base: Any, latents: torch.Tensor, gene_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return scores `(B, Q)`; `XTrimoGeneForPreTraining.decode_latents` says of what.

        Args:
            base: The `XTrimoGeneModel`, whose gene embeddings and layers are used.
            latents: Latents `(B, K, Z)`.
            gene_ids: Genes `(Q,)`, or `(B, Q)` for other genes in each cell; all unless given.
        """
        if latents.shape[1:] != self.latent_shape:
            raise ValueError(
                f"latents are {tuple(latents.shape)} and this model has {self.latent_shape[0]} latents of width "
                f"{self.latent_shape[1]}: give those of its own output"
            )
        if gene_ids is None:
            gene_ids = torch.arange(len(self.gene_bias), device=latents.device)
        if self.mode == "shared" and gene_ids.shape[-1] > GENES_OF_SHARED:
            raise ValueError(
                f"{gene_ids.shape[-1]:,} genes are to be decoded by the encoder's layers, and with xpressor_decoder "
                f"'shared' at most {GENES_OF_SHARED:,} at a time: give gene_ids, or train with another xpressor_decoder"
            )
        embedded = base.embeddings.gene_embedding(gene_ids)
        embedded = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
        queries = self.query_norm(embedded if self.mode == "shared" else base.decoder.project(embedded))
        states_BQE = self.states(base, queries.expand(len(latents), *queries.shape[-2:]), latents)
        scores_BQ = in_float32(self.head, states_BQE).squeeze(-1)
        direction_BE = in_float32(self.direction, latents.flatten(1))
        with torch.autocast(queries.device.type, enabled=False):
            along_BQ = (queries @ direction_BE.to(queries.dtype).unsqueeze(-1)).squeeze(-1) * queries.shape[-1] ** -0.5
        return scores_BQ + along_BQ + self.gene_bias[gene_ids]

    def states(self, base: Any, queries: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return the states of genes, in the shape of their queries `(B, Q, E)`, or `(B, Q, D)` in the encoder."""
        if not self.is_mixing:
            return in_parts(lambda rows: self.apart(rows, latents), queries)
        layers = base.encoder.layers if self.mode == "shared" else base.decoder.layers
        for read_latents, layer in zip(self.layers, layers, strict=True):
            queries = layer(read_latents(queries, latents))
        if self.mode == "shared":
            return base.encoder.norm(queries)
        return base.decoder.final_norm(base.decoder.norm(queries))

    def apart(self, queries: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return the states of genes that do not see each other, `(B, Q, E)`."""
        for layer in self.layers:
            queries = layer(queries, latents)
        return self.norm(queries)


def check_gene_ids(gene_ids: torch.Tensor, num_cells: int, num_genes: int) -> None:
    """Check that ids are genes of the panel, `(Q,)` or one row for each cell `(B, Q)`.

    Raises:
        ValueError: If they are not.
    """
    advice = "give a tensor of whole numbers, (genes,) or (cells, genes)"
    if not isinstance(gene_ids, torch.Tensor):
        raise ValueError(f"gene_ids are {gene_ids!r:.80}: {advice}")
    if gene_ids.dtype not in (torch.int64, torch.int32) or gene_ids.dim() not in (1, 2) or not gene_ids.numel():
        raise ValueError(f"gene_ids are {gene_ids.dtype} {tuple(gene_ids.shape)}: {advice}")
    if gene_ids.dim() == 2 and len(gene_ids) != num_cells:
        raise ValueError(
            f"gene_ids have {len(gene_ids)} rows for {num_cells} cells: give one row for each cell, or (genes,) for all"
        )
    least, most = gene_ids.min().item(), gene_ids.max().item()
    if least < 0 or most >= num_genes:
        raise ValueError(f"gene_ids are from {least} to {most}, and genes of the panel are 0 to {num_genes - 1}")


@dataclass
class WholeCells:
    """Cells of which all measured genes are to be reconstructed.

    Args:
        values: True values of all genes, `log1p` of counts per 10,000, 0 where a gene is not expressed, `(B, G)`.
        measured: Whether a gene was measured in the cell, bool `(B, G)`.
    """

    values: torch.Tensor
    measured: torch.Tensor

    @classmethod
    def of_masked(
        cls,
        num_genes: int,
        visible: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        masked: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        measured: torch.Tensor | None,
    ) -> "WholeCells":
        """Return the cells of a masked batch.

        Args:
            num_genes: G; larger ids are depth tokens and padding.
            visible: Ids, values, and which of them are tokens, `(B, L)` each.
            masked: Ids, labels, and which of them are labelled, `(B, M)` each.
            measured: Whether a gene was measured in the cell, `(B, G)`; all were if None.
        """
        values_BG = dense_values(num_genes, *visible) + dense_values(num_genes, *masked)  # no gene is in both
        return cls(values_BG, torch.ones_like(values_BG, dtype=torch.bool) if measured is None else measured.bool())

    def sample(self, is_same: bool, at_most: int = GENES_IN_TRAINING) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw genes; return their ids and the number of genes that each stands for (0 = none), `(B, Q)` each.

        Args:
            is_same: Whether all cells get the same genes, drawn from the panel. Where genes attend to each other they
                must: genes that are drawn because a cell expresses them would tell what it expresses, past the latents.
                Otherwise a cell gets its expressed genes and as many others that were measured in it.
            at_most: Largest number of genes of a cell.
        """
        num_cells, num_genes = self.values.shape
        if is_same:
            ids_BQ = torch.randperm(num_genes, device=self.values.device)[:at_most].expand(num_cells, -1)
            return ids_BQ, self.measured.gather(1, ids_BQ).float()
        keys_BG = torch.rand_like(self.values)
        half = max(at_most // 2, 1)
        most_B = torch.full((num_cells,), half, device=keys_BG.device)
        ids, weights = [], []
        for is_in_BG in (self.measured & (self.values > 0), self.measured & (self.values == 0)):
            number_B = is_in_BG.sum(1)
            taken_B = torch.minimum(number_B, most_B)
            # A GPU is not asked how many are needed, because the host would wait: it draws as many as there may be.
            size = int(taken_B.max()) if is_at_hand(keys_BG.device) else min(half, num_genes)
            ids_BQ = keys_BG.masked_fill(~is_in_BG, -1).topk(size, dim=1).indices
            is_taken_BQ = torch.arange(ids_BQ.shape[1], device=ids_BQ.device) < taken_B.unsqueeze(1)
            ids.append(ids_BQ)
            weights.append(is_taken_BQ * (number_B / taken_B.clamp(min=1)).unsqueeze(1))
            most_B = taken_B.clamp(min=1)
        return torch.cat(ids, 1), torch.cat(weights, 1)

    def evenly(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids of so many genes, at even distances on the panel, and whether each was measured, `(B, Q)`."""
        num_cells, num_genes = self.values.shape
        ids_BQ = (torch.arange(number, device=self.values.device) * num_genes // number).expand(num_cells, -1)
        return ids_BQ, self.measured.gather(1, ids_BQ)


def latent_loss(
    decoder: LatentDecoder, base: Any, latents: torch.Tensor, kl: torch.Tensor | None, cells: WholeCells
) -> torch.Tensor:
    """Return the mean over cells of the loss of their latents `(B, K, Z)`.

    It is the loss of the cell that is decoded from them, `independence_weight` times `independence_loss`, and
    `kl_weight` times their divergence `kl` `(B,)` if they are Gaussian. In training the first is estimated from some of
    the genes of each cell; outside of it all count, or 4,096 evenly chosen ones if the encoder's layers decode.
    """
    config = base.config
    ids_BQ, weights = None, cells.measured
    values = cells.values
    if decoder.training:
        ids_BQ, weights = cells.sample(is_same=decoder.is_mixing)
    elif decoder.mode == "shared" and values.shape[1] > GENES_OF_SHARED:
        ids_BQ, weights = cells.evenly(GENES_OF_SHARED)
    if ids_BQ is not None:
        values = values.gather(1, ids_BQ)
    gene_ids = ids_BQ[0] if ids_BQ is not None and decoder.is_mixing else ids_BQ
    scores = decoder(base, latents, gene_ids)
    loss = reconstruction_loss(scores, values, weights, config.reconstruction_likelihood).mean()
    loss = loss + config.independence_weight * independence_loss(latents)
    return loss if kl is None else loss + config.kl_weight * kl.mean()


def independence_loss(latents: torch.Tensor) -> torch.Tensor:
    """Return the mean squared cosine between two latents of a cell, for latents `(B, K, Z)`; 0 for one latent.

    >>> independence_loss(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 0.0]]]))
    tensor(0.5000)
    """
    unit_BKZ = nn.functional.normalize(latents.float(), dim=-1)
    cosines_BKK = unit_BKZ @ unit_BKZ.mT
    is_pair_KK = ~torch.eye(latents.shape[1], dtype=torch.bool, device=latents.device)
    return (cosines_BKK.square() * is_pair_KK).sum() / (len(latents) * is_pair_KK.sum()).clamp(min=1)


def energy_distance(embeddings: torch.Tensor, batch_ids: torch.Tensor) -> torch.Tensor:
    """Return the energy distance between the cells of a batch and all others, mean over batches; it has a gradient.

        2 mean|a - b| - mean|a - a'| - mean|b - b'|        a, a' in the batch, b, b' in the others

    It is 0 in expectation where all batches have the same distribution. As a term of a loss it mixes batches.

    Args:
        embeddings: Embeddings of cells, `(B, D)`.
        batch_ids: Batch of each cell, `(B,)`. A batch counts if it and the others have two cells or more.

    Example:
        >>> cells = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> energy_distance(cells, torch.tensor([0, 0, 1, 1]))
        tensor(18.)
        >>> energy_distance(cells, torch.tensor([0, 1, 0, 1])) <= 0
        tensor(True)

    Source: energy statistics (Székely and Rizzo 2013); the kernel of Xpressor's fine-tuning, unbiased.
    """
    distances_BB = torch.cdist(embeddings.float(), embeddings.float(), compute_mode="donot_use_mm_for_euclid_dist")
    same_BB = (batch_ids.unsqueeze(1) == batch_ids).to(distances_BB.dtype)
    num_in_B = same_BB.sum(1)
    num_out_B = len(batch_ids) - num_in_B
    # Sums over pairs of cells, for the batch of each cell: one of its batch and one of the others, two of its batch,
    # two of the others. The distance of a cell to itself is 0, and is not counted.
    between_B = same_BB @ (distances_BB * (1 - same_BB)).sum(1)
    inside_B = same_BB @ (distances_BB * same_BB).sum(1)
    outside_B = distances_BB.sum() - inside_B - 2 * between_B
    energy_B = 2 * between_B / (num_in_B * num_out_B).clamp(min=1)
    energy_B = energy_B - inside_B / (num_in_B * (num_in_B - 1)).clamp(min=1)
    energy_B = energy_B - outside_B / (num_out_B * (num_out_B - 1)).clamp(min=1)
    weights_B = torch.where((num_in_B > 1) & (num_out_B > 1), 1 / num_in_B, 0)  # the cells of a batch count 1 together
    return (weights_B * energy_B).sum() / weights_B.sum().clamp(min=1)


def replace_latent(latents: torch.Tensor, index: int, new: torch.Tensor) -> torch.Tensor:
    """Return latents `(B, K, Z)` with one replaced, for a counterfactual: what would the cell be with that of another?

    Args:
        latents: Latents of cells, `(B, K, Z)`; they are not changed.
        index: Which of the K.
        new: The latent to set, `(Z,)`, or one for each cell, `(B, Z)`.

    Raises:
        ValueError: If there is no such latent, or the new one has another shape.

    Example:
        >>> latents = torch.zeros(2, 3, 4)
        >>> replace_latent(latents, 1, torch.ones(4)).sum((0, 2))
        tensor([0., 8., 0.])
    """
    if index not in range(latents.shape[1]):
        raise ValueError(f"there is no latent {index}: these cells have {latents.shape[1]}, counted from 0")
    if new.shape not in (latents.shape[2:], latents[:, 0].shape):
        raise ValueError(
            f"the new latent has shape {tuple(new.shape)}: give {tuple(latents.shape[2:])}, or one for each cell, "
            f"{tuple(latents[:, 0].shape)}"
        )
    replaced = latents.clone()
    replaced[:, index] = new.to(latents)
    return replaced


def add_xpressor(model: Any, num_latents: int = 8, **fields: Any) -> Any:
    """Add an Xpressor to a trained model, in place, and return the model.

    Its cell embeddings, its predictions of masked genes and its other outputs stay what they are; the latents have to
    be trained. With `pooling="xpressor"` cells are embedded by their latents, and then embeddings change; those of an
    anchored model are those of its bag of genes until it is trained.

    Args:
        model: An `XTrimoGeneModel`, `XTrimoGeneForPreTraining` or `XTrimoGeneForSequenceClassification`.
        num_latents: Number of latents, at least 1.
        **fields: Other fields of the configuration: `pooling`, or one that tells of latents, such as `latent_size`.

    Raises:
        ValueError: If the model has latents already or cannot have any, a field is another one, or a classifier is to
            be pooled otherwise than its head was trained for.
        StrictDataclassClassValidationError: If a field is out of its range.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
        >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=50)).eval()
        >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
        >>> before = model(input_ids, values).logits
        >>> output = add_xpressor(model, num_latents=4, latent_size=32)(input_ids, values)
        >>> torch.equal(output.logits, before), output.latents.shape
        (True, torch.Size([1, 4, 32]))
    """
    config = model.config
    if not hasattr(config, "num_latents"):
        raise ValueError(f"{type(model).__name__} cannot have latents: give an xTrimoGene")
    if config.num_latents:
        raise ValueError(f"the model has {config.num_latents} latents already, and an Xpressor is added once")
    if num_latents < 1:
        raise ValueError(f"num_latents is {num_latents}: give at least 1")
    # The reconstruction of an anchored model was trained with its likelihood.
    allowed = FIELDS - {"reconstruction_likelihood"} if config.anchored else FIELDS
    if others := sorted(set(fields) - allowed):
        raise ValueError(f"{others[0]} cannot be set when an Xpressor is added: give {', '.join(sorted(allowed))}")
    is_pooled_anew = fields.get("pooling", config.pooling) != config.pooling
    if is_pooled_anew and hasattr(model, "classifier"):
        raise ValueError(
            f"the classifier was trained on pooling {config.pooling!r} and would read {fields['pooling']!r}: leave "
            f"pooling out, or train a new head by `xtrimogene finetune --peft xpressor`"
        )
    fields = {"num_latents": num_latents, **fields}
    type(config)(**{**config.to_dict(), **fields})  # raises an error if a field is out of its range
    for name, value in fields.items():
        setattr(config, name, value)
    base = model.base_model
    base.xpressor = Xpressor(config).apply(model._init_weights).to(model.device).train(model.training)
    if is_pooled_anew and (bag := getattr(base, "bag", None)) is not None:
        # An anchored model that now embeds by its latents begins at its bag of genes again.
        bag.from_encoder = ZeroLinear(config.encoder_pooled_size, config.embedding_size, bias=False)
        bag.from_encoder.apply(model._init_weights).to(model.device)
    if hasattr(model, "latent_decoder"):
        model.latent_decoder = LatentDecoder(config).apply(model._init_weights).to(model.device).train(model.training)
    return model
