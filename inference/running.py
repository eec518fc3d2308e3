"""Run a model over cells in batches; every cell gets a result, in the order of the cells.

A thread reads and tokenises the next batch while the model computes. A GPU gets a batch from pinned memory, and the
results of the one before are fetched while it computes.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from ..tokenization.cell_batch import CellBatch
from ..tokenization.expression_xtrimogene import ExpressionTokenizer
from ..tokenization.panel_xtrimogene import PanelCounts
from .options import Running

CHUNK = 2048  # cells read at a time; batches are formed of cells of like length within a chunk
TOKENS_IN_BATCH = {
    "cpu": 16_384,
    "cuda": 262_144,
    "mps": 32_768,
}  # for batch_size="auto"; a batch that does not fit into memory is halved
NUMBERS_OF_A_TOKEN = 40  # of the width of the model, in float32: what the encoder holds of a token at a time, roughly


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

    def launch(batch: CellBatch) -> list[torch.Tensor]:
        try:
            return [forward(batch.to(model.device, non_blocking=True)).float()]
        except torch.OutOfMemoryError:
            half = len(batch["input_ids"]) // 2
            if batch_size != "auto" or not half:
                raise
        halves = (slice(half), slice(half, None))
        return [
            part for rows in halves for part in launch(CellBatch({name: each[rows] for name, each in batch.items()}))
        ]

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

    def finish(rows: np.ndarray, launched: list[torch.Tensor]) -> None:
        rows_out = np.concatenate([part.cpu().numpy() for part in launched])
        if together:
            parts.append((rows, rows_out))
        else:
            place(rows, rows_out)
        if running.progress:
            running.progress(len(rows) * world_size)

    model.eval()
    behind = 0 if model.device.type == "cpu" else 1  # batches that a device computes before results are fetched
    under_way: deque[tuple[np.ndarray, list[torch.Tensor]]] = deque()
    try:
        device, most_tokens = model.device.type, tokens_that_fit(model)
        own_batches = batches(tokenizer, cells, device, batch_size, target_depth, rank, world_size, most_tokens)
        for rows, batch in prefetch(pinned(own_batches) if device == "cuda" else own_batches):
            under_way.append((rows, launch(batch)))
            if len(under_way) > behind:
                finish(*under_way.popleft())
        while under_way:
            finish(*under_way.popleft())
    finally:
        for module in was_training:
            module.training = True
    for rows, rows_out in gather_object(parts) if together else []:
        place(rows, rows_out)
    return results


def tokens_that_fit(model: PreTrainedModel) -> float:
    """Return how many tokens of a batch the free memory of the model's GPU has room for; any number elsewhere."""
    if model.device.type != "cuda":
        return math.inf
    return torch.cuda.mem_get_info(model.device)[0] / (4 * NUMBERS_OF_A_TOKEN * model.config.hidden_size)


def batches(
    tokenizer: ExpressionTokenizer,
    cells: PanelCounts,
    device: str,
    batch_size: int | Literal["auto"],
    target_depth: float | str | None,
    rank: int = 0,
    world_size: int = 1,
    most_tokens: float = math.inf,
) -> Iterator[tuple[np.ndarray, CellBatch]]:
    """Yield the indices of cells and their batch; cells of similar length are in one batch.

    Each process of rank 0 ... `world_size` - 1 gets every `world_size`-th chunk of cells. Batches of the size `auto`
    have `most_tokens` at most, and at least one cell.
    """
    tokens = int(min(TOKENS_IN_BATCH.get(device, TOKENS_IN_BATCH["cpu"]), most_tokens))
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
            yield start + rows, CellBatch(tokenizer.tokenize_values(values[rows], depths[rows], target_depth))
            done += len(rows)


def pinned(items: Iterator[tuple[np.ndarray, CellBatch]]) -> Iterator[tuple[np.ndarray, CellBatch]]:
    """Yield the batches in pinned memory."""
    for rows, batch in items:
        yield rows, batch.pin_memory()


def prefetch(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items while a thread makes the next one, so that the model need not wait for reading and tokenising."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
