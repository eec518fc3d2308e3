"""Which cells form a batch: random ones, and every cell exactly once an epoch on any number of processes.

Seed and epoch alone decide order and batches, so all processes agree on them and a resumed run continues them.
A batch sampler yields batches for the processes in turn, as accelerate expects them, and equally many for each.

Batches of cells with similar lengths would need less padding. But length depends on cell type: each step would then see
few types, which biases batch statistics and the last steps of a short run.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch.utils.data import Sampler

TRIED_EPOCHS = 3  # epochs whose batches are counted in advance, for a token budget


class ShuffledCells(Sampler[int]):
    """Yield all cells in a random order that changes with the epoch.

    Args:
        num_cells: Number of cells.
        seed: Seed of the order.

    Example:
        >>> cells = ShuffledCells(num_cells=5, seed=0)
        >>> list(cells)
        [2, 4, 3, 0, 1]
        >>> cells.set_epoch(1)
        >>> list(cells)
        [1, 4, 3, 0, 2]
    """

    def __init__(self, num_cells: int, seed: int = 0):
        self.num_cells = num_cells
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate's loaders call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_cells

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng((self.seed, self.epoch)).permutation(self.num_cells).tolist()


class CellBatches(Sampler[list[int]]):
    """Cut an order of cells into batches of one size; the last batches of an epoch are smaller.

    accelerate's own batches would fill up the last ones with cells from the beginning of the epoch, which would then be
    seen twice.

    Args:
        sampler: Yields `len(sampler)` cells; its `set_epoch` changes their order.
        num_cells: Number of cells in a batch of one process.
        num_processes: Number of processes.

    Raises:
        ValueError: If there are fewer cells than processes.

    Example:
        >>> [len(batch) for batch in CellBatches(ShuffledCells(num_cells=10), num_cells=4)]
        [4, 4, 2]
    """

    def __init__(self, sampler: Sampler[int], num_cells: int, num_processes: int = 1):
        self.size = len(sampler)  # type: ignore[arg-type]
        if self.size < num_processes:
            raise ValueError(
                f"{self.size} cells for {num_processes} processes: each needs a cell in each step; use fewer processes"
            )
        self.sampler = sampler
        self.num_cells = num_cells
        self.num_processes = num_processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate's loaders call this."""
        self.sampler.set_epoch(epoch)  # type: ignore[attr-defined]

    def bounds(self) -> list[int]:
        """Return the position at which the cells of each step begin, and the end of the last step."""
        bounds = [*range(0, self.size, self.num_cells * self.num_processes), self.size]
        if bounds[-1] - bounds[-2] < self.num_processes:  # too few for a step: divide the last two steps evenly
            bounds[-2] = (bounds[-3] + bounds[-1]) // 2
            if bounds[-2] - bounds[-3] < self.num_processes:
                del bounds[-2]
        return bounds

    def __len__(self) -> int:
        return (len(self.bounds()) - 1) * self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        cells, bounds = iter(self.sampler), self.bounds()
        for start, stop in pairwise(bounds):
            step = np.fromiter(cells, np.int64, stop - start)
            yield from (batch.tolist() for batch in np.array_split(step, self.num_processes))


class TokenBudgetBatches(Sampler[list[int]]):
    """Yield random batches with at most `max_tokens` tokens, padding included, and at most `max_cells` cells.

    A random order is cut into batches, each as large as the limits allow. The number of batches then varies a little
    from epoch to epoch, but a Trainer needs the same number in each. So the largest batches are halved until there are
    enough, and an order with too many batches is drawn again.

    Args:
        lengths: Number of tokens of each cell.
        max_tokens: Largest size of a padded batch: its number of cells times the tokens of its longest cell.
        max_cells: Largest number of cells in a batch. The decoder's memory grows with cells, not with tokens.
        num_processes: Number of processes.
        seed: Seed of the order.

    Raises:
        ValueError: If a cell has more than `max_tokens` tokens, or there are not enough batches for all processes.

    Example:
        >>> batches = TokenBudgetBatches([900, 200, 300, 800, 250, 150], max_tokens=1000, max_cells=4)
        >>> sorted(cell for batch in batches for cell in batch)
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        max_cells: int,
        num_processes: int = 1,
        seed: int = 0,
    ):
        self.lengths = np.asarray(lengths)
        self.max_tokens = max_tokens
        self.max_cells = max_cells
        self.seed = seed
        self.epoch = 0
        if self.lengths.max() > max_tokens:
            raise ValueError(
                f"max_tokens is {max_tokens:,}, and cell {self.lengths.argmax()} of the training set alone has "
                f"{self.lengths.max():,} tokens: allow at least as many"
            )
        most = max(len(self.cut(self.order(epoch, 0))) for epoch in range(TRIED_EPOCHS))
        self.num_batches = most + -most % num_processes
        if self.num_batches > len(self.lengths):
            raise ValueError(
                f"max_tokens {max_tokens:,} puts each of {len(self.lengths)} cells into a batch of its own, which "
                f"{num_processes} processes cannot share evenly: allow more tokens"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the batches of an epoch; accelerate's loaders call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def order(self, epoch: int, attempt: int) -> np.ndarray:
        """Return a random order of the cells, which differs between attempts."""
        return np.random.default_rng((self.seed, epoch, attempt)).permutation(len(self.lengths))

    def cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Cut an order of cells into batches that are as large as the limits allow."""
        batches, start = [], 0
        while start < len(order):
            cells = order[start : start + self.max_cells]
            padded = np.maximum.accumulate(self.lengths[cells]) * np.arange(1, len(cells) + 1)  # ascending
            batches.append(cells[: np.searchsorted(padded, self.max_tokens, side="right")])
            start += len(batches[-1])
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        attempt = 0
        while len(batches := self.cut(self.order(self.epoch, attempt))) > self.num_batches:
            attempt += 1
        while len(batches) < self.num_batches:
            largest = max(range(len(batches)), key=lambda index: len(batches[index]))
            half = len(batches[largest]) // 2
            batches[largest : largest + 1] = batches[largest][:half], batches[largest][half:]
        yield from (batch.tolist() for batch in batches)


class BalancedSampler(ShuffledCells):
    """Draw from each group (study, donor, label) equally often, so that large groups do not outweigh small ones.

    An epoch has as many draws as there are cells. The cells of a group are drawn equally often, or some of them once
    more than the others. Seed and epoch alone decide the random order.

    Args:
        groups: Group of each cell.
        seed: Seed of the order.

    Example:
        >>> donors = ["a", "a", "a", "b"]
        >>> sorted(donors[cell] for cell in BalancedSampler(donors))
        ['a', 'a', 'b', 'b']
    """

    def __init__(self, groups: Sequence[Any] | np.ndarray, seed: int = 0):
        ids = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
        self.members = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
        super().__init__(len(ids), seed)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        quotas = np.diff(np.linspace(0, len(self), len(self.members) + 1).astype(int))
        drawn = []
        for members, quota in zip(self.members, quotas.tolist(), strict=True):
            rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
            drawn.append(np.concatenate(rounds)[:quota] if rounds else members[:0])
        yield from rng.permutation(np.concatenate(drawn)).tolist()
