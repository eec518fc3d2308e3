"""Collators: lists of cells with raw counts -> the batches that the models take.

An example is one cell: `input_ids` (expressed genes, ascending), `counts` (their raw counts), `total` (the total count
of the cell), `cell_index` (its place in the source), and for tasks `labels`. No Python loop over genes anywhere.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .masking import mask_cells
from .tokenization_xtrimogene import XTrimoGeneTokenizer

IGNORED = -100


def packed(examples: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return packed ids and counts of cells, their lengths and totals.

    Raises:
        ValueError: If a cell has no counts: there is nothing to train on, and its loss would be NaN.
    """
    ids = [np.asarray(example["input_ids"], np.int64) for example in examples]
    lengths = np.array([len(row) for row in ids])
    if not lengths.all():
        empty = [int(examples[row]["cell_index"]) for row in np.flatnonzero(lengths == 0).tolist()]
        raise ValueError(
            f"{len(empty)} of {len(examples)} cells of a batch have no counts on the panel (cell {empty[0]} of the "
            f"source first): remove empty cells before training, e.g. scanpy.pp.filter_cells(adata, min_counts=1)"
        )
    counts = np.concatenate([np.asarray(example["counts"]) for example in examples])
    return (
        np.concatenate(ids),
        counts,
        lengths,
        np.array([example["total"] for example in examples], np.float64),
    )


class DataCollatorForExpression:
    """Pad cells, for tasks: `input_ids`, `values`, `attention_mask`, and `labels` where the examples have them.

    Args:
        tokenizer: Normalises, appends depth tokens and pads.
        target_depth: See `XTrimoGeneTokenizer.tokenize_counts`.
    """

    def __init__(self, tokenizer: XTrimoGeneTokenizer, target_depth: float | None = None):
        self.tokenizer = tokenizer
        self.target_depth = target_depth

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of `examples`."""
        tokenizer = self.tokenizer
        ids, counts, lengths, totals = packed(examples)
        values = tokenizer.normalize(counts, np.repeat(totals, lengths))
        if tokenizer.depth_tokens:
            ids, values, lengths = tokenizer.append_depth_tokens(ids, values, lengths, totals, self.target_depth)
        batch = tokenizer.pad_rows(ids, values, lengths)
        if "labels" in examples[0]:
            batch["labels"] = np.array([example["labels"] for example in examples])
        return {key: torch.from_numpy(array) for key, array in batch.items()}


class DataCollatorForMaskedExpression:
    """Mask genes and pad, for pre-training.

    Gives `input_ids`, `values`, `attention_mask` of the visible genes (with T and S, which are never masked), and
    `masked_ids`, `labels`, `masked_values`, `is_hidden` of the masked ones (`mask_cells` says what they are).

    Args:
        tokenizer: Normalises, appends depth tokens and pads.
        expressed_ratio: See `mask_cells`.
        zero_ratio: See `mask_cells`.
        hidden_ratio: See `mask_cells`.
        random_ratio: See `mask_cells`.
        seed: See `mask_cells`.

    Set `epoch` before each epoch (`SetEpoch` of the training package does): it changes the masks.
    """

    def __init__(
        self,
        tokenizer: XTrimoGeneTokenizer,
        expressed_ratio: float = 0.3,
        zero_ratio: float = 0.03,
        hidden_ratio: float = 0.8,
        random_ratio: float = 0.1,
        seed: int = 0,
    ):
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
        self.epoch = 0

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the masked batch of `examples`."""
        tokenizer = self.tokenizer
        ids, counts, lengths, totals = packed(examples)
        masked = mask_cells(
            ids,
            tokenizer.normalize(counts, np.repeat(totals, lengths)),
            lengths,
            np.array([example["cell_index"] for example in examples]),
            tokenizer.num_genes,
            **self.ratios,
            seed=self.seed,
            epoch=self.epoch,
        )
        ids, values, lengths = masked.ids, masked.values, masked.lengths
        if tokenizer.depth_tokens:
            ids, values, lengths = tokenizer.append_depth_tokens(ids, values, lengths, totals)
        batch = tokenizer.pad_rows(ids, values, lengths)

        is_masked = np.arange(max(masked.masked_lengths.max(), 1)) < masked.masked_lengths[:, None]
        for key, column, padding in (
            ("masked_ids", masked.masked_ids, tokenizer.pad_token_id),
            ("labels", masked.labels, IGNORED),
            ("masked_values", masked.masked_values, 0),
            ("is_hidden", masked.is_hidden, True),
        ):
            batch[key] = np.full(is_masked.shape, padding, column.dtype)
            batch[key][is_masked] = column
        return {key: torch.from_numpy(array) for key, array in batch.items()}
