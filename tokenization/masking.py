"""Which genes of a cell are masked in pre-training, and what the decoder is shown instead.

    expressed genes of B cells (packed)
        |  independent ratios for expressed and for zero genes
        v
    visible genes (packed)   +   masked genes, their true values, what the decoder sees of them

Every draw is a hash of (seed, epoch, cell, gene): the mask of a cell does not depend on its batch, on the number of
processes or workers, or on where a run was resumed.

Source: arXiv:2311.15156, section 3.3; ratios 0.3 / 0.03 and 80/10/10 of the released configuration.
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ..options import Option, Options, group

DRAWN_BITS = 53  # of a hash: what a float64 holds exactly

# One stream of random numbers for each decision.
NUM_STREAMS = 4
MASK_EXPRESSED, MASK_ZERO, FATE, DONOR = range(NUM_STREAMS)


@group
class Masking(Options):
    """Which genes pre-training hides.

    >>> Masking().expressed_ratio
    0.3
    """

    expressed_ratio: Annotated[float, Option("Share of expressed genes to mask.", least=0, most=1)] = 0.3
    zero_ratio: Annotated[float, Option("Share of zero genes to mask.", least=0, most=1)] = 0.03
    unmeasured: Annotated[
        Literal["ignore", "zero"],
        Option("Genes that a file does not name: learn nothing of them, or that they are zero."),
    ] = "ignore"


@dataclass
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
    is_measured: np.ndarray | None = None,
) -> MaskedCells:
    """Mask expressed and zero genes of cells independently.

    Args:
        ids: Expressed genes, ascending in each cell, packed; no depth tokens.
        values: Their values, packed.
        lengths: Expressed genes of each cell, `(B,)`.
        cell_index: Which cell of the corpus each row is, `(B,)`: with seed and epoch it decides the mask.
        num_genes: Genes `G` of the panel; the table of cells and genes has fewer than 2**31 places.
        expressed_ratio: Share of the expressed genes that is masked.
        zero_ratio: Share of the zero genes that is masked.
        hidden_ratio: Share of the masked genes for which the decoder sees the mask vector.
        random_ratio: Share for which it sees the value of a random expressed gene of the cell; the rest is shown
            unchanged. (The released code is silent on this draw.) All are withheld from the encoder.
        seed: Seed of the run.
        epoch: Epoch; another epoch masks other genes.
        is_measured: Whether each gene was measured, bool `(B, G)`; one that was not is no zero gene and is not masked.
            All were unless given. The draws of measured genes do not depend on it.
    """
    keys = [stream_keys(seed, epoch, stream, cell_index) for stream in range(NUM_STREAMS)]
    firsts = np.arange(len(lengths)) * num_genes  # the first gene of each cell in a table of cells and genes
    places = ids + np.repeat(firsts, lengths)
    is_masked = draw(np.repeat(keys[MASK_EXPRESSED], lengths), ids) < threshold(expressed_ratio)
    picked, seen = np.flatnonzero(is_masked), np.flatnonzero(~is_masked)  # faster to index with than booleans
    zeros = masked_zeros(places, firsts, keys[MASK_ZERO], num_genes, zero_ratio, is_measured)

    # Where a gene is, and where its value; both in one number, so that one sort brings them into order.
    masked = np.concatenate([places[picked] << 32 | picked, zeros << 32 | len(values)])
    masked.sort()
    labels = np.append(values, values.dtype.type(0))[masked & 0xFFFFFFFF]
    masked >>= 32
    masked_lengths = np.diff(np.searchsorted(masked, firsts), append=len(masked))
    masked_ids = masked - np.repeat(firsts, masked_lengths)

    fates = draw(np.repeat(keys[FATE], masked_lengths), masked_ids)
    is_hidden = fates < threshold(hidden_ratio)
    masked_values = labels.copy()
    shown = np.flatnonzero(~is_hidden)
    shuffled = shown[fates[shown] < threshold(hidden_ratio + random_ratio)]
    cells = masked[shuffled] // num_genes
    shuffled, cells = shuffled[lengths[cells] > 0], cells[lengths[cells] > 0]
    starts = np.cumsum(lengths) - lengths
    donors = uniform(keys[DONOR][cells], masked_ids[shuffled]) * lengths[cells]
    masked_values[shuffled] = values[starts[cells] + donors.astype(np.int64)]
    return MaskedCells(
        ids=ids[seen],
        values=values[seen],
        lengths=np.diff(np.searchsorted(seen, starts), append=len(seen)),
        masked_ids=masked_ids,
        labels=labels,
        masked_values=masked_values,
        is_hidden=is_hidden,
        masked_lengths=masked_lengths,
    )


def masked_zeros(
    expressed: np.ndarray,
    firsts: np.ndarray,
    keys: np.ndarray,
    num_genes: int,
    ratio: float,
    is_measured: np.ndarray | None = None,
) -> np.ndarray:
    """Return the places of masked zero genes in a table of cells and genes, ascending.

    Most genes are never drawn for: an independent draw for each is the same as geometric gaps between the drawn ones.
    Of those, the expressed genes and those that were not measured are left out.

    Args:
        expressed: Places of the expressed genes.
        firsts: Place of the first gene of each cell.
        keys: Key of each cell.
        num_genes: Genes of the panel.
        ratio: Share of the zero genes that is masked.
        is_measured: See `mask_cells`.
    """
    if ratio <= 0:
        return np.zeros(0, np.int64)
    if ratio >= 1:
        drawn = np.arange(len(firsts) * num_genes)
    else:
        enough = int(num_genes * ratio + 5 * np.sqrt(num_genes * ratio * (1 - ratio)) + 10)  # for nearly every cell
        ids = np.zeros((len(firsts), 1), np.int64)
        while (ids[:, -1] < num_genes).any():
            gaps = np.log1p(-uniform(keys[:, None], np.arange(enough)[None, :])) * (1 / np.log1p(-ratio))
            ids = np.cumsum(gaps.astype(np.int64) + 1, axis=1) - 1
            enough *= 2
        drawn = (ids + firsts[:, None])[ids < num_genes]
    is_zero = np.ones(len(firsts) * num_genes, bool) if is_measured is None else is_measured.flatten()
    is_zero[expressed] = False
    return drawn[is_zero[drawn]]


def stream_keys(seed: int, epoch: int, stream: int, cells: np.ndarray) -> np.ndarray:
    """Return the key of each cell for one kind of decision (splitmix64 of the arguments, one after the other)."""
    return splitmix64(stream_key(seed, epoch, stream) + np.asarray(cells, np.uint64))


@functools.lru_cache
def stream_key(seed: int, epoch: int, stream: int) -> np.ndarray:
    """Return what the keys of all cells for one kind of decision follow from, shape `(1,)`."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch, stream):
        key = splitmix64(key + np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return key


def uniform(keys: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) that depend on nothing but the arguments."""
    return draw(keys, items) * 2.0**-DRAWN_BITS


def draw(keys: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return whole numbers below 2**53 that depend on nothing but the arguments; `items` are not negative."""
    bits = splitmix64(keys + items.astype(np.int64, copy=False).view(np.uint64))
    bits >>= np.uint64(64 - DRAWN_BITS)
    return bits


def threshold(share: float) -> np.uint64:
    """Return the number that this share of the draws is below."""
    return np.uint64(math.ceil(share * 2.0**DRAWN_BITS))


def splitmix64(bits: np.ndarray) -> np.ndarray:
    """Return a well-mixed 64-bit hash of each element (Steele, Lea and Flood 2014)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    shifted = bits >> np.uint64(30)
    bits ^= shifted
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= np.right_shift(bits, np.uint64(27), out=shifted)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= np.right_shift(bits, np.uint64(31), out=shifted)
    return bits
