# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Predict the synergy of two drugs in a cell line; the order of the drugs changes no bit of the result.

    drug_a, drug_b (B, F)                cell line: ready-made (B, U), or input_ids, values (B, L)
        |                                    |  encoder, pooled: (B, U)
        |  standardised on the training drugs and cell lines, tanh
        v                                    v
    hidden (B, W) of the order a, b  +  the same of the order b, a     one network for both orders
        |  summed, so that both orders count the same
        v
    logits (B, C)                        a synergy score, or classes

Letters: B measurements, F drug features, L tokens, U width of a cell embedding, W hidden width, C outputs.

Source: DeepSynergy (Preuer et al. 2018, Bioinformatics 34:1538) for standardisation, tanh, dropout and layers; cell
embeddings in place of raw expression as in arXiv:2311.15156, section 4. Departure: DeepSynergy predicts each pair in
both orders and averages the predictions; here the average is inside the model, in training too.
"""

import os
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_synergy import XTrimoGeneSynergyConfig
from .modeling_xtrimogene import XTrimoGeneModel, XTrimoGenePreTrainedModel
from .precision_xtrimogene import in_float32


class XTrimoGeneSynergyInput(nn.Module):
    """Standardise features by training statistics, then apply tanh, which limits outliers."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, num_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> None:
        """Set mean and scale from rows `(rows, F)`; a feature that is constant in them becomes 0."""
        deviation_F = features.double().std(0, correction=0)
        is_constant_F = deviation_F <= 1e-6 * features.double().abs().amax(0)  # equal but for the rounding of float32
        self.mean.copy_(features.double().mean(0))
        self.scale.copy_((1 / deviation_F).masked_fill(is_constant_F, 0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return `(B, F)` within -1 ... 1."""
        return ((features - self.mean) * self.scale).tanh()


class XTrimoGeneSynergyNetwork(nn.Module):
    """DeepSynergy's network over both orders of a pair."""

    score_mean: torch.Tensor
    score_scale: torch.Tensor

    def __init__(self, config: XTrimoGeneSynergyConfig):
        super().__init__()
        width, num_cell_features = config.hidden_size, config.cell_size
        self.drug_input = XTrimoGeneSynergyInput(len(config.drug_features))
        self.cell_input = XTrimoGeneSynergyInput(num_cell_features)
        # One layer over the concatenation of first drug, second drug and cell line. The weights U and V of the drugs
        # are stored as (U + V) / 2 and (U - V) / 2, for the sum and the difference of the drugs. U a + V b and
        # V a + U b then need two products, not four.
        self.drug_sum = nn.Linear(len(config.drug_features), width, bias=False)
        self.drug_difference = nn.Linear(len(config.drug_features), width, bias=False)
        self.cell = nn.Linear(num_cell_features, width)
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(width, width // 2)
        self.out_proj = nn.Linear(width // 2, config.num_labels)
        self.register_buffer("score_mean", torch.zeros(()))
        self.register_buffer("score_scale", torch.ones(()))

    def forward(self, drug_a: torch.Tensor, drug_b: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        """Return `(B, C)`."""
        a_BF, b_BF = self.drug_input(drug_a), self.drug_input(drug_b)
        both_BW = self.drug_sum(a_BF + b_BF) + self.cell(self.cell_input(cell))
        difference_BW = self.drug_difference(a_BF - b_BF)
        # Swapping the drugs only changes the sign of the difference, so the two terms change places. They are computed
        # in two batches: in one batch a row could get other bits at another place.
        return (self.one_order(both_BW + difference_BW) + self.one_order(both_BW - difference_BW)) / 2

    def one_order(self, first_layer: torch.Tensor) -> torch.Tensor:
        """Return `(B, C)` for the output of the first layer `(B, W)`, of the drugs in one order."""
        hidden_BW = self.dropout(first_layer.relu())
        return self.out_proj(self.dropout(self.dense(hidden_BW).relu()))


class XTrimoGeneForDrugSynergy(XTrimoGenePreTrainedModel):
    """Predict the synergy of two drugs in a cell line: a score, or classes, by `config.problem_type`.

    The names of the drug features are in `config.drug_features`, so a saved folder has all that prediction needs.
    The encoder (`config.encoder_config`) describes a cell line by its embedding. With `config.cell_features` other
    features describe it, such as raw expression, and there is no encoder.
    """

    config: XTrimoGeneSynergyConfig
    main_input_name = "drug_a"
    auto_map = {
        "AutoConfig": "configuration_synergy.XTrimoGeneSynergyConfig",
        "AutoModel": "modeling_synergy.XTrimoGeneForDrugSynergy",
    }
    pipelines = ()
    # The decoder of a pre-trained checkpoint is left behind on purpose.
    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"^head\.", r"^classifier\."]

    def __init__(self, config: XTrimoGeneSynergyConfig):
        super().__init__(config)
        config.validate()  # from_pretrained changes fields one by one and does not check them together
        if not config.drug_features:
            raise ValueError(
                "drug_features is empty: give the names of the drug features, in the order of the columns of "
                "drug_a and drug_b; synergy_model of the training package does"
            )
        if config.problem_type not in ("regression", "single_label_classification"):
            raise ValueError(
                f"problem_type is {config.problem_type!r}: give 'regression' for synergy scores or "
                f"'single_label_classification' for classes"
            )
        if config.problem_type == "regression" and config.num_labels != 1:
            raise ValueError(f"num_labels is {config.num_labels}, and regression has one output: give num_labels=1")
        self.model = None
        encoder_config: Any = config.encoder_config  # __post_init__ has made a configuration of a dict
        if encoder_config is not None:
            self.model = XTrimoGeneModel(encoder_config, add_decoder=False)
        self.synergy = XTrimoGeneSynergyNetwork(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set initial values: as in the other models. Before `fit_inputs`, inputs and scores are not standardised."""
        super()._init_weights(module)
        if isinstance(module, XTrimoGeneSynergyInput):
            init.zeros_(module.mean)
            init.ones_(module.scale)
        elif isinstance(module, XTrimoGeneSynergyNetwork):
            init.zeros_(module.score_mean)
            init.ones_(module.score_scale)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Save weights, configuration and code, so that every Auto class can load the folder without the package."""
        encoder_config: Any = self.config.encoder_config
        if encoder_config is not None:
            # `XTrimoGeneModel` reads these architectures from the folder and builds no decoder.
            encoder_config.architectures = [XTrimoGeneForDrugSynergy.__name__]
        return super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def fit_inputs(self, drugs: torch.Tensor, cell_embeddings: torch.Tensor, scores: torch.Tensor | None) -> None:
        """Set the statistics by which inputs and scores are standardised; they are saved with the weights.

        Args:
            drugs: Features of the training drugs, each once. Shape `(drugs, F)`.
            cell_embeddings: Embeddings of the training cell lines, each once. Shape `(cell lines, U)`.
            scores: Scores to train on; None for classes.
        """
        self.synergy.drug_input.fit(drugs)
        self.synergy.cell_input.fit(cell_embeddings)
        if scores is not None:
            self.synergy.score_mean.copy_(scores.double().mean())
            self.synergy.score_scale.copy_(scores.double().std(correction=0).clamp(min=1e-6))

    @can_return_tuple
    def forward(
        self,
        drug_a: torch.Tensor,
        drug_b: torch.Tensor,
        cell_embeddings: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Predict the synergy of pairs of drugs in cell lines.

        Args:
            drug_a: Features of one drug, in the order of `config.drug_features`. Shape `(B, F)`.
            drug_b: Features of the other drug. Shape `(B, F)`.
            cell_embeddings: Cell embeddings computed before, `pooler_output` of the same checkpoint, shape `(B, U)`.
                With few cell lines and many measurements it is quicker to encode each cell line once.
            input_ids: Instead of `cell_embeddings`, ids of the expressed genes of the cell lines, shape `(B, L)`.
            values: Expression of these genes, `log1p` of counts per 10,000, shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            labels: Scores, or class ids. Shape `(B,)`.
            num_items_in_batch: Labels over which the loss is averaged; those of this call unless given.
            **kwargs: `output_hidden_states`, `output_attentions` of the encoder, `return_dict`.

        Returns:
            `logits` `(B, 1)` in the units of the scores, or `(B, C)`; `loss`, the squared error in standard deviations
            of the training scores, or the cross-entropy.

        Raises:
            ValueError: If the drugs do not have the features that the model was built for, or not exactly one of
                `cell_embeddings` and `input_ids` is given.

        Example:
            >>> import torch
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForDrugSynergy, XTrimoGeneSynergyConfig
            >>> encoder_config = XTrimoGeneConfig.preset("tiny", num_genes=50)
            >>> config = XTrimoGeneSynergyConfig(
            ...     encoder_config=encoder_config,
            ...     drug_features=["MolWt", "TPSA"],
            ...     problem_type="regression",
            ...     num_labels=1,
            ... )
            >>> model = XTrimoGeneForDrugSynergy(config).eval()
            >>> drug_a, drug_b = torch.rand(4, 2), torch.rand(4, 2)
            >>> model(drug_a, drug_b, cell_embeddings=torch.rand(4, config.cell_size)).logits.shape
            torch.Size([4, 1])
            >>> input_ids, values = torch.arange(12).reshape(4, 3), torch.rand(4, 3)
            >>> model(drug_a, drug_b, input_ids=input_ids, values=values).logits.shape
            torch.Size([4, 1])
        """
        self.check_drugs(drug_a, drug_b)
        encoded = None
        if (cell_embeddings is None) == (input_ids is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"of cell_embeddings and input_ids {given} came: give one of the two")
        if cell_embeddings is None:
            if self.model is None:
                raise ValueError(
                    f"this model has no encoder, it takes {self.config.cell_features} features of a cell line: "
                    f"give them as cell_embeddings"
                )
            encoded = self.model(input_ids, values, attention_mask, **{**kwargs, "return_dict": True})
            cell_embeddings = encoded.pooler_output
        raw_BC = in_float32(self.synergy, drug_a, drug_b, cell_embeddings)
        logits_BC = raw_BC
        if self.config.problem_type == "regression":
            logits_BC = raw_BC * self.synergy.score_scale + self.synergy.score_mean
        return SequenceClassifierOutput(
            loss=None if labels is None else self.task_loss(raw_BC, labels, num_items_in_batch),
            logits=logits_BC,
            hidden_states=None if encoded is None else encoded.hidden_states,
            attentions=None if encoded is None else encoded.attentions,
        )

    def check_drugs(self, drug_a: torch.Tensor, drug_b: torch.Tensor) -> None:
        """Refuse drugs whose shapes differ, or whose number of features is not that of the model."""
        num_features = len(self.config.drug_features)
        if drug_a.shape != drug_b.shape or drug_a.shape[-1] != num_features:
            raise ValueError(
                f"drug_a {tuple(drug_a.shape)} and drug_b {tuple(drug_b.shape)} must be of one shape, with the "
                f"{num_features} features of config.drug_features: make both with "
                f"drug_features(smiles, model.config.drug_features)"
            )

    def task_loss(
        self, raw: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Return the loss of `config.problem_type` for the network's output, before scores are given their units."""
        if self.config.problem_type == "regression":
            standard_B = (labels.float() - self.synergy.score_mean) / self.synergy.score_scale
            losses_B = (raw.squeeze(-1).float() - standard_B).square()
        else:
            losses_B = nn.functional.cross_entropy(raw.float(), labels.long(), reduction="none")
        return losses_B.sum() / (len(losses_B) if num_items_in_batch is None else num_items_in_batch)


XTrimoGeneForDrugSynergy.register_for_auto_class("AutoModel")
