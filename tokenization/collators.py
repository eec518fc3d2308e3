"""Collators: lists of cells with raw counts -> the batches that the models take.

An example is one cell: `input_ids` (expressed genes, ascending), `counts` (their raw counts), `total` (the total count
of the cell), `cell_index` (its place in the source), for tasks `labels`, and where the source says it `measured` (which
genes of the panel were: the bytes of `numpy.packbits`). No Python loop over genes anywhere.
"""

from collections.abc import Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate.state import GradientState

from .expression_xtrimogene import cell_rows, pad_right
from .masking import NUM_STREAMS, MaskedCells, mask_cells, stream_keys, uniform
from .panel_xtrimogene import log_depths
from .tokenization_xtrimogene import XTrimoGeneTokenizer

CELLS_AT_A_TIME = 32  # what is in between stays in the cache of a core
IGNORED = -100
DEPTH = NUM_STREAMS  # the stream of random numbers behind those of the masks
Unmeasured = Literal["ignore", "zero"]
LEAST_TOTAL = 1_000  # scFoundation: cells with fewer counts keep their depth


def packed(examples: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return packed ids and counts of cells, their lengths and totals."""
    ids = [np.asarray(example["input_ids"]) for example in examples]
    return (
        np.concatenate(ids, dtype=np.int64),
        np.concatenate([np.asarray(example["counts"]) for example in examples]),
        np.array([len(row) for row in ids]),
        np.array([example["total"] for example in examples], np.float64),
    )


def refuse_empty(examples: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError if a cell has no counts: there is nothing to train on, and its loss would be NaN."""
    empty = [int(example["cell_index"]) for example in examples if not len(example["input_ids"])]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(examples)} cells of a batch have no counts on the panel (cell {empty[0]} of the "
            f"source first): remove empty cells before training, e.g. scanpy.pp.filter_cells(adata, min_counts=1)"
        )


