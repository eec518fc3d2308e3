"""Compare poolings of one checkpoint, and what of it is tuned, on the same labelled cells.

    python -m xtrimogene.recipes.studies.tuning corpus.yaml labelled.h5ad -o tuning.json       # half an hour a seed

    cells of the files of corpus.yaml, less those that it evaluates  ->  `tiny` with depth tokens and latents, no anchor
    its embedding by S, mean, max, all or the latents    ->  k-NN and linear probe
    the same, fine-tuned as a whole                      ->  macro-F1 of test cells
    the latents; all weights, LoRA or the Xpressor tuned ->  the same

The poolings have one set of pre-trained weights and one budget. The 4 latents together are as wide as `all`. No head
begins at a regression on genes, which would hide what the embedding holds.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from transformers import AutoTokenizer, set_seed

from ...eval.measures.baselines import log_normalise
from ...eval.measures.probes import linear_probe, macro_f1_of
from ...eval.tasks.annotation import Labelled, Split, neighbors, split
from ...eval.tasks.few_labels import labelled_cells
from ...eval.tasks.run import Run
from ...inference.cell_model import CellModel
from ...records import plain
from ...tokenization.reading import cells_of
from ...training.adapters import Peft, freeze_for_tuning
from ...training.arguments import CellTrainingArguments
from ...training.data.dataset import cells_dataset
from ...training.finetuning import annotation_model, finetune, finetuning_rate, logistic_classifier
from ...training.options import NewModel, Optimization
from ...training.starting import new_model
from ..pretrain import pretrain_files
from .embedding import batches_of, cells_to_train_on, log, recipe_of

POOLINGS = ("S", "mean", "max", "all", "xpressor")
TUNED: tuple[Peft, ...] = ("none", "lora", "xpressor")
NUM_LATENTS = 4  # as wide as `all`, which is four vectors of the width of a latent
RATE = 1e-3  # largest learning rate of the pre-training


@dataclass(frozen=True)
class Cells:
    """Labelled cells of a split.

    Attributes:
        counts: What the tokenizer reads.
        labelled: The same cells with their types.
        parts: Rows of the cells to learn from, and to test on.
    """

    counts: Any
    labelled: Labelled
    parts: Split

    def macro_f1(self, types: np.ndarray) -> float:
        """Return macro-F1 of the predicted types `(T,)` of the test cells."""
        test = self.parts.test
        return macro_f1_of(self.labelled.ids[test], types, len(self.labelled.names))(np.arange(len(test)))


def new_checkpoint(folder: Path, seed: int) -> str:
    """Save an untrained `tiny` that has all that is pooled, and return its folder."""
    set_seed(seed)
    first, tokenizer = new_model(NewModel(config="tiny", depth_tokens=True, num_latents=NUM_LATENTS), "tiny")
    config = type(first.config)(**first.config.to_dict() | {"anchored": False})
    type(first)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def as_it_is(checkpoint: str, cells: Cells, pooling: str) -> dict[str, float]:
    """Return macro-F1 of nearest neighbours and of a linear probe on the embedding of a pooling."""
    embedding = CellModel.load(checkpoint, pooling=pooling).embed(cells.counts)
    (known, _, test), ids = cells.parts, cells.labelled.ids
    votes = neighbors(embedding, ids[known], cells.parts, len(cells.labelled.names))
    probe = linear_probe().fit(embedding[known], ids[known])
    return {
        "width": embedding.shape[1],
        "k-NN": cells.macro_f1(votes[test].argmax(axis=1)),
        "linear probe": cells.macro_f1(probe.predict(embedding[test])),
    }


def tuned(checkpoint: str, cells: Cells, pooling: str, peft: Peft, epochs: int, seed: int) -> dict[str, float]:
    """Fine-tune a classifier on the known cells; return the number and share of weights that learn, and macro-F1."""
    set_seed(seed)
    tokenizer, names = AutoTokenizer.from_pretrained(checkpoint), [str(name) for name in cells.labelled.names]
    classifier = annotation_model(checkpoint, names, classifier_anchored=False, pooling=pooling)
    model, share = freeze_for_tuning(classifier, peft)
    dataset = cells_dataset(cells.counts, cells.labelled.ids).select(cells.parts.known)
    with tempfile.TemporaryDirectory() as folder:
        arguments = CellTrainingArguments(
            folder, num_train_epochs=epochs, learning_rate=finetuning_rate(classifier.config), warmup_steps=0.05,
            seed=seed, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        finetune(model, tokenizer, dataset, arguments=arguments)
    if peft == "lora":
        classifier = model.merge_and_unload()
    probabilities, _ = CellModel(classifier.eval(), tokenizer).classify(cells.counts)
    return {
        "weights": sum(weight.numel() for weight in classifier.parameters()),
        "share": share,
        "macro-F1": cells.macro_f1(probabilities[cells.parts.test].argmax(axis=1)),
    }


def on_genes(cells: Cells) -> float:
    """Return macro-F1 of a logistic regression on genes."""
    values, (known, _, test) = log_normalise(cells.counts.read()[0]), cells.parts
    return cells.macro_f1(logistic_classifier().fit(values[known], cells.labelled.ids[known]).predict(values[test]))


def compared(checkpoint: str, cells: Cells, epochs: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each pooling, and for each way of tuning the model that is pooled by its latents."""
    for pooling in POOLINGS:
        log(f"seed {seed}: pooling {pooling}")
        row = {"seed": seed, "pooling": pooling, "peft": "none"} | as_it_is(checkpoint, cells, pooling)
        yield row | tuned(checkpoint, cells, pooling, "none", epochs, seed)
    for peft in TUNED[1:]:
        log(f"seed {seed}: tuning {peft}")
        yield {"seed": seed, "pooling": "xpressor", "peft": peft} | tuned(
            checkpoint, cells, "xpressor", peft, epochs, seed
        )


