"""The reference procedure to measure against: one cell at a time or padded, with performer-pytorch over all genes.

Its parameters have the names of the released scFoundation layout. `convert_state_dict` turns them into weights of our
model, so that results can be compared before times are.

Letters: B cells, L tokens, P decoder positions, D width of the encoder, E width of the decoder, H bins, M masked genes.
Source: arXiv:2311.15156 and the released inference code. Where performer-pytorch is not installed, its attention is
computed by the same formula (`PlainPerformer`).
"""

from typing import Any

import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from ....modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ....modeling_xtrimogene.convert_scfoundation import convert_state_dict
from ....modeling_xtrimogene.favor_xtrimogene import FEATURE_EPS, orthogonal_random_features
from ....modeling_xtrimogene.value_embedding_xtrimogene import LEAKY_SLOPE


class ReferenceValues(nn.Module):
    """Auto-discretisation, computed for each value on its own."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.mlp = nn.Linear(1, config.num_bins)
        self.mlp2 = nn.Linear(config.num_bins, config.num_bins)
        self.emb = nn.Embedding(config.num_bins, config.hidden_size)
        self.emb_mask = nn.Embedding(1, config.hidden_size)
        self.emb_pad = nn.Embedding(1, config.hidden_size)
        self.alpha = config.bin_alpha

    def forward(self, values: torch.Tensor, is_masked: torch.Tensor | None = None) -> torch.Tensor:
        """Return `(B, L, D)`."""
        scores = nn.functional.leaky_relu(self.mlp(values.unsqueeze(-1)), LEAKY_SLOPE)
        weights_BLH = (self.mlp2(scores) + self.alpha * scores).softmax(-1)
        value_BLD = weights_BLH @ self.emb.weight
        return value_BLD if is_masked is None else torch.where(is_masked[..., None], self.emb_mask.weight, value_BLD)


class ReferenceEncoder(nn.Module):
    """torch's own encoder layers."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        width = config.hidden_size
        self.transformer_encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.num_attention_heads, 4 * width, config.hidden_dropout_prob, batch_first=True
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden_states: torch.Tensor, is_padding: torch.Tensor | None = None) -> torch.Tensor:
        """Return `(B, L, D)`."""
        for layer in self.transformer_encoder:
            hidden_states = layer(hidden_states, src_key_padding_mask=is_padding)
        return self.norm(hidden_states)


def plain_favor(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Return FAVOR+ attention of `(B, A, N, K)` as performer-pytorch computes it, with features of all tokens at once.

    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 5, 8)
        >>> plain_favor(query, key, value, torch.randn(16, 8)).shape
        torch.Size([1, 2, 5, 8])
    """
    scale, share = query.shape[-1] ** -0.25, len(projection) ** -0.5

    def features(rows: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        products = scale * rows @ projection.mT
        half = rows.square().sum(-1, keepdim=True) * (scale**2 / 2)
        return share * ((products - half - products.amax(dims, keepdim=True).detach()).exp() + FEATURE_EPS)

    phi_q, phi_k = features(query, (-1,)), features(key, (-1, -2))
    return phi_q @ (phi_k.mT @ value) / (phi_q @ phi_k.sum(-2).unsqueeze(-1))


class PlainAttention(nn.Module):
    """A Performer's attention, with the names that performer-pytorch gives its weights."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        width, inner = config.decoder_hidden_size, config.decoder_num_attention_heads * config.decoder_head_dim
        self.head_dim = config.decoder_head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.to_out = nn.Linear(inner, width)
        drawn = orthogonal_random_features(config.favor_num_features or 0, self.head_dim, config.favor_seed)
        self.fast_attention = nn.ParameterDict({"projection_matrix": nn.Parameter(drawn, requires_grad=False)})

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `(B, N, E)`."""
        layers = self.to_q, self.to_k, self.to_v
        query, key, value = (layer(rows).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in layers)
        found = plain_favor(query, key, value, self.fast_attention["projection_matrix"])
        return self.to_out(found.transpose(1, 2).flatten(-2))


class PlainFeedForward(nn.Module):
    """A Performer's feed-forward layers."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.fn = nn.ModuleDict({"w1": nn.Linear(width, 4 * width), "w2": nn.Linear(4 * width, width)})

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `(B, N, E)`."""
        return self.fn["w2"](nn.functional.gelu(self.fn["w1"](rows)))


class PlainBranch(nn.Module):
    """A branch that reads normalised rows."""

    def __init__(self, branch: nn.Module, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = branch

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows with the branch added."""
        return rows + self.fn(self.norm(rows))


