"""Principal components within batches: those of the whole matrix if there is one batch, else free of batches."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from xtrimogene.training.components import batch_free_components, joined_axes, without_batches


@pytest.fixture(scope="module")
def cells():
    """Values of 240 cells of 3 kinds in 4 batches; each batch has its own shift of some genes."""
    rng = np.random.default_rng(0)
    kinds, batches = rng.integers(0, 3, 240), np.repeat(np.arange(4), 60)
    values = rng.normal(size=(3, 50))[kinds] * 2 + rng.normal(size=(4, 50))[batches] * 3 + rng.normal(size=(240, 50))
    return csr_matrix(values.astype(np.float32)), kinds, batches


def test_axes_of_one_batch_are_principal_components(cells):
    values, _, _ = cells
    axes = batch_free_components(values, np.zeros(240, int), 4, np.random.default_rng(0))
    dense = values.toarray()
    expected = np.linalg.svd(dense - dense.mean(0), full_matrices=False)[2][:4]
    assert axes.dtype == np.float32
    np.testing.assert_allclose(np.abs((axes * expected.T).sum(0)), 1, atol=1e-3)  # but for their signs


def test_kinds_are_told_apart_and_batches_are_not(cells):
    values, kinds, batches = cells
    plain, free = (
        values @ batch_free_components(values, of_cells, 6, np.random.default_rng(0))
        for of_cells in (np.zeros(240, int), batches)
    )

    def between(components, groups):
        means = np.stack([components[groups == group].mean(0) for group in np.unique(groups)])
        return means.var(0).sum() / components.var(0).sum()

    assert between(plain, batches) > 0.3
    assert between(free, batches) < 0.03
    assert between(free, kinds) > 0.4 > between(plain, kinds)


def test_batches_that_differ_in_the_shares_of_kinds_keep_what_tells_the_kinds_apart():
    rng = np.random.default_rng(0)
    batches = np.repeat([0, 1], 300)
    is_kind = rng.random(600) < np.where(batches == 0, 0.4, 0.6)
    direction = np.eye(20)[0] * 6
    values = csr_matrix((is_kind[:, None] * direction + rng.normal(size=(600, 20))).astype(np.float32))
    axes = batch_free_components(values, batches, 2, np.random.default_rng(0))
    assert abs(axes[0, 0]) > 0.95


def test_there_are_no_more_axes_than_cells_or_genes():
    values = csr_matrix(np.random.default_rng(0).random((3, 9), np.float32))
    assert batch_free_components(values, np.zeros(3, int), 8, np.random.default_rng(0)).shape == (9, 3)


def test_joined_axes_tell_kinds_apart_and_not_batches_and_empty_ones_add_nothing(cells):
    values, _, batches = cells
    rng = np.random.default_rng(0)
    free = batch_free_components(values, batches, 6, rng)
    others = rng.normal(size=(values.shape[1], 6)).astype(np.float32)  # they hold what differs between the batches
    components = values @ joined_axes(free, others, values, batches)
    means = np.stack([components[batches == batch].mean(0) for batch in np.unique(batches)])
    assert means.var(0).sum() / components.var(0).sum() < 0.03
    alone = joined_axes(free, np.zeros_like(others), values, batches)
    np.testing.assert_allclose(alone @ alone.T, np.linalg.qr(free)[0] @ np.linalg.qr(free)[0].T, atol=1e-4)


def test_batches_are_compared_with_those_of_their_own_source(cells):
    values, _, batches = cells
    tissue = np.eye(50, dtype=np.float32)[0] * 9
    values = csr_matrix(values + (batches >= 2)[:, None] * tissue)  # the third and fourth batch are of another tissue
    axes, sources = np.eye(50, dtype=np.float32), batches // 2

    def apart(axes, first, second):
        components = values @ axes
        return np.linalg.norm(components[batches == first].mean(0) - components[batches == second].mean(0))

    free, half = (without_batches(axes, values, batches, sources, share) for share in (1.0, 0.5))
    for pair in ((0, 1), (2, 3)):
        assert apart(free, *pair) < 1e-3 < apart(axes, *pair)
        assert apart(half, *pair) == pytest.approx(apart(axes, *pair) / 2, rel=1e-3)
    assert apart(free, 0, 2) > 8 > apart(without_batches(axes, values, batches), 0, 2)
    # A batch of two sources counts as two, and the numbers of sources do not matter.
    renamed = without_batches(axes, values, batches % 2, 7 - sources)
    np.testing.assert_allclose(renamed, free, atol=1e-5)
    assert without_batches(axes, values, batches, batches) is axes


def test_batches_of_few_cells_are_not_compared(cells):
    """The mean of few cells differs by chance in all that tells kinds apart."""
    values, _, batches = cells
    few = np.random.default_rng(0).permutation(240) // 4
    axes = np.eye(50, dtype=np.float32)
    assert without_batches(axes, values, few) is axes
    # Single cells beside large batches change nothing.
    alone = batches.copy()
    alone[:5] = 10 + np.arange(5)
    mended = without_batches(axes, values, alone)
    np.testing.assert_allclose(mended, without_batches(axes, values[5:], batches[5:]), atol=1e-5)
    assert mended.dtype == np.float32