def main(
    corpus: Annotated[Path, typer.Argument(help="Plan with embedding tasks, one for each file to train on.")],
    labelled: Annotated[Path, typer.Argument(help="File of the plan: its evaluated cells are labelled.")],
    label_key: Annotated[str, typer.Option(help="Column of obs with the labels.")] = "cell_type",
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("tuning.json"),
    steps: Annotated[int, typer.Option(help="Steps of 16 cells of pre-training.")] = 300,
    epochs: Annotated[int, typer.Option(help="Passes over the labelled cells.")] = 10,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
) -> None:
    """Pre-train, compare poolings and ways to tune for each seed, and write what came out after each."""
    entries = yaml.safe_load(corpus.read_text(encoding="utf-8"))["tasks"]
    (entry,) = (each for each in entries if Path(each["data"]) == labelled)
    of_cells, _ = labelled_cells(
        cells_of(labelled, entry.get("where") or {}, entry.get("max_cells")), label_key, Run(say=log)
    )
    found: dict[str, Any] = {"steps": steps, "epochs": epochs, "data": labelled.stem, "genes": [], "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        files = cells_to_train_on(entries, Path(folder))
        for seed in map(int, seeds.split(",")):
            recipe = replace(
                recipe_of(steps, seed, batches_of(entries)),
                checkpoint=new_checkpoint(Path(folder) / f"new {seed}", seed),
                optimization=Optimization(learning_rate=RATE),
            )
            checkpoint = Path(folder) / f"seed {seed}"
            pretrain_files(files, checkpoint, recipe, say=log)
            counts = AutoTokenizer.from_pretrained(checkpoint).read_counts(of_cells.adata)
            cells = Cells(counts, of_cells, split(of_cells.ids, None, seed))
            found["genes"].append(on_genes(cells))
            for row in compared(str(checkpoint), cells, epochs, seed):
                found["rows"].append(row)
                output.write_text(json.dumps(plain(found), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
