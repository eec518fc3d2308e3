# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Likelihoods by which a whole cell is reconstructed from its embedding.

    scores (B, G)  ->  loss of each cell (B,), or the values that the scores stand for (B, G)

A value is `log1p` of counts per 10,000. Only genes that were measured count: nobody knows whether a cell expresses the
others. Letters: B cells, G genes.
"""

from typing import Literal

import torch

PER_CELL = 1e4  # values are those of so many counts a cell
Likelihood = Literal["multinomial", "poisson", "squared_error"]


def reconstruction_loss(
    scores: torch.Tensor, values: torch.Tensor, measured: torch.Tensor | None, likelihood: Likelihood
) -> torch.Tensor:
    """Return the loss of each cell, `(B,)`.

    | likelihood | scores are | loss |
    |---|---|---|
    | `multinomial` | unnormalised log shares of the counts | nats of a count, mean over the counts of the cell |
    | `poisson` | logs of counts per 10,000 | negative log likelihood less its constant, mean over the measured genes |
    | `squared_error` | values | squared error of values, mean over the measured genes |

    Args:
        scores: Scores of the genes, `(B, G)`.
        values: True values of all genes, `log1p` of counts per 10,000, `(B, G)`; 0 where a gene is not expressed.
        measured: Whether a gene was measured in the cell, `(B, G)`; all were if None. In a sample of the measured
            genes, the number of genes that each stands for: the loss then estimates that of all.
        likelihood: Which loss.

    Example:
        >>> values = torch.tensor([[1.2, 0.0, 2.5]])
        >>> loss = reconstruction_loss(torch.zeros(1, 3), values, None, "multinomial")
        >>> round(loss.item(), 3)  # three genes, equally likely: log 3
        1.099
    """
    scores, values = scores.float(), values.float()
    weights = torch.ones_like(values) if measured is None else measured.to(values.dtype)
    counts = values.expm1() * weights
    if likelihood == "multinomial":
        # The smallest number instead of -inf, whose gradient is NaN in a cell without a measured gene.
        log_weights = weights.log().clamp(min=torch.finfo(weights.dtype).min)
        log_shares = scores - (scores + log_weights).logsumexp(-1, keepdim=True)
        return -(counts * log_shares).sum(-1) / counts.sum(-1).clamp(min=1e-6)
    losses = scores.exp() - values.expm1() * scores if likelihood == "poisson" else (scores - values).square()
    return (losses * weights).sum(-1) / weights.sum(-1).clamp(min=1)


def reconstructed_values(scores: torch.Tensor, likelihood: Likelihood) -> torch.Tensor:
    """Return the values that scores of all genes `(B, G)` stand for: `log1p` of counts per 10,000, `(B, G)`.

    Example:
        >>> reconstructed_values(torch.zeros(1, 4), "multinomial").expm1().round().tolist()
        [[2500.0, 2500.0, 2500.0, 2500.0]]
    """
    if likelihood == "squared_error":
        return scores.float()
    counts = PER_CELL * scores.float().softmax(-1) if likelihood == "multinomial" else scores.float().exp()
    return counts.log1p()
