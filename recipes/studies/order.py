"""Compare random batches with batches of cells of similar length: padding, and scores after training.

    python -m xtrimogene.recipes.studies.order a.h5ad b.h5ad -o order.json       # some minutes a seed

Both orders pre-train `tiny` from the same weights, for the same number of steps, on the same cells. Held-out cells have
the same masks.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from transformers import set_seed

from ... import families
from ...eval.measures.baselines import hide
from ...eval.measures.recovery import recovery_scores
from ...tokenization.reading import TrainingInput
from ...training.arguments import CellTrainingArguments
from ...training.data.cells import read_files
from ...training.data.dataset import expression
from ...training.data.measured import num_measured
from ...training.data.sampler import ShuffledCells
from ...training.pretraining import pretrain

SIZE = "tiny"
WINDOW = 32  # batches among which cells are sorted by length
BATCH_SIZE, LEARNING_RATE, HELD_OUT = 16, 2e-3, 0.05
RATIOS = (0.3, 0.03)  # shares of expressed and of zero genes that are masked


class LikeLengths(ShuffledCells):
    """Yield all cells in an order whose batches hold cells of similar length; it changes with the epoch.

    Args:
        lengths: Number of expressed genes of each cell, `(cells,)`.
        batch_size: Number of cells in a batch.
        seed: Seed of the order.

    Example:
        >>> lengths = np.array([900, 100, 800, 200])
        >>> cells = LikeLengths(lengths, batch_size=2)
        >>> sorted(cells), round(padding(cells, lengths, batch_size=2), 2)
        ([0, 1, 2, 3], 0.09)
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int = 0):
        super().__init__(len(lengths), seed)
        self.lengths, self.batch_size = lengths, batch_size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        windows = np.array_split(rng.permutation(self.num_cells), -(-self.num_cells // (WINDOW * self.batch_size)))
        order = np.concatenate([cells[np.argsort(self.lengths[cells], kind="stable")] for cells in windows])
        num_whole = self.num_cells // self.batch_size * self.batch_size
        batches = order[:num_whole].reshape(-1, self.batch_size)
        yield from rng.permutation(batches).ravel().tolist()
        yield from order[num_whole:].tolist()


def padding(sampler: ShuffledCells, lengths: np.ndarray, batch_size: int) -> float:
    """Return the share of padding in the batches of an epoch."""
    order = lengths[list(sampler)]
    padded = sum(
        len(order[at : at + batch_size]) * order[at : at + batch_size].max() for at in range(0, len(order), batch_size)
    )
    return float(1 - order.sum() / padded)


def train(dataset: Any, tokenizer: Any, like_lengths: bool, steps: int, seed: int) -> dict[str, float]:
    """Pre-train `tiny`; return its time, padding, and scores of masked values of held-out cells."""
    set_seed(seed)
    config = families.family_of_preset(SIZE).configure(SIZE, anchored=False)
    model = families.model_class(config, "reconstruct")(config)
    cells = np.random.default_rng(seed).permutation(len(dataset))
    num_held_out = round(HELD_OUT * len(cells))
    test, known = dataset.select(np.sort(cells[:num_held_out])), dataset.select(np.sort(cells[num_held_out:]))
    lengths = known["length"][:]
    sampler = LikeLengths(lengths, BATCH_SIZE, seed) if like_lengths else ShuffledCells(len(lengths), seed)
    arguments = CellTrainingArguments(
        "order", max_steps=steps, learning_rate=LEARNING_RATE, warmup_steps=0.05, seed=seed,
        per_device_train_batch_size=BATCH_SIZE, disable_tqdm=True,
    )  # fmt: skip
    began = perf_counter()
    trainer = pretrain(model, tokenizer, known, arguments=arguments, train_sampler=sampler)
    seconds = perf_counter() - began
    predicted, (true, masked_ids), _ = trainer.predict(test)
    seen, visible = expression(known, tokenizer), hide(expression(test, tokenizer), masked_ids)
    measured = num_measured(known, tokenizer.num_genes)
    ours = families.family_of(config).about.name
    scores = recovery_scores(ours, true, np.asarray(predicted), masked_ids, seen, visible, RATIOS, seed, measured)
    beyond = {name: row["pearson_beyond_gene_mean"] for name, row in scores.items() if name != "gene mean"}
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "padding": padding(sampler, lengths, BATCH_SIZE),
        **{f"beyond gene means, {name}": value for name, value in beyond.items()},
    }


def main(
    files: Annotated[list[Path], typer.Argument(help="Cells.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("order.json"),
    steps: Annotated[int, typer.Option(help="Steps of 16 cells.")] = 500,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0",
) -> None:
    """Measure both orders, and write what came out after each run."""
    tokenizer = families.family_of_preset(SIZE).tokenizer.default()
    dataset, numbers = read_files(files, tokenizer, TrainingInput(), say=lambda text: typer.echo(text, err=True))
    found: dict[str, Any] = {"cells": dict(numbers), "steps": steps, "random": [], "like lengths": []}
    for seed in map(int, seeds.split(",")):
        for name in ("random", "like lengths"):
            found[name].append(train(dataset, tokenizer, name == "like lengths", steps, seed))
            output.write_text(json.dumps(found, indent=2))
            typer.echo(f"{name}: {found[name][-1]}", err=True)


if __name__ == "__main__":
    typer.run(main)
