"""Batches of cells of like length, which random ones are compared with."""

import numpy as np
import pytest

from xtrimogene.recipes.studies.order import LikeLengths, padding
from xtrimogene.training.data.sampler import ShuffledCells

LENGTHS = np.random.default_rng(0).integers(100, 2_000, 1_003)


def test_like_lengths_give_every_cell_once_and_save_padding():
    sampler = LikeLengths(LENGTHS, 16, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(1_003))
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert padding(sampler, LENGTHS, 16) < 0.1
    assert padding(ShuffledCells(1_003, seed=1), LENGTHS, 16) > 0.35


def test_padding_is_the_share_of_places_without_a_gene():
    class InOrder(ShuffledCells):
        def __iter__(self):
            yield from range(self.num_cells)

    assert padding(InOrder(3), np.array([4, 2, 5]), 2) == pytest.approx(1 - 11 / (2 * 4 + 5))
