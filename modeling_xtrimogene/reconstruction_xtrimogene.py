# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Likelihoods by which a whole cell is reconstructed from its embedding.

    scores (B, G)  ->  loss of each cell (B,), or the values that the scores stand for (B, G)

A value is `log1p` of counts per 10,000. Only genes that were measured count: nobody knows whether a cell expresses the
others. Letters: B cells, L tokens, G genes, N batches.
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
        least = torch.finfo(scores.dtype).min
        if measured is None or measured.dtype == torch.bool:
            shown = scores if measured is None else scores.masked_fill(~measured, least)
            log_shares = shown.log_softmax(-1)  # on CPUs many times as fast as logsumexp with numbers so small
        else:
            log_shares = scores - (scores + weights.log().clamp(min=least)).logsumexp(-1, keepdim=True)
        return -(counts * log_shares).sum(-1) / counts.sum(-1).clamp(min=1e-6)
    losses = scores.exp() - values.expm1() * scores if likelihood == "poisson" else (scores - values).square()
    return (losses * weights).sum(-1) / weights.sum(-1).clamp(min=1)


def per_10k(values: torch.Tensor, target_sum: float) -> torch.Tensor:
    """Return `log1p` of counts per 10,000 for `log1p` of counts per `target_sum`.

    So families that normalise to different totals have one unit.

    >>> per_10k(torch.tensor([20.0, 0.0]).log1p(), target_sum=1e5)
    tensor([1.0986, 0.0000])
    """
    return rescaled(values, PER_CELL / target_sum)


def rescaled(values: torch.Tensor, factor: float) -> torch.Tensor:
    """Return `log1p` of counts times `factor` for `log1p` of counts.

    >>> rescaled(torch.tensor([20.0, 0.0]).log1p(), 0.1)
    tensor([1.0986, 0.0000])
    """
    return values if factor == 1 else (values.clamp(min=0).expm1() * factor).log1p()


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


def dense_values(num_genes: int, input_ids: torch.Tensor, values: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
    """Return the values of all genes `(B, G)`, 0 where a gene is not among the tokens.

    Args:
        num_genes: G; larger ids are depth tokens and padding, and are left out.
        input_ids: Ids of genes, `(B, L)`.
        values: Their values, `(B, L)`.
        is_there: Which of them count, bool `(B, L)`.

    Example:
        >>> dense_values(3, torch.tensor([[2, 0]]), torch.tensor([[1.5, 9.0]]), torch.tensor([[True, False]]))
        tensor([[0.0000, 0.0000, 1.5000]])
    """
    ids_BL = input_ids.masked_fill(~is_there, num_genes).clamp(max=num_genes)
    values_BG = torch.zeros(input_ids.shape[0], num_genes + 1, device=input_ids.device)
    return values_BG.scatter(1, ids_BL, values.float())[:, :num_genes]


def batch_log_likelihoods(
    scores: torch.Tensor, biases: torch.Tensor, visible: torch.Tensor, depths: torch.Tensor, likelihood: Likelihood
) -> torch.Tensor:
    """Return how likely each cell is in each batch, by its visible genes: log likelihoods `(B, N)` but for a constant.

    Args:
        scores: Scores of the genes without a batch, `(B, G)`.
        biases: What each batch adds to them, `(N, G)`.
        visible: Values of the visible genes, 0 elsewhere, `log1p` of counts per 10,000, `(B, G)`.
        depths: Total counts of the cells, `(B, 1)`.
        likelihood: What scores are (`reconstruction_loss`).

    Example:
        >>> scores, biases = torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> visible, depths = torch.tensor([[2.0, 0.0]]), torch.tensor([[500.0]])
        >>> batch_log_likelihoods(scores, biases, visible, depths, "multinomial").argmax().item()
        0
    """
    if likelihood == "squared_error":
        is_visible_BG = (visible > 0).float()
        return (is_visible_BG * (visible - scores)) @ biases.T - is_visible_BG @ biases.square().T / 2
    counts_BG = visible.expm1() * depths / PER_CELL
    log_shares_BN = (scores.softmax(-1) @ biases.exp().T).log()  # log sum_g share_g exp(bias_g), the norm in the batch
    return counts_BG @ biases.T - counts_BG.sum(-1, keepdim=True) * log_shares_BN


def masked_values(rates: torch.Tensor, depths: torch.Tensor, odds: float) -> torch.Tensor:
    """Return the expected values of genes given that they are masked, `(B, G)`, if counts are Poisson.

        p = P(count > 0) = 1 - exp(-rate depth / 10,000)
        E[value | masked] = log1p(rate / p) p odds / (p odds + 1 - p)

    `rate / p` is the expected count of a gene, per 10,000, given that the cell expresses it.

    Args:
        rates: Expected counts per 10,000, `(B, G)`.
        depths: Total counts of the cells, `(B, 1)`.
        odds: How many times likelier an expressed gene is masked than one that is not expressed.

    Example:
        >>> masked_values(torch.tensor([[1e-3, 100.0]]), torch.tensor([[1e4]]), odds=10).round(decimals=2).tolist()
        [[0.00..., 4.61...]]
    """
    is_expressed = -torch.expm1(-rates.clamp(min=1e-9) * depths / PER_CELL)
    is_expressed = is_expressed.clamp(min=1e-12)
    value = (rates / is_expressed).log1p()
    return value * is_expressed * odds / (is_expressed * odds + 1 - is_expressed)
