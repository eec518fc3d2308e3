"""Fit the bag of genes of an anchored model, the simple method that the transformer's part is then added to.

    cells  ->  some of their genes  ->  BagOfGenes (+ what the encoder found)  ->  CellDecoder  ->  likelihood of cells

It has no attention, so 400 steps of 128 cells take about a minute on a core. The recipe was chosen by comparison of 20
variants on five data sets (docs/embedding.md).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from ..modeling_xtrimogene.reconstruction_xtrimogene import PER_CELL, reconstruction_loss
from ..tokenization.collators import (
    IGNORED,
    DataCollatorForMaskedExpression,
    measured_genes,
    packed,
    refuse_empty,
)
from ..tokenization.expression_xtrimogene import ExpressionTokenizer, cell_rows, pad_right

STEPS, CELLS, LEARNING_RATE = 400, 128, 2e-3
PASSES = 20  # at most so many over the cells; with few cells, more steps learn these cells by heart
LEAST_VISIBLE = 0.5  # of the expressed genes of a cell; the share is drawn anew for each cell and step
VALUE_CELLS, PRIOR_CELLS = 5_000, 20  # cells to regress on; how many the slope of all genes counts for in that of one
PROFILE_CELLS = 20_000  # more cells do not change the mean profile of a batch
RAREST = 1e-6  # added to shares of counts before their log, so that a gene without counts has one


def begin_anchor(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0, fit: bool = True) -> None:
    """Prepare an anchored model for its first step on these cells.

    The biases of batches are set to their mean profiles. In a new model, the biases of genes are set too, and the bag
    of genes is fitted. The encoder and the decoder are left as they are.

    Args:
        model: An anchored model for pre-training, on any device.
        tokenizer: The model's tokenizer.
        dataset: Cells to train on, with the key `batch` if they are of several batches.
        seed: Seed of the order of cells and of the visible genes.
        fit: False only makes room for the biases of batches, whose values then come from a checkpoint.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=4, anchored=True))
        >>> begin_anchor(model, tokenizer, cells_dataset(tokenizer.read_counts(counts)))
        >>> model.cell_decoder.is_set
        True
    """
    model.set_num_batches(num_batches(dataset))
    if not fit:
        return
    is_new = not model.cell_decoder.is_set
    set_profiles(model, tokenizer, dataset, seed)
    if is_new:
        deque(fit_bag(model, tokenizer, dataset, seed=seed), maxlen=0)
        fit_values(model, tokenizer, dataset, seed)


def begin_latents(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0) -> None:
    """Set what a model with latents decodes before its first step: the mean over the batches of their mean profiles.

    A model whose biases are set is left as it is.

    Args:
        model: A model for pre-training with latents.
        tokenizer: The model's tokenizer.
        dataset: Cells to train on, of which at most 20,000 are looked at.
        seed: Seed of the choice of these cells.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7"], "panel")
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> counts = pd.DataFrame([[8, 2, 0], [4, 4, 2]], columns=tokenizer.genes)
        >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=3, num_latents=2))
        >>> begin_latents(model, tokenizer, cells_dataset(tokenizer.read_counts(counts)))
        >>> (10 * model.latent_decoder.gene_bias.softmax(0)).round().tolist()
        [6.0, 3.0, 1.0]
    """
    bias = model.latent_decoder.gene_bias
    if bias.any():
        return
    rng, likelihood = np.random.default_rng(seed), model.config.reconstruction_likelihood
    profiles = batch_profiles(tokenizer, dataset, num_batches(dataset), likelihood, rng)
    with torch.no_grad():
        bias.copy_(torch.from_numpy(profiles.mean(0)))


def num_batches(dataset: Any) -> int:
    """Return the number of batches of cells; 1 if they have no key `batch`."""
    return int(np.max(dataset["batch"][:])) + 1 if "batch" in dataset[0] else 1


def set_profiles(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0) -> None:
    """Set the biases of batches to what their mean profiles are beyond the biases of genes.

    The biases of genes are set to the mean of the profiles, in a new model or if there is a single batch.
    """
    decoder, rng = model.cell_decoder, np.random.default_rng(seed)
    profiles = torch.from_numpy(
        batch_profiles(
            tokenizer, dataset, max(model.config.num_batches, 1), model.config.reconstruction_likelihood, rng
        )
    ).to(decoder.to_genes.bias.device)
    with torch.no_grad():
        if decoder.batch_bias is None or not decoder.is_set:
            decoder.to_genes.bias.copy_(profiles.mean(0))
        if decoder.batch_bias is not None:
            decoder.batch_bias.weight.copy_(profiles - decoder.to_genes.bias)


def batch_profiles(
    tokenizer: ExpressionTokenizer, dataset: Any, num_batches: int, likelihood: str, rng: np.random.Generator
) -> np.ndarray:
    """Return the scores of genes that give the mean cell of each batch, `(batches, G)`.

    A gene that was not measured in a batch has the mean of the other batches.
    """
    sums = np.zeros((num_batches, tokenizer.num_genes))
    numbers = np.zeros((num_batches, tokenizer.num_genes))
    rows = np.sort(rng.permutation(len(dataset))[:PROFILE_CELLS])
    for start in range(0, len(rows), CELLS):
        examples = dataset.__getitems__(rows[start : start + CELLS].tolist())
        ids, counts, lengths, totals = packed(examples)
        of_cells = np.array([example.get("batch", 0) for example in examples])
        places = np.repeat(np.arange(len(lengths)), lengths)
        shares = counts / totals[places]
        if likelihood == "squared_error":
            shares = tokenizer.normalize(counts, totals[places])
        measured = measured_genes(examples, tokenizer.num_genes)
        for batch in np.unique(of_cells):
            of_genes = of_cells[places] == batch
            sums[batch] += np.bincount(ids[of_genes], shares[of_genes], tokenizer.num_genes)
            is_own = of_cells == batch
            numbers[batch] += is_own.sum() if measured is None else measured[is_own].sum(0)
    means = sums / np.maximum(numbers, 1)
    if likelihood != "squared_error":
        means = np.log(means + RAREST) + (np.log(PER_CELL) if likelihood == "poisson" else 0)
    is_known = numbers > 0
    of_others = (means * is_known).sum(0) / np.maximum(is_known.sum(0), 1)
    of_others[~is_known.any(0)] = means.min()
    return np.where(is_known, means, of_others).astype(np.float32)


def fit_bag(
    model: Any,
    tokenizer: ExpressionTokenizer,
    dataset: Any,
    *,
    seed: int = 0,
    steps: int | None = None,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = CELLS,
    pooled: torch.Tensor | None = None,
) -> Iterator[float]:
    """Train the bag of genes and the reconstruction in place, and yield the loss of each step after it.

    Args:
        model: An anchored model for pre-training.
        tokenizer: Its tokenizer.
        dataset: Cells to train on.
        seed: Seed of the order of cells and of the visible genes.
        steps: Number of steps; 400 or 20 passes over the cells, whichever is less, unless given.
        learning_rate: Largest learning rate.
        batch_size: Cells of a step, at most as many as there are.
        pooled: What the encoder found in each cell, `(cells, D)`; the encoder takes no part unless given.
    """
    parts, rng = [model.model.bag, model.cell_decoder], np.random.default_rng(seed)
    if steps is None:
        steps = min(STEPS, -(-PASSES * len(dataset) // min(batch_size, len(dataset))))
    optimizer = torch.optim.AdamW(parameter_groups(*parts), lr=learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(steps // 20, 1), steps)
    for rows in batches_of_rows(len(dataset), batch_size, steps, rng):
        examples = dataset.__getitems__(rows.tolist())
        batch = {key: part.to(model.device) for key, part in bag_batch(examples, tokenizer, rng).items()}
        loss = bag_loss(model, batch, None if pooled is None else pooled[rows]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_([weight for part in parts for weight in part.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()  # here, so that none is left for the training that follows
        yield loss.item()


@torch.no_grad()
def fit_values(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0) -> None:
    """Set the mean and the slope of the value of each gene: a regression on its score in cells in which it is masked.

    A gene that is masked in few cells has the slope of all genes nearly, and a mean near that of all genes.
    """
    num_genes = tokenizer.num_genes
    number, sum_x, sum_d, sum_dd, sum_xd = np.zeros((5, num_genes))
    collator = DataCollatorForMaskedExpression(tokenizer, seed=seed, epoch=0, hidden_ratio=1.0, random_ratio=0.0)
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:VALUE_CELLS])
    for start in range(0, len(rows), CELLS):
        batch = collator(dataset.__getitems__(rows[start : start + CELLS].tolist()))
        visible = [batch[name].to(model.device) for name in ("input_ids", "values")]
        is_token = batch["attention_mask"].bool().to(model.device)
        scores = model.cell_decoder(model.model.bag(*visible, is_token)) - model.cell_decoder.to_genes.bias
        is_masked = (batch["labels"] != IGNORED).numpy()
        ids, x = batch["masked_ids"].numpy()[is_masked], batch["labels"].numpy()[is_masked].astype(np.float64)
        d = scores.cpu().numpy()[np.nonzero(is_masked)[0], ids].astype(np.float64)
        for sums, values in ((number, np.ones_like(x)), (sum_x, x), (sum_d, d), (sum_dd, d * d), (sum_xd, x * d)):
            sums += np.bincount(ids, values, num_genes)
    mean_x, mean_d = ((sums + sums.sum() / number.sum()) / (number + 1) for sums in (sum_x, sum_d))
    spread = np.maximum(sum_dd - number * mean_d**2, 0)  # sums over the cells of a gene, about its means
    together = sum_xd - number * mean_x * mean_d
    prior = PRIOR_CELLS * spread.sum() / number.sum()
    slope = (together + prior * together.sum() / max(spread.sum(), 1e-9)) / np.maximum(spread + prior, 1e-9)
    decoder = model.cell_decoder
    decoder.value_slope.copy_(torch.from_numpy(slope))
    decoder.value_mean.copy_(torch.from_numpy(mean_x - slope * mean_d))


def parameter_groups(*modules: nn.Module) -> list[dict[str, Any]]:
    """Return parameters for AdamW: weight decay is for matrices, not for biases, norms and biases of batches."""
    named = [each for module in modules for each in module.named_parameters()]
    is_decayed = [part.ndim > 1 and "batch_bias" not in name for name, part in named]
    return [
        {"params": [part for (_, part), flag in zip(named, is_decayed, strict=True) if flag], "weight_decay": 0.01},
        {"params": [part for (_, part), flag in zip(named, is_decayed, strict=True) if not flag], "weight_decay": 0.0},
    ]


def batches_of_rows(num_cells: int, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the rows of the cells of each step; each pass over the cells has a random order."""
    waiting = np.empty(0, np.int64)
    size = min(batch_size, num_cells)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(num_cells)])
        yield waiting[:size]
        waiting = waiting[size:]


