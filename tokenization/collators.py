"""Collators: lists of cells with raw counts -> batches for the models.

An example is one cell: `input_ids` (expressed genes, ascending), `counts` (their raw counts), `total` (the total count
of the cell) and `cell_index` (its place in the source). Cells for tasks have `labels`. If the source knows which genes
of the panel were measured, `measured` holds them as the bytes of `numpy.packbits`. `batch` is the number of the batch
(data set, donor, chemistry) of the cell, if there are several. No Python loop runs over genes.
"""

from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import torch
from accelerate.state import GradientState

from ..options import flat
from .cell_batch import CellBatch
from .expression_xtrimogene import cell_rows, pad_right, with_zeros
from .masking import DEPTH, MaskedCells, Masking, mask_cells, mask_keys, stream_keys, uniform
from .panel_xtrimogene import log_depths
from .tokenization_xtrimogene import XTrimoGeneTokenizer

CELLS_AT_A_TIME = 32  # so few that intermediate arrays fit into the cache of a core
IGNORED = -100
LEAST_TOTAL = 1_000  # scFoundation: cells with fewer counts keep their depth


def packed(examples: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the packed ids and the packed counts of cells, their lengths and their totals.

    >>> packed([{"input_ids": [0, 2], "counts": [3, 1], "total": 9}, {"input_ids": [1], "counts": [2], "total": 5}])
    (array([0, 2, 1]), array([3, 1, 2]), array([2, 1]), array([9., 5.]))

    Raises:
        ValueError: If cells have no counts, because transformers' Trainer has left these columns out.
    """
    if missing := [name for name in ("counts", "total") if name not in examples[0]]:
        raise ValueError(
            f"cells of a batch have no {' and '.join(missing)}, only {', '.join(examples[0])}: transformers' Trainer "
            f"leaves out columns that the model does not take, so give it TrainingArguments(..., "
            f"remove_unused_columns=False), or CellTrainingArguments(...), which has it"
        )
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


def labels_of(examples: Sequence[dict[str, Any]]) -> np.ndarray | None:
    """Return the labels of cells for tasks, from `labels` or `label` as in transformers; None without.

    A column `label` of text is left alone.

    >>> labels_of([{"label": 2}, {"label": 0}]).tolist()
    [2, 0]

    Raises:
        ValueError: If `labels` are no numbers.
    """
    for name in ("labels", "label"):
        if name in examples[0]:
            labels = np.array([example[name] for example in examples])
            if labels.dtype.kind in "biuf":
                return labels
            if name == "labels":
                raise ValueError(
                    f"labels hold {examples[0][name]!r}, and no numbers: give the id of each cell's label, "
                    f"model.config.label2id has them by name"
                )
    return None


def measured_genes(examples: Sequence[dict[str, Any]], num_genes: int) -> np.ndarray | None:
    """Return whether each gene was measured in each cell, bool `(B, G)`; None if no example has `measured`.

    In a cell without `measured`, all genes were measured.

    Raises:
        ValueError: If `measured` of a cell is for another panel.
    """
    if not any("measured" in example for example in examples):
        return None
    packed_bits = np.frombuffer(b"".join(measured_bits(examples, num_genes)), np.uint8).reshape(len(examples), -1)
    return np.unpackbits(packed_bits, axis=1, count=num_genes).view(bool)


def measured_bits(examples: Sequence[dict[str, Any]], num_genes: int) -> list[bytes]:
    """Return which genes were measured in each cell, as packed bits; all were in a cell without `measured`.

    Raises:
        ValueError: If `measured` of a cell is for another panel.
    """
    every = b"\xff" * -(-num_genes // 8)
    # `datasets` returns bytes through numpy, which cuts zeros off their end.
    bits = [example.get("measured", every).ljust(len(every), b"\0") for example in examples]
    if wrong := [row for row in bits if len(row) > len(every)]:
        raise ValueError(
            f"{len(wrong)} of {len(examples)} cells say what was measured in {len(wrong[0]):,} bytes, and the "
            f"{num_genes:,} genes of the tokenizer need {len(every):,}: make the cells again with this tokenizer"
        )
    return bits


def measured_panels(examples: Sequence[dict[str, Any]], num_genes: int) -> list[np.ndarray]:
    r"""Return the ids of the measured genes of each cell, ascending; cells of one source share an array.

    >>> [panel.tolist() for panel in measured_panels([{"measured": b"\xa0"}, {}], num_genes=3)]
    [[0, 2], [0, 1, 2]]

    Raises:
        ValueError: If `measured` of a cell is for another panel.
    """
    bits = measured_bits(examples, num_genes)
    panels = {each: np.flatnonzero(np.unpackbits(np.frombuffer(each, np.uint8), count=num_genes)) for each in set(bits)}
    return [panels[each] for each in bits]


class SeededCollator:
    """A collator whose draws follow from a seed, the epoch and the cell.

    Args:
        seed: Seed of the draws.
        epoch: The epoch whose draws all batches have. Unless given, each epoch of transformers' Trainer, and each pass
            over another loader that accelerate prepared, has its own draws, with worker processes and after a resume
            too. Evaluation by the Trainer always has the draws of epoch 0. So has a training loop without accelerate:
            set `epoch` there.
    """

    def __init__(self, seed: int = 0, epoch: int | None = None):
        self.seed = seed
        self.epoch = epoch

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle. A spawned worker gets the epoch, because it has no state of accelerate."""
        state = self.__dict__.copy()
        if get_spawning_popen() is not None:
            state["epoch"] = self.current_epoch()
        return state

    def current_epoch(self) -> int:
        """Return `epoch` if given, else the epoch of accelerate's running loader, or 0 if none runs.

        A worker process is copied when an epoch begins, and finds the loader of that epoch.
        """
        if self.epoch is not None:
            return self.epoch
        loader = GradientState().active_dataloader
        if loader is None:
            return 0
        others = (DataCollatorForExpression, SeededCollator)
        if isinstance(loader.collate_fn, others) and loader.collate_fn is not self:
            return 0  # of another collator's run, which stopped within an epoch
        if loader.persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers is True, and workers that persist keep the masks of their first epoch: "
                "set it to False"
            )
        return loader.iteration


