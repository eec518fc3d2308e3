# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the model for drug synergy: its network, and inside it the configuration of the encoder.

Source: DeepSynergy (Preuer et al. 2018, Bioinformatics 34:1538).
"""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_xtrimogene import XTrimoGeneConfig, fields_of_head


@strict
class XTrimoGeneSynergyConfig(PreTrainedConfig):
    """Describe an `XTrimoGeneForDrugSynergy`.

    Args:
        encoder_config: Configuration of the encoder, or its fields. The encoder's cell embedding describes a cell line.
            The default is `XTrimoGeneConfig()`; with `cell_features` it is None.
        drug_features: Names of the drug features `F`, in their order.
        cell_features: Number of features of a cell line, if features of another kind describe it, such as raw
            expression. The model then has no encoder.
        hidden_size: Width `W` of the first hidden layer; the second has half of it.
        dropout: Dropout of the hidden layers.

    Raises:
        ValueError: If a number is out of its range, or cell lines are described in both ways.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneSynergyConfig
        >>> encoder_config = XTrimoGeneConfig.preset("tiny", num_genes=50)
        >>> config = XTrimoGeneSynergyConfig(
        ...     encoder_config=encoder_config, drug_features=["MolWt", "TPSA"], problem_type="regression", num_labels=1
        ... )
        >>> config.model_type, config.cell_size  # max and mean over tokens of width 64
        ('xtrimogene-synergy', 64)
    """

    model_type = "xtrimogene-synergy"
    sub_configs = {"encoder_config": XTrimoGeneConfig}
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]

    encoder_config: XTrimoGeneConfig | dict[str, Any] | None = None
    drug_features: list[str] | None = None
    cell_features: int | None = None
    hidden_size: int = 512
    dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the configuration of the encoder if its fields are given."""
        if isinstance(self.encoder_config, dict):
            self.encoder_config = XTrimoGeneConfig(**self.encoder_config)
        elif self.encoder_config is None and self.cell_features is None:
            self.encoder_config = XTrimoGeneConfig()
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, without the name of the folder that the encoder's configuration was loaded from."""
        fields = super().to_dict()
        if (of_encoder := fields["encoder_config"]) is not None:
            for name in ("auto_map", "custom_pipelines"):
                of_encoder.pop(name, None)
            of_encoder["_name_or_path"] = ""
        return fields

    @property
    def cell_size(self) -> int:
        """Width `U` of the description of a cell line: of its cell embedding, or `cell_features`."""
        encoder_config: Any = self.encoder_config  # never a dict after __post_init__
        return self.cell_features if encoder_config is None else encoder_config.pooled_size

    def validate_sizes(self) -> None:
        """Refuse sizes that no model can have."""
        if self.hidden_size < 2:
            raise ValueError(f"hidden_size is {self.hidden_size} and must be at least 2")
        if self.cell_features is None:
            return
        if self.cell_features < 1:
            raise ValueError(f"cell_features is {self.cell_features} and must be at least 1")
        if self.encoder_config is not None:
            raise ValueError(
                f"cell_features is {self.cell_features} and there is an encoder_config: a cell line is described by "
                f"features or by the encoder's embedding, so leave one of them out"
            )

    def validate_numbers(self) -> None:
        """Refuse numbers outside of their range."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout} and must be a share from 0 to below 1")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the content of `config.json`, and the unused arguments.

        The configuration of a pre-trained model becomes `encoder_config`. Version 0.1 saved synergy models in that
        form too, with the fields of the head among the fields of the encoder.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == XTrimoGeneConfig.model_type:
            head = fields_of_head(config_dict, "synergy_")
            dropped = ("auto_map", "custom_pipelines")
            of_encoder = [name for name in config_dict if not name.startswith("synergy_") and name not in dropped]
            encoder_config = {name: config_dict[name] for name in of_encoder}
            config_dict = {**head, "encoder_config": None if head.get("cell_features") else encoder_config}
        return config_dict, kwargs


XTrimoGeneSynergyConfig.register_for_auto_class()