def bag_batch(
    examples: Sequence[dict[str, Any]], tokenizer: ExpressionTokenizer, rng: np.random.Generator | None
) -> dict[str, torch.Tensor]:
    """Return visible genes and whole cells: `input_ids`, `values`, `is_token`, `whole`, `measured` and `batch_ids`.

    Args:
        examples: Cells.
        tokenizer: The model's tokenizer.
        rng: Draws from half to all of the genes of each cell; all are visible if None.
    """
    refuse_empty(examples)
    ids, counts, lengths, totals = packed(examples)
    places = np.repeat(np.arange(len(lengths)), lengths)
    values = tokenizer.normalize(counts, totals[places]).astype(np.float32)
    whole = np.zeros((len(lengths), tokenizer.num_genes), np.float32)
    whole[places, ids] = values
    is_visible = np.ones(len(ids), bool)
    if rng is not None:
        shares = rng.uniform(LEAST_VISIBLE, 1, len(lengths))
        is_visible = rng.random(len(ids)) < shares[places]
    numbers = np.bincount(places[is_visible], minlength=len(lengths))
    batch = {
        "input_ids": pad_right(cell_rows(ids[is_visible], numbers), 0, np.int64),
        "values": pad_right(cell_rows(values[is_visible], numbers), 0, np.float32),
        "is_token": np.arange(max(numbers.max(), 1)) < numbers[:, None],
        "whole": whole,
    }
    measured = measured_genes(examples, tokenizer.num_genes)
    batch |= {} if measured is None else {"measured": measured}
    if "batch" in examples[0]:
        batch["batch_ids"] = np.array([example["batch"] for example in examples])
    return {key: torch.from_numpy(array) for key, array in batch.items()}


def bag_loss(model: Any, batch: dict[str, torch.Tensor], pooled: torch.Tensor | None = None) -> torch.Tensor:
    """Return the loss of the reconstruction of each cell, `(B,)`."""
    embedding_BZ = model.model.bag(batch["input_ids"], batch["values"], batch["is_token"], pooled)
    scores_BG = model.cell_decoder.in_batches(model.cell_decoder(embedding_BZ), batch.get("batch_ids"))
    return reconstruction_loss(scores_BG, batch["whole"], batch.get("measured"), model.config.reconstruction_likelihood)
