"""Name cell types from few labels, in data sets whose tissue a checkpoint knows and in others.

    python -m xtrimogene.recipes.studies.few_labels corpus.yaml plan.yaml more.h5ad -o few_labels.json

    cells of the files of corpus.yaml, less those that it evaluates  ->  `tiny`, one for all data sets
    a data set of plan.yaml  ->  5, 10, 20 or all labelled cells of each type  ->  annotators, logistic regression, ...
                             ->  a fifth of the cells  ->  macro-F1, accuracy, differences on the same cells

Each seed is a pre-training, test cells and labelled cells of its own.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
import yaml

from ...eval.evaluate import options_of
from ...eval.tasks.annotation import Labelled
from ...eval.tasks.few_labels import (
    FewLabelsOptions,
    Predictions,
    labelled_cells,
    predictions,
    read,
    scores_of,
    seen_by_method,
)
from ...eval.tasks.run import Run
from ...options import build
from ...records import plain
from ...tokenization.reading import cells_of
from ..pretrain import pretrain_files
from .embedding import batches_of, cells_to_train_on, log, recipe_of

NAME, NUMBERS = "tiny", (5, 10, 20, None)


@dataclass
class DataSet:
    """A labelled data set, and what methods say of its test cells.

    Attributes:
        name: Name of the file without its ending.
        options: Options of the task.
        cells: The cells.
        of_seeds: What methods say, for each seed.
        seen: Method -> how many of the cells it was trained on without their labels.
    """

    name: str
    options: FewLabelsOptions
    cells: Labelled
    of_seeds: list[Predictions] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_entry(cls, entry: dict[str, Any]) -> "DataSet":
        """Return the data set of an entry of a plan."""
        options, path = build(FewLabelsOptions, options_of(entry)), Path(entry["data"])
        cells, _ = labelled_cells(cells_of(path, options.where, options.max_cells), options.label_key, Run(say=log))
        return cls(path.stem, options, cells)

    def add(self, checkpoint: Path, seed: int) -> None:
        """Let all methods name the test cells of a seed."""
        log(f"{self.name}, seed {seed}")
        run, models = Run((seed,), device="cpu", say=log), {NAME: str(checkpoint)}
        features, epochs = read(self.cells.adata, models, None, run), self.options.fine_tuning_epochs
        self.of_seeds.append(predictions(self.cells, features, NUMBERS, seed, models if epochs else {}, epochs, run))
        self.seen = seen_by_method(features)

    def scores(self) -> dict[str, Any]:
        """Return the scores of the seeds that there are."""
        scores = scores_of(self.name, self.cells, self.of_seeds, self.seen)
        return {
            "data": self.name,
            "cells": len(self.cells.ids),
            "types": len(self.cells.names),
            "fine-tuning epochs": self.options.fine_tuning_epochs,
            "scores": [asdict(score) for score in scores],
        }


def study(
    files: Sequence[Path], batch_key: str | None, data_sets: Sequence[DataSet], folder: Path, seed: int, steps: int
) -> dict[str, Any]:
    """Pre-train, and let methods name the test cells of all data sets; return what was trained, and for how long."""
    began, checkpoint = perf_counter(), folder / f"seed {seed}"
    metrics = pretrain_files(list(files), checkpoint, recipe_of(steps, seed, batch_key), say=log)
    seconds = round(perf_counter() - began)
    for each in data_sets:
        each.add(checkpoint, seed)
    return {"seed": seed, "cells": metrics["cells"], "seconds of pre-training": seconds}


def main(
    corpus: Annotated[Path, typer.Argument(help="Plan with embedding tasks, one for each file to train on.")],
    plan: Annotated[Path, typer.Argument(help="Plan with few-labels tasks.")],
    more: Annotated[list[Path] | None, typer.Argument(help="Files to train on of which nothing is evaluated.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("few_labels.json"),
    steps: Annotated[int, typer.Option(help="Steps of 16 cells, after the bag of genes is fitted.")] = 1,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
) -> None:
    """Pre-train and annotate for each seed, and write what came out after each."""
    known, entries = (yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"] for path in (corpus, plan))
    data_sets = [DataSet.of_entry(entry) for entry in entries]
    found: dict[str, Any] = {"steps": steps, "seeds": []}
    with tempfile.TemporaryDirectory() as folder:
        files = [*cells_to_train_on(known, Path(folder)), *(more or ())]
        for seed in map(int, seeds.split(",")):
            found["seeds"].append(study(files, batches_of(known), data_sets, Path(folder), seed, steps))
            found["results"] = [each.scores() for each in data_sets]
            output.write_text(json.dumps(plain(found), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
