"""Adapt a checkpoint to data sets that it was not trained on, without labels, and score it on other cells of these.

python -m xtrimogene.recipes.studies.adaptation plan.yaml corpus.h5ad ... -o adaptation.json

files of the corpus                ->  `tiny`
half of the cells of a data set    ->  `adapt`, without labels  ->  `adapted`
the other half                     ->  their embeddings, that of PCA of the corpus, ...
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from ...eval.evaluate import options_of
from ...eval.measures.probes import columns
from ...eval.tasks.embedding import EmbeddingOptions, evaluate_embedding
from ...eval.tasks.run import Run
from ...options import build
from ...records import plain
from ...tokenization.reading import TrainingInput, cells_of
from ...training.options import Batched, Seeded
from ..adapt import adapt
from ..pretrain import pretrain_files
from .embedding import log, recipe_of


def adapted(entry: dict[str, Any], checkpoint: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Return what adaptation to half of the cells gained, its CPU seconds, and metric -> method -> score on the others.

    Args:
        entry: Entry of the plan.
        checkpoint: Folder of the checkpoint.
        folder: Folder for the adapted checkpoint.
        seed: Seed of the halves, of adaptation, folds and clusters.
    """
    options, path = build(EmbeddingOptions, options_of(entry)), Path(entry["data"])
    cells = cells_of(path, entry.get("where") or {}, entry.get("max_cells"))
    cells = cells[columns(cells, options.label_key, options.batch_key)[2]].to_memory(copy=True)
    order = np.random.default_rng(seed).permutation(cells.n_obs)
    ours, others = (cells[np.sort(half)].copy() for half in np.array_split(order, 2))
    batches, began = Batched(batch_key=options.batch_key), process_time()
    gained = adapt(ours, checkpoint, folder, TrainingInput(), batches, Seeded(seed=seed, device="cpu"), say=log)
    seconds = round(process_time() - began)
    models = {"tiny": str(checkpoint), "adapted": str(folder)}
    result = evaluate_embedding(others, path.stem, models, options, Run((seed,), say=log))
    metrics: dict[str, Any] = {}
    for score in result.scores:
        metrics.setdefault(score.metric, {})[score.method] = {"value": score.value, "seen": score.seen}
    return {"gained": gained, "CPU seconds": seconds, "scores": metrics}


def study(entries: Sequence[dict[str, Any]], files: list[Path], seed: int, steps: int) -> dict[str, Any]:
    """Return what came out for a seed: the cells of the corpus, and data set -> what adaptation gave."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny"
        metrics = pretrain_files(files, checkpoint, recipe_of(steps, seed), say=log)
        found = {}
        for entry in entries:
            name = Path(entry["data"]).stem
            found[name] = adapted(entry, checkpoint, Path(folder) / name, seed)
        return {"seed": seed, "cells": metrics["cells"], "data sets": found}


def main(
    plan: Annotated[Path, typer.Argument(help="Plan with embedding tasks, of data sets that are not trained on.")],
    corpus: Annotated[list[Path], typer.Argument(help="Files to train on.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("adaptation.json"),
    steps: Annotated[int, typer.Option(help="Steps of 16 cells, after the bag of genes is fitted.")] = 1,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
) -> None:
    """Pre-train, adapt and score for each seed, and write what came out after each."""
    entries = yaml.safe_load(plan.read_text(encoding="utf-8"))["tasks"]
    found: dict[str, Any] = {"steps": steps, "seeds": []}
    for seed in map(int, seeds.split(",")):
        found["seeds"].append(study(entries, corpus, seed, steps))
        output.write_text(json.dumps(plain(found), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
