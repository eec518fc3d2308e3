"""Which cells form a batch: cells of like length, and every cell exactly once an epoch on any number of processes.

Order and batches follow from seed and epoch alone, so all processes agree on them and a resumed run continues them.
A batch sampler gives each process a batch in turn, and all of them equally many; that is what accelerate deals out.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler

WINDOW = 32  # batches among which cells are sorted by length; more saves little and shuffles less
LENGTH_CLASS = 1.1  # longest by shortest cell of a class: the most that padding can add to a batch of a token budget


class LengthGroupedSampler(Sampler[int]):
    """Yield all cells in an order whose batches hold cells of like length, another one each epoch.

    Args:
        lengths: Expressed genes of each cell.
        batch_size: Cells of a batch, over all processes.
        seed: Seed.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0):
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate's loaders call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        window = WINDOW * self.batch_size
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([cells[np.argsort(self.lengths[cells], kind="stable")] for cells in windows])
        # A short last batch stays last: elsewhere it would shift the bounds of those behind it.
        num_whole = len(order) // self.batch_size
        whole = order[: num_whole * self.batch_size].reshape(num_whole, self.batch_size)
        for batch in rng.permutation(num_whole):
            yield from whole[batch].tolist()
        yield from order[num_whole * self.batch_size :].tolist()


class CellBatches(Sampler[list[int]]):
    """Cut an order of cells into batches of one size; the last ones of an epoch are smaller.

    (accelerate would fill them up with cells of the epoch's beginning, which would be seen twice.)

    Args:
        sampler: Yields as many cells as its length says; `set_epoch` changes their order.
        num_cells: Cells of a batch of one process.
        num_processes: Processes.

    Raises:
        ValueError: If there are fewer cells than processes.
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
        """Return where the cells of each step begin, and the end."""
        bounds = [*range(0, self.size, self.num_cells * self.num_processes), self.size]
        if bounds[-1] - bounds[-2] < self.num_processes:  # too few for a step: shared out with those of the one before
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
    """Yield batches that hold no more than some tokens, padding counted, and no more than some cells.

    Cells are shuffled within classes of like length, and each class is cut into batches of one size: so there are
    equally many batches in every epoch. The processes have batches of one class in each step and need not wait.

    Args:
        lengths: Tokens of each cell.
        max_tokens: Largest product of the cells of a batch and the tokens of its longest one.
        max_cells: Cells of a batch, at most: the decoder's memory goes with cells, not with tokens.
        num_processes: Processes.
        seed: Seed.

    Raises:
        ValueError: If a cell has more tokens, or the batches cannot be shared out among the processes.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        max_cells: int,
        num_processes: int = 1,
        seed: int = 0,
    ):
        lengths = np.asarray(lengths)
        if lengths.max() > max_tokens:
            raise ValueError(
                f"max_tokens is {max_tokens:,}, and cell {lengths.argmax()} of the training set alone has "
                f"{lengths.max():,} tokens: allow at least as many"
            )
        self.num_processes = num_processes
        self.seed = seed
        self.epoch = 0
        classes = np.floor(np.log(lengths) / np.log(LENGTH_CLASS)).astype(np.int64)
        self.classes = [
            cells
            for cells in np.split(np.argsort(classes, kind="stable"), np.cumsum(np.bincount(classes))[:-1])
            if len(cells)
        ]
        most = [min(max_tokens // int(lengths[cells].max()), max_cells) for cells in self.classes]
        self.num_batches = [-(-len(cells) // size) for cells, size in zip(self.classes, most, strict=True)]
        for _ in range(-sum(self.num_batches) % num_processes):  # as many for each process: some are smaller
            sizes = [len(cells) / number for cells, number in zip(self.classes, self.num_batches, strict=True)]
            if max(sizes) <= 1:
                raise ValueError(
                    f"max_tokens {max_tokens:,} puts each of {len(lengths)} cells into a batch of its own, which "
                    f"{num_processes} processes cannot share evenly: allow more tokens"
                )
            self.num_batches[int(np.argmax(sizes))] += 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the batches of an epoch; accelerate's loaders call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.num_batches)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = [
            batch
            for cells, number in zip(self.classes, self.num_batches, strict=True)
            for batch in np.array_split(rng.permutation(cells), number)
        ]
        for step in rng.permutation(len(batches) // self.num_processes) * self.num_processes:
            yield from (batch.tolist() for batch in batches[step : step + self.num_processes])
