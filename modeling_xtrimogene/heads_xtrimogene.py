# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Heads on a cell embedding: how it is standardised, the linear path they are anchored to, and the classifier."""

import torch
from torch import nn

from .configuration_xtrimogene import XTrimoGeneConfig

CLASSIFIER_NORM_EPS = 1e-6  # released fine-tuning head


class FeatureNorm(nn.Module):
    """Standardise each feature by a mean and a standard deviation that are set before training and then fixed.

    Cell embeddings have a large common part and small differences; standardising makes the differences large. The
    statistics are those of the pre-trained embeddings of the training cells, not of a batch. So a step is the same
    whether its cells come in one batch or several, and training and inference compute the same.

    Example:
        >>> import torch
        >>> norm = FeatureNorm(2)
        >>> norm.set_statistics(torch.tensor([[100.0, 5.0], [104.0, 7.0]]))
        >>> norm(torch.tensor([[102.0, 6.0]]))
        tensor([[0., 0.]])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    @property
    def is_set(self) -> bool:
        """Whether statistics are set; before, features pass unchanged."""
        return bool(self.mean.any())

    def set_statistics(self, features: torch.Tensor) -> None:
        """Set the statistics of features `(cells, D)`; a constant feature is only shifted."""
        std = features.std(0, correction=0)
        self.mean.copy_(features.mean(0))
        self.std.copy_(torch.where(std > 0, std, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return `(B, D)`."""
        return (features - self.mean) / self.std


class ReleasedNorm(nn.BatchNorm1d):
    """Standardise by the batch in training and by running statistics after it, as the released fine-tuning head does.

    It is here for parity. Its statistics are wrong where batches are not random samples of the cells, and gradient
    accumulation over small batches is not the same as one large batch.
    """

    def __init__(self, num_features: int):
        super().__init__(num_features, eps=CLASSIFIER_NORM_EPS, affine=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return `(B, D)`."""
        if self.training and len(features) > 1:
            return super().forward(features)
        # A batch of one cell has no variance. The last batch of an epoch may be one: it uses the running statistics.
        return nn.functional.batch_norm(features, self.running_mean, self.running_var, eps=self.eps)


CLASSIFIER_NORMS = {"features": FeatureNorm, "batch": ReleasedNorm}


class ZeroLinear(nn.Linear):
    """Linear layer with weights 0 at first: the last layer of a network whose output is added to an anchor."""


class LinearAnchor(nn.Module):
    """Logits of a logistic regression on the expression of the genes, which is fitted before training.

        logits = values . W + b                    and in an anchored model + embedding . V

    The network's output is added to these logits and is zero at first. So an annotator is a logistic regression before
    its first step, and training improves on it. `V` makes much of few labels: many unlabelled cells shaped the
    embedding.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    embedding_weight: torch.Tensor | None

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.num_genes = config.num_genes
        self.register_buffer("weight", torch.zeros(config.num_genes, config.num_labels))
        self.register_buffer("bias", torch.zeros(config.num_labels))
        of_embedding = torch.zeros(config.pooled_size, config.num_labels) if config.anchored else None
        self.register_buffer("embedding_weight", of_embedding)

    @property
    def is_set(self) -> bool:
        """Whether the regression is set; before, all logits are 0."""
        return bool(self.weight.any())

    def set_regression(
        self, weight: torch.Tensor, bias: torch.Tensor, embedding_weight: torch.Tensor | None = None
    ) -> None:
        """Set the regression.

        Args:
            weight: `(G, C)`, for `log1p` of counts per 10,000.
            bias: Intercepts, `(C,)`.
            embedding_weight: `(D, C)`, in an anchored model.
        """
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        if embedding_weight is not None:
            self.embedding_weight.copy_(embedding_weight)

    def forward(
        self, pooled: torch.Tensor, input_ids: torch.Tensor, values: torch.Tensor, is_token: torch.Tensor
    ) -> torch.Tensor:
        """Return `(B, C)` for cell embeddings `(B, D)` and the tokens `(B, L)` of the same cells."""
        is_gene_BL = is_token & (input_ids < self.num_genes)
        ids_BL = input_ids.clamp(max=self.num_genes - 1)
        values_BL = values.masked_fill(~is_gene_BL, 0).to(self.weight.dtype)
        with torch.autocast(values.device.type, enabled=False):
            logits_BC = self.bias + nn.functional.embedding_bag(
                ids_BL, self.weight, per_sample_weights=values_BL, mode="sum"
            )
            if self.embedding_weight is not None:
                logits_BC = logits_BC + pooled.to(self.weight.dtype) @ self.embedding_weight
        return logits_BC


class XTrimoGeneClassificationHead(nn.Module):
    """Classify a standardised cell embedding by a network of one hidden layer, added to the anchor if there is one.

    Source: the released fine-tuning head. Departures: `FeatureNorm` instead of BatchNorm (`config.classifier_norm`),
    and the anchor (`config.classifier_anchored`).
    """

    def __init__(self, config: XTrimoGeneConfig):
        super().__init__()
        self.norm = CLASSIFIER_NORMS[config.classifier_norm](config.pooled_size)
        self.dense = nn.Linear(config.pooled_size, config.classifier_hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        layer = ZeroLinear if config.classifier_anchored else nn.Linear
        self.out_proj = layer(config.classifier_hidden_size, config.num_labels)
        self.anchor = LinearAnchor(config) if config.classifier_anchored else None

    @property
    def is_begun(self) -> bool:
        """Whether the statistics and the regression that training begins with are set."""
        parts = [part for part in (self.norm, self.anchor) if isinstance(part, (FeatureNorm, LinearAnchor))]
        return all(part.is_set for part in parts)

    def forward(
        self, pooled: torch.Tensor, input_ids: torch.Tensor, values: torch.Tensor, is_token: torch.Tensor
    ) -> torch.Tensor:
        """Return `(B, C)` for cell embeddings `(B, D)` and the tokens `(B, L)` of the same cells."""
        logits_BC = self.out_proj(self.dropout(self.dense(self.norm(pooled)).relu()))
        return logits_BC if self.anchor is None else logits_BC + self.anchor(pooled, input_ids, values, is_token)
