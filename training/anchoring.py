"""Fit the bag of genes of an anchored model, the simple method that the transformer's part is then added to.

    cells  ->  principal components within batches, less what differs between batches  ->  first embedding
    cells  ->  some of their counts  ->  BagOfGenes (+ what the encoder found)  ->  CellDecoder  ->  likelihood of cells
    fitted bag, less a quarter of what tells batches of the same file apart  ->  bag that stays

It has no attention, so 200 steps of 128 cells take less than a minute on a core. docs/embedding.md says what was tried.
Values are those of the model's family: `log1p` of counts per 10,000, or per 100,000 for TxFM. The bag brings them to
10,000.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from ..modeling_xtrimogene.anchor_xtrimogene import ValueDecoder
from ..modeling_xtrimogene.reconstruction_xtrimogene import (
    PER_CELL,
    Likelihood,
    reconstructed_values,
    rescaled,
)
from ..modeling_xtrimogene.xpressor_xtrimogene import energy_distance
from ..tokenization.collators import (
    IGNORED,
    DataCollatorForMaskedExpression,
    measured_genes,
    packed,
    refuse_empty,
)
from ..tokenization.expression_xtrimogene import ExpressionTokenizer, cell_rows, pad_right
from .arguments import is_decayed
from .components import batch_free_components, joined_axes, without_batches
from .data.dataset import SOURCE, expression

STEPS, CELLS, LEARNING_RATE = 200, 128, 2e-3
PASSES = 20  # at most so many over the cells; with few cells, more steps learn these cells by heart
LEAST_KEPT = 0.3  # of the counts of a cell; the share is drawn anew for each cell and step
TAKEN_OUT = 0.25  # of what tells batches apart; more mixes them better, and costs types their probe and their clusters
COMPONENT_CELLS = 20_000  # more cells do not change the principal components
VALUE_CELLS, PRIOR_CELLS = 5_000, 100  # cells to regress on; how many cells speak for Poisson counts in each gene
PROFILE_CELLS = 20_000  # with fewer, genes that a batch hardly expresses look as if it had none of them
RAREST = 0.01  # counts per 10,000, added to means before their log, so that a gene without counts has one


def begin_anchor(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0, fit: bool = True) -> None:
    """Prepare an anchored model for its first step on these cells.

    The biases of batches are set to their mean profiles. In a new model, the biases of genes and the components are set
    too, and the bag of genes is fitted. The encoder and the decoder are left as they are.

    Args:
        model: An anchored model for pre-training, on any device.
        tokenizer: The model's tokenizer.
        dataset: Cells to train on, with the key `batch` if they are of several batches.
        seed: Seed of the order of cells and of the counts that are kept.
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
    if model.cell_decoder.is_set:
        set_profiles(model, tokenizer, dataset, seed)
    else:
        deque(fit_new_bag(model, tokenizer, dataset, seed), maxlen=0)
        fit_values(model, tokenizer, dataset, seed)  # of masked genes, where the family has them


def fit_new_bag(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0) -> Iterator[None]:
    """Fit the bag of genes of a new model that has room for its batches; arguments as of `begin_anchor`.

    It yields once the bag holds the principal components, and after each step of training; after the last one, what
    tells batches apart is taken out.
    """
    set_profiles(model, tokenizer, dataset, seed)
    set_components(model, tokenizer, dataset, seed)
    yield
    for _ in fit_bag(model, tokenizer, dataset, seed=seed):
        yield
    if model.config.num_batches:  # several
        take_out_batches(model, tokenizer, dataset, seed)


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
    profiles, _ = batch_profiles(tokenizer, dataset, num_batches(dataset), model.config.reconstruction_likelihood, seed)
    with torch.no_grad():
        bias.copy_(torch.from_numpy(profiles.mean(0)))


def num_batches(dataset: Any) -> int:
    """Return the number of batches of cells; 1 if they have no key `batch`."""
    return int(np.max(dataset["batch"][:])) + 1 if "batch" in dataset[0] else 1


