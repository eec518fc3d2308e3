"""Compare two ways to take genes that a file did not measure: left out of the masks, or learned as zero.

    xtrimogene convert *.h5ad -o corpus
    python -m xtrimogene.recipes.studies.unmeasured corpus --train a.h5ad,b.h5ad -o unmeasured.json

All files of the corpus are counted; those of `--train` are pre-trained on, `tiny` from the same weights for as many
steps on the same cells in the same order. Both are scored on the same masked values of held-out cells, those of
measured genes; beside it stands what was scored before, unmeasured zeros included.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
import typer
from transformers import set_seed

from ... import families
from ...eval.measures import baselines
from ...eval.measures.metrics import masked_value_metrics
from ...tokenization.collators import CELLS_AT_A_TIME, DataCollatorForMaskedExpression
from ...tokenization.masking import Masking
from ...training.arguments import CellTrainingArguments
from ...training.data.corpus import read_corpus
from ...training.data.dataset import expression
from ...training.data.measured import num_measured
from ...training.objectives import objective_of
from ...training.pretraining import pretrain

SIZE = "tiny"
Setting = Literal["ignore", "zero"]  # of `Masking.unmeasured`
SETTINGS: tuple[Setting, ...] = ("ignore", "zero")
BATCH_SIZE, LEARNING_RATE, HELD_OUT = 16, 2e-3, 0.05
RATIOS = (Masking().expressed_ratio, Masking().zero_ratio)
SCORES = ("pearson", "pearson_expressed")


def pairs(corpus: Any, tokenizer: Any) -> dict[str, Any]:
    """Return of each file and of all how many pairs of a cell and a gene were not measured, and how many were masked.

    Args:
        corpus: From `read_corpus`.
        tokenizer: Of its panel.
    """
    collator = DataCollatorForMaskedExpression(tokenizer, unmeasured="zero", epoch=0)
    names = np.asarray(corpus["source"]).astype(str)
    sources = {}
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name).tolist()
        bits = np.frombuffer(corpus[rows[0]]["measured"], np.uint8)
        is_measured = np.unpackbits(bits, count=tokenizer.num_genes).astype(bool)
        zeros = unmeasured = 0
        for start in range(0, len(rows), CELLS_AT_A_TIME):
            masked = collator.mask(corpus.__getitems__(rows[start : start + CELLS_AT_A_TIME]), 0)
            ids = masked.masked_ids[masked.labels == 0]
            zeros, unmeasured = zeros + len(ids), unmeasured + int((~is_measured[ids]).sum())
        sources[name] = {
            "cells": len(rows),
            "genes measured": int(is_measured.sum()),
            "pairs": len(rows) * tokenizer.num_genes,
            "pairs not measured": len(rows) * int((~is_measured).sum()),
            "masked zero genes": zeros,
            "masked zero genes not measured": unmeasured,
        }
    every = {key: sum(source[key] for source in sources.values()) for key in next(iter(sources.values()))}
    del every["genes measured"]
    return {**every, "panel": tokenizer.num_genes, "sources": sources}


def train(dataset: Any, tokenizer: Any, unmeasured: Setting, steps: int, seed: int) -> dict[str, float]:
    """Pre-train `tiny`, and return what it recovers of held-out cells.

    Args:
        dataset: Cells of several files.
        tokenizer: Of their panel.
        unmeasured: What becomes of genes that a file does not name.
        steps: Steps of 16 cells.
        seed: Of weights, split, order and masks.
    """
    set_seed(seed)
    config = families.family_of_preset(SIZE).configure(SIZE, anchored=False)
    model = families.model_class(config, "reconstruct")(config)
    cells = np.random.default_rng(seed).permutation(len(dataset))
    num_held_out = max(round(HELD_OUT * len(cells)), 2)
    test, known = dataset.select(np.sort(cells[:num_held_out])), dataset.select(np.sort(cells[num_held_out:]))
    arguments = CellTrainingArguments(
        "unmeasured", max_steps=steps, learning_rate=LEARNING_RATE, warmup_steps=0.05, seed=seed,
        per_device_train_batch_size=BATCH_SIZE, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    began = perf_counter()
    trainer = pretrain(model, tokenizer, known, arguments=arguments, options=Masking(unmeasured=unmeasured))
    found: dict[str, float] = {"seed": seed, "seconds": round(perf_counter() - began, 1)}
    seen, times = expression(known, tokenizer), num_measured(known, tokenizer.num_genes)
    for scored in SETTINGS:
        trainer.eval_collator = objective_of(config).eval_collator(tokenizer, seed, Masking(unmeasured=scored))
        predicted, (true, masked_ids), _ = trainer.predict(test)  # type: ignore[misc]
        means = baselines.gene_mean(seen, masked_ids, RATIOS, times if scored == "ignore" else None)
        for name, guess in (("", np.asarray(predicted)), ("gene mean, ", means)):
            scores = masked_value_metrics(true, guess)
            suffix = "" if scored == "ignore" else ", unmeasured scored too"
            found |= {f"{name}{key}{suffix}": float(scores[key]) for key in SCORES}
    return found


def main(
    corpus: Annotated[Path, typer.Argument(help="Corpus from `xtrimogene convert`.")],
    files: Annotated[str, typer.Option("--train", help="Files of the corpus to train on, with commas.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("unmeasured.json"),
    steps: Annotated[int, typer.Option(help="Steps of 16 cells.")] = 200,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    quick: Annotated[bool, typer.Option("--quick", help="Two steps, one seed: whether it runs.")] = False,
) -> None:
    """Count the pairs, train both ways, and write what came out after each run."""
    steps, seeds = (2, "0") if quick else (steps, seeds)
    tokenizer = families.family_of_preset(SIZE).tokenizer.default()
    cells = read_corpus(corpus, tokenizer)
    found: dict[str, Any] = {"command": command(sys.argv[1:]), "steps": steps, "corpus": pairs(cells, tokenizer)}
    chosen = files.split(",")
    if absent := [name for name in chosen if name not in found["corpus"]["sources"]]:
        raise ValueError(f"{corpus} has no cells of {absent[0]!r}, only of {', '.join(found['corpus']['sources'])}")
    found["trained on"] = chosen
    for setting in SETTINGS:
        found[setting] = []
    dataset = cells.select(np.flatnonzero(np.isin(np.asarray(cells["source"]).astype(str), chosen)))
    for seed in map(int, seeds.split(",")):
        for setting in SETTINGS:
            found[setting].append(train(dataset, tokenizer, setting, steps, seed))
            output.write_text(json.dumps(found, indent=2))
            typer.echo(f"{setting}: {found[setting][-1]}", err=True)


def command(typed: Sequence[str]) -> str:
    """Return what to type to write the results anew, files by their names only."""
    names = [Path(word).name if "/" in word else word for word in typed]
    return " ".join(["python -m xtrimogene.recipes.studies.unmeasured", *names])


if __name__ == "__main__":
    typer.run(main)
