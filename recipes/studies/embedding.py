"""Score embeddings of cells that a checkpoint was not trained on, though other cells of their data sets were.

    python -m xtrimogene.recipes.studies.embedding plan.yaml more.h5ad -o embedding.json       # some minutes a seed

    cells of all files of the plan, less those that the plan evaluates  ->  one model for all data sets
    evaluated cells  ->  its embedding, its bag of genes alone, PCA of the same corpus, PCA of these cells, ...

    their masked values, as they are and with fewer counts  ->  those of the model, a PCA imputer of the data set, ...

The model is a `tiny`, or one of `--size txfm-tiny`. Each seed is a pre-training of its own, with the same cells.
"""

import json
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from ...eval.evaluate import TASKS, options_of
from ...eval.tasks.recovery import SPARSITIES, at_sparsities, recovery_statistics
from ...eval.tasks.run import Run
from ...inference.cell_model import CellModel
from ...options import build
from ...records import plain
from ...tokenization.reading import annotated, cells_of
from ...training.options import Batched, Batching, HeldOut, NewModel, Seeded
from ..options import Pretraining
from ..pretrain import pretrain_files

SIZE = "tiny"
HELD_OUT = 0.01  # of the cells; they are looked at ten times
BATCH = "batch"  # column of obs of the files that are trained on
SEEN, TESTED, LEAST = 1_000, 50, 20  # cells that the imputer learns from, that are tested, least of them at a sparsity