@torch.no_grad()
def set_profiles(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0) -> None:
    """Set the biases so that the mean reconstructed cell of each batch is its mean cell.

    In a new model, the biases of genes are set to the mean of the profiles of batches. In a trained one they change
    only if there is a single batch.
    """
    decoder, likelihood = model.cell_decoder, model.config.reconstruction_likelihood
    number = max(model.config.num_batches, 1)
    profiles, is_expressed = batch_profiles(tokenizer, dataset, number, likelihood, seed)
    if decoder.is_set:
        beyond = profiles - batch_profiles(tokenizer, dataset, number, likelihood, seed, model)[0]
    else:
        decoder.to_genes.bias.copy_(torch.from_numpy(profiles.mean(0)))
        beyond = profiles - profiles.mean(0)
    if decoder.batch_bias is not None:
        decoder.batch_bias.weight.copy_(torch.from_numpy(beyond))
        decoder.is_expressed.copy_(torch.from_numpy(is_expressed))
    else:
        decoder.to_genes.bias += torch.from_numpy(beyond[0]).to(decoder.to_genes.bias.device)


@torch.no_grad()
def batch_profiles(
    tokenizer: ExpressionTokenizer,
    dataset: Any,
    num_batches: int,
    likelihood: Likelihood,
    seed: int = 0,
    model: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of genes that give the mean cell of each batch, and which genes its cells express.

    A gene that was not measured in a batch has the mean of the other batches. Both arrays are `(batches, G)`.

    Args:
        tokenizer: Tokenizer of the cells.
        dataset: Cells, with the key `batch` if there are several batches.
        num_batches: Number of batches.
        likelihood: What scores are (`reconstruction_loss`).
        seed: Seed of the choice of at most 20,000 cells, as many of each batch as there are.
        model: An anchored model: the cells are then as it reconstructs them, without biases of batches.
    """
    sums, numbers = np.zeros((2, num_batches, tokenizer.num_genes))
    rows = alike_of_batches(dataset, PROFILE_CELLS, np.random.default_rng(seed))
    for start in range(0, len(rows), CELLS):
        batch = bag_batch(dataset.__getitems__(rows[start : start + CELLS].tolist()), tokenizer, None)
        values, total = batch["whole"], tokenizer.target_sum
        if model is not None:
            visible = (batch[name].to(model.device) for name in ("input_ids", "values", "is_token"))
            values = reconstructed_values(model.cell_decoder(model.model.bag(*visible)), likelihood).cpu()
            total = PER_CELL
        found = values if likelihood == "squared_error" else values.expm1() * (PER_CELL / total)
        of_cells = batch.get("batch_ids", torch.zeros(len(values), dtype=torch.int64))
        members = nn.functional.one_hot(of_cells, num_batches).T.float()  # (batches, cells)
        measured = batch.get("measured", torch.ones(1, tokenizer.num_genes)).expand_as(values).float()
        sums += (members @ (found * measured)).numpy()
        numbers += (members @ measured).numpy()
    means = sums / np.maximum(numbers, 1)
    if likelihood != "squared_error":
        means = np.log(means + RAREST) - (np.log(PER_CELL) if likelihood == "multinomial" else 0)
    is_known = numbers > 0
    of_others = (means * is_known).sum(0) / np.maximum(is_known.sum(0), 1)
    of_others[~is_known.any(0)] = means.min()
    return np.where(is_known, means, of_others).astype(np.float32), sums > 0


def alike_of_batches(dataset: Any, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return the sorted rows of at most so many cells, drawn at random: as many of each batch, if it has them."""
    rows = rng.permutation(len(dataset))
    if "batch" in dataset[0]:
        of_cells = np.asarray(dataset["batch"][:])[rows]
        order = np.argsort(of_cells, kind="stable")
        numbers = np.bincount(of_cells)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(numbers) - numbers, numbers)  # in its batch
        rows = rows[order][np.argsort(places, kind="stable")]
    return np.sort(rows[:number])


@torch.no_grad()
def set_components(
    model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0, joins: bool = False
) -> None:
    """Set the first embedding of cells to their principal components, in units of their standard deviation.

    Args:
        model: An anchored model for pre-training.
        tokenizer: Its tokenizer.
        dataset: Cells.
        seed: Seed of the choice of cells, if there are very many, and of the first subspace.
        joins: Whether the components of the model are joined with those of the cells; else they are replaced.
    """
    bag, rng = model.model.bag, np.random.default_rng(seed)
    number = model.config.embedding_size
    values, of_cells, _ = component_cells(model, tokenizer, dataset, rng)
    axes_GK = batch_free_components(values, of_cells, number, rng)
    if joins:
        axes_GK = joined_axes(axes_GK, bag.components.cpu().numpy(), values, of_cells)
    axes_GK /= max((values @ axes_GK - values.mean(0) @ axes_GK).std(), 1e-6)
    axes_GZ = np.pad(axes_GK, ((0, 0), (0, number - axes_GK.shape[1])))
    bag.components.copy_(torch.from_numpy(axes_GZ))
    bag.bias.copy_(torch.from_numpy(-(values.mean(0) @ axes_GZ)).view(-1))