class PlainPerformer(nn.Module):
    """Stand for performer-pytorch's `Performer` where it is not installed: the same weights, names and steps."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        width = config.decoder_hidden_size
        branches = (PlainAttention, PlainFeedForward)
        layers = (
            nn.Sequential(*(PlainBranch(branch(config), width) for branch in branches))
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.net = nn.ModuleDict({"layers": nn.Sequential(*layers)})

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `(B, N, E)`."""
        return self.net["layers"](rows)


class ReferenceDecoder(nn.Module):
    """performer-pytorch's Performer over all positions, or the same without that package."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.decoder_hidden_size)
        try:
            from performer_pytorch import Performer
        except ImportError:
            self.performer: nn.Module = PlainPerformer(config)
            return
        self.performer = Performer(
            dim=config.decoder_hidden_size,
            depth=config.decoder_num_hidden_layers,
            heads=config.decoder_num_attention_heads,
            dim_head=config.decoder_head_dim,
            qkv_bias=True,
            attn_out_bias=True,
            auto_check_redraw=False,
        )


class ReferenceModel(nn.Module):
    """Encoder, scatter to all genes, Performer, head."""

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.config = config
        self.token_emb = ReferenceValues(config)
        self.pos_emb = nn.Embedding(config.num_positions + 1, config.hidden_size)
        self.encoder = ReferenceEncoder(config)
        self.decoder_embed = nn.Linear(config.hidden_size, config.decoder_hidden_size)
        self.decoder = ReferenceDecoder(config)
        self.norm = nn.LayerNorm(config.decoder_hidden_size)
        self.to_final = nn.Linear(config.decoder_hidden_size, 1)

    def our_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights under the names of our model."""
        weights = {name: part for name, part in self.state_dict().items() if "proj_updater" not in name}
        return convert_state_dict(weights)

    def encode(
        self, input_ids: torch.Tensor, values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `(B, L, D)`."""
        hidden_states = self.token_emb(values) + self.pos_emb(input_ids)
        return self.encoder(hidden_states, None if attention_mask is None else attention_mask == 0)

    def cell_embedding(self, input_ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the maximum and the mean over the tokens of one cell, `(1, 2 D)`."""
        hidden_1LD = self.encode(input_ids, values)
        return torch.cat([hidden_1LD.amax(1), hidden_1LD.mean(1)], dim=-1)

    def gene_embedding(
        self, input_ids: torch.Tensor, values: torch.Tensor, masked_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `(B, P, E)`; masked genes `(B, M)` carry the mask vector."""
        B, P = len(input_ids), self.config.num_positions
        all_values_BP = torch.zeros(B, P, device=values.device)
        is_masked_BP = torch.zeros(B, P, dtype=torch.bool, device=values.device)
        if masked_ids is not None:
            is_masked_BP.scatter_(1, masked_ids, True)
        rows_BPD = self.token_emb(all_values_BP, is_masked_BP)
        hidden_BLD = self.encode(input_ids, values).to(rows_BPD.dtype)
        rows_BPD = rows_BPD.scatter(1, input_ids[..., None].expand_as(hidden_BLD), hidden_BLD)
        rows_BPD = rows_BPD + self.pos_emb(torch.arange(P, device=values.device))
        rows_BPE = self.decoder.performer(self.decoder_embed(rows_BPD))
        return self.norm(self.decoder.norm(rows_BPE))

    def loss(
        self, input_ids: torch.Tensor, values: torch.Tensor, masked_ids: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean squared error at masked genes; the reference computes all genes."""
        predicted_BP = self.to_final(self.gene_embedding(input_ids, values, masked_ids)).squeeze(-1)
        return (predicted_BP.gather(1, masked_ids).float() - labels).square().mean()


def transformers_encoder(model: Any, config: XTrimoGeneConfig) -> nn.Module:
    """Return transformers' BERT layers with the weights of our encoder; they use padded batches and fused attention."""
    bert_config = BertConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_act="relu",
        layer_norm_eps=config.layer_norm_eps,
        attn_implementation="sdpa",
    )
    encoder = BertEncoder(bert_config)
    names = {
        "attention.self.query": "self_attn.q_proj",
        "attention.self.key": "self_attn.k_proj",
        "attention.self.value": "self_attn.v_proj",
        "attention.output.dense": "self_attn.o_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
        "output.LayerNorm": "norm2",
    }
    ours = model.encoder.state_dict()
    encoder.load_state_dict(
        {
            f"layer.{layer}.{theirs}.{kind}": ours[f"layers.{layer}.{mine}.{kind}"]
            for layer in range(config.num_hidden_layers)
            for theirs, mine in names.items()
            for kind in ("weight", "bias")
        }
    )
    return encoder
