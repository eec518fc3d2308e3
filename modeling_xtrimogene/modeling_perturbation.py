# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Predict the mean expression profile after perturbing genes, from the mean profile of control cells.

    features of the genes (N, F)           context embeddings of a pre-trained decoder, averaged over control cells
        |                    |
    co-expression graph   relation graph   one step of messages each
        |                    |
    states of the         sum over the perturbed genes, then an MLP
    measured (R, H)       (B, H)
        |                    |
        +------ product -----+             change of each measured gene (B, R), added to the control profile
                 |
    mean change of the training perturbations; in an anchored model, AdditiveAnchor

Letters: B perturbations, K genes of the largest perturbation, N genes of the graphs, R measured genes (the first R of
N), F features of a gene, H width, D training perturbations.

Source: GEARS (Roohani et al. 2023, doi:10.1038/s41587-023-01905-6) and arXiv:2311.15156, section 4, for its node
features. Departures: the states of genes and perturbations are multiplied, as in the linear model of Ahlmann-Eltze et
al. (2025, doi:10.1038/s41592-025-02772-6), instead of an MLP for each gene; the network learns the difference from the
mean change of the training perturbations; the direction-aware loss has a gradient (`loss`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_perturbation import XTrimoGenePerturbationConfig
from .host_xtrimogene import found_wrong
from .modeling_xtrimogene import XTrimoGenePreTrainedModel


@dataclass
class XTrimoGeneForPerturbationPredictionOutput(ModelOutput):
    """Output of `XTrimoGeneForPerturbationPrediction`.

    Args:
        loss: A scalar, if labels are given.
        logits: Predicted mean profiles, `log1p` of counts per 10,000. Shape `(B, R)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class GeneGraphLayer(nn.Module):
    """Project the features of genes, and add to each gene the projected features of its neighbours in a graph."""

    def __init__(self, config: XTrimoGenePerturbationConfig):
        super().__init__()
        self.input_proj = nn.Linear(config.feature_size, config.hidden_size)
        # Without bias, so that a gene without neighbours does not change.
        self.neighbour_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, features: torch.Tensor, edges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return `(N, H)` for features `(N, F)` and a graph of edges `(2, M)`, to and from, with weights `(M,)`.

        Raises:
            ValueError: If the edges are not in the order of the genes that they go to, as those of a CSR matrix are.
        """
        states_NH = self.input_proj(features)
        if found_wrong((edges[0].diff() >= 0).all()):
            raise ValueError(
                f"the {edges.shape[1]:,} edges of a graph are not in the order of the genes that they go to: fill the "
                f"model by perturbation_model of training.perturbation.fit"
            )
        # A product with a sparse matrix would make the host wait for a GPU. The edges to each gene are a bag instead.
        firsts_N = torch.searchsorted(edges[0].contiguous(), torch.arange(len(features), device=edges.device))
        messages_NH = nn.functional.embedding_bag(
            edges[1], states_NH, firsts_N, mode="sum", per_sample_weights=weights.to(states_NH.dtype)
        )
        return states_NH + self.neighbour_proj(messages_NH)


class AdditiveAnchor(nn.Module):
    """Predict the change after perturbing genes as the sum of their effects, which are fitted before training.

        change = sum_g weights_g . C               C: changes of the training perturbations

    The network's output is added to it and is zero at first. So a model is the additive model before its first step.
    `training/perturbation/anchoring.py` fits the weights.

    Example:
        >>> from xtrimogene import XTrimoGenePerturbationConfig
        >>> config = XTrimoGenePerturbationConfig(num_nodes=3, num_measured=2, anchored=True, num_anchor_changes=2)
        >>> anchor = AdditiveAnchor(config)
        >>> anchor.set_regression(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), torch.tensor([[2.0, 0], [0, 4]]))
        >>> anchor(torch.tensor([[[True, False, False], [False, False, True]]]))  # genes 0 and 2 together
        tensor([[3., 2.]])
    """

    weights: torch.Tensor
    changes: torch.Tensor

    def __init__(self, config: XTrimoGenePerturbationConfig):
        super().__init__()
        self.register_buffer("weights", torch.zeros(config.num_nodes, config.num_anchor_changes))
        self.register_buffer("changes", torch.zeros(config.num_anchor_changes, config.num_measured))

    def set_regression(self, weights: torch.Tensor, changes: torch.Tensor) -> None:
        """Set how much each training perturbation says of each gene `(N, D)`, and their changes `(D, R)`."""
        self.weights.copy_(weights)
        self.changes.copy_(changes)

    def forward(self, is_node: torch.Tensor) -> torch.Tensor:
        """Return `(B, R)`, given whether each perturbed gene is each gene of the graphs, bool `(B, K, N)`."""
        weights_BD = torch.einsum("bkn,nd->bd", is_node.to(self.weights.dtype), self.weights)
        return weights_BD @ self.changes


class XTrimoGeneForPerturbationPrediction(XTrimoGenePreTrainedModel):
    """Predict the expression profile after a perturbation from the control profile and the perturbed genes.

    The model holds no encoder or decoder: they are not trained, and their embedding of each gene is stored in
    `features`. Genes, features and graphs are saved with the weights. They are empty in a new model;
    `perturbation_model` in `training/perturbation` fills them.

    A perturbation is a set of genes of the graphs (`gene_ids`), which need not occur in a training perturbation. The
    effect of an empty set is exactly 0, and the order of the genes does not matter.
    """

    config: XTrimoGenePerturbationConfig
    main_input_name = "perturbation_ids"
    # All weights stay in float32: the model is small, and half precision has no sparse product.
    _keep_in_fp32_modules_strict = [r".+"]
    auto_map = {
        "AutoConfig": "configuration_perturbation.XTrimoGenePerturbationConfig",
        "AutoModel": "modeling_perturbation.XTrimoGeneForPerturbationPrediction",
    }
    pipelines = ()
    supports_gradient_checkpointing = False  # it has no layers whose states take memory

    def __init__(self, config: XTrimoGenePerturbationConfig):
        super().__init__(config)
        nodes, measured, width = config.num_nodes, config.num_measured, config.hidden_size
        if not measured:
            raise ValueError(
                f"the configuration has no measured genes, and {nodes} in the graphs: this model is made for the genes "
                f"of a screen, by perturbation_model of training.perturbation.fit"
            )
        self.register_buffer("gene_ids", torch.zeros(nodes, dtype=torch.long))
        features_NF = torch.zeros(nodes, config.feature_size)
        if config.features == "learned":
            self.features = nn.Parameter(features_NF)
        else:
            self.register_buffer("features", features_NF)
        for name in ("expression", "relation"):
            num_edges = getattr(config, f"num_{name}_edges")
            self.register_buffer(f"{name}_edges", torch.zeros(2, num_edges, dtype=torch.long))
            self.register_buffer(f"{name}_weights", torch.zeros(num_edges))
        self.anchor = AdditiveAnchor(config) if config.anchored else None
        self.register_buffer("mean_change", None if config.anchored else torch.zeros(measured))
        self.register_buffer("change_scale", torch.ones(measured))
        self.expression_graph = GeneGraphLayer(config)
        self.relation_graph = GeneGraphLayer(config)
        self.set_in = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.set_out = nn.Linear(width, width)
        self.gene_weight = nn.Parameter(torch.empty(measured, width))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set initial values: as in the other models; learned features are normal with standard deviation 1.

        The embedding of every set of genes is 0 at first, so a new model predicts the mean change, or what its anchor
        predicts. What `perturbation_model` fills is 0 before, and the scale of changes 1.
        """
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.gene_weight)
            init.zeros_(self.set_out.weight)
            for part in self.buffers(recurse=False):
                init.zeros_(part)
            init.ones_(self.change_scale)
            if isinstance(self.features, nn.Parameter):
                init.normal_(self.features)
        elif isinstance(module, AdditiveAnchor):
            for part in module.buffers():
                init.zeros_(part)

    @can_return_tuple
    def forward(
        self,
        perturbation_ids: torch.Tensor,
        control_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> XTrimoGeneForPerturbationPredictionOutput:
        """Predict profiles after perturbations.

        Args:
            perturbation_ids: Ids of the perturbed genes, padded with `pad_token_id`, shape `(B, K)`.
            control_values: Mean over control cells of `log1p` of counts per 10,000, in the order of the first R
                `gene_ids`. Shape `(B, R)`.
            labels: Mean over perturbed cells of `log1p` of counts per 10,000, shape `(B, R)`.
            num_items_in_batch: Values over which the loss is averaged; those of this call unless given.
            **kwargs: `return_dict`.

        Returns:
            `logits` `(B, R)`, the predicted mean profiles, and with labels the `loss`, a scalar.

        Raises:
            ValueError: If a gene is not in the graphs or twice in a set, or the values are not `(B, R)`.

        Example:
            >>> import torch
            >>> from xtrimogene import XTrimoGeneForPerturbationPrediction, XTrimoGenePerturbationConfig
            >>> config = XTrimoGenePerturbationConfig(num_nodes=5, num_measured=3, pad_token_id=10)
            >>> model = XTrimoGeneForPerturbationPrediction(config).eval()
            >>> _ = model.gene_ids.copy_(torch.tensor([1, 4, 5, 7, 9]))  # perturbation_model does this for a screen
            >>> perturbation_ids = torch.tensor([[4, 10], [1, 7]])  # gene 4 alone, genes 1 and 7 together
            >>> model(perturbation_ids, control_values=torch.rand(2, 3)).logits.shape
            torch.Size([2, 3])
        """
        measured = self.config.num_measured
        for name, values in (("control_values", control_values), ("labels", labels)):
            if values is not None and values.shape != (len(perturbation_ids), measured):
                raise ValueError(
                    f"{name} {tuple(values.shape)} must be {(len(perturbation_ids), measured)}: a row for each "
                    f"perturbation, a column for each of the {measured} measured genes of this model"
                )
        with torch.autocast(perturbation_ids.device.type, enabled=False):
            change_BR = self.changes(perturbation_ids)
        return XTrimoGeneForPerturbationPredictionOutput(
            loss=None if labels is None else self.loss(change_BR, labels - control_values, num_items_in_batch),
            logits=control_values + change_BR,
        )

    def changes(self, perturbation_ids: torch.Tensor) -> torch.Tensor:
        """Return the change of each measured gene `(B, R)` for sets of genes `(B, K)`."""
        is_node_BKN = self.find_nodes(perturbation_ids)
        set_BH = self.embed_sets(is_node_BKN)
        states_NH = self.expression_graph(self.features, self.expression_edges, self.expression_weights)
        weights_RH = states_NH[: self.config.num_measured] + self.gene_weight
        is_perturbed_B1 = (perturbation_ids != self.config.pad_token_id).any(1, keepdim=True)
        scores_BR = set_BH @ weights_RH.T / weights_RH.shape[1] ** 0.5
        base_BR = self.mean_change if self.anchor is None else self.anchor(is_node_BKN)
        return (base_BR + scores_BR * self.change_scale) * is_perturbed_B1

    def find_nodes(self, perturbation_ids: torch.Tensor) -> torch.Tensor:
        """Return whether each gene of the sets `(B, K)` is each gene of the graphs, bool `(B, K, N)`."""
        is_gene_BK = perturbation_ids != self.config.pad_token_id
        is_node_BKN = perturbation_ids.unsqueeze(-1) == self.gene_ids
        if found_wrong((is_node_BKN.any(-1) | ~is_gene_BK).all()):
            unknown = perturbation_ids[is_gene_BK & ~is_node_BKN.any(-1)].unique().tolist()
            raise ValueError(
                f"perturbation_ids holds {len(unknown)} genes that are not among the {len(self.gene_ids)} of the "
                f"graphs (ids {', '.join(map(str, unknown[:5]))}): name them in further_genes when the model is made"
            )
        if found_wrong((is_node_BKN.sum(1) <= 1).all()):
            raise ValueError("perturbation_ids holds a gene twice in a row: a set of genes names each once")
        return is_node_BKN

    def embed_sets(self, is_node: torch.Tensor) -> torch.Tensor:
        """Return embeddings `(B, H)` of sets of genes, bool `(B, K, N)`: an MLP of the sum over their genes."""
        states_NH = self.relation_graph(self.features, self.relation_edges, self.relation_weights)
        sums_BH = torch.einsum("bkn,nh->bh", is_node.to(states_NH.dtype), states_NH)
        return self.set_out(self.dropout(self.set_in(sums_BH).relu()))

    def loss(
        self, changes: torch.Tensor, true_changes: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the mean of `|error| ** (2 + focus) + direction_weight * relu(-change * true change)`.

        Source: the autofocus and direction-aware losses of GEARS. The direction-aware loss of GEARS compares signs,
        which have no gradient. The product here is 0 too if directions agree, and has a gradient if they do not.
        """
        changes, true_changes = changes.float(), true_changes.float()
        losses_BR = (changes - true_changes).abs() ** (2 + self.config.focus)
        if self.config.direction_weight:
            wrong_BR = (-changes * true_changes).relu()
            losses_BR = losses_BR + self.config.direction_weight * wrong_BR
        return losses_BR.sum() / (losses_BR.numel() if num_items_in_batch is None else num_items_in_batch)


XTrimoGeneForPerturbationPrediction.register_for_auto_class("AutoModel")
