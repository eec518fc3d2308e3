"""Likelihoods of whole cells: their formulas, their best scores, and genes that were not measured."""

import pytest
import torch

from xtrimogene.modeling_xtrimogene.reconstruction_xtrimogene import (
    batch_log_likelihoods,
    dense_values,
    masked_values,
    reconstructed_values,
    reconstruction_loss,
)

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


def test_values_of_masked_genes_are_the_mean_over_drawn_counts():
    rng, depth, rates, odds = torch.Generator().manual_seed(0), 2000.0, torch.tensor([0.5, 5.0, 50.0]), 10
    counts = torch.poisson((rates * depth / 1e4).expand(200_000, 3), generator=rng)
    weights = torch.where(counts > 0, odds, 1.0)  # of being masked
    drawn = ((counts * 1e4 / depth).log1p() * weights).sum(0) / weights.sum(0)
    found = masked_values(rates[None], torch.tensor([[depth]]), odds)[0]
    torch.testing.assert_close(found, drawn, rtol=0.05, atol=0.01)  # log1p of a mean count


def test_a_gene_that_is_never_counted_has_the_value_zero_and_one_that_always_is_its_own():
    found = masked_values(torch.tensor([[0.0, 1e4]]), torch.tensor([[1e5]]), odds=10)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1e4]]).log1p(), atol=1e-4, rtol=1e-5)


def test_values_of_all_genes_are_those_of_the_tokens_in_their_places():
    ids, values = torch.tensor([[4, 0, 7], [2, 9, 9]]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    is_there = torch.tensor([[True, True, True], [True, True, False]])
    expected = torch.zeros(2, 6)
    expected[0, 4], expected[0, 0], expected[1, 2] = 1, 2, 4  # 7 and 9 are no genes
    assert torch.equal(dense_values(6, ids, values, is_there), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_batches_are_as_likely_as_the_counts_in_them(cells, likelihood):
    scores, values, _ = cells
    biases, depths = torch.randn(3, 7), torch.full((5, 1), 1e4)
    found = batch_log_likelihoods(scores, biases, values, depths, likelihood)
    for batch in range(3):
        in_batch = scores + biases[batch]
        if likelihood == "squared_error":
            expected = -(in_batch - values).square().sum(1) / 2 + (scores - values).square().sum(1) / 2
        else:
            expected = (values.expm1() * (in_batch.log_softmax(1) - scores.log_softmax(1))).sum(1)
        torch.testing.assert_close(found[:, batch], expected, rtol=1e-3, atol=1e-3)