@torch.no_grad()
def take_out_batches(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0) -> None:
    """Take a quarter of what tells the batches of a source apart out of a fitted bag; arguments as of `fit_bag`.

    The bag begins without it, but learns some of it again. Batches of different sources, such as files, are not
    compared, because they also differ in tissue. The mean cell keeps its embedding.
    """
    bag, rng = model.model.bag, np.random.default_rng(seed)
    values, of_cells, of_sources = component_cells(model, tokenizer, dataset, rng)
    axes_GZ = bag.components.cpu().numpy()
    kept_GZ = without_batches(axes_GZ, values, of_cells, of_sources, TAKEN_OUT)
    bag.bias += torch.from_numpy(values.mean(0) @ (axes_GZ - kept_GZ)).view(-1).to(bag.bias)
    bag.components.copy_(torch.from_numpy(kept_GZ))


def component_cells(
    model: Any, tokenizer: ExpressionTokenizer, dataset: Any, rng: np.random.Generator
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return values of at most 20,000 cells as the bag reads them, CSR `(cells, G)`, and their batches and sources.

    Batches and sources are numbers `(cells,)`; without the columns `batch` and `source` they are 0.
    """
    cells = dataset.select(np.sort(rng.permutation(len(dataset))[:COMPONENT_CELLS]))
    of_cells = np.asarray(cells["batch"][:]) if "batch" in cells[0] else np.zeros(len(cells), np.int64)
    of_sources = np.zeros(len(cells), np.int64)
    if SOURCE in cells.column_names:
        of_sources = np.unique(np.asarray(cells[SOURCE][:]), return_inverse=True)[1]
    values = expression(cells, tokenizer)
    values.data = rescaled(torch.from_numpy(values.data), model.config.anchor_scale).numpy()
    return values, of_cells, of_sources


def fit_bag(
    model: Any,
    tokenizer: ExpressionTokenizer,
    dataset: Any,
    *,
    seed: int = 0,
    steps: int | None = None,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = CELLS,
) -> Iterator[float]:
    """Train the bag of genes and the reconstruction in place, and yield the loss of each step after it.

    Args:
        model: An anchored model for pre-training.
        tokenizer: Its tokenizer.
        dataset: Cells to train on.
        seed: Seed of the order of cells and of the counts that are kept.
        steps: Number of steps; 200 or 20 passes over the cells, whichever is less, unless given.
        learning_rate: Largest learning rate.
        batch_size: Cells of a step, at most as many as there are.
    """
    bag, rng = model.model.bag, np.random.default_rng(seed)
    if steps is None:
        steps = min(STEPS, -(-PASSES * len(dataset) // min(batch_size, len(dataset))))
    weights = dict([*bag.named_buffers(), *model.cell_decoder.named_parameters()])
    optimizer = torch.optim.AdamW(parameter_groups(weights), lr=learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(steps // 20, 1), steps)
    fitted = list(bag.buffers())
    try:
        for weight in fitted:
            weight.requires_grad_(True)
        for rows in batches_of_rows(len(dataset), batch_size, steps, rng):
            examples = dataset.__getitems__(rows.tolist())
            batch = {key: part.to(model.device) for key, part in bag_batch(examples, tokenizer, rng).items()}
            loss = bag_loss(model, batch, mixes=True).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()  # here, so that none is left for the training that follows
            yield loss.item()
    finally:
        for weight in fitted:
            weight.requires_grad_(False)


@torch.no_grad()
def fit_values(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int = 0) -> None:
    """Set how the values of each gene depart from their expectation: by a regression in cells in which it is masked.

    A gene that is masked in few cells keeps nearly the offset 0 and the slope 1. A model whose decoder tells no values
    of masked genes, such as a TxFM, is left as it is.
    """
    if not isinstance(model.cell_decoder, ValueDecoder):
        return
    number, sum_x, sum_e, sum_ee, sum_xe = np.zeros((5, tokenizer.num_genes))
    collator = DataCollatorForMaskedExpression(tokenizer, seed=seed, epoch=0, hidden_ratio=1.0, random_ratio=0.0)
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:VALUE_CELLS])
    for start in range(0, len(rows), CELLS):
        batch = collator(dataset.__getitems__(rows[start : start + CELLS].tolist()))
        visible = [batch[name].to(model.device) for name in ("input_ids", "values")]
        visible.append(batch["attention_mask"].bool().to(model.device))
        expected = model.cell_decoder.expected_values(model.cell_decoder(model.model.bag(*visible)), *visible)
        is_masked = (batch["labels"] != IGNORED).numpy()
        ids, x = batch["masked_ids"].numpy()[is_masked], batch["labels"].numpy()[is_masked].astype(np.float64)
        e = expected.cpu().numpy()[np.nonzero(is_masked)[0], ids].astype(np.float64)
        for sums, values in ((number, np.ones_like(x)), (sum_x, x), (sum_e, e), (sum_ee, e * e), (sum_xe, x * e)):
            sums += np.bincount(ids, values, tokenizer.num_genes)
    mean_x, mean_e = (sums / np.maximum(number, 1) for sums in (sum_x, sum_e))
    spread = np.maximum(sum_ee - number * mean_e**2, 0)  # sums over the cells of a gene, about its means
    prior = PRIOR_CELLS * max(spread.sum(), 1e-6) / max(number.sum(), 1)
    slope = (sum_xe - number * mean_x * mean_e + prior) / (spread + prior)
    offset = (mean_x - slope * mean_e) * number / (number + PRIOR_CELLS)
    model.cell_decoder.value_slope.copy_(torch.from_numpy(slope))
    model.cell_decoder.value_offset.copy_(torch.from_numpy(offset))


def parameter_groups(weights: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return groups for AdamW, of the weights that decay and of the others."""
    decayed = {name for name, weight in weights.items() if is_decayed(name, weight)}
    return [
        {"params": [weights[name] for name in weights if name in decayed], "weight_decay": 0.01},
        {"params": [weights[name] for name in weights if name not in decayed], "weight_decay": 0.0},
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
        rng: Keeps from 30 % to all counts of each cell at random, as if it were sequenced less; all are kept if None.
    """
    refuse_empty(examples)
    ids, counts, lengths, totals = packed(examples)
    places = np.repeat(np.arange(len(lengths)), lengths)
    whole = np.zeros((len(lengths), tokenizer.num_genes), np.float32)
    whole[places, ids] = tokenizer.packed_values(counts, lengths, totals)
    if rng is not None:
        shares = rng.uniform(LEAST_KEPT, 1, len(lengths))
        counts, totals = thinned(counts, shares[places], rng), totals * shares
    is_visible = counts > 0
    numbers = np.bincount(places[is_visible], minlength=len(lengths))
    values = tokenizer.packed_values(counts[is_visible], numbers, totals)
    batch = {
        "input_ids": pad_right(cell_rows(ids[is_visible], numbers), 0, np.int64),
        "values": pad_right(cell_rows(values, numbers), 0, np.float32),
        "is_token": np.arange(max(numbers.max(), 1)) < numbers[:, None],
        "whole": whole,
    }
    measured = measured_genes(examples, tokenizer.num_genes)
    batch |= {} if measured is None else {"measured": measured}
    if "batch" in examples[0]:
        batch["batch_ids"] = np.array([example["batch"] for example in examples])
    return {key: torch.from_numpy(array) for key, array in batch.items()}


def thinned(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep each count with the probability in `shares`; what is beyond a whole number is kept or lost as one.

    Example:
        >>> thinned(np.array([1000.0, 4.0]), np.array([0.5, 1.0]), np.random.default_rng(0)).tolist()
        [5..., 4.0]
    """
    whole = np.floor(counts)
    return rng.binomial(whole.astype(np.int64), shares) + (counts - whole) * (rng.random(len(counts)) < shares)


def bag_loss(model: Any, batch: dict[str, torch.Tensor], mixes: bool = False) -> torch.Tensor:
    """Return the loss of the reconstruction of each cell from the bag of genes alone, `(B,)`.

    Args:
        model: An anchored model for pre-training.
        batch: Cells, from `bag_batch`.
        mixes: Whether to add the distance between batches, where `mixing_weight` says so.
    """
    embedding_BZ = model.model.bag(batch["input_ids"], batch["values"], batch["is_token"])
    scores_BG = model.cell_decoder(embedding_BZ)
    losses_B = model.cell_decoder.loss(scores_BG, batch["whole"], batch.get("measured"), batch.get("batch_ids"))
    weight = getattr(model.config, "mixing_weight", 0.0)  # not all families have it
    if mixes and weight and "batch_ids" in batch:
        losses_B = losses_B + weight * energy_distance(embedding_BZ, batch["batch_ids"])
    return losses_B
