# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Configuration of TxFM: its fields, and its sizes.

Source: Kenyon-Dean et al. 2026, "Effective Biological Representation Learning by Masking Gene Expression". What the
paper states and what is ours is listed in docs/txfm.md.
"""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .count_loss_txfm import ACTIVATION_SCALE, Activation, CountLoss
from .reconstruction_xtrimogene import PER_CELL, Likelihood

# Not published: what a laptop can train.
TXFM_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_visible": 512,
    "inference_passes": 8,
    "drop_path_rate": 0.0,
    "anchored": True,
    "initializer_range": 0.1,  # with 0.02, which suits wide layers, a narrow one passes on little (docs/txfm.md)
}
TXFM_PRESETS: dict[str, dict[str, Any]] = {
    "txfm-micro": {**TXFM_TINY, "hidden_size": 32, "embedding_size": 48, "anchor_decoder_size": 24},  # as `micro`
    "txfm-tiny": TXFM_TINY,
    # The paper prints 6 layers and 57M parameters. With its decoder 57M are 12 layers, and 6 would be 46M.
    "txfm-S": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "txfm-B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "txfm-L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "drop_path_rate": 0.3},
}


@strict
class TxFMConfig(PreTrainedConfig):
    """Describe a TxFM model; the defaults are the published size B, on the panel of this package.

    Args:
        num_genes: Genes `G` of the panel; ids `0 ... G - 1`, in the panel's order. Padding has the id `G`.
        hidden_size: Width `D`. The codebook has `D - 1` numbers a gene: the last number of a token is the value.
        num_hidden_layers: Encoder layers.
        num_attention_heads: Encoder heads, each `hidden_size / num_attention_heads` wide.
        intermediate_size: Width of the encoder's feed-forward part; 4 D unless given.
        hidden_dropout_prob: Dropout of the residual branches of the encoder.
        attention_probs_dropout_prob: Dropout of the attention weights.
        drop_path_rate: Share of cells that skip a residual branch of the last layer in training; it grows from 0 at the
            first layer.
        layerscale_value: Initial factor of each residual branch.
        layer_norm_eps: Epsilon of every LayerNorm.
        initializer_range: Standard deviation of initial weights (table in `TxFMPreTrainedModel._init_weights`).
        gene_initializer_range: Standard deviation of the initial codebook.
        num_visible: Genes `K` of a cell that the encoder sees in training, drawn uniformly from those that were
            measured, zeros among them. A cell of which fewer were measured shows all.
        inference_passes: With 0, an embedding is that of all measured genes in one pass. With n, it is the mean of the
            embeddings of n disjoint parts of `num_visible` genes, in an order of genes that is always the same. With
            fewer genes there are fewer parts; of more than n `num_visible` genes the last in the order are not read.
            That costs less where many genes were measured.
        library_size: Total count `L` to which cells are normalised; values are at most log(1 + L).
        decoder_num_hidden_layers: Residual layers of the decoder; with 0 it is linear.
        count_activation: How a logit becomes a value: `rectified_tanh` (the paper's), `relu`, `clamped_relu` or
            `softmax` (its ablation). Table in `predicted_values`. Unless given, it is `softmax` in an anchored model,
            which can have no other, and `rectified_tanh` else. It is saved: give it too where a saved `anchored` is
            changed.
        activation_scale: Scale of the rectified tanh.
        loss: Loss of a gene: `poisson` (the paper's), `mse`, `smooth_l1` or `nb` (its ablation). Table in `count_loss`.
        anchored: Whether the cell embedding and the reconstruction begin as those of a bag of genes, an autoencoder
            without attention, and the CLS token adds to the embedding (`anchor_xtrimogene.py`). The cell is then
            reconstructed by the decoder of the bag, not by the paper's. The paper's models are not anchored.
        embedding_size: Width `Z` of the cell embedding of an anchored model.
        anchor_decoder_size: Width of the network that reconstructs the genes in an anchored model.
        anchor_library_size: Total count to which the bag of genes of an anchored model brings cells.
        num_batches: Batches of the training cells with biases of their own in the reconstruction. Training sets it.
        pooling: Cell embedding: `cls`, the output at the CLS token; in an anchored model it is added to the bag.
        classifier_norm: How the classification head standardises cell embeddings: `features` (by statistics of the
            training cells, which are set before training) or `batch` (BatchNorm).
        classifier_anchored: Whether the classification head adds to a logistic regression on expression values, which
            is fitted before training. Fine-tuning for cell types sets it by default.
        classifier_hidden_size: Hidden width of the classification head.
        classifier_dropout: Dropout before the last layer of the classification head.
        class_weights: Weights of the classes in the cross-entropy, in the order of the label ids.
        vocab_size: Rows of the codebook: genes and padding. Computed from `num_genes`.
        pad_token_id: Id of padding, the last row. Computed from `num_genes`.

    Example:
        >>> config = xtrimogene.TxFMConfig(num_genes=50, hidden_size=32, num_attention_heads=2)
        >>> config.pad_token_id, config.pooled_size
        (50, 32)
    """

    model_type = "txfm"
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "cell_embedding"]

    num_genes: int = 19264
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    layerscale_value: float | int = 1e-4
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    gene_initializer_range: float = 0.02
    num_visible: int = 2048
    inference_passes: int = 0
    library_size: float | int = 100_000.0
    decoder_num_hidden_layers: int = 4
    count_activation: Activation | None = None
    activation_scale: float | int = ACTIVATION_SCALE
    loss: CountLoss = "poisson"
    anchored: bool = False
    embedding_size: int = 64
    anchor_decoder_size: int = 256
    anchor_library_size: float | int = PER_CELL
    num_batches: int = 0
    pooling: Literal["cls"] = "cls"
    classifier_norm: Literal["features", "batch"] = "features"
    classifier_anchored: bool = False
    classifier_hidden_size: int = 256
    classifier_dropout: float | int = 0.1
    class_weights: list[float | int] | None = None
    vocab_size: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in fields that are computed from others."""
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.count_activation is None:
            self.count_activation = "softmax" if self.anchored else "rectified_tanh"
        if self.class_weights is not None:
            self.class_weights = [float(weight) for weight in self.class_weights]
        if self.vocab_size is None:
            self.vocab_size = self.num_genes + 1
        if self.pad_token_id is None:
            self.pad_token_id = self.num_genes
        if not __name__.startswith("transformers_modules."):  # the package has registered these pipelines
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        if self.id2label and self.label2id is None:  # type: ignore[has-type]
            self.label2id = {label: index for index, label in self.id2label.items()}

    @property
    def pooled_size(self) -> int:
        """Width of the cell embedding."""
        return self.embedding_size if self.anchored else self.encoder_pooled_size

    @property
    def encoder_pooled_size(self) -> int:
        """Width of the state of the CLS token."""
        return self.hidden_size

    @property
    def anchor_scale(self) -> float:
        """Counts that the bag of genes of an anchored model reads for a count of the tokenizer."""
        return self.anchor_library_size / self.library_size

    @property
    def reconstruction_likelihood(self) -> Likelihood:
        """Likelihood by which the bag of genes of an anchored model is fitted: that of shares of the counts."""
        return "multinomial"

    @property
    def max_value(self) -> float:
        """Largest value that a gene can have, log(1 + L)."""
        return math.log1p(self.library_size)

    def validate_sizes(self) -> None:
        """Refuse sizes that no model can have."""
        sizes = (
            "num_genes", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_visible",
            "embedding_size", "anchor_decoder_size", "classifier_hidden_size",
        )  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} and must be at least 1")
        for name in ("decoder_num_hidden_layers", "inference_passes", "num_batches"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must be at least 0")
        if self.hidden_size < 2:
            raise ValueError(f"hidden_size is {self.hidden_size}: a token holds at least one number, and the value")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.vocab_size < self.num_genes + 1:
            raise ValueError(
                f"vocab_size {self.vocab_size} has no room for {self.num_genes} genes and padding: leave it out, it "
                f"follows from num_genes"
            )

    def validate_numbers(self) -> None:
        """Refuse numbers outside of their range."""
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} and must be a share from 0 to below 1")
        for name in ("library_size", "anchor_library_size", "activation_scale", "layer_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must be above 0")
        for name in ("initializer_range", "gene_initializer_range", "layerscale_value"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must not be negative")

    def validate_anchor(self) -> None:
        """Refuse an activation that an anchored model does not have."""
        if self.anchored and self.count_activation != "softmax":
            raise ValueError(
                f"anchored is True and count_activation {self.count_activation!r}: the bag of genes reconstructs "
                f"shares of the counts; set count_activation='softmax' or anchored=False"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the configuration of a `config.json`.

        Raises:
            ValueError: If it is of an anchored model and does not say in which units the bag of genes reads counts.
        """
        is_anchored = config_dict.get("anchored") and kwargs.get("anchored", True)
        if is_anchored and "anchor_library_size" not in {**config_dict, **kwargs}:
            raise ValueError(
                "the configuration is of an anchored TxFM and has no anchor_library_size: an earlier version saved it, "
                "whose bag of genes read counts in other units, so that it would give other numbers now; pre-train "
                "again, such as by `xtrimogene pretrain --config txfm-tiny`"
            )
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "TxFMConfig":
        """Return the configuration of a size, such as `txfm-S`, with the given changes.

        Raises:
            ValueError: If there is no such size.

        Example:
            >>> xtrimogene.TxFMConfig.preset("txfm-S", num_visible=1024).hidden_size
            384
        """
        if name not in TXFM_PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(TXFM_PRESETS)}")
        return cls(**{**TXFM_PRESETS[name], **changes})


TxFMConfig.register_for_auto_class()
