"""Compare what makes batches mix: biases of batches in the decoder, and a distance between batches in the loss.

    python -m xtrimogene.recipes.studies.batches docs/batches.yaml -o batches.json        # some minutes a seed

    cells of all files of the plan, less those that the plan evaluates  ->  the bag of genes of a `tiny`, in each way
    evaluated cells  ->  types told apart, batches mixed

Without a key of batches, each file is one batch. The bag of genes is what a model embeds by in its first steps.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ...records import plain
from ...training.options import Batched
from ..pretrain import pretrain_files
from .embedding import SIZE, batches_of, cells_to_train_on, log, recipe_of, scored

MIXING_WEIGHT = 3.0
AS_IS, NO_KEY, DISTANCE = "biases of batches", "one bias a file", "biases of batches, distance between batches"


def main(
    plan: Annotated[Path, typer.Argument(help="Plan with embedding tasks, one for each file; some name batches.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("batches.json"),
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
) -> None:
    """Pre-train in each way and score for each seed, and write what came out after each."""
    entries = yaml.safe_load(plan.read_text(encoding="utf-8"))["tasks"]
    found: dict[str, Any] = {"mixing weight": MIXING_WEIGHT, "seeds": []}
    with tempfile.TemporaryDirectory() as folder:
        left = cells_to_train_on(entries, Path(folder))
        for seed in map(int, seeds.split(",")):
            usual = recipe_of(1, seed, batches_of(entries))
            recipes = {
                AS_IS: usual,
                NO_KEY: replace(usual, batches=Batched(batch_key=None)),
                DISTANCE: replace(usual, new=replace(usual.new, mixing_weight=MIXING_WEIGHT)),
            }
            run: dict[str, Any] = {"seed": seed, "scores": {}}
            for name, recipe in recipes.items():
                checkpoint = Path(folder) / f"{name} {seed}"
                run["cells"] = pretrain_files(left, checkpoint, recipe, say=log)["cells"]
                run["scores"][name] = scored(entries, checkpoint, seed)
                log(f"seed {seed}: {name}, {SIZE}")
            found["seeds"].append(run)
            output.write_text(json.dumps(plain(found), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
