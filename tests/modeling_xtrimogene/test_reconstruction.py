"""Likelihoods of whole cells: their formulas, their best scores, and genes that were not measured."""

import pytest
import torch

from xtrimogene.modeling_xtrimogene.reconstruction_xtrimogene import reconstructed_values, reconstruction_loss

LIKELIHOODS = ["multinomial", "poisson", "squared_error"]


@pytest.fixture
def cells():
    """Scores and values of five cells and seven genes; two genes were not measured in the first."""
    torch.manual_seed(0)
    measured = torch.ones(5, 7, dtype=torch.bool)
    measured[0, [2, 5]] = False
    return torch.randn(5, 7), 3 * torch.rand(5, 7), measured


def test_losses_are_the_negative_log_likelihoods_of_torch(cells):
    scores, values, measured = cells
    counts = values.expm1()
    for row in range(5):
        own = measured[row]
        shares = torch.distributions.Categorical(logits=scores[row, own])
        of_count = -(counts[row, own] * shares.logits).sum() / counts[row, own].sum()
        rate = torch.distributions.Poisson(scores[row, own].exp(), validate_args=False)
        of_genes = -rate.log_prob(counts[row, own]) - (counts[row, own] + 1).lgamma()
        expected = {
            "multinomial": of_count,
            "poisson": of_genes.mean(),
            "squared_error": (scores[row, own] - values[row, own]).square().mean(),
        }
        for likelihood in LIKELIHOODS:
            found = reconstruction_loss(scores, values, measured, likelihood)[row]
            torch.testing.assert_close(found, expected[likelihood])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_scores_of_a_cell_give_its_values_and_the_smallest_loss(cells, likelihood):
    _, values, _ = cells
    if likelihood == "multinomial":
        values = (1e4 * values.softmax(-1)).log1p()  # the counts of a cell are 10,000
    best = values if likelihood == "squared_error" else values.expm1().log()
    torch.testing.assert_close(reconstructed_values(best, likelihood), values)
    least = reconstruction_loss(best, values, None, likelihood)
    for seed in range(5):
        torch.manual_seed(seed)
        assert (reconstruction_loss(best + 0.1 * torch.randn(5, 7), values, None, likelihood) > least).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_gene_that_stands_for_several_counts_as_often(cells, likelihood):
    scores, values, _ = cells
    numbers = torch.tensor([1.0, 3, 2, 1, 1, 4, 1]).expand(5, -1)
    repeated = [rows.repeat_interleave(numbers[0].long(), dim=1) for rows in (scores, values)]
    expected = reconstruction_loss(*repeated, None, likelihood)
    torch.testing.assert_close(reconstruction_loss(scores, values, numbers, likelihood), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_cell_of_which_nothing_was_measured_has_no_loss(cells, likelihood):
    scores, values, measured = cells
    measured[1] = False
    scores.requires_grad_()
    losses = reconstruction_loss(scores, values, measured, likelihood)
    assert losses[1] == 0
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert gradient.isfinite().all()
    assert not gradient[~measured].any()
    assert gradient[measured].all()
