# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Drug synergy: two drugs and a cell line in, their synergy out; the order of the drugs changes no bit of it.

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
embeddings in place of raw expression as in arXiv:2311.15156, section 4. Departure: DeepSynergy shows its network each
pair in both orders and averages what it predicts; here the average is inside the model, in training too.
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
    """Standardise features as those it was fitted on, then tanh, so that an outlying feature counts little more."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, num_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> None:
        """Take mean and scale from rows `(rows, F)`; a feature that is the same in all rows is left out, as 0."""
        deviation_F = features.double().std(0, correction=0)
        is_constant_F = deviation_F <= 1e-6 * features.double().abs().amax(0)  # rounding error of float32
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
        # One layer over first drug, second drug and cell line side by side. Of the drugs' weights U and V there are
        # (U + V) / 2 and (U - V) / 2, for sum and difference: U a + V b and V a + U b then need two products, not four.
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
        # Swapped drugs change the sign of the difference and nothing else, so that the two terms change places. Each
        # is a batch by itself: stacked into one, a row could get other bits at its other place.
        return (self.one_order(both_BW + difference_BW) + self.one_order(both_BW - difference_BW)) / 2

    def one_order(self, first_layer: torch.Tensor) -> torch.Tensor:
        """Return `(B, C)` for what the first layer gives of the drugs in one order and the cell line, `(B, W)`."""
        hidden_BW = self.dropout(first_layer.relu())
        return self.out_proj(self.dropout(self.dense(hidden_BW).relu()))


class XTrimoGeneForDrugSynergy(XTrimoGenePreTrainedModel):
    """Synergy of two drugs in a cell line: a score, or classes, by `config.problem_type`.

    What the drug features are stands in `config.drug_features`, so that the saved folder is a whole predictor.
    The encoder inside (`config.encoder_config`) describes a cell line by its embedding. With `config.cell_features`
    cell lines are described by features of another kind, such as raw expression, and there is no encoder.
    """

    config: XTrimoGeneSynergyConfig
    auto_map = {
        "AutoConfig": "configuration_synergy.XTrimoGeneSynergyConfig",
        "AutoModel": "modeling_synergy.XTrimoGeneForDrugSynergy",
    }
    # The decoder of a pre-trained checkpoint is left behind on purpose.
    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"^head\.", r"^classifier\."]

    def __init__(self, config: XTrimoGeneSynergyConfig):
        super().__init__(config)
        config.validate()  # fields that from_pretrained changes are not looked at together
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
        encoder_config: Any = config.encoder_config  # never a dict in a configuration that was made
        if encoder_config is not None:
            self.model = XTrimoGeneModel(encoder_config, add_decoder=False)
        self.synergy = XTrimoGeneSynergyNetwork(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set initial values: those of all models; inputs and scores are not standardised until they are fitted."""
        super()._init_weights(module)
        if isinstance(module, XTrimoGeneSynergyInput):
            init.zeros_(module.mean)
            init.ones_(module.scale)
        elif isinstance(module, XTrimoGeneSynergyNetwork):
            init.zeros_(module.score_mean)
            init.ones_(module.score_scale)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Save weights, configuration and code; see `XTrimoGenePreTrainedModel`."""
        encoder_config: Any = self.config.encoder_config
        if encoder_config is not None:
            # `XTrimoGeneModel` reads it from the folder, and so knows that no decoder was saved.
            encoder_config.architectures = [XTrimoGeneForDrugSynergy.__name__]
        return super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def fit_inputs(self, drugs: torch.Tensor, cell_embeddings: torch.Tensor, scores: torch.Tensor | None) -> None:
        """Standardise inputs and scores as in training; kept as buffers, and so saved with the weights.

        Args:
            drugs: Features of the training drugs, each once. Shape `(drugs, F)`.
            cell_embeddings: Of the training cell lines, each once. Shape `(cell lines, U)`.
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
            cell_embeddings: Cell embeddings made before, `pooler_output` of the same checkpoint, shape `(B, U)`. There
                are few cell lines and many measurements, so that each cell line is encoded once.
            input_ids: Instead, what `XTrimoGeneModel` takes: the expressed genes of the cell line of each measurement.
            values: See `XTrimoGeneModel`.
            attention_mask: See `XTrimoGeneModel`.
            labels: Scores, or class ids. Shape `(B,)`.
            num_items_in_batch: Labels over which the loss is averaged; those of this call unless given.
            **kwargs: `output_hidden_states`, `output_attentions` of the encoder, `return_dict`.

        Returns:
            `logits` `(B, 1)` in the units of the scores, or `(B, C)`; `loss`, the squared error in standard deviations
            of the training scores, or the cross-entropy.

        Raises:
            ValueError: If the drugs do not have the features that the model was built for, or the cell line is given
                in both ways or in none.

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
        """Refuse drugs of other features, or of another number than their partners."""
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
        """Return the loss of `config.problem_type` for the network's output, before it has the units of the scores."""
        if self.config.problem_type == "regression":
            standard_B = (labels.float() - self.synergy.score_mean) / self.synergy.score_scale
            losses_B = (raw.squeeze(-1).float() - standard_B).square()
        else:
            losses_B = nn.functional.cross_entropy(raw.float(), labels.long(), reduction="none")
        return losses_B.sum() / (len(losses_B) if num_items_in_batch is None else num_items_in_batch)


XTrimoGeneForDrugSynergy.register_for_auto_class("AutoModel")