def measured_genes(examples: Sequence[dict[str, Any]], num_genes: int) -> np.ndarray | None:
    """Return whether each gene of cells was measured, bool `(B, G)`; None if none of them says it.

    All genes of a cell that does not say it were.

    Raises:
        ValueError: If what a cell says is of another panel.
    """
    if not any("measured" in example for example in examples):
        return None
    every = b"\xff" * -(-num_genes // 8)
    # numpy, through which `datasets` gives bytes, cuts zeros off their end.
    bits = [example.get("measured", every).ljust(len(every), b"\0") for example in examples]
    if wrong := [row for row in bits if len(row) > len(every)]:
        raise ValueError(
            f"{len(wrong)} of {len(examples)} cells say what was measured in {len(wrong[0]):,} bytes, and the "
            f"{num_genes:,} genes of the tokenizer need {len(every):,}: make the cells again with this tokenizer"
        )
    packed_bits = np.frombuffer(b"".join(bits), np.uint8).reshape(len(bits), -1)
    return np.unpackbits(packed_bits, axis=1, count=num_genes).view(bool)


class DataCollatorForExpression:
    """Pad cells, for tasks: `input_ids`, `values`, `attention_mask`, and `labels` where the examples have them.

    Args:
        tokenizer: Normalises, appends depth tokens and pads.
        target_depth: See `XTrimoGeneTokenizer.tokenize_counts`.
    """

    def __init__(self, tokenizer: XTrimoGeneTokenizer, target_depth: float | str | None = None):
        self.tokenizer = tokenizer
        self.target_depth = target_depth

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of `examples`."""
        refuse_empty(examples)
        tokenizer = self.tokenizer
        ids, counts, lengths, totals = packed(examples)
        values = tokenizer.normalize(counts, np.repeat(totals, lengths))
        if tokenizer.depth_tokens:
            depths = np.log10(totals)
            ids, values, lengths = tokenizer.append_depth_tokens(ids, values, lengths, depths, self.target_depth)
        batch = tokenizer.pad_rows(cell_rows(ids, lengths), cell_rows(values, lengths))
        if "labels" in examples[0]:
            batch["labels"] = np.array([example["labels"] for example in examples])
        return {key: torch.from_numpy(array) for key, array in batch.items()}


def reduce_depth(
    counts: np.ndarray, lengths: np.ndarray, totals: np.ndarray, cell_index: np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts and totals of cells as if half of those with enough counts had been read less deeply.

    Each count of a chosen cell is kept with one probability b from Beta(2, 2); counts off the panel, which are only in
    the total, likewise. A cell of which nothing on the panel would be left keeps its depth.

    Args:
        counts: Raw counts, packed; what is not whole is rounded in chosen cells.
        lengths: Expressed genes of each cell, `(B,)`.
        totals: Total count of each cell, `(B,)`.
        cell_index: Which cell of the corpus each row is, `(B,)`: with seed and epoch it decides all draws.
        seed: Seed of the run.
        epoch: Epoch.

    Source: scFoundation, read-depth-aware pre-training.
    """
    counts, totals = counts.copy(), totals.copy()
    keys = stream_keys(seed, epoch, DEPTH, cell_index)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for row in np.flatnonzero((totals >= LEAST_TOTAL) & (uniform(keys, np.zeros(1)) < 0.5)):
        rng = np.random.default_rng(keys[row])
        share = rng.beta(2, 2)
        own = slice(starts[row], starts[row + 1])
        elsewhere = max(round(totals[row] - counts[own].sum(dtype=np.float64)), 0)
        kept = rng.binomial(np.rint(counts[own]).astype(np.int64), share)
        if kept.any():
            counts[own] = kept
            totals[row] = kept.sum() + rng.binomial(elsewhere, share)
    return counts, totals


class DataCollatorForMaskedExpression:
    """Mask genes and pad, for pre-training.

    Gives `input_ids`, `values`, `attention_mask` of the visible genes (with T and S, which are never masked), and
    `masked_ids`, `labels`, `masked_values`, `is_hidden` of the masked ones (`mask_cells` says what they are).

    With `read_depth_aware` the input is the cell at a depth that is often lower (`reduce_depth`), S tells that depth
    and T that of the raw cell, and labels are the raw cell's values. What is masked is chosen in the input, and so are
    the values that the decoder sees. A gene whose counts were all dropped is a zero gene there: masked as seldom as
    those, but with the raw value for its label.

    A gene that the file of a cell does not name has no count there, and nobody knows whether the cell expresses it.
    Such a gene is not masked, so nothing is learned of it and it is not scored. What is masked of the measured genes
    does not depend on that.

    Args:
        tokenizer: Normalises, appends depth tokens and pads.
        expressed_ratio: See `mask_cells`.
        zero_ratio: See `mask_cells`.
        hidden_ratio: See `mask_cells`.
        random_ratio: See `mask_cells`.
        seed: See `mask_cells`.
        read_depth_aware: Whether to learn to predict a cell at its depth from a lower one.
        epoch: The epoch whose masks all batches have. Unless given, it is found: each epoch of transformers' Trainer,
            and each pass over another loader that accelerate prepared, has masks of its own, with workers and after a
            resume too. Evaluation by the Trainer has the masks of epoch 0 every time, also where training has the same
            collator. So has what no such loader asks for: in a training loop without accelerate, set `epoch`.
        unmeasured: What becomes of genes that the source of a cell did not measure: `ignore` never masks them; `zero`
            takes them for zero genes, as the released model does, and as is done with cells that do not say what was
            `measured`.

    Raises:
        ValueError: If ratios are no shares, `unmeasured` is unknown, or depths are to be told to a tokenizer without
            depth tokens. In a batch: if workers persist, which cannot find the epoch, a cell has no counts, or what
            was measured is said of another panel.
    """

    def __init__(
        self,
        tokenizer: XTrimoGeneTokenizer,
        expressed_ratio: float = 0.3,
        zero_ratio: float = 0.03,
        hidden_ratio: float = 0.8,
        random_ratio: float = 0.1,
        seed: int = 0,
        read_depth_aware: bool = False,
        epoch: int | None = None,
        unmeasured: Unmeasured = "ignore",
    ):
        if unmeasured not in get_args(Unmeasured):
            raise ValueError(f"unmeasured is {unmeasured!r}: give one of {', '.join(get_args(Unmeasured))}")
        if read_depth_aware and not tokenizer.depth_tokens:
            raise ValueError(
                "read_depth_aware is True, and the tokenizer has depth_tokens False: the model would not be told which "
                "depth to predict; make tokenizer and configuration with depth_tokens=True"
            )
        for name, ratio in {"expressed_ratio": expressed_ratio, "zero_ratio": zero_ratio}.items():
            if not 0 <= ratio <= 1:
                raise ValueError(f"{name} is {ratio}: it is a share of the genes, from 0 to 1")
        if not expressed_ratio + zero_ratio:
            raise ValueError(
                "expressed_ratio and zero_ratio are both 0: without masked genes there is nothing to learn"
            )
        if not (hidden_ratio >= 0 and random_ratio >= 0 and hidden_ratio + random_ratio <= 1):
            raise ValueError(
                f"hidden_ratio {hidden_ratio} and random_ratio {random_ratio} must be shares whose sum is at most 1"
            )
        self.tokenizer = tokenizer
        self.ratios = {
            "expressed_ratio": expressed_ratio,
            "zero_ratio": zero_ratio,
            "hidden_ratio": hidden_ratio,
            "random_ratio": random_ratio,
        }
        self.seed = seed
        self.read_depth_aware = read_depth_aware
        self.epoch = epoch
        self.unmeasured = unmeasured

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has; one for a spawned worker has the epoch, because accelerate's state stays behind."""
        state = self.__dict__.copy()
        if get_spawning_popen() is not None:
            state["epoch"] = self.current_epoch()
        return state

    def current_epoch(self) -> int:
        """Return `epoch`, or else that of the loader of accelerate that is being iterated over, or else 0.

        A worker is a copy made when an epoch begins, and so has the loader of that epoch.
        """
        if self.epoch is not None:
            return self.epoch
        loader = GradientState().active_dataloader
        if loader is None:
            return 0
        others = (DataCollatorForExpression, DataCollatorForMaskedExpression)
        if isinstance(loader.collate_fn, others) and loader.collate_fn is not self:
            return 0  # a run of another collator, which stopped within an epoch and is still in memory
        if loader.persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers is True, and workers that persist keep the masks of their first epoch: "
                "set it to False"
            )
        return loader.iteration

    @property
    def settings(self) -> dict[str, float | str]:
        """What, with the seed, the batches follow from."""
        return {**self.ratios, "read_depth_aware": self.read_depth_aware, "unmeasured": self.unmeasured}

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the masked batch of `examples`."""
        refuse_empty(examples)
        tokenizer = self.tokenizer
        epoch, starts = self.current_epoch(), range(0, len(examples), CELLS_AT_A_TIME)
        parts = [self.mask(examples[at : at + CELLS_AT_A_TIME], epoch) for at in starts]

        def rows(column: str, lengths: str = "masked_lengths") -> list[np.ndarray]:
            return [row for part in parts for row in cell_rows(getattr(part, column), getattr(part, lengths))]

        batch = tokenizer.pad_rows(rows("ids", "lengths"), rows("values", "lengths"))
        batch["masked_ids"] = pad_right(rows("masked_ids"), tokenizer.pad_token_id, np.int64)
        batch["labels"] = pad_right(rows("labels"), IGNORED, np.float32)
        batch["masked_values"] = pad_right(rows("masked_values"), 0, np.float32)
        batch["is_hidden"] = pad_right(rows("is_hidden"), True, np.bool_)
        return {key: torch.from_numpy(array) for key, array in batch.items()}

    def mask(self, examples: Sequence[dict[str, Any]], epoch: int) -> MaskedCells:
        """Return visible and masked genes of a few cells, with depth tokens behind the visible ones."""
        tokenizer = self.tokenizer
        ids, counts, lengths, totals = packed(examples)
        cell_index = np.array([example["cell_index"] for example in examples])
        target_depth = log_depths(totals)
        true_BG = None
        if self.read_depth_aware:
            rows = np.repeat(np.arange(len(lengths)), lengths)
            true_BG = np.zeros((len(lengths), tokenizer.num_genes), np.float32)
            true_BG[rows, ids] = tokenizer.normalize(counts, totals[rows])
            counts, totals = reduce_depth(counts, lengths, totals, cell_index, self.seed, epoch)
            is_left = counts > 0
            ids, counts, lengths = ids[is_left], counts[is_left], np.bincount(rows[is_left], minlength=len(lengths))
        masked = mask_cells(
            ids,
            tokenizer.normalize(counts, np.repeat(totals, lengths)),
            lengths,
            cell_index,
            tokenizer.num_genes,
            **self.ratios,
            seed=self.seed,
            epoch=epoch,
            is_measured=measured_genes(examples, tokenizer.num_genes) if self.unmeasured == "ignore" else None,
        )
        if true_BG is not None:
            masked.labels = true_BG[np.repeat(np.arange(len(lengths)), masked.masked_lengths), masked.masked_ids]
        if tokenizer.depth_tokens:
            masked.ids, masked.values, masked.lengths = tokenizer.append_depth_tokens(
                masked.ids, masked.values, masked.lengths, log_depths(totals), target_depth
            )
        return masked
