"""Run a model over cells: every cell that comes in goes out, in order, whatever the batches were."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from ..modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
from ..modeling_xtrimogene.precision_xtrimogene import in_float32
from ..tokenization.panel_xtrimogene import PanelCounts
from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
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
    tokenizer: XTrimoGeneTokenizer,
    cells: PanelCounts,
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    running: Running | None = None,
    target_depth: float | str | None = None,
    make_results: Callable[[tuple[int, ...]], Any] = lambda shape: np.empty(shape, np.float32),
) -> Any:
    """Return `forward(batch)` for every cell, in order, as float32 `(cells, ...)`.

    Args:
        model: On the device to use; in evaluation mode while it runs.
        tokenizer: Of the model.
        cells: From `tokenizer.read_counts`.
        forward: Gives one row a cell for a batch on the model's device.
        running: Batch size, and which processes take part; the model stays where it is, in its own precision.
        target_depth: Depth that the target token says, see `XTrimoGeneTokenizer.tokenize_counts`.
        make_results: Makes what holds the results, of a shape: an array in memory, or one in a file for more than fits
            there. Rows are assigned as they come.
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
    tokenizer: XTrimoGeneTokenizer,
    cells: PanelCounts,
    device: str,
    batch_size: int | Literal["auto"],
    target_depth: float | str | None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Yield which cells and their batch; cells of like length go together.

    Each process of rank 0 ... `world_size` - 1 gets every `world_size`-th chunk of cells.
    """
    tokens = TOKENS_IN_BATCH.get(device, TOKENS_IN_BATCH["cpu"])
    chunk = min(CHUNK, -(-cells.n_cells // world_size))
    for start in range(rank * chunk, cells.n_cells, world_size * chunk):
        values, depths = cells.values(tokenizer.target_sum, start, start + chunk)
        lengths = np.diff(values.indptr) + 2 * tokenizer.depth_tokens
        by_length = np.argsort(-lengths, kind="stable")  # the longest first: what does not fit fails at once
        done = 0
        while done < len(by_length):
            longest = max(int(lengths[by_length[done]]), 1)
            size = max(tokens // longest, 1) if batch_size == "auto" else batch_size
            rows = by_length[done : done + size]
            yield start + rows, dict(tokenizer.tokenize_values(values[rows], depths[rows], target_depth))
            done += len(rows)


def prefetch(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items, the next one being made in a thread meanwhile: reading and tokenising wait for no model."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def embed_cells(
    model: PreTrainedModel,
    tokenizer: XTrimoGeneTokenizer,
    cells: PanelCounts,
    running: Running | None = None,
    target_depth: float | str | None = None,
) -> np.ndarray:
    """Return cell embeddings `(cells, D)`; NaN rows for cells without counts on the panel. Arguments of `run_cells`."""
    return run_cells(model, tokenizer, cells, lambda batch: model(**batch).pooler_output, running, target_depth)


def class_probabilities(
    model: PreTrainedModel, tokenizer: XTrimoGeneTokenizer, cells: PanelCounts, running: Running | None = None
) -> np.ndarray:
    """Return class probabilities `(cells, C)`; NaN rows for cells without counts. Arguments of `run_cells`."""
    return run_cells(model, tokenizer, cells, lambda batch: model(**batch).logits.softmax(-1), running)


def decode_cells(
    model: XTrimoGeneForPreTraining,
    tokenizer: XTrimoGeneTokenizer,
    cells: PanelCounts,
    gene_ids: np.ndarray | None,
    **options: Any,
) -> Any:
    """Return embeddings of genes in the context of each cell `(cells, Q, E)`, NaN for cells without counts.

    All genes of the panel unless ids are given. Further arguments are those of `run_cells`.
    """

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return decode_genes(model, batch, gene_ids)[0]

    return run_cells(model, tokenizer, cells, forward, **options)


def predict_expression(
    model: XTrimoGeneForPreTraining,
    tokenizer: XTrimoGeneTokenizer,
    cells: PanelCounts,
    gene_ids: np.ndarray | None,
    with_embedding: bool = False,
    **options: Any,
) -> Any:
    """Return predicted values of genes, `log1p` of counts per 10,000, `(cells, Q)`, NaN for cells without counts.

    All genes of the panel unless ids are given. With `with_embedding`, the cell embedding stands before them,
    `(cells, D + Q)`: both come of one run of the encoder. Further arguments are those of `run_cells`.
    """

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        states_BQE, pooled_BD = decode_genes(model, batch, gene_ids)
        values_BQ = model.predicted_values(in_float32(model.head, states_BQE))
        return torch.cat([pooled_BD, values_BQ], dim=1) if with_embedding else values_BQ

    return run_cells(model, tokenizer, cells, forward, **options)


def decode_genes(
    model: XTrimoGeneForPreTraining, batch: dict[str, torch.Tensor], gene_ids: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `(B, Q, E)` for the genes asked for, and the cell embeddings `(B, D)`; NaN for cells without tokens."""
    encoded = model.model(**batch)
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    asked_BQ = None
    if gene_ids is not None:
        asked_BQ = torch.from_numpy(gene_ids).to(model.device).expand(len(input_ids), -1)
    states_BQE = model.model.decode(encoded.last_hidden_state, input_ids, attention_mask, positions=asked_BQ)
    if asked_BQ is None:
        states_BQE = states_BQE[:, : model.config.num_genes]
    return states_BQE.masked_fill(~attention_mask.bool().any(1)[:, None, None], torch.nan), encoded.pooler_output


def classify_cells(
    model: PreTrainedModel, tokenizer: XTrimoGeneTokenizer, cells: PanelCounts, running: Running | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return class probabilities `(cells, C)` and embeddings `(cells, D)` of one run of a classifier.

    NaN rows for cells without counts. Arguments of `run_cells`.
    """

    def forward(batch: dict[str, Any]) -> Any:
        pooled_BD = model.model(**batch).pooler_output
        return torch.cat([model.classify(pooled_BD, **batch).float().softmax(-1), pooled_BD.float()], dim=1)

    both = run_cells(model, tokenizer, cells, forward, running)
    return both[:, : model.config.num_labels], both[:, model.config.num_labels :]
