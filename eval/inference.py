"""Run a model over cells: every cell that comes in goes out, in order, whatever the batches were."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from ..tokenization.tokenization_xtrimogene import PanelCounts, XTrimoGeneTokenizer

CHUNK = 2048  # cells read at a time; batches are formed of cells of like length within a chunk
TOKENS_IN_BATCH = {
    "cpu": 16_384,
    "cuda": 262_144,
    "mps": 32_768,
}  # for batch_size="auto", halved when memory runs out


def pick_device(device: str) -> torch.device:
    """Return the device for a name; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: If this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, is_there in available.items() if is_there))
    if not available.get(device.split(":")[0]):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ValueError(f"device {device!r} is not on this machine, which has {there}: leave it at 'auto'")
    return torch.device(device)


@torch.inference_mode()
def run_cells(
    model: PreTrainedModel,
    tokenizer: XTrimoGeneTokenizer,
    cells: PanelCounts,
    output: Callable[[Any], torch.Tensor],
    batch_size: int | Literal["auto"] = "auto",
    target_depth: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return `output(model(batch))` for every cell, in order, as float32 `(cells, ...)`.

    Args:
        model: On the device to use; in evaluation mode while it runs.
        tokenizer: Of the model.
        cells: From `tokenizer.read_counts`.
        output: Picks what is kept of the model's output, one row a cell.
        batch_size: Cells at a time; `auto` bounds the tokens of a batch instead.
        target_depth: See `XTrimoGeneTokenizer.tokenize_counts`.
        progress: Called with the number of cells after each batch.
    """
    was_training = [module for module in model.modules() if module.training]
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size > 0):
        raise ValueError(f"batch_size is {batch_size!r}: give 'auto' or a number of cells")
    tokens = TOKENS_IN_BATCH.get(model.device.type, TOKENS_IN_BATCH["cpu"])
    results = np.empty(0)
    model.eval()
    try:
        for start in range(0, cells.n_cells, CHUNK):
            counts, totals = cells.read(start, start + CHUNK)
            lengths = np.diff(counts.indptr) + 2 * tokenizer.depth_tokens
            by_length = np.argsort(-lengths, kind="stable")  # the longest first: what does not fit fails at once
            done = 0
            while done < len(by_length):
                longest = max(int(lengths[by_length[done]]), 1)
                size = max(tokens // longest, 1) if batch_size == "auto" else batch_size
                rows = by_length[done : done + size]
                batch = tokenizer.tokenize_counts(counts[rows], totals[rows], target_depth).to(model.device)
                try:
                    rows_out = output(model(**batch)).float().cpu().numpy()
                except torch.OutOfMemoryError:
                    if batch_size != "auto" or len(rows) == 1:
                        raise
                    tokens = longest * (len(rows) // 2)
                    continue
                if not len(results):
                    results = np.empty((cells.n_cells, *rows_out.shape[1:]), np.float32)
                results[start + rows] = rows_out
                done += len(rows)
                if progress:
                    progress(len(rows))
    finally:
        for module in was_training:
            module.training = True
    return results


def embed_cells(
    model: PreTrainedModel, tokenizer: XTrimoGeneTokenizer, cells: PanelCounts, **options: Any
) -> np.ndarray:
    """Return cell embeddings `(cells, D)`; NaN rows for cells without counts on the panel. Options of `run_cells`."""
    return run_cells(model, tokenizer, cells, lambda out: out.pooler_output, **options)


def class_probabilities(
    model: PreTrainedModel, tokenizer: XTrimoGeneTokenizer, cells: PanelCounts, **options: Any
) -> np.ndarray:
    """Return class probabilities `(cells, C)`; NaN rows for cells without counts. Options of `run_cells`."""
    return run_cells(model, tokenizer, cells, lambda out: out.logits.softmax(-1), **options)
