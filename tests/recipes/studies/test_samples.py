"""Samples by their cells: what a mean of cells cannot tell is learned, and neither order nor padding counts."""

import numpy as np
import pytest
import torch

from xtrimogene.recipes.studies.samples import embed_samples, fit_samples

SAMPLES, CELLS = 60, 80


@pytest.fixture(scope="module")
def samples():
    """Samples of two classes with the same mean and variance of cells: one has two groups of cells, one has not."""
    rng = np.random.default_rng(0)
    labels, of_samples = np.arange(SAMPLES) % 2, np.repeat(np.arange(SAMPLES), CELLS)
    cells = rng.normal(size=(SAMPLES * CELLS, 4)).astype(np.float32)
    groups = rng.choice([-1.0, 1.0], len(cells)) + 0.1 * rng.normal(size=len(cells))
    cells[:, 0] = np.where(labels[of_samples] == 1, groups, cells[:, 0])
    return cells, of_samples, labels


@pytest.fixture(scope="module")
def model(samples):
    cells, of_samples, labels = samples
    return fit_samples(cells, of_samples, np.where(np.arange(SAMPLES) < 40, labels, -100))


def test_samples_that_were_not_learned_from_are_told_apart(samples, model):
    cells, of_samples, labels = samples
    guess = model.head(embed_samples(model, cells, of_samples)).argmax(1).numpy()
    assert (guess == labels)[40:].mean() >= 0.9


def test_the_order_of_cells_and_padding_do_not_count(samples, model):
    cells, of_samples, _ = samples
    of_first = torch.from_numpy(cells[of_samples == 0])[None]
    is_cell = torch.arange(CELLS + 5)[None] < CELLS
    padded = torch.cat([of_first.flip(1), torch.full((1, 5, 4), 9.0)], 1)
    expected = embed_samples(model, cells, of_samples)[:1]
    torch.testing.assert_close(model.embed(padded, is_cell), expected)
