"""How long the bag of genes of `tiny` must train until its neighbours are as good as they get, and how long scVI must.

    python -m xtrimogene.recipes.studies.time_to_quality plan.yaml -o time_to_quality.json

    cells that the plan evaluates  ->  a new `tiny`: principal components, then 200 steps     both train on these cells,
                                   ->  scVI with its defaults, on 2,000 variable genes        without their labels

The clock starts when the counts are read, so principal components and the choice of variable genes count. It tells
seconds of the CPU, which others that use it do not change. scvi-tools has to be installed.
"""

import json
from functools import partial
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml

from ... import families
from ...eval.cost.time_to_quality import Look, times_to_quality
from ...eval.evaluate import options_of
from ...eval.measures.probes import columns
from ...eval.tasks.embedding import EmbeddingOptions
from ...inference.cell_model import CellModel
from ...options import build
from ...records import plain
from ...tokenization.reading import cells_of
from ...training.anchoring import fit_new_bag, num_batches
from ...training.data.dataset import cells_dataset
from .embedding import SIZE, log

EVERY = 20  # steps between two looks at the embedding


def train_bag(look: Look, dataset: Any, tokenizer: Any, cells: Any, seed: int) -> None:
    """Train the bag of genes of a new model as pre-training begins, looking at its embedding now and then.

    Args:
        look: Called with a function that returns the embeddings `(cells, Z)`.
        dataset: The cells, with the key `batch` if they are of several batches.
        tokenizer: The model's tokenizer.
        cells: The same cells on the panel, to embed.
        seed: Seed of initial weights, of the order of cells and of the counts that are kept.
    """
    torch.manual_seed(seed)
    config = families.family_of_preset(SIZE).configure(SIZE)
    model = families.model_class(config, "reconstruct")(config).eval()

    def embed() -> np.ndarray:
        return CellModel(model.model, tokenizer).embed(cells)

    model.set_num_batches(num_batches(dataset))
    for step, _ in enumerate(fit_new_bag(model, tokenizer, dataset, seed)):
        if step % EVERY == 0:
            look(embed)
    look(embed)


def timed(entry: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return method -> best score, seconds until it is nearly reached, seconds in all, and the curve of (s, score)."""
    path, options = Path(entry["data"]), build(EmbeddingOptions, options_of(entry))
    adata = cells_of(path, entry.get("where") or {}, entry.get("max_cells"))
    labels, batches, keep = columns(adata, options.label_key, options.batch_key)
    assert labels is not None  # entries without labels are left out
    tokenizer = families.family_of_preset(SIZE).tokenizer.default()
    cells = tokenizer.read_counts(adata[keep].to_memory(copy=True))
    of_cells = None if batches is None else np.unique(batches, return_inverse=True)[1]
    dataset = cells_dataset(cells, batches=of_cells)
    ours = partial(train_bag, dataset=dataset, tokenizer=tokenizer, cells=cells, seed=seed)
    found = times_to_quality({SIZE: ours}, cells.read()[0], labels, batches, seed=seed, clock=process_time, say=log)
    return {
        method: {
            "best": quality.best,
            "seconds": quality.seconds,
            "seconds in all": quality.points[-1].seconds,
            "curve": [(round(point.seconds, 1), round(point.score, 4)) for point in quality.points],
        }
        for method, quality in found.items()
    }


def main(
    plan: Annotated[Path, typer.Argument(help="Plan with embedding tasks; those without labels are left out.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path(
        "time_to_quality.json"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
) -> None:
    """Train both methods on each data set for each seed, and write what came out after each."""
    entries = yaml.safe_load(plan.read_text(encoding="utf-8"))["tasks"]
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "data sets": {}}
    for entry in entries:
        if "label_key" in entry:
            for seed in map(int, seeds.split(",")):
                found["data sets"].setdefault(Path(entry["data"]).stem, []).append(timed(entry, seed))
                output.write_text(json.dumps(plain(found), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
