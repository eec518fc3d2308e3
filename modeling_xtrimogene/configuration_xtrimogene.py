# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Configuration of xTrimoGene: one flat set of fields, and the three published sizes.

Source: arXiv:2311.15156; the released scFoundation configuration for what the paper does not state.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .reconstruction_xtrimogene import Likelihood

# Not published: what a laptop can train.
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_head_dim": 32,
    "decoder_context": "nonzero",
    "pooling": "all",
    "anchored": True,
    # CPUs have no fused attention with dropout, and a few epochs do not overfit.
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}
# `tiny` in 8 MB, in half precision: four tables have a row for each gene, and all of them are narrower.
MICRO: dict[str, Any] = {
    **TINY,
    "hidden_size": 32,
    "decoder_hidden_size": 32,
    "decoder_head_dim": 16,
    "embedding_size": 48,
    "anchor_decoder_size": 24,
}
# Encoder and decoder of the published sizes. The heads of 10M are not published; 64 wide is the rule of 3M and 100M.
PRESETS: dict[str, dict[str, Any]] = {
    "micro": MICRO,
    "tiny": TINY,
    "3M": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "decoder_hidden_size": 128,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
    },
    "10M": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "decoder_hidden_size": 256,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
    },
    "100M": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 6,
        "decoder_num_attention_heads": 8,
    },
}

# Version 0.1 saved the fields of the perturbation and the synergy head with every model: name -> default.
FIELDS_OF_HEADS: dict[str, Any] = {
    "synergy_drug_features": None,
    "synergy_cell_features": None,
    "synergy_hidden_size": 512,
    "synergy_dropout": 0.1,
    "perturbation_num_nodes": 0,
    "perturbation_num_measured": 0,
    "perturbation_feature_size": 64,
    "perturbation_features": "pretrained",
    "perturbation_num_expression_edges": 0,
    "perturbation_num_relation_edges": 0,
    "perturbation_hidden_size": 64,
    "perturbation_dropout": 0.5,
    "perturbation_focus": 0.0,
    "perturbation_direction_weight": 0.0,
}


