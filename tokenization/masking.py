"""Choose the genes of a cell to mask in pre-training, and the values that the decoder sees of them.

    expressed genes of B cells (packed)
        |  independent ratios for expressed and for zero genes
        v
    visible genes (packed)   +   masked genes, their true values, and the values that the decoder sees

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

DRAWN_BITS = 53  # of a hash; a float64 holds as many exactly

# One stream of random numbers for each decision.
NUM_STREAMS = 4
MASK_EXPRESSED, MASK_ZERO, FATE, DONOR = range(NUM_STREAMS)
DEPTH, VISIBLE = NUM_STREAMS, NUM_STREAMS + 1  # streams of other decisions


@group
class Masking(Options):
    """Shares of genes that pre-training masks, and how the decoder sees masked genes.

    >>> Masking(zero_ratio=0).expressed_ratio
    0.3

    Raises:
        ValueError: If nothing is masked, or the shares of hidden and random genes are more than all.
    """

    expressed_ratio: Annotated[float, Option("Share of expressed genes to mask.", least=0, most=1)] = 0.3
    zero_ratio: Annotated[float, Option("Share of zero genes to mask.", least=0, most=1)] = 0.03
    hidden_ratio: Annotated[
        float,
        Option("Share of masked genes for which the decoder sees the mask vector.", least=0, is_python_only=True),
    ] = 0.8
    random_ratio: Annotated[
        float,
        Option(
            "Share of masked genes for which the decoder sees the value of a random expressed gene of the cell; the "
            "rest is shown unchanged.",
            least=0,
            is_python_only=True,
        ),
    ] = 0.1
    unmeasured: Annotated[
        Literal["ignore", "zero"],
        Option("Genes that a file does not name: do not mask them (ignore), or treat them as zero genes (zero)."),
    ] = "ignore"
    read_depth_aware: Annotated[bool, Option("Learn to predict a cell from fewer reads; adds depth tokens.")] = False

    def __post_init__(self) -> None:
        """Check that something is masked, and that shares add up to at most 1."""
        super().__post_init__()
        if not self.expressed_ratio + self.zero_ratio:
            raise ValueError(
                "expressed_ratio and zero_ratio are both 0: without masked genes there is nothing to learn"
            )
        if self.hidden_ratio + self.random_ratio > 1:
            raise ValueError(
                f"hidden_ratio {self.hidden_ratio} and random_ratio {self.random_ratio} must be shares whose sum is at "
                f"most 1"
            )


@dataclass
class MaskedCells:
    """Visible and masked genes of cells, packed: the genes of all cells one after the other.

    Attributes:
        ids: Visible expressed genes, ascending in each cell.
        values: Values of the visible genes.
        lengths: Number of visible genes of each cell, `(B,)`.
        masked_ids: Masked genes, ascending in each cell.
        labels: True values of the masked genes; 0 for zero genes.
        masked_values: Values that the decoder sees where `is_hidden` is False: the true value or that of another gene.
        is_hidden: Whether the decoder sees the mask vector instead of a value.
        masked_lengths: Number of masked genes of each cell, `(B,)`.
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
    keys: list[np.ndarray],
    num_genes: int,
    masking: Masking,
    is_measured: np.ndarray | None = None,
) -> MaskedCells:
    """Mask expressed and zero genes of cells independently.

    Args:
        ids: Expressed genes, ascending in each cell, packed; no depth tokens.
        values: Values of these genes, packed.
        lengths: Number of expressed genes of each cell, `(B,)`.
        keys: Random keys of each cell, from `mask_keys`.
        num_genes: Genes `G` of the panel; B G is below 2**31.
        masking: Shares of genes to mask, to hide and to randomise. (The released code does not say how a random gene is
            drawn.) The encoder sees no masked gene.
        is_measured: Whether each gene was measured, bool `(B, G)`; all were unless given. A gene that was not measured
            is not masked. The draws of measured genes do not depend on it.

    Example:
        >>> ids, values, lengths = np.array([2, 5, 6, 9]), np.array([1.0, 2.0, 1.5, 0.5]), np.array([3, 1])
        >>> keys = mask_keys(seed=0, epoch=0, cell_index=np.arange(2))
        >>> masked = mask_cells(ids, values, lengths, keys, num_genes=10, masking=Masking(expressed_ratio=0.5))
        >>> masked.ids, masked.masked_ids
        (array([5, 6, 9]), array([2, 5]))
    """
    firsts = np.arange(len(lengths)) * num_genes  # place of each cell in a flattened table of cells x genes
    places = ids + np.repeat(firsts, lengths)
    is_masked = draw(np.repeat(keys[MASK_EXPRESSED], lengths), ids) < threshold(masking.expressed_ratio)
    picked, seen = np.flatnonzero(is_masked), np.flatnonzero(~is_masked)  # quicker to index with than booleans
    zeros = masked_zeros(places, firsts, keys[MASK_ZERO], num_genes, masking.zero_ratio, is_measured)

    # The place of a gene and the place of its value, in one number, so that one sort orders both.
    masked = np.concatenate([places[picked] << 32 | picked, zeros << 32 | len(values)])
    masked.sort()
    labels = np.append(values, values.dtype.type(0))[masked & 0xFFFFFFFF]
    masked >>= 32
    masked_lengths = np.diff(np.searchsorted(masked, firsts), append=len(masked))
    masked_ids = masked - np.repeat(firsts, masked_lengths)

    fates = draw(np.repeat(keys[FATE], masked_lengths), masked_ids)
    is_hidden = fates < threshold(masking.hidden_ratio)
    masked_values = labels.copy()
    shown = np.flatnonzero(~is_hidden)
    shuffled = shown[fates[shown] < threshold(masking.hidden_ratio + masking.random_ratio)]
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


