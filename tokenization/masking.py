"""Which genes of a cell are masked in pre-training, and what the decoder is shown instead.

    expressed genes of B cells (packed)
        |  independent ratios for expressed and for zero genes
        v
    visible genes (packed)   +   masked genes, their true values, what the decoder sees of them

Every draw is a hash of (seed, epoch, cell, gene): the mask of a cell does not depend on its batch, on the number of
processes or workers, or on where a run was resumed.

Source: arXiv:2311.15156, section 3.3; ratios 0.3 / 0.03 and 80/10/10 of the released configuration.
"""

from dataclasses import dataclass

import numpy as np

CELLS_AT_A_TIME = 32  # what is in between stays in the cache of a core

# One stream of random numbers for each decision.
NUM_STREAMS = 4
MASK_EXPRESSED, MASK_ZERO, FATE, DONOR = range(NUM_STREAMS)


@dataclass(frozen=True)
class MaskedCells:
    """Packed rows of visible and of masked genes; those of cell b are `lengths[b]` and `masked_lengths[b]` long.

    Attributes:
        ids: Visible expressed genes, ascending in each cell.
        values: Their values.
        lengths: Visible genes of each cell.
        masked_ids: Masked genes, ascending in each cell.
        labels: Their true values; 0 for zero genes.
        masked_values: What the decoder is shown where `is_hidden` is False: the true value or that of another gene.
        is_hidden: Whether the decoder sees the mask vector.
        masked_lengths: Masked genes of each cell.
    """

    ids: np.ndarray
    values: np.ndarray
    lengths: np.ndarray
    masked_ids: np.ndarray
    labels: np.ndarray
    masked_values: np.ndarray
    is_hidden: np.ndarray
    masked_lengths: np.ndarray


def mask_cells(
    ids: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    cell_index: np.ndarray,
    num_genes: int,
    expressed_ratio: float = 0.3,
    zero_ratio: float = 0.03,
    hidden_ratio: float = 0.8,
    random_ratio: float = 0.1,
    seed: int = 0,
    epoch: int = 0,
) -> MaskedCells:
    """Mask expressed and zero genes of cells independently.

    Args:
        ids: Expressed genes, ascending in each cell, packed; no depth tokens.
        values: Their values, packed.
        lengths: Expressed genes of each cell, `(B,)`.
        cell_index: Which cell of the corpus each row is, `(B,)`: with seed and epoch it decides the mask.
        num_genes: Genes `G` of the panel.
        expressed_ratio: Share of the expressed genes that is masked.
        zero_ratio: Share of the zero genes that is masked.
        hidden_ratio: Share of the masked genes for which the decoder sees the mask vector.
        random_ratio: Share for which it sees the value of a random expressed gene of the cell; the rest is shown
            unchanged. (The released code is silent on this draw.) All are withheld from the encoder.
        seed: Seed of the run.
        epoch: Epoch; another epoch masks other genes.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    keys = np.stack([stream_keys(seed, epoch, stream, cell_index) for stream in range(NUM_STREAMS)])
    ratios = (expressed_ratio, zero_ratio, hidden_ratio, random_ratio)
    parts = []
    for first in range(0, max(len(lengths), 1), CELLS_AT_A_TIME):
        cells = slice(first, min(first + CELLS_AT_A_TIME, len(lengths)))
        own = slice(starts[cells.start], starts[cells.stop])
        parts.append(_mask(ids[own], values[own], lengths[cells], keys[:, cells], num_genes, *ratios))
    return MaskedCells(
        *(np.concatenate(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True))
    )


def _mask(
    ids: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    num_genes: int,
    expressed_ratio: float,
    zero_ratio: float,
    hidden_ratio: float,
    random_ratio: float,
) -> MaskedCells:
    """Mask a few cells, with the keys of each decision and cell; the other arguments are those of `mask_cells`."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    is_masked = uniform(np.repeat(keys[MASK_EXPRESSED], lengths), ids) < expressed_ratio
    picked, seen = np.flatnonzero(is_masked), np.flatnonzero(~is_masked)  # faster to index with than booleans
    expressed_rows = rows[picked]
    zero_rows, zero_ids = masked_zeros(ids, rows, lengths, keys[MASK_ZERO], num_genes, zero_ratio)

    masked_rows = np.concatenate([expressed_rows, zero_rows])
    masked_ids = np.concatenate([ids[picked], zero_ids])
    labels = np.concatenate([values[picked], np.zeros(len(zero_ids), values.dtype)])
    order = np.argsort(masked_rows * np.int64(num_genes) + masked_ids, kind="stable")  # merges two ascending runs
    masked_rows, masked_ids, labels = masked_rows[order], masked_ids[order], labels[order]

    fate = uniform(keys[FATE][masked_rows], masked_ids)
    masked_values = labels.copy()
    shuffled = np.flatnonzero((fate >= hidden_ratio) & (fate < hidden_ratio + random_ratio))
    shuffled = shuffled[lengths[masked_rows[shuffled]] > 0]
    cells = masked_rows[shuffled]
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    draw = uniform(keys[DONOR][cells], masked_ids[shuffled])
    masked_values[shuffled] = values[starts[cells] + (draw * lengths[cells]).astype(np.int64)]
    return MaskedCells(
        ids=ids[seen],
        values=values[seen],
        lengths=lengths - np.bincount(expressed_rows, minlength=len(lengths)),
        masked_ids=masked_ids,
        labels=labels,
        masked_values=masked_values,
        is_hidden=fate < hidden_ratio,
        masked_lengths=np.bincount(masked_rows, minlength=len(lengths)),
    )


