# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the model that predicts the effect of perturbing genes; the model has no encoder.

Source: GEARS (Roohani et al. 2023, doi:10.1038/s41587-023-01905-6) for focus and direction of the loss.
"""

import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_xtrimogene import XTrimoGeneConfig, fields_of_head


@strict
class XTrimoGenePerturbationConfig(PreTrainedConfig):
    """Describe an `XTrimoGeneForPerturbationPrediction`; `perturbation_model` of the training package fills in sizes.

    Args:
        num_nodes: Genes `N` of the graphs: measured ones first, then perturbed ones and their partners.
        num_measured: Genes `R` whose expression is predicted, the first of the nodes.
        feature_size: Features `F` of a gene.
        features: `pretrained`: context embeddings of a pre-trained decoder, which are not trained further; `learned`:
            random at first, and trained with the rest.
        num_expression_edges: Edges of the co-expression graph.
        num_relation_edges: Edges of the relation graph.
        hidden_size: Width `H` of the network.
        dropout: Dropout of the embedding of a set of perturbed genes.
        focus: Added to the exponent 2 of the error. Above 0, large changes count for more.
        direction_weight: Weight of the part of the loss for changes in the wrong direction.
        anchored: Add the network's output, zero at first, to an additive model that is fitted before training
            (docs/embedding.md). The paper's model has only the mean change of the training perturbations there.
        num_anchor_changes: Training perturbations `D` of the additive model.
        pad_token_id: Padding id of the tokenizer, which pads sets of perturbed genes. The default is the padding id of
            the published panel.

    Raises:
        ValueError: If a number is out of its range, or more genes are measured than there are in the graphs.

    Example:
        >>> from xtrimogene import XTrimoGenePerturbationConfig
        >>> config = XTrimoGenePerturbationConfig(num_nodes=5, num_measured=3, pad_token_id=10)
        >>> config.model_type, config.hidden_size
        ('xtrimogene-perturbation', 64)
    """

    model_type = "xtrimogene-perturbation"

    num_nodes: int = 0
    num_measured: int = 0
    feature_size: int = 64
    features: Literal["pretrained", "learned"] = "pretrained"
    num_expression_edges: int = 0
    num_relation_edges: int = 0
    hidden_size: int = 64
    dropout: float | int = 0.5
    focus: float | int = 0.0
    direction_weight: float | int = 0.0
    anchored: bool = False
    num_anchor_changes: int = 0
    pad_token_id: int = 19264

    def validate_sizes(self) -> None:
        """Refuse sizes that no model can have."""
        for name in ("feature_size", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} and must be at least 1")
        for name in (
            "num_measured", "num_expression_edges", "num_relation_edges", "num_anchor_changes", "pad_token_id",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must not be negative")
        if self.num_measured > self.num_nodes:
            raise ValueError(
                f"num_measured is {self.num_measured} and num_nodes {self.num_nodes}: measured genes are the first "
                f"nodes of the graphs, so there are at least as many nodes"
            )

    def validate_numbers(self) -> None:
        """Refuse numbers outside of their range."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout} and must be a share from 0 to below 1")
        for name in ("focus", "direction_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)} and must not be negative")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the content of `config.json`, and the unused arguments.

        A file that version 0.1 saved is converted to today's form.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == XTrimoGeneConfig.model_type:
            pad_token_id = config_dict.get("pad_token_id", cls.pad_token_id)
            config_dict = {**fields_of_head(config_dict, "perturbation_"), "pad_token_id": pad_token_id}
        return config_dict, kwargs


XTrimoGenePerturbationConfig.register_for_auto_class()