def mask_keys(seed: int, epoch: int, cell_index: np.ndarray) -> list[np.ndarray]:
    """Return the random keys of cells: one array `(B,)` for each kind of decision.

    Args:
        seed: Seed of the run.
        epoch: Epoch; another epoch masks other genes.
        cell_index: Index of each cell in the corpus, `(B,)`.

    Example:
        >>> keys = mask_keys(seed=0, epoch=0, cell_index=np.arange(2))
        >>> len(keys), keys[0].shape
        (4, (2,))
    """
    return [stream_keys(seed, epoch, stream, cell_index) for stream in range(NUM_STREAMS)]


def masked_zeros(
    expressed: np.ndarray,
    firsts: np.ndarray,
    keys: np.ndarray,
    num_genes: int,
    ratio: float,
    is_measured: np.ndarray | None = None,
) -> np.ndarray:
    """Return the places of masked zero genes in a flattened table of cells x genes, ascending.

    Instead of a draw for each gene, the gaps between drawn genes are drawn, which are geometric: this is the same and
    needs fewer draws. Drawn genes that are expressed or were not measured are then dropped.

    Args:
        expressed: Places of the expressed genes.
        firsts: Place of the first gene of each cell.
        keys: Key of each cell.
        num_genes: Genes of the panel.
        ratio: Share of the zero genes that is masked.
        is_measured: Whether each gene was measured, bool `(B, G)`; all were unless given.
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
    """Return the hash of seed, epoch and kind of decision that the keys of all cells share, shape `(1,)`."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch, stream):
        key = splitmix64(key + np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return key


def uniform(keys: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1), a hash of the arguments."""
    return draw(keys, items) * 2.0**-DRAWN_BITS


def draw(keys: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return whole numbers below 2**53, a hash of the arguments; `items` are not negative."""
    bits = splitmix64(keys + items.astype(np.int64, copy=False).view(np.uint64))
    bits >>= np.uint64(64 - DRAWN_BITS)
    return bits


def threshold(share: float) -> np.uint64:
    """Return the number below which this share of the draws lies."""
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
