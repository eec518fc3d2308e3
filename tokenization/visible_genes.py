"""Choose the genes of a cell that the encoder sees, of all that were measured, and make batches of them.

    measured genes of B cells  ->  K of each, uniformly and without replacement  ->  input_ids, values (B, K)
                                   the whole cell, to reconstruct                ->  expressed genes, measured genes

As with masks, draws follow from (seed, epoch, cell, measured genes) alone. No draw is made for a gene that is not
chosen, so a cell of 19,264 genes costs little more than its K.

Source: Kenyon-Dean et al. 2026, TxFM: K of the genes that can be observed in a sample, whatever their value.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..options import flat
from .cell_batch import CellBatch
from .collators import (
    CELLS_AT_A_TIME,
    IGNORED,
    SeededCollator,
    labels_of,
    measured_genes,
    measured_panels,
    packed,
    refuse_empty,
)
from .expression_xtrimogene import ExpressionTokenizer, cell_rows, pad_right
from .masking import VISIBLE, Masking, mask_cells, mask_keys, stream_keys, uniform


def draw_genes(panels: Sequence[np.ndarray], number: int, keys: np.ndarray) -> list[np.ndarray]:
    """Return genes of each cell, drawn uniformly without replacement, ascending.

    Args:
        panels: Genes of each cell to draw from, ascending. Cells that share an array are quickly drawn together.
        number: How many to draw; a cell with fewer keeps all.
        keys: Random key of each cell, `(B,)`, from `stream_keys`.

    Example:
        >>> keys = stream_keys(0, 0, VISIBLE, np.arange(2))
        >>> [len(genes) for genes in draw_genes([np.arange(100), np.array([3, 7])], 10, keys)]
        [10, 2]
    """
    found: list[np.ndarray] = [panels[0][:0]] * len(panels)
    groups: dict[int, list[int]] = {}
    for row, panel in enumerate(panels):
        groups.setdefault(id(panel), []).append(row)
    for rows in groups.values():
        panel = panels[rows[0]]
        if len(panel) <= number:
            genes = [panel] * len(rows)
        else:
            genes = list(panel[choose(len(panel), number, keys[rows])])
        for row, own in zip(rows, genes, strict=True):
            found[row] = own
    return found


def choose(size: int, number: int, keys: np.ndarray) -> np.ndarray:
    """Choose `number` of `size` places for each key, uniformly; return them ascending, `(keys, number)`.

    Places are drawn with replacement until there are enough different ones: the first of them are a uniform choice.
    That takes few draws if the number is small, so the places left out are drawn if they are fewer.

    Args:
        size: Number of places.
        number: How many to choose, at least one and fewer than `size`.
        keys: Random keys.

    Example:
        >>> choose(10, 4, stream_keys(0, 0, VISIBLE, np.arange(2))).shape
        (2, 4)
    """
    if 2 * number > size:
        is_left = np.ones((len(keys), size), bool)
        np.put_along_axis(is_left, choose(size, size - number, keys), False, axis=1)
        return np.flatnonzero(is_left).reshape(len(keys), number) % size
    # Mean and variance of the draws that are needed; six standard deviations more are enough for nearly every cell.
    share = number / size
    mean, variance = -size * math.log1p(-share), size * (share / (1 - share) + math.log1p(-share))
    enough = int(mean + 6 * math.sqrt(variance)) + 8
    starts = np.arange(len(keys), dtype=np.int64)[:, None] * size
    while True:
        order = np.arange(enough, dtype=np.int32)
        places = (uniform(keys[:, None], order[None, :]) * size).astype(np.int32)
        flat = (places + starts).ravel()
        firsts = np.empty(len(keys) * size, np.int32)
        # In reverse order, so that of places drawn again the first draw is assigned last, and stays.
        firsts[flat[::-1]] = np.tile(order[::-1], len(keys))
        is_first = firsts[flat].reshape(places.shape) == order
        ranks = np.cumsum(is_first, axis=1, dtype=np.int32)
        if ranks[:, -1].min() >= number:
            is_first &= ranks <= number
            return np.sort(places[is_first].reshape(len(keys), number), axis=1)
        enough *= 2


class DataCollatorForVisibleGenes(SeededCollator):
    """Make batches for tasks, in which the encoder sees some of the measured genes: other ones in each epoch.

    A batch holds `input_ids`, `values` and `attention_mask` of the genes shown, and `labels` if the examples have them.
    Cells of which few genes were measured are padded. It also holds `known_ids` and `known_values` `(B, E)`, all
    expressed genes that are not masked: parts of a model without attention, such as a regression, read them at once.

    Args:
        tokenizer: Normalises and pads.
        num_visible: Genes of a cell to show.
        seed: Seed of the draws.
        epoch: The epoch whose draws all batches have, as of `DataCollatorForMaskedExpression`.

    Example:
        >>> from xtrimogene import TxFMTokenizer
        >>> collate = DataCollatorForVisibleGenes(TxFMTokenizer.default(), num_visible=64)
        >>> cell = {"input_ids": [5, 700], "counts": [3, 1], "total": 4_000, "cell_index": 0, "labels": 2}
        >>> batch = collate([cell])
        >>> batch["input_ids"].shape, batch["labels"]
        (torch.Size([1, 64]), tensor([2]))
    """

    def __init__(
        self, tokenizer: ExpressionTokenizer, num_visible: int, *, seed: int = 0, epoch: int | None = None
    ) -> None:
        super().__init__(seed, epoch)
        self.tokenizer = tokenizer
        self.num_visible = num_visible

    @property
    def settings(self) -> dict[str, Any]:
        """Options that determine the batches, beside the seed."""
        return {"num_visible": self.num_visible}

    def __call__(self, examples: Sequence[dict[str, Any]]) -> CellBatch:
        """Return the batch of `examples`."""
        refuse_empty(examples)
        epoch = self.current_epoch()
        columns: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(examples), CELLS_AT_A_TIME):
            for name, rows in self.rows(examples[start : start + CELLS_AT_A_TIME], epoch).items():
                columns.setdefault(name, []).extend(rows)
        return CellBatch({key: torch.from_numpy(array) for key, array in self.batch(columns, examples).items()})

    def rows(self, examples: Sequence[dict[str, Any]], epoch: int) -> dict[str, list[np.ndarray]]:
        """Return name -> what each cell has of it: `ids`, `values`, and what else goes into a batch."""
        ids, counts, lengths, totals = packed(examples)
        expressed = ids, self.tokenizer.packed_values(counts, lengths, totals), lengths
        panels = measured_panels(examples, self.tokenizer.num_genes)
        return self.shown(examples, expressed, panels, epoch)

    def shown(
        self,
        examples: Sequence[dict[str, Any]],
        expressed: tuple[np.ndarray, np.ndarray, np.ndarray],
        panels: Sequence[np.ndarray],
        epoch: int,
    ) -> dict[str, list[np.ndarray]]:
        """Return `ids` and `values` of the genes shown, drawn from the panel of each cell, and all that are expressed.

        Args:
            examples: The cells.
            expressed: Packed ids, packed values and lengths of their expressed genes.
            panels: Genes of each cell that may be shown.
            epoch: Epoch of the draws.
        """
        cell_index = np.array([example["cell_index"] for example in examples])
        shown = draw_genes(panels, self.num_visible, stream_keys(self.seed, epoch, VISIBLE, cell_index))
        ids, values, lengths = expressed
        known_ids, known_values = cell_rows(ids, lengths), cell_rows(values, lengths)
        row, of_shown = np.zeros(self.tokenizer.num_genes, np.float32), []  # one row for all cells stays in the cache
        for own, own_values, genes in zip(known_ids, known_values, shown, strict=True):
            row[own] = own_values
            of_shown.append(row[genes])
            row[own] = 0
        return {"ids": shown, "values": of_shown, "known_ids": known_ids, "known_values": known_values}

    def tokens(self, columns: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the genes shown and the known genes as arrays, from what each cell has."""
        batch = self.tokenizer.pad_rows(columns["ids"], columns["values"])
        batch["known_ids"] = pad_right(columns["known_ids"], self.tokenizer.pad_token_id, np.int64)
        batch["known_values"] = pad_right(columns["known_values"], 0, np.float32)
        return batch

    def batch(self, columns: dict[str, list[np.ndarray]], examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Return the arrays of a batch, from what each cell has."""
        batch = self.tokens(columns)
        if (labels := labels_of(examples)) is not None:
            batch["labels"] = labels
        return batch


class DataCollatorForReconstruction(DataCollatorForVisibleGenes):
    """Make batches for pre-training, in which the encoder sees some measured genes and all are reconstructed.

    Beside the genes shown (`DataCollatorForVisibleGenes`), a batch holds the whole cells: `expressed_ids` and
    `expressed_values` `(B, E)`, their raw `totals` on the panel `(B,)`, and if the cells say so `measured` `(B, G)` and
    `batch_ids` `(B,)`.

    Args:
        tokenizer: Normalises and pads.
        num_visible: Genes of a cell to show.
        masking: If given, genes are masked as for xTrimoGene, so that predictions of both can be compared: genes are
            shown of those that are left, and the batch holds `masked_ids` and their values, `labels`, `(B, M)`.
        seed: Seed of the draws and masks.
        epoch: The epoch whose draws all batches have, as of `DataCollatorForMaskedExpression`.

    Example:
        >>> from xtrimogene import TxFMTokenizer
        >>> collate = DataCollatorForReconstruction(TxFMTokenizer.default(), num_visible=64)
        >>> batch = collate([{"input_ids": [5, 700], "counts": [3, 1], "total": 4_000, "cell_index": 0}])
        >>> batch["input_ids"].shape, batch["expressed_values"].round(decimals=2)
        (torch.Size([1, 64]), tensor([[11.2300, 10.1300]]))
    """

    def __init__(
        self,
        tokenizer: ExpressionTokenizer,
        num_visible: int,
        masking: Masking | None = None,
        *,
        seed: int = 0,
        epoch: int | None = None,
    ) -> None:
        super().__init__(tokenizer, num_visible, seed=seed, epoch=epoch)
        self.masking = masking

    @property
    def settings(self) -> dict[str, Any]:
        """Options that determine the batches, beside the seed."""
        return super().settings | ({} if self.masking is None else flat(self.masking))

    def shown(
        self,
        examples: Sequence[dict[str, Any]],
        expressed: tuple[np.ndarray, np.ndarray, np.ndarray],
        panels: Sequence[np.ndarray],
        epoch: int,
    ) -> dict[str, list[np.ndarray]]:
        """Return what each cell has of the batch; arguments as of the base class."""
        ids, values, lengths = expressed
        found = {"expressed_ids": cell_rows(ids, lengths), "expressed_values": cell_rows(values, lengths)}
        if self.masking is not None:
            cell_index = np.array([example["cell_index"] for example in examples])
            num_genes = self.tokenizer.num_genes
            masked = mask_cells(
                *expressed,
                mask_keys(self.seed, epoch, cell_index),
                num_genes,
                self.masking,
                measured_genes(examples, num_genes),
            )
            found["masked_ids"] = cell_rows(masked.masked_ids, masked.masked_lengths)
            found["labels"] = cell_rows(masked.labels, masked.masked_lengths)
            pairs = zip(panels, found["masked_ids"], strict=True)
            panels = [np.setdiff1d(panel, genes, assume_unique=True) for panel, genes in pairs]
            expressed = masked.ids, masked.values, masked.lengths
        return found | super().shown(examples, expressed, panels, epoch)

    def batch(self, columns: dict[str, list[np.ndarray]], examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Return the arrays of a batch, from what each cell has."""
        batch = self.tokens(columns)
        if self.masking is None:  # all expressed genes are known
            batch["expressed_ids"], batch["expressed_values"] = batch["known_ids"], batch["known_values"]
        else:
            batch["expressed_ids"] = pad_right(columns["expressed_ids"], self.tokenizer.pad_token_id, np.int64)
            batch["expressed_values"] = pad_right(columns["expressed_values"], 0, np.float32)
        batch["totals"] = np.array([np.sum(example["counts"], dtype=np.float64) for example in examples], np.float32)
        measured = measured_genes(examples, self.tokenizer.num_genes)
        batch |= {} if measured is None else {"measured": measured}
        if "batch" in examples[0]:
            batch["batch_ids"] = np.array([example["batch"] for example in examples])
        if self.masking is not None:
            batch["masked_ids"] = pad_right(columns["masked_ids"], self.tokenizer.pad_token_id, np.int64)
            batch["labels"] = pad_right(columns["labels"], IGNORED, np.float32)
        return batch