def cells_to_train_on(entries: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write the cells of each file that its entry of the plan does not evaluate, with their batches; return the files.

    Raises:
        ValueError: If two entries evaluate the same file, since the cells left over by one may be evaluated by another.
    """
    files = [entry["data"] for entry in entries]
    if len(set(files)) < len(files):
        raise ValueError(f"{len(files)} entries of the plan evaluate {len(set(files))} files: give one entry for each")
    written = []
    for entry in entries:
        path = Path(entry["data"])
        adata = annotated(path)
        evaluated = cells_of(path, entry.get("where") or {}, entry.get("max_cells")).obs_names
        rest = adata[~adata.obs_names.isin(evaluated)]
        rest = rest.to_memory() if rest.isbacked else rest.copy()
        if "batch_key" in entry:
            rest.obs[BATCH] = rest.obs[entry["batch_key"]].astype(str)
        else:
            rest.obs = rest.obs.drop(columns=BATCH, errors="ignore")  # a file without the column is one batch
        written.append(folder / path.name)
        rest.write_h5ad(written[-1])
    return written


def batches_of(entries: list[dict[str, Any]]) -> str | None:
    """Return the column with batches of the written files; None if no entry of the plan names one."""
    return BATCH if any("batch_key" in entry for entry in entries) else None


def scored(entries: list[dict[str, Any]], checkpoint: Path, seed: int, size: str = SIZE) -> dict[str, Any]:
    """Return data set -> metric -> method -> value, and which share of the evaluated cells each method has seen."""
    found: dict[str, Any] = {}
    for entry in entries:
        task = TASKS["embedding"]
        options = build(task.options, options_of(entry))
        result = task.run(Path(entry["data"]), {size: str(checkpoint)}, options, Run((seed,), say=log))
        metrics = found.setdefault(Path(entry["data"]).stem, {})
        for score in result.scores:
            row = {"value": score.value, "low": score.low, "high": score.high, "seen": score.seen}
            metrics.setdefault(score.metric, {})[score.method] = row
    return found


def recovered(
    entry: dict[str, Any], left: Path, checkpoint: Path, seed: int, size: str = SIZE
) -> dict[str, dict[str, Any]]:
    """Return level -> method -> metric -> how masked values of evaluated cells are recovered.

    A level is `as read`, or a share of zeros to which cells are thinned that express enough genes. The imputer learns
    from cells of the same data set that the checkpoint was trained on.

    Args:
        entry: Entry of the plan.
        left: File of the data set without the evaluated cells.
        checkpoint: Folder of the checkpoint.
        seed: Seed of the drawn cells, of thinning and of masks.
        size: Name of the size of the model, which is its name in the results.
    """
    loaded, rng = CellModel.load(str(checkpoint), task="reconstruct"), np.random.default_rng(seed)
    files = annotated(left), cells_of(Path(entry["data"]), entry.get("where") or {}, entry.get("max_cells"))
    train, test = ((cells := loaded.read(each)).read()[0] for each in files)
    seen, tested = (counts[rng.permutation(counts.shape[0])] for counts in (train, test))
    levels = {"as read": (seen[:SEEN], tested[:TESTED])}
    for sparsity in SPARSITIES:
        num_rich = (np.diff(tested.indptr) >= round((1 - sparsity) * loaded.tokenizer.num_genes)).sum()
        if num_rich >= LEAST:
            ((_, *thinned),) = at_sparsities(seen, tested, (sparsity,), TESTED, seed)
            levels[f"{sparsity:.0%} zeros"] = thinned[0], thinned[1]
    return {
        level: {
            method: {metric: statistic(np.arange(cells_of_level[1].shape[0])) for metric, statistic in each.items()}
            for method, each in recovery_statistics({size: loaded}, *cells_of_level, seed, cells.measured).items()
        }
        for level, cells_of_level in levels.items()
    }


def recipe_of(steps: int, seed: int, batch_key: str | None = None, size: str = SIZE) -> Pretraining:
    """Return the pre-training of a new model with so many steps of 16 cells; each file is a batch without a key."""
    return Pretraining(
        max_steps=steps,
        batching=Batching(batch_size=16),
        new=NewModel(config=size),
        batches=Batched(batch_key=batch_key),
        held_out=HeldOut(validation_share=HELD_OUT),
        run=Seeded(seed=seed, device="cpu"),
    )


def log(line: str) -> None:
    """Write a line for people to stderr."""
    typer.echo(line, err=True)


def main(
    plan: Annotated[Path, typer.Argument(help="Plan with embedding tasks, one for each file.")],
    more: Annotated[list[Path] | None, typer.Argument(help="Files to train on that are not evaluated.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("embedding.json"),
    steps: Annotated[int, typer.Option(help="Steps of 16 cells, after the bag of genes is fitted.")] = 300,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    size: Annotated[str, typer.Option(help="Size of the model.")] = SIZE,
    keep: Annotated[Path | None, typer.Option(help="Folder for the checkpoints; they are not kept without it.")] = None,
) -> None:
    """Pre-train and score for each seed, and write what came out after each."""
    entries = yaml.safe_load(plan.read_text(encoding="utf-8"))["tasks"]
    found: dict[str, Any] = {"size": size, "steps": steps, "seeds": []}
    with tempfile.TemporaryDirectory() as folder:
        left = cells_to_train_on(entries, Path(folder))
        for seed in map(int, seeds.split(",")):
            recipe = recipe_of(steps, seed, batches_of(entries), size)
            began, cpu = perf_counter(), process_time()
            checkpoint = (keep or Path(folder)) / f"seed {seed}"
            metrics = pretrain_files([*left, *(more or ())], checkpoint, recipe, say=log)
            run = {
                "seed": seed,
                "cells": metrics["cells"],
                "seconds": round(perf_counter() - began),
                "CPU seconds": round(process_time() - cpu),
                "masked values": metrics["masked values of held-out cells"],
                "scores": scored(entries, checkpoint, seed, size),
                "recovered": {
                    Path(entry["data"]).stem: recovered(entry, path, checkpoint, seed, size)
                    for entry, path in zip(entries, left, strict=True)
                },
            }
            found["seeds"].append(run)
            output.write_text(json.dumps(plain(found), indent=1, allow_nan=False), encoding="utf-8")
            log(f"seed {seed}: {run['seconds']} s")


if __name__ == "__main__":
    typer.run(main)