class DataCollatorForExpression:
    """Make padded batches for tasks: `input_ids`, `values`, `attention_mask`, and `labels` if the examples have them.

    Args:
        tokenizer: Normalises, appends depth tokens and pads.
        target_depth: T of each cell: log10 of a total count, as 4 or `t4`; `f2` for twice the depth of the cell, `a1`
            for ten times; the depth of the cell unless given.

    Example:
        >>> collate = DataCollatorForExpression(XTrimoGeneTokenizer.default())
        >>> cell = {"input_ids": [5, 700], "counts": [3, 1], "total": 4_000, "cell_index": 0, "labels": 2}
        >>> batch = collate([cell])
        >>> batch["input_ids"], batch["labels"]
        (tensor([[  5, 700]]), tensor([2]))
    """

    def __init__(self, tokenizer: XTrimoGeneTokenizer, target_depth: float | str | None = None):
        self.tokenizer = tokenizer
        self.target_depth = target_depth

    def __call__(self, examples: Sequence[dict[str, Any]]) -> CellBatch:
        """Return the batch of `examples`."""
        refuse_empty(examples)
        tokenizer = self.tokenizer
        ids, counts, lengths, totals = packed(examples)
        values = tokenizer.packed_values(counts, lengths, totals)
        if tokenizer.shows_zeros:
            panels = measured_panels(examples, tokenizer.num_genes)
            ids, values, lengths = with_zeros(ids, values, lengths, panels, tokenizer.num_genes)
        if tokenizer.depth_tokens:
            depths = np.log10(totals)
            ids, values, lengths = tokenizer.append_depth_tokens(ids, values, lengths, depths, self.target_depth)
        batch = tokenizer.pad_rows(cell_rows(ids, lengths), cell_rows(values, lengths))
        if (labels := labels_of(examples)) is not None:
            batch["labels"] = labels
        return CellBatch({key: torch.from_numpy(array) for key, array in batch.items()})


