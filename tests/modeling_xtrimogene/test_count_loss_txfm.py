"""The rectified tanh, its inverse and the losses of TxFM against their formulas, torch and scipy."""

import math

import numpy as np
import pytest
import torch

from xtrimogene.modeling_xtrimogene.count_loss_txfm import ACTIVATION_SCALE, count_loss, logits_of, predicted_values

MOST = 11.512935  # ln(1 + 1e5)


def rectified_tanh(logits):
    return predicted_values(logits, "rectified_tanh", 1e5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 3e-6)])
def test_the_tanh_equals_the_sigmoid_of_the_readme_with_its_gradient(dtype, tolerance):
    grid = torch.linspace(-60, 60, 2401, dtype=dtype)
    ours, theirs = (grid.clone().requires_grad_(True) for _ in range(2))
    value = rectified_tanh(ours)
    twin = math.log1p(1e5) * (2 * torch.sigmoid(theirs / (2 * math.e)) - 1).relu()
    torch.testing.assert_close(value, twin, atol=tolerance, rtol=0)
    value.sum().backward()
    twin.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=tolerance, rtol=0)


def test_the_slope_is_that_of_the_formula():
    logits = torch.linspace(-30, 30, 1201, dtype=torch.float64).requires_grad_(True)
    rectified_tanh(logits).sum().backward()
    expected = math.log1p(1e5) / ACTIVATION_SCALE / torch.cosh(logits.detach() / ACTIVATION_SCALE).square()
    torch.testing.assert_close(logits.grad, expected.where(logits > 0, 0), atol=1e-14, rtol=0)
    assert math.log1p(1e5) / ACTIVATION_SCALE == pytest.approx(1.0588, abs=1e-4)


def test_values_are_bounded_whatever_the_logits():
    values = rectified_tanh(torch.tensor([-1e6, -1.0, 0.0, 1e6]))
    assert values.tolist() == [0, 0, 0, pytest.approx(MOST, abs=1e-5)]
    assert values.exp().max() == pytest.approx(100_001, rel=1e-5)


@pytest.mark.parametrize("activation", ["rectified_tanh", "clamped_relu"])
def test_loss_and_gradient_are_finite_for_all_logits_and_counts(activation):
    logits = torch.cat([-torch.logspace(-3, 6, 40), torch.logspace(-3, 6, 40)])[:, None].expand(-1, 30).clone()
    counts = torch.cat([torch.zeros(1), torch.logspace(-2, 5, 29)]).expand_as(logits)
    logits.requires_grad_(True)
    losses = count_loss(predicted_values(logits, activation, 1e5), counts.log1p(), None, "poisson")
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


def test_the_plain_relu_overflows_as_in_the_ablation():
    predicted = predicted_values(torch.tensor([[100.0]]), "relu", 1e5)
    assert torch.isinf(count_loss(predicted, torch.ones(1, 1), None, "poisson")).all()


def test_half_precision_logits_are_computed_in_float32():
    logits = torch.linspace(0, 20, 50, dtype=torch.bfloat16)
    values = rectified_tanh(logits)
    assert values.dtype is torch.float32
    torch.testing.assert_close(values, rectified_tanh(logits.float()), atol=0, rtol=0)
    loss = count_loss(values[None].bfloat16(), values[None].bfloat16(), None, "poisson")
    assert loss.dtype is torch.float32


@pytest.mark.parametrize("activation", ["rectified_tanh", "relu", "clamped_relu"])
def test_logits_of_values_are_the_inverse(activation):
    values = torch.linspace(0, 11, 45, dtype=torch.float64)
    torch.testing.assert_close(predicted_values(logits_of(values, activation, 1e5), activation, 1e5), values)
    assert torch.isfinite(logits_of(torch.tensor([20.0]), activation, 1e5)).all()


def test_softmax_shares_the_library_among_the_measured_genes():
    profile = torch.tensor([0.1, 0.6, 0.3])
    logits = logits_of((1e5 * profile).log1p(), "softmax", 1e5)
    torch.testing.assert_close(predicted_values(logits, "softmax", 1e5).expm1(), 1e5 * profile)
    measured = torch.tensor([[True, False, True]])
    values = predicted_values(logits[None], "softmax", 1e5, measured=measured)
    torch.testing.assert_close(values.expm1(), torch.tensor([[25_000.0, 0, 75_000.0]]))


# -- losses -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cells():
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(3, 7, generator=generator, dtype=torch.float64) * 9
    values = torch.rand(3, 7, generator=generator, dtype=torch.float64) * 9
    return predicted, values


def test_the_poisson_loss_is_torchs(cells):
    predicted, values = cells
    expected = torch.nn.functional.poisson_nll_loss(predicted, values.exp(), reduction="none").mean(-1)
    torch.testing.assert_close(count_loss(predicted, values, None, "poisson"), expected)


def test_the_poisson_loss_is_stationary_at_the_true_values(cells):
    values = cells[1].clone().requires_grad_(True)
    count_loss(values, cells[1], None, "poisson").sum().backward()
    torch.testing.assert_close(values.grad, torch.zeros_like(values), atol=1e-9, rtol=0)


def test_each_cell_is_a_mean_over_its_measured_genes_and_others_have_no_gradient(cells):
    predicted, values = cells
    measured = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    predicted = predicted.masked_fill(~measured, torch.inf).requires_grad_(True)
    losses = count_loss(predicted, values, measured, "poisson")
    for row in range(3):
        own = measured[row]
        alone = count_loss(predicted[row : row + 1, own], values[row : row + 1, own], None, "poisson")
        torch.testing.assert_close(losses[row], alone[0])
    losses.sum().backward()
    assert (predicted.grad[~measured] == 0).all()


def test_a_cell_without_measured_genes_has_no_loss(cells):
    assert count_loss(*cells, torch.zeros(3, 7), "poisson").tolist() == [0, 0, 0]


@pytest.mark.parametrize("loss", ["mse", "smooth_l1"])
def test_losses_of_the_ablation_are_torchs(cells, loss):
    function = {"mse": torch.nn.functional.mse_loss, "smooth_l1": torch.nn.functional.smooth_l1_loss}[loss]
    torch.testing.assert_close(count_loss(*cells, None, loss), function(*cells, reduction="none").mean(-1))


def test_the_negative_binomial_is_that_of_scipy(cells):
    from scipy.stats import nbinom

    predicted, values = cells
    log_dispersion, totals = torch.linspace(-2, 2, 7, dtype=torch.float64), torch.tensor([500.0, 1e5, 4e6])
    found = count_loss(predicted, values, None, "nb", log_dispersion, totals)
    scale = (totals.double() / 1e5)[:, None]
    counts, mean, inverse = (values.exp() * scale), (predicted.exp() * scale).numpy(), log_dispersion.exp().numpy()
    whole = counts.round().clamp(min=1)  # scipy takes whole counts only
    ours = count_loss(predicted, (whole / scale).log(), None, "nb", log_dispersion, totals)
    expected = -nbinom.logpmf(whole.numpy(), inverse, inverse / (inverse + mean)).mean(-1)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    assert torch.isfinite(found).all()