def masked_zeros(
    ids: np.ndarray, rows: np.ndarray, lengths: np.ndarray, keys: np.ndarray, num_genes: int, ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and ids of the masked zero genes, packed.

    Most genes are never drawn for: an independent draw for each is the same as geometric gaps between the drawn ones.
    Of those, the expressed genes are left out.
    """
    if ratio <= 0 or not len(lengths):
        return np.zeros(0, np.int64), np.zeros(0, ids.dtype)
    if ratio >= 1:
        drawn = np.broadcast_to(np.arange(num_genes), (len(lengths), num_genes))
    else:
        # 10 standard deviations: that a cell would need more gaps is less likely than 1e-20.
        enough = int(num_genes * ratio + 10 * np.sqrt(num_genes * ratio * (1 - ratio)) + 10)
        draws = uniform(keys[:, None], np.arange(enough)[None, :])
        gaps = (np.log1p(-draws) * (1 / np.log1p(-ratio))).astype(np.int64)
        drawn = np.cumsum(gaps + 1, axis=1) - 1
    is_there = drawn < num_genes
    drawn_rows, drawn_ids = np.repeat(np.arange(len(lengths)), is_there.sum(1)), drawn[is_there]
    is_expressed = np.zeros(len(lengths) * num_genes, bool)
    is_expressed[rows * num_genes + ids] = True
    is_zero = np.flatnonzero(~is_expressed[drawn_rows * num_genes + drawn_ids])
    return drawn_rows[is_zero], drawn_ids[is_zero].astype(ids.dtype)


def stream_keys(seed: int, epoch: int, stream: int, cells: np.ndarray) -> np.ndarray:
    """Return the key of each cell for one kind of decision (splitmix64 of the arguments, one after the other)."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch, stream):
        key = splitmix64(key + np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return splitmix64(key + np.asarray(cells, np.uint64))


def uniform(keys: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) that depend on nothing but the arguments."""
    return (splitmix64(keys + items.astype(np.uint64)) >> np.uint64(11)) * 2.0**-53


def splitmix64(bits: np.ndarray) -> np.ndarray:
    """Return a well-mixed 64-bit hash of each element (Steele, Lea and Flood 2014)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
