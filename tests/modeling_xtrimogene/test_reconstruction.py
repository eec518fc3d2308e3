"""Likelihoods of reconstructed cells: against torch's own distributions, and unmeasured genes."""

import pytest
import torch

from xtrimogene.modeling_xtrimogene.reconstruction_xtrimogene import reconstructed_values, reconstruction_loss


@pytest.fixture
def cells():
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.rand(3, 20, generator=generator) * 4, generator=generator)
    counts[:, 0] += 1
    return torch.randn(3, 20, generator=generator), counts, (counts / counts.sum(1, keepdim=True) * 1e4).log1p()


def test_multinomial_is_the_cross_entropy_of_a_count(cells):
    scores, counts, values = cells
    expected = [-torch.distributions.Categorical(logits=row).log_prob(torch.arange(20)) @ count / count.sum()
                for row, count in zip(scores, counts, strict=True)]  # fmt: skip
    torch.testing.assert_close(reconstruction_loss(scores, values, None, "multinomial"), torch.stack(expected))


def test_poisson_is_the_likelihood_of_counts_per_10_000(cells):
    scores, _, values = cells
    true = values.expm1()
    exact = -torch.distributions.Poisson(scores.exp(), validate_args=False).log_prob(true) - torch.lgamma(true + 1)
    found = reconstruction_loss(scores, values, None, "poisson")
    torch.testing.assert_close(found, exact.mean(1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("likelihood", ["multinomial", "poisson", "squared_error"])
def test_genes_that_were_not_measured_change_neither_loss_nor_gradient(cells, likelihood):
    scores, _, values = cells
    measured = torch.ones_like(values, dtype=torch.bool)
    measured[:, 15:] = False
    others = scores.clone()
    others[:, 15:] += 7
    others.requires_grad_()
    loss = reconstruction_loss(others, values, measured, likelihood)
    torch.testing.assert_close(loss, reconstruction_loss(scores, values, measured, likelihood))
    loss.sum().backward()
    assert (others.grad[:, 15:] == 0).all()
    assert (others.grad[:, :15] != 0).any(1).all()


def test_scores_of_the_true_cell_stand_for_its_values(cells):
    _, counts, values = cells
    shares = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(reconstructed_values(shares.log().clamp(min=-60), "multinomial"), values)
    torch.testing.assert_close(reconstructed_values((1e4 * shares).log().clamp(min=-60), "poisson"), values)
    assert reconstructed_values(values, "squared_error").equal(values)