def reduce_depth(
    counts: np.ndarray, lengths: np.ndarray, totals: np.ndarray, cell_index: np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample the counts of half of the cells down to a lower read depth; return counts and totals.

    Half of the cells with 1,000 counts or more are chosen at random. A chosen cell gets a probability from Beta(2, 2),
    with which each of its counts is kept. So are the counts of genes off the panel, which are only in the total. A cell
    that would lose all its counts on the panel keeps its depth.

    Args:
        counts: Raw counts, packed; fractions are rounded in chosen cells.
        lengths: Expressed genes of each cell, `(B,)`.
        totals: Total count of each cell, `(B,)`.
        cell_index: Index of each cell in the corpus, `(B,)`. Seed, epoch and this index determine all draws.
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


class DataCollatorForMaskedExpression(SeededCollator):
    """Mask genes and pad, for pre-training.

    A batch holds `input_ids`, `values` and `attention_mask` of the visible genes, and of T and S, which are never
    masked. Of the masked genes it holds `masked_ids`, `labels` (their true values), `masked_values` (shown to the
    decoder where `is_hidden` is False) and `is_hidden` (True: the decoder sees the mask vector). If the cells say so,
    it also holds `measured` (1 = the gene was measured in the cell) and `batch_ids` (the batch of each cell).

    With `read_depth_aware` the input is the cell at an often lower depth (`reduce_depth`). S is that depth, T is the
    depth of the raw cell, and labels are the raw cell's values. Masks and the values that the decoder sees are drawn
    from the input: a gene that lost all its counts is masked as seldom as a zero gene, but its label is its raw value.

    If the file of a cell does not name a gene, nobody knows whether the cell expresses it. Such a gene is not masked,
    so it is neither learned nor scored. The masks of the measured genes do not depend on it.

    Args:
        tokenizer: Normalises, appends depth tokens and pads.
        masking: Shares of masked genes; whether to predict a cell from a lower depth (`read_depth_aware`); and whether
            genes that a file does not name count as zero genes (`unmeasured="zero"`), as in the released model.
        seed: Seed of the masks.
        epoch: The epoch whose masks all batches have. Unless given, each epoch of transformers' Trainer, and each pass
            over another loader that accelerate prepared, has its own masks, with worker processes and after a resume
            too. Evaluation by the Trainer always has the masks of epoch 0. So has a training loop without accelerate:
            set `epoch` there.
        **options: Options of `Masking`, such as `zero_ratio=0.05`, which replace those of `masking`.

    >>> from xtrimogene import XTrimoGeneTokenizer
    >>> collator = DataCollatorForMaskedExpression(XTrimoGeneTokenizer.default(), zero_ratio=0.05)
    >>> collator.masking.zero_ratio
    0.05

    Raises:
        ValueError: If options are out of range, or `read_depth_aware` is set and the tokenizer has no depth tokens. In
            a batch: if worker processes are persistent and so cannot find the epoch, a cell has no counts, or
            `measured` is for another panel.
    """

    def __init__(
        self,
        tokenizer: XTrimoGeneTokenizer,
        masking: Masking | None = None,
        *,
        seed: int = 0,
        epoch: int | None = None,
        **options: Any,
    ):
        self.masking = replace(masking or Masking(), **options)
        if self.masking.read_depth_aware and not tokenizer.depth_tokens:
            raise ValueError(
                "read_depth_aware is True, and the tokenizer has depth_tokens False: the model would not be told which "
                "depth to predict; make tokenizer and configuration with depth_tokens=True"
            )
        super().__init__(seed, epoch)
        self.tokenizer = tokenizer

    @property
    def settings(self) -> dict[str, float | str]:
        """Options that determine the batches, beside the seed."""
        return flat(self.masking)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> CellBatch:
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
        if self.masking.unmeasured == "ignore":
            measured = measured_genes(examples, tokenizer.num_genes)
            batch |= {} if measured is None else {"measured": measured}
        if "batch" in examples[0]:
            batch["batch_ids"] = np.array([example["batch"] for example in examples])
        return CellBatch({key: torch.from_numpy(array) for key, array in batch.items()})

    def mask(self, examples: Sequence[dict[str, Any]], epoch: int) -> MaskedCells:
        """Return visible and masked genes of a few cells, with depth tokens behind the visible ones."""
        tokenizer = self.tokenizer
        ids, counts, lengths, totals = packed(examples)
        cell_index = np.array([example["cell_index"] for example in examples])
        target_depth = log_depths(totals)
        true_BG = None
        if self.masking.read_depth_aware:
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
            mask_keys(self.seed, epoch, cell_index),
            tokenizer.num_genes,
            self.masking,
            measured_genes(examples, tokenizer.num_genes) if self.masking.unmeasured == "ignore" else None,
        )
        if true_BG is not None:
            masked.labels = true_BG[np.repeat(np.arange(len(lengths)), masked.masked_lengths), masked.masked_ids]
        if tokenizer.depth_tokens:
            masked.ids, masked.values, masked.lengths = tokenizer.append_depth_tokens(
                masked.ids, masked.values, masked.lengths, log_depths(totals), target_depth
            )
        return masked