def fields_of_head(config_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the fields of one head, without their prefix, and the fields that all models share.

    Args:
        config_dict: Content of a `config.json` of version 0.1, whose `model_type` is `xtrimogene`.
        prefix: `synergy_` or `perturbation_`.
    """
    names = [name for name in FIELDS_OF_HEADS if name.startswith(prefix)]
    names += [field.name for field in fields(PreTrainedConfig)]
    return {name.removeprefix(prefix): config_dict[name] for name in names if name in config_dict}


@strict
class XTrimoGeneConfig(PreTrainedConfig):
    """Describe an xTrimoGene model; the defaults are the published 100M model in the paper's form (genes only).

    Args:
        num_genes: Genes `G` of the panel; ids `0 ... G - 1`, in the panel's order.
        depth_tokens: Whether two tokens follow the genes: T (id `G`, target depth) and S (id `G + 1`, source depth), as
            in scFoundation. The paper's xTrimoGene has genes only.
        hidden_size: Width `D` of the encoder, of gene embeddings and of value embeddings.
        protein_size: Width `P` of a frozen table of protein embeddings, from which an adapter makes the gene embeddings
            (`protein_xtrimogene.py`); 0 learns a vector for each gene.
        num_hidden_layers: Encoder layers; with none, and all genes in the decoder, the model is a plain Performer.
        num_attention_heads: Encoder heads, each `hidden_size / num_attention_heads` wide.
        intermediate_size: Width of the encoder's feed-forward part; 4 D unless given.
        norm_first: Pre-norm encoder layers; the released model is post-norm.
        hidden_dropout_prob: Dropout of the encoder's feed-forward hidden layer and residual branches.
        attention_probs_dropout_prob: Dropout of the encoder's attention weights.
        decoder_hidden_size: Width `E` of the decoder.
        decoder_num_hidden_layers: Performer layers.
        decoder_num_attention_heads: Performer heads.
        decoder_head_dim: Width of a Performer head.
        decoder_intermediate_size: Width of the decoder's feed-forward part; 4 E unless given.
        decoder_context: Genes that are attended to in the decoder: `all` (the paper's), or `nonzero`, which are the
            visible and the masked genes. All others are zero, so no information is lost, and visible genes are not
            outnumbered forty to one: with few cells such a model learns sooner, and a step costs less (docs/model.md).
        layer_norm_eps: Epsilon of every LayerNorm.
        initializer_range: Standard deviation of initial weights (table in `XTrimoGenePreTrainedModel._init_weights`).
        value_embedding: How a value becomes a vector: `auto_bin` (auto-discretisation, the paper's), `rounded_bin`
            (nearest of `num_bins` equal bins, learned table) or `linear` (both of the paper's ablation).
        num_bins: Bins `H` of the value embedding.
        bin_alpha: Weight alpha of the residual in auto-discretisation.
        max_value: Upper end of the equal bins of `rounded_bin` and of the classification objective, in `log1p` units.
            log(1 + 1e4) = 9.21 is the largest value a cell normalised to 1e4 can hold.
        objective: `regression` (squared error, the paper's) or `classification` over `num_value_classes` equal bins
            (the paper's ablation).
        num_value_classes: Classes of the classification objective.
        favor_num_features: Random features `F` of FAVOR+; `int(K ln K)` for heads of width K unless given.
        favor_stabilizer: Keys over which the maximum of the features is taken: those of a `cell` (the default; a cell's
            output does not depend on its batch), of a `head` of a cell, or of the whole `batch` (the released code,
            whose outputs depend on the other cells).
        favor_backend: Implementation of FAVOR+: `native`; `compiled`, the same with features computed by torch.compile,
            for GPUs; or the package `performer-pytorch` with the same weights and random features, which needs
            `favor_stabilizer="head"` and more time and memory (docs/model.md).
        favor_products: Precision in which FAVOR+ multiplies features with values: `float32`, or `bfloat16` into sums in
            float32, which GPUs do faster. It changes outputs (`eval/cost/benchmarks/gpu.py` says by how much).
        favor_seed: Seed of the random features, which are saved with the weights.
        favor_redraw_interval: Training steps between new random features (1,000 in the released model); 0 never
            redraws. The callback `RedrawProjections` redraws them during training.
        anchored: Whether the cell embedding and the values of genes begin as those of a bag of genes, an autoencoder
            without attention, and the transformer adds to them (`anchor_xtrimogene.py`). The paper's and the released
            models are not anchored; `tiny` is. What `pooling` gives is then added to the embedding of the bag.
        embedding_size: Width `Z` of the cell embedding of an anchored model.
        anchor_decoder_size: Width of the network that reconstructs the genes from the cell embedding.
        anchor_mask_odds: How many times likelier an expressed gene is masked than one that is not expressed. The values
            of masked genes begin as what is expected of them given that they are masked. Training sets it.
        num_batches: Batches of the training cells with biases of their own in the reconstruction. Training sets it.
        pooling: Cell embedding: `max` or `mean` over tokens, `S` or `T` (the output at that token), `all`, which is
            [S, T, max over genes, mean over genes], without depth tokens [max, mean], or `xpressor`, the latents side
            by side.
        encoder_attention: Attention of the encoder: `full`, or `criss_cross`, in which genes exchange information
            through learned latents only, in time linear in their number (docs/model.md). Its layers are pre-norm.
        criss_cross_latents: Latents of criss-cross attention.
        criss_cross_size: Their width.
        num_latents: Latents `K` of the Xpressor, which read the encoder's states, and from which the cell is
            reconstructed; 0 is a model without.
        latent_size: Width `Z` of a latent; the smaller of 256 and `hidden_size` unless given.
        xpressor_layers: Layers in which the latents read the states.
        xpressor_decoder: How genes are decoded from latents: `cross_only` (layers of its own, each gene alone),
            `decoder` (the decoder's layers, each behind a cross-attention to the latents) or `shared` (the encoder's
            layers in the same way, the paper's, at most 4,096 genes at a time).
        latent_bottleneck: `none`, `gaussian` (a variational autoencoder's; the mean outside of training) or `fsq`
            (finite scalar quantisation: each entry of a latent is -1 or 1).
        reconstruction_likelihood: Loss of the cell that is reconstructed from its embedding or from latents:
            `multinomial`, `poisson` or `squared_error` (table in `reconstruction_loss`).
        independence_weight: Weight of the mean squared cosine between the latents of a cell in the loss.
        kl_weight: Weight of the divergence of `gaussian` latents from a standard normal distribution in the loss.
        mixing_weight: Weight of the energy distance between the batches of the training cells in the loss: of their
            embeddings in an anchored model, else of their latents (`energy_distance`); 0 leaves it out. Batches then
            mix more, and a type of cells that only one batch has may lose its place.
        sentinel_values: Strict parity with the released code, which recognises mask and padding by the *values* 102 and
            103, even where a gene has this value. Otherwise masks are explicit.
        pool_includes_padding: Strict parity with the released fine-tuning head, whose maximum runs over padding too.
        classifier_norm: How the classification head standardises cell embeddings: `features` (by statistics of the
            training cells, which are set before training) or `batch` (BatchNorm, as released). Saved classifiers
            without this field have `batch`.
        classifier_anchored: Whether the classification head adds to a logistic regression on expression values, which
            is fitted before training. Fine-tuning for cell types sets it by default.
        classifier_hidden_size: Hidden width of the classification head.
        classifier_dropout: Dropout before the last layer of the classification head.
        class_weights: Weights of the classes in the cross-entropy, in the order of the label ids.
        vocab_size: Rows of the gene table: genes, depth tokens, padding. Computed from `num_genes` and `depth_tokens`.
        pad_token_id: Id of padding, the last row. Computed from `num_genes` and `depth_tokens`.

    Example:
        >>> config = xtrimogene.XTrimoGeneConfig(num_genes=50, hidden_size=32, num_attention_heads=2)
        >>> config.pad_token_id, config.pooled_size
        (50, 32)
    """

    model_type = "xtrimogene"
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "latents", "cell_embedding"]

    num_genes: int = 19264
    depth_tokens: bool = False
    hidden_size: int = 768
    protein_size: int = 0
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    norm_first: bool = False
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 6
    decoder_num_attention_heads: int = 8
    decoder_head_dim: int = 64
    decoder_intermediate_size: int | None = None
    decoder_context: Literal["all", "nonzero"] = "all"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    value_embedding: Literal["auto_bin", "rounded_bin", "linear"] = "auto_bin"
    num_bins: int = 100
    bin_alpha: float | int = 1.0
    max_value: float | int = 10.0
    objective: Literal["regression", "classification"] = "regression"
    num_value_classes: int = 100
    favor_num_features: int | None = None
    favor_stabilizer: Literal["cell", "head", "batch"] = "cell"
    favor_backend: Literal["native", "compiled", "performer-pytorch"] = "native"
    favor_products: Literal["float32", "bfloat16"] = "float32"
    favor_seed: int = 0
    favor_redraw_interval: int = 0
    anchored: bool = False
    embedding_size: int = 64
    anchor_decoder_size: int = 256
    anchor_mask_odds: float = 10.0
    num_batches: int = 0
    pooling: Literal["all", "max", "mean", "S", "T", "xpressor"] = "max"
    encoder_attention: Literal["full", "criss_cross"] = "full"
    criss_cross_latents: int = 32
    criss_cross_size: int = 128
    num_latents: int = 0
    latent_size: int | None = None
    xpressor_layers: int = 4
    xpressor_decoder: Literal["cross_only", "decoder", "shared"] = "cross_only"
    latent_bottleneck: Literal["none", "gaussian", "fsq"] = "none"
    reconstruction_likelihood: Likelihood = "multinomial"
    independence_weight: float | int = 0.1
    kl_weight: float | int = 1e-3
    mixing_weight: float | int = 0.0
    sentinel_values: bool = False
    pool_includes_padding: bool = False
    classifier_norm: Literal["features", "batch"] | None = None
    classifier_anchored: bool = False
    classifier_hidden_size: int = 256
    classifier_dropout: float | int = 0.1
    class_weights: list[float | int] | None = None
    vocab_size: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in fields that are computed from others, and drop the fields of heads that version 0.1 saved here."""
        for name in [name for name in FIELDS_OF_HEADS if name in kwargs]:
            if (value := kwargs.pop(name)) != FIELDS_OF_HEADS[name]:
                head = "XTrimoGeneForDrugSynergy"
                if name.startswith("perturbation_"):
                    head = "XTrimoGeneForPerturbationPrediction"
                raise ValueError(
                    f"{name} is {reprlib.repr(value)}, and {type(self).__name__} has no such field: it belongs to the "
                    f"configuration of {head}, without its prefix. A folder that version 0.1 saved is loaded by "
                    f"{head}.from_pretrained(folder), and save_pretrained then writes it in the new form"
                )
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.decoder_intermediate_size is None:
            self.decoder_intermediate_size = 4 * self.decoder_hidden_size
        if self.latent_size is None:
            self.latent_size = min(256, self.hidden_size)
        if self.favor_num_features is None:
            self.favor_num_features = int(self.decoder_head_dim * math.log(max(self.decoder_head_dim, 1)))
        if self.class_weights is not None:
            self.class_weights = [float(weight) for weight in self.class_weights]
        if self.vocab_size is None:
            self.vocab_size = self.num_positions + 1
        if self.pad_token_id is None:
            self.pad_token_id = self.num_positions
        if not __name__.startswith("transformers_modules."):  # the package has registered these pipelines
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        if self.classifier_norm is None:  # saved when all classifiers had BatchNorm
            is_old = "XTrimoGeneForSequenceClassification" in (self.architectures or ())
            self.classifier_norm = "batch" if is_old else "features"
        if self.id2label and self.label2id is None:  # type: ignore[has-type]
            self.label2id = {label: index for index, label in self.id2label.items()}

    @property
    def num_positions(self) -> int:
        """Decoder positions `P`: the genes, then T and S where the model has them."""
        return self.num_genes + 2 * self.depth_tokens

    @property
    def target_token_id(self) -> int:
        """Id of T."""
        return self.num_genes

    @property
    def source_token_id(self) -> int:
        """Id of S."""
        return self.num_genes + 1

    @property
    def pooled_size(self) -> int:
        """Width of the cell embedding."""
        return self.embedding_size if self.anchored else self.encoder_pooled_size

    @property
    def encoder_pooled_size(self) -> int:
        """Width of the pooled encoder states, or of the latents side by side."""
        if self.pooling == "xpressor":
            return self.num_latents * self.latent_size
        parts = 1 if self.pooling != "all" else 4 if self.depth_tokens else 2
        return parts * self.hidden_size

    @property
    def anchor_scale(self) -> float:
        """Counts that the bag of genes of an anchored model reads for a count of the tokenizer: both are per 10,000."""
        return 1.0

    def validate_sizes(self) -> None:
        """Refuse sizes that no model can have."""
        sizes = (
            "hidden_size", "num_attention_heads", "intermediate_size", "decoder_hidden_size",
            "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_head_dim", "decoder_intermediate_size",
            "classifier_hidden_size", "criss_cross_latents", "criss_cross_size", "latent_size", "xpressor_layers",
            "embedding_size", "anchor_decoder_size",
        )  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} and must be at least 1")
        for name in ("num_hidden_layers", "num_latents", "protein_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must be at least 0")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_genes < 1 or self.num_bins < 2 or self.num_value_classes < 2:
            raise ValueError(
                f"num_genes {self.num_genes} must be at least 1, num_bins {self.num_bins} and "
                f"num_value_classes {self.num_value_classes} at least 2"
            )
        if self.vocab_size < self.num_positions + 1:
            raise ValueError(
                f"vocab_size {self.vocab_size} has no room for {self.num_positions} positions and padding: "
                f"leave it out, it follows from num_genes and depth_tokens"
            )
        if self.favor_num_features < 1:
            raise ValueError(
                f"decoder_head_dim {self.decoder_head_dim} gives no random features: "
                f"take a head of at least 2 or set favor_num_features"
            )

    def validate_numbers(self) -> None:
        """Refuse numbers outside of their range."""
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} and must be a share from 0 to below 1")
        for name in ("max_value", "layer_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must be above 0")
        weights = ("independence_weight", "kl_weight", "mixing_weight")
        for name in ("initializer_range", "favor_redraw_interval", *weights):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must not be negative")

    def validate_pooling(self) -> None:
        """Refuse pooling at T or S if the model has no depth tokens, and pooling of latents if it has none."""
        if self.pooling in ("S", "T") and not self.depth_tokens:
            raise ValueError(
                f"pooling {self.pooling!r} needs depth tokens and this model has none: "
                f"set depth_tokens=True, or pooling to 'max', 'mean' or 'all'"
            )
        if self.pooling == "xpressor" and not self.num_latents:
            raise ValueError(
                f"pooling 'xpressor' needs latents and num_latents is {self.num_latents}: set num_latents, such as 8, "
                f"add them to a trained model by add_xpressor, or set pooling to 'max', 'mean' or 'all'"
            )

    def validate_encoder_attention(self) -> None:
        """Refuse what criss-cross attention cannot be combined with."""
        if self.encoder_attention != "criss_cross":
            return
        if not self.num_hidden_layers:
            raise ValueError("encoder_attention is 'criss_cross' and num_hidden_layers is 0: give at least 1 layer")
        if self.num_latents and self.xpressor_decoder == "shared":
            raise ValueError(
                "xpressor_decoder is 'shared' and encoder_attention is 'criss_cross', whose layers do not decode: set "
                "xpressor_decoder to 'cross_only' or 'decoder'"
            )

    def validate_anchor(self) -> None:
        """Refuse an anchor for models whose outputs or inputs are of another kind, and what needs one."""
        if self.anchored and self.objective != "regression":
            raise ValueError(
                f"anchored is True and objective {self.objective!r}: an anchor predicts values, not classes of values; "
                f"set objective='regression' or anchored=False"
            )
        if self.anchored and self.sentinel_values:
            raise ValueError(
                "anchored and sentinel_values are both True: the released code has no anchor; set one to False"
            )
        if self.mixing_weight and not self.anchored and not self.num_latents:
            raise ValueError(
                f"mixing_weight is {self.mixing_weight}, and this model is not anchored and has no latents, so its "
                f"batches are not compared: set num_latents, such as 8, or anchored=True"
            )
        if self.num_batches < 0:
            raise ValueError(f"num_batches is {self.num_batches} and must not be negative")

    def validate_favor_backend(self) -> None:
        """Refuse a stabiliser that the backend does not implement."""
        if self.favor_backend == "performer-pytorch" and self.favor_stabilizer != "head":
            raise ValueError(
                f"favor_backend 'performer-pytorch' takes the maximum of the key features over each head, and "
                f"favor_stabilizer is {self.favor_stabilizer!r}: set favor_stabilizer='head', which changes outputs, "
                f"or favor_backend='native'"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the configuration of a `config.json`.

        Raises:
            ValueError: If the file is of a perturbation or synergy model, whose fields of the same name mean something
                else.
        """
        model_type = str(config_dict.get("model_type"))
        if model_type.startswith(f"{XTrimoGeneConfig.model_type}-"):
            raise ValueError(
                f"the configuration has model_type {model_type!r} and {cls.__name__} is of "
                f"{XTrimoGeneConfig.model_type!r}: load the folder with AutoModel.from_pretrained or "
                f"{' or '.join(config_dict.get('architectures') or ['its own class'])}"
            )
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "XTrimoGeneConfig":
        """Return the configuration of a published size, `3M`, `10M` or `100M`, or of `tiny`, with the given changes.

        Raises:
            ValueError: If there is no such size.

        Source: arXiv:2311.15156 and the released scFoundation model (100M).

        Example:
            >>> xtrimogene.XTrimoGeneConfig.preset("3M", depth_tokens=True).hidden_size
            128
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})


XTrimoGeneConfig.register_for_auto_class()
