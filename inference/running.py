"""Run a model over cells in batches; every cell gets a result, in the order of the cells.

A thread reads and tokenises the next batch while the model computes. A GPU gets a batch from pinned memory, and the
results of the one before are fetched while it computes.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from ..tokenization.cell_batch import CellBatch
from ..tokenization.expression_xtrimogene import ExpressionTokenizer
from ..tokenization.panel_xtrimogene import PanelCounts
from .options import Running

Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]
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
    forward: Forward,
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
    running = running or Running()
    together, device = running.together, model.device
    ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
    own = batches(tokenizer, cells, device.type, running.batch_size, target_depth, *ranks, tokens_that_fit(model))
    coming = prefetch(pinned(own) if device.type == "cuda" else own)
    results = Results(cells.n_cells, make_results)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with evaluating(model):
        for rows, rows_out in computed(coming, device, forward, may_halve=running.batch_size == "auto"):
            if together:
                parts.append((rows, rows_out))
            else:
                results.place(rows, rows_out)
            if running.progress:
                running.progress(len(rows) * ranks[1])
    if together:
        from accelerate.utils import gather_object  # slow to import, and for several processes only

        for rows, rows_out in gather_object(parts):
            results.place(rows, rows_out)
    return results.array


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Set a model to evaluation mode, and each of its modules back to the mode that it was in."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


class Results:
    """Rows of results in the order of the cells, made when the first ones tell their shape.

    Args:
        n_cells: Number of cells.
        make: Function of a shape that returns the array.
    """

    def __init__(self, n_cells: int, make: Callable[[tuple[int, ...]], Any]):
        self.n_cells, self.make = n_cells, make
        self.array: Any = None

    def place(self, rows: np.ndarray, rows_out: np.ndarray) -> None:
        """Set the results of cells, given their indices."""
        if self.array is None:
            self.array = self.make((self.n_cells, *rows_out.shape[1:]))
        for row, row_out in zip(rows.tolist(), rows_out, strict=True):
            self.array[row] = row_out


def computed(
    coming: Iterable[tuple[np.ndarray, CellBatch]], device: torch.device, forward: Forward, may_halve: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of cells and their results; those of a GPU are fetched while it computes the next batch."""
    behind = 0 if device.type == "cpu" else 1  # batches that are computed before results are fetched
    under_way: deque[tuple[np.ndarray, list[torch.Tensor]]] = deque()
    for rows, batch in coming:
        under_way.append((rows, launched(batch, device, forward, may_halve)))
        if len(under_way) > behind:
            yield fetched(*under_way.popleft())
    while under_way:
        yield fetched(*under_way.popleft())


def launched(batch: CellBatch, device: torch.device, forward: Forward, may_halve: bool) -> list[torch.Tensor]:
    """Return the results of a batch on the device, in parts if it did not fit into memory and may be halved."""
    try:
        return [forward(batch.to(device, non_blocking=True)).float()]
    except torch.OutOfMemoryError:
        half = len(batch["input_ids"]) // 2
        if not may_halve or not half:
            raise
    halves = (
        CellBatch({name: part[rows] for name, part in batch.items()}) for rows in (slice(half), slice(half, None))
    )
    return [part for each in halves for part in launched(each, device, forward, may_halve)]


def fetched(rows: np.ndarray, parts: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of cells and their results on the host."""
    return rows, np.concatenate([part.cpu().numpy() for part in parts])


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
