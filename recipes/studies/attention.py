"""What the transformer of an anchored model is worth: the same checkpoint with what it adds, and without.

    python -m xtrimogene.recipes.studies.attention plan.yaml more.h5ad -o attention.json       # an hour a seed

    a ninth, a third and all of the cells  ->  bag of genes  ->  15, 60 and 240 steps of 16 cells
    cells that are not trained on          ->  embeddings and masked values, with and without the transformer

Without the transformer, the embedding is that of the bag of genes, and masked values follow from it alone.
"""

import json
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from ...eval.measures.probes import columns, neighbor_statistic
from ...eval.tasks.recovery import recovery_statistics
from ...inference.cell_model import CellModel
from ...records import plain
from ...tokenization.reading import annotated, cells_of
from ...training.options import FirstModel, Optimization
from ...training.starting import pretraining_rate
from ..pretrain import pretrain_files
from .embedding import batches_of, cells_to_train_on, log, recipe_of

SHARES, STEPS = (1 / 9, 1 / 3, 1), (15, 60, 240)
AS_NEW = Optimization(learning_rate=pretraining_rate(FirstModel(config="tiny"), "cpu"))
TESTED = 100  # cells of a data set whose genes are masked


def parts_of(files: list[Path], share: float, folder: Path) -> list[Path]:
    """Write a share of the cells of each file, the same at each call, and return the files."""
    folder.mkdir()
    for file in files:
        adata = annotated(file)
        rows = np.random.default_rng(0).permutation(adata.n_obs)[: round(share * adata.n_obs)]
        adata[np.sort(rows)].to_memory().write_h5ad(folder / file.name)
    return [folder / file.name for file in files]


def with_and_without(loaded: CellModel) -> dict[str, CellModel]:
    """Return a model for pre-training as it is, and without what its encoder and decoder add to the bag of genes."""
    alone = deepcopy(loaded)
    for layer in (alone.model.base_model.bag.from_encoder, alone.model.head):
        for weight in layer.parameters():
            weight.data.zero_()
    return {"with": loaded, "without": alone}


def scored(entries: list[dict[str, Any]], checkpoint: Path, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return data set -> metric -> `with` and `without` the transformer -> value."""
    models = with_and_without(CellModel.load(str(checkpoint), task="reconstruct"))
    return {Path(entry["data"]).stem: dict(scores_of(entry, models, seed)) for entry in entries}


def scores_of(entry: dict[str, Any], models: dict[str, CellModel], seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield metrics of the cells that an entry of the plan evaluates, and their value for each model."""
    adata = cells_of(Path(entry["data"]), entry.get("where") or {}, entry.get("max_cells")).to_memory()
    labels, batches, keep = columns(adata, entry.get("label_key"), entry.get("batch_key"))
    cells = models["with"].read(adata[keep].copy())
    everyone = np.arange(cells.n_cells)
    if labels is not None:
        neighbours = {}
        for name, model in models.items():
            embedding = (model.without_encoder() or model).embed(cells) if name == "without" else model.embed(cells)
            neighbours[name] = neighbor_statistic(embedding, labels, batches, seed, standardize=False)(everyone)
        yield "k-NN macro-F1", neighbours
    counts = cells.read()[0]
    rows = np.random.default_rng(seed).permutation(counts.shape[0])
    test = counts[rows[:TESTED]]
    masked = recovery_statistics(models, counts[rows[TESTED:]], test, seed, cells.measured)
    for metric in ("Pearson", "Pearson beyond gene means"):
        yield metric, {name: masked[name][metric](np.arange(test.shape[0])) for name in models}


def main(
    plan: Annotated[Path, typer.Argument(help="Plan with embedding tasks, one for each file.")],
    more: Annotated[list[Path] | None, typer.Argument(help="Files to train on that are not evaluated.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("attention.json"),
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
) -> None:
    """Pre-train and score for each seed, number of cells and number of steps, and write what came out after each."""
    entries = yaml.safe_load(plan.read_text(encoding="utf-8"))["tasks"]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        left = [*cells_to_train_on(entries, Path(folder)), *(more or ())]
        of_share = {share: parts_of(left, share, Path(folder) / f"{share:.2f}") for share in SHARES}
        for seed in map(int, seeds.split(",")):
            for share, files in of_share.items():
                bag = Path(folder) / f"bag {seed}, {share:.2f}"
                pretrain_files(files, bag, recipe_of(1, seed, batches_of(entries)), say=log)
                for steps in STEPS:
                    began, checkpoint = process_time(), Path(folder) / f"{seed}, {share:.2f}, {steps}"
                    recipe = replace(
                        recipe_of(steps, seed, batches_of(entries)), checkpoint=str(bag), optimization=AS_NEW
                    )
                    metrics = pretrain_files(files, checkpoint, recipe, say=log)
                    found.append(
                        {
                            "seed": seed,
                            "cells": metrics["cells"]["train"],
                            "steps": steps,
                            "CPU seconds": round(process_time() - began),
                            "scores": scored(entries, checkpoint, seed),
                        }
                    )
                    output.write_text(json.dumps(plain(found), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
