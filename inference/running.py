"""Run a model over cells in batches; every cell gets a result, in the order of the cells."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from ..tokenization.expression_xtrimogene import ExpressionTokenizer
from ..tokenization.panel_xtrimogene import PanelCounts
from .options import Running

CHUNK = 2048  # cells read at a time; batches are formed of cells of like length within a chunk
TOKENS_IN_BATCH = {
    "cpu": 16_384,
    "cuda": 262_144,
    "mps": 32_768,
}  # for batch_size="auto"; a batch that does not fit into memory is halved


@torch.inference_mode()
def run_cells(
    model: PreTrainedModel,
    tokenizer: ExpressionTokenizer,
    cells: PanelCounts,
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    running: Running | None = None,
    target_depth: float | str | None = None,
    make_results: Callable[[tuple[int, ...]], Any] = lambda shape: np.empty(shape, np.float32),
) -> Any:
    """Return `forward(batch)` for every cell, in order, as float32 `(cells, ...)`.

    Args:
        model: Model on the device to use; it is in evaluation mode while it runs.
        tokenizer: Tokenizer of the model.
        cells: Counts from `tokenizer.read_counts`.
        forward: Function of a batch on the model's device that returns one row for each cell.
        running: Batch size, and whether processes share the work. Device and precision are those of the model.
        target_depth: T: log10 of a total count, as 4 or `t4`; `f2` for twice the depth of the cell, `a1` for ten times;
            None for the depth of the cell.
        make_results: Function of a shape that returns the array for the results: in memory, or in a file if they do
            not fit into memory. Rows are assigned as they are computed.

    Example:
        >>> from xtrimogene.inference.cell_model import CellModel
        >>> loaded = CellModel.load("checkpoint")
        >>> cells = loaded.read(adata)
        >>> run_cells(loaded.model, loaded.tokenizer, cells, lambda batch: loaded.model(**batch).pooler_output).shape
        (5, 64)
    """
    from accelerate.utils import gather_object

    running = running or Running()
    batch_size, together = running.batch_size, running.together
    was_training = [module for module in model.modules() if module.training]

    def run(batch: dict[str, torch.Tensor]) -> np.ndarray:
        try:
            return forward({name: part.to(model.device) for name, part in batch.items()}).float().cpu().numpy()
        except torch.OutOfMemoryError:
            half = len(batch["input_ids"]) // 2
            if batch_size != "auto" or not half:
                raise
        halves = [{name: part[rows] for name, part in batch.items()} for rows in (slice(half), slice(half, None))]
        return np.concatenate([run(half) for half in halves])

    rank, world_size = 0, 1
    if together:
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    results: Any = None

    def place(rows: np.ndarray, rows_out: np.ndarray) -> None:
        nonlocal results
        if results is None:
            results = make_results((cells.n_cells, *rows_out.shape[1:]))
        for row, row_out in zip(rows.tolist(), rows_out, strict=True):
            results[row] = row_out

    model.eval()
    try:
        own_batches = batches(tokenizer, cells, model.device.type, batch_size, target_depth, rank, world_size)
        for rows, batch in prefetch(own_batches):
            if together:
                parts.append((rows, run(batch)))
            else:
                place(rows, run(batch))
            if running.progress:
                running.progress(len(rows) * world_size)
    finally:
        for module in was_training:
            module.training = True
    for rows, rows_out in gather_object(parts) if together else []:
        place(rows, rows_out)
    return results


def batches(
    tokenizer: ExpressionTokenizer,
    cells: PanelCounts,
    device: str,
    batch_size: int | Literal["auto"],
    target_depth: float | str | None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Yield the indices of cells and their batch; cells of similar length are in one batch.

    Each process of rank 0 ... `world_size` - 1 gets every `world_size`-th chunk of cells.
    """
    tokens = TOKENS_IN_BATCH.get(device, TOKENS_IN_BATCH["cpu"])
    chunk = min(CHUNK, -(-cells.n_cells // world_size))
    for start in range(rank * chunk, cells.n_cells, world_size * chunk):
        values, depths = tokenizer.cell_values(cells, start, start + chunk)
        lengths = np.diff(values.indptr) + 2 * tokenizer.depth_tokens
        by_length = np.argsort(-lengths, kind="stable")  # the longest first, so that a lack of memory shows at once
        done = 0
        while done < len(by_length):
            longest = max(int(lengths[by_length[done]]), 1)
            size = max(tokens // longest, 1) if batch_size == "auto" else batch_size
            rows = by_length[done : done + size]
            yield start + rows, dict(tokenizer.tokenize_values(values[rows], depths[rows], target_depth))
            done += len(rows)


def prefetch(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items while a thread makes the next one, so that the model need not wait for reading and tokenising."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
