"""Batches of cells of like length: less padding, every cell exactly once an epoch."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

WINDOW = 32  # batches among which cells are sorted by length; more saves little and shuffles less


class LengthGroupedSampler(Sampler[int]):
    """Yield all cells in an order whose batches hold cells of like length, another one each epoch.

    The order follows from seed and epoch alone, so all processes agree on it and a resumed run continues it.

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
        yield from whole[rng.permutation(num_whole)].ravel().tolist()
        yield from order[num_whole * self.batch_size :].tolist()
