"""Adapt an anchored model to unlabelled cells, such as those of a tissue or a protocol that it has not seen.

    components of the checkpoint  |
    principal components of the cells  ->  components of both, a new reconstruction  ->  both learn from the cells

What the encoder would add was learned for the old components. It is left out, so no cell passes through the encoder.
The weights with the best likelihood of held-out cells are kept.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..modeling_xtrimogene.anchor_xtrimogene import forget_encoder
from ..modeling_xtrimogene.reconstruction_xtrimogene import reconstruction_loss
from ..tokenization.expression_xtrimogene import ExpressionTokenizer
from .anchoring import (
    CELLS,
    bag_batch,
    begin_anchor,
    fit_bag,
    fit_values,
    set_components,
    set_profiles,
)

LEARNING_RATE, BATCH_SIZE = 2e-3, 64
LEAST_STEPS, MOST_STEPS, PASSES = 50, 600, 9  # the rate falls to 0 by then: more passes learn cells by heart
MOST_CELLS = 20_000  # a random draw of so many is learned from
HELD_OUT, MOST_HELD_OUT = 0.1, 1_000
EVERY, PATIENCE = 25, 3  # steps between looks at the held-out cells; looks without a gain until the end


def adapt_model(
    model: Any,
    tokenizer: ExpressionTokenizer,
    dataset: Any,
    seed: int = 0,
    tell: Callable[[float], object] = lambda share: None,
) -> dict[str, Any]:
    """Adapt a model in place to unlabelled cells; return what it gained.

    Its embedding is then that of the bag of genes alone. The weights with the best likelihood of the held-out cells are
    kept, the old components among them. The result has the keys:

    - `cells`: how many were learned from, and held out.
    - `steps`: how many were taken until the likelihood of the held-out cells stopped to rise.
    - `new components`: False if the held-out cells were likeliest with the embedding as it was. Then only the mean
      profile of genes, or of each batch, was learned from the cells.
    - `nats of a count before`, `after`: mean negative log likelihood of a count of the held-out cells, given the bag of
      genes of their cell. Lower is better. Before adaptation, the model does not know the batches.

    Args:
        model: An anchored model for pre-training, on any device.
        tokenizer: The model's tokenizer.
        dataset: Cells, with the key `batch` if they are of several batches. At most 20,000 of them are used.
        seed: Seed of the held-out cells, of the new reconstruction and of the order of the other cells.
        tell: Called with the share of the steps that is done; the last are left out if nothing is gained any more.

    Raises:
        ValueError: If the model is not anchored, there are fewer than 20 cells, or each cell is a batch of its own.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2]] * 20, columns=tokenizer.genes)
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=4))
        >>> gained = adapt_model(model, tokenizer, cells_dataset(tokenizer.read_counts(counts)))
        >>> gained["nats of a count after"] < gained["nats of a count before"]
        True
    """
    check_anchored(model, f"this {type(model).__name__}")
    if len(dataset) < 20:
        raise ValueError(f"{len(dataset)} cells are too few to adapt to and to hold some out: give at least 20")
    held_out, train = (dataset.select(part) for part in split_cells(dataset, seed))
    was_training = model.training
    model.eval()
    before = nats(model, tokenizer, held_out, knows_batches=False)
    forget_encoder(model.model)
    begin_anchor(model, tokenizer, train, seed)
    best, best_weights = nats(model, tokenizer, held_out), weights_of(model)
    begin_again(model, tokenizer, train, seed)
    steps = min(max(math.ceil(PASSES * len(train) / BATCH_SIZE), LEAST_STEPS), MOST_STEPS)
    step, least, since_least, is_new = 0, math.inf, 0, False
    tell(0.0)
    learning = fit_bag(
        model, tokenizer, train, seed=seed, steps=steps, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE
    )
    for step, _ in enumerate(learning, start=1):
        if step % EVERY and step != steps:
            continue
        tell(step / steps)
        now = nats(model, tokenizer, held_out)
        if now < best:
            best, best_weights, is_new = now, weights_of(model), True
        least, since_least = (now, 0) if now < least else (least, since_least + 1)
        if since_least == PATIENCE:
            break
    model.load_state_dict(best_weights, strict=False)
    fit_values(model, tokenizer, train, seed)
    model.train(was_training)
    return {
        "cells": {"train": len(train), "held out": len(held_out)},
        "steps": step,
        "new components": is_new,
        "nats of a count before": before,
        "nats of a count after": best,
    }


def begin_again(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, seed: int) -> None:
    """Join the components of the bag of genes with those of the cells, and give the model a new reconstruction."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = type(model.cell_decoder)(model.config)
        decoder.apply(model._init_weights)
    model.cell_decoder = decoder.to(model.device).eval()
    set_profiles(model, tokenizer, dataset, seed)
    set_components(model, tokenizer, dataset, seed, joins=True)


