"""Batches: every cell once an epoch on any number of processes, no more tokens than allowed."""

import numpy as np
import pandas as pd
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from xtrimogene.tokenization.collators import DataCollatorForExpression
from xtrimogene.training.data.sampler import BalancedSampler, CellBatches, ShuffledCells, TokenBudgetBatches

LENGTHS = np.random.default_rng(0).integers(100, 2_000, 503)


def by_cells(lengths, num_processes, num_cells=4):
    return CellBatches(ShuffledCells(len(lengths), seed=1), num_cells, num_processes)


def by_tokens(lengths, num_processes, max_tokens=9_000):
    return TokenBudgetBatches(lengths, max_tokens, 8, num_processes, seed=1)


def dealt_out(batches, num_processes, epoch, skip=0):
    """Return the batches that accelerate gives each process."""
    dealt = []
    for process in range(num_processes):
        loader = DataLoader(range(len(LENGTHS)), batch_sampler=batches, collate_fn=list)
        loader = prepare_data_loader(loader, num_processes=num_processes, process_index=process)
        if skip:
            loader = skip_first_batches(loader, skip)
        batches.set_epoch(epoch)
        loader.set_epoch(epoch)
        dealt.append(list(loader))
        assert len(dealt[-1]) == len(loader)
    return dealt


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("make", [by_cells, by_tokens])
def test_every_cell_comes_once_an_epoch_and_all_processes_have_as_many_batches(make, num_processes):
    batches = make(LENGTHS, num_processes)
    epochs = [dealt_out(batches, num_processes, epoch) for epoch in range(3)]
    for dealt in epochs:
        assert {len(own) for own in dealt} == {len(batches) // num_processes}
        seen = [cell for own in dealt for batch in own for cell in batch]
        assert sorted(seen) == list(range(len(LENGTHS)))
    assert epochs[0] != epochs[1]
    assert dealt_out(batches, num_processes, 1) == epochs[1]
    assert dealt_out(batches, num_processes, 1, skip=7) == [own[7:] for own in epochs[1]]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_a_token_budget_is_kept_and_used(num_processes):
    batches = by_tokens(LENGTHS, num_processes)
    for epoch in range(20):
        batches.set_epoch(epoch)
        own = list(batches)
        assert len(own) == len(batches)
        padded = np.array([len(batch) * LENGTHS[batch].max() for batch in own])
        assert padded.max() <= 9_000
        assert np.median(padded) > 0.75 * 9_000  # the next cell, of up to 2,000 tokens, would have been too much
    assert max(map(len, by_tokens(LENGTHS, num_processes, 10**6))) == 8


@pytest.mark.parametrize("make", [by_cells, by_tokens])
def test_batches_are_random_whatever_the_lengths(make):
    """The mean of each batch is that of random cells, so no step is learned from cells of one length."""
    batches = make(LENGTHS, 1)
    spread = []
    for epoch in range(20):
        batches.set_epoch(epoch)
        spread += [LENGTHS[batch].std() for batch in batches if len(batch) > 3]
    # The standard deviation of four random cells is some 0.8 of that of all; sorted ones would have next to none.
    assert np.mean(spread) > 0.6 * LENGTHS.std()


@pytest.mark.parametrize(("size", "num_cells", "num_processes", "sizes"), [
    (8, 2, 2, [2, 2, 2, 2]),
    (11, 2, 2, [2, 2, 2, 2, 2, 1]),
    (9, 2, 2, [2, 2, 1, 1, 2, 1]),
    (10, 1, 3, [1, 1, 1, 1, 1, 1, 2, 1, 1]),
    (3, 16, 3, [1, 1, 1]),
    (5, 16, 1, [5]),
])  # fmt: skip
def test_the_last_batches_are_shared_out(size, num_cells, num_processes, sizes):
    batches = by_cells(np.ones(size, int), num_processes, num_cells)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="2 cells for 3 processes"):
        by_cells(np.ones(2, int), 3)
    with pytest.raises(ValueError, match="max_tokens is 1,500, and cell 2 of the training set alone has 1,600 tokens"):
        by_tokens([1_000, 1_200, 1_600], 1, 1_500)
    with pytest.raises(ValueError, match="puts each of 3 cells into a batch of its own, which 2 processes"):
        by_tokens([1_000, 1_100, 1_200], 2, 1_500)
    assert [len(batch) for batch in by_tokens([1_000, 1_010, 1_020, 1_030], 2, 5_000)] == [2, 2]


def test_balanced_sampling_draws_from_groups_equally(corpus):
    groups = corpus["source"]
    sampler = BalancedSampler(groups, seed=1)
    first = list(sampler)
    assert len(first) == len(sampler) == 560
    counts = pd.Series(groups[first]).value_counts()
    assert counts.max() - counts.min() <= 1
    # A small group is repeated evenly; of a large one no cell comes twice.
    times = np.bincount(first, minlength=560)
    assert times[:200].max() <= 1
    assert times[200:500].max() <= 1
    assert set(times[500:]) <= {3, 4}
    assert list(BalancedSampler(groups, seed=1)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    # A batch is a random part of all: its mean length differs from theirs by chance alone.
    lengths = corpus["length"][first]
    assert lengths.reshape(35, 16).mean(1).std() < 1.5 * lengths.std() / 4


def test_a_label_makes_a_balanced_task(corpus, tokenizer):
    sampler = BalancedSampler(corpus["donor"])
    loader = DataLoader(corpus, 8, sampler=sampler, collate_fn=DataCollatorForExpression(tokenizer))
    assert sum(len(batch["input_ids"]) for batch in loader) == 560