def split_cells(dataset: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the cells that are held out, and of those that are learned from.

    Raises:
        ValueError: If each cell is a batch of its own.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))[:MOST_CELLS]
    num_held_out = min(round(len(order) * HELD_OUT), MOST_HELD_OUT)
    is_held_out = np.arange(len(order)) < num_held_out
    if "batch" in dataset[0]:  # of a batch without training cells nothing would be learned
        of_cells = np.asarray(dataset["batch"][:])[order]
        is_held_out &= np.isin(of_cells, of_cells[num_held_out:])
    if not is_held_out.any():
        raise ValueError(
            f"of {len(order):,} cells none can be held out, because each is the only one of its batch: name a column "
            f"with fewer batches, or none"
        )
    return np.sort(order[is_held_out]), np.sort(order[~is_held_out])


def check_anchored(model: Any, name: str) -> None:
    """Refuse a model that reconstructs no cell from its embedding; `name` is what the message calls it.

    Raises:
        ValueError: If it is not anchored.
    """
    if not getattr(model.config, "anchored", False):
        raise ValueError(
            f"{name} is not anchored, so its embedding reconstructs no cell and nothing can be adapted: pre-train an "
            f"anchored one, such as `xtrimogene pretrain --config tiny`"
        )


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the weights that adaptation changes."""
    changed = ("model.bag.", "cell_decoder.")
    return {name: part.clone() for name, part in model.state_dict().items() if name.startswith(changed)}


@torch.inference_mode()
def embeddings_of(model: Any, tokenizer: ExpressionTokenizer, dataset: Any) -> torch.Tensor:
    """Return the embeddings `(cells, Z)` that the bag of genes gives."""
    embed = model.model.bag
    batches = whole_cells(model, tokenizer, dataset)
    return torch.cat([embed(batch["input_ids"], batch["values"], batch["is_token"]) for batch in batches])


@torch.inference_mode()
def nats(model: Any, tokenizer: ExpressionTokenizer, dataset: Any, knows_batches: bool = True) -> float:
    """Return the loss of the reconstruction of cells, of which all genes are visible: a mean over cells.

    Other than in training, all measured genes count, also those that no cell learned from expresses in the batch. So
    losses with and without batches are of the same counts.
    """
    losses, likelihood = [], model.config.reconstruction_likelihood
    for batch in whole_cells(model, tokenizer, dataset):
        scores = model.cell_decoder(model.model.bag(batch["input_ids"], batch["values"], batch["is_token"]))
        if knows_batches:
            scores, _ = model.cell_decoder.in_batches(scores, None, batch.get("batch_ids"))
        losses.append(reconstruction_loss(scores, batch["whole"], batch.get("measured"), likelihood))
    return torch.cat(losses).mean().item()


def whole_cells(model: Any, tokenizer: ExpressionTokenizer, dataset: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of cells with all of their counts, on the model's device."""
    for start in range(0, len(dataset), CELLS):
        batch = bag_batch(dataset.__getitems__(list(range(start, min(start + CELLS, len(dataset))))), tokenizer, None)
        yield {name: part.to(model.device) for name, part in batch.items()}
