"""Why TxFM stays at the mean profile for its first steps, and what mends it.

    python -m xtrimogene.recipes.studies.txfm_plateau a.h5ad b.h5ad -o txfm_plateau.json

`txfm-tiny` is pre-trained for some hundred steps, each time with one choice changed: the initial scale of the codebook
and of the residual branches, where the first norm stands, the learning rate. All runs see the same cells in the same
order. Each is scored on held-out cells: the loss beside that of the mean profile of the training cells, and the
correlation of masked values beyond gene means, which a model that ignores its input does not have.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer
from datasets import concatenate_datasets
from torch import nn
from transformers import set_seed

from ... import families
from ...eval.measures.recovery import within_genes
from ...modeling_xtrimogene.count_loss_txfm import count_loss
from ...tokenization.collators import measured_genes
from ...training.arguments import CellTrainingArguments
from ...training.data.dataset import cells_dataset, expression
from ...training.objectives import mean_profile
from ...training.pretraining import pretrain

SIZE = "txfm-tiny"
AS_SPECIFIED = {"anchored": False, "gene_initializer_range": 0.02, "layerscale_value": 1e-4, "initializer_range": 0.02}
# Name -> fields of the configuration, the learning rate, and whether the first norm of the encoder stays.
VARIANTS: dict[str, tuple[Mapping[str, float], float, bool]] = {
    "as specified": ({}, 1e-3, True),
    "branches 1": ({"layerscale_value": 1.0}, 1e-3, True),
    "branches 1, codebook 1": ({"layerscale_value": 1.0, "gene_initializer_range": 1.0}, 1e-3, True),
    "no first norm": ({}, 1e-3, False),
    "rate 3e-3": ({}, 3e-3, True),
    "weights 0.1, rate 3e-3": ({"initializer_range": 0.1}, 3e-3, True),
}  # fmt: skip
BATCH_SIZE, HELD_OUT = 32, 256


def train(variant: str, cells: tuple[Any, Any], tokenizer: Any, steps: int, visible: int, seed: int) -> dict[str, Any]:
    """Pre-train with one variant, and return its curve and its scores on held-out cells.

    Args:
        variant: Name of the variant.
        cells: Cells to train on, and held-out ones.
        tokenizer: The tokenizer of the family.
        steps: Steps of 32 cells.
        visible: Genes of a cell that the encoder sees.
        seed: Of weights, order and draws.
    """
    set_seed(seed)
    changes, learning_rate, has_first_norm = VARIANTS[variant]
    config = families.family_of_preset(SIZE).configure(SIZE, num_visible=visible, **{**AS_SPECIFIED, **changes})
    model = families.model_class(config, "reconstruct")(config)
    if not has_first_norm:
        model.model.layers[0].norm1 = nn.Identity()
    arguments = CellTrainingArguments(
        "plateau", max_steps=steps, learning_rate=learning_rate, warmup_steps=0.1, seed=seed, logging_steps=20,
        per_device_train_batch_size=BATCH_SIZE, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    began = perf_counter()
    trainer = pretrain(model, tokenizer, cells[0], arguments=arguments)
    seconds = perf_counter() - began
    predicted, (true, masked_ids), metrics = trainer.predict(cells[1])  # type: ignore[misc]
    beyond = within_genes(true, np.asarray(predicted), masked_ids)(np.arange(len(true)))
    curve = [(entry["step"], round(entry["loss"], 3)) for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "held-out loss": round(metrics["test_loss"], 3),
        "beyond gene means": None if np.isnan(beyond) else round(float(beyond), 4),
        "curve": curve,
    }


def mean_loss(cells: tuple[Any, Any], tokenizer: Any, seed: int) -> float:
    """Return the loss of held-out cells if each is predicted to be the mean profile of the training cells."""
    profile = torch.from_numpy(mean_profile(cells[0], tokenizer, seed))
    values = torch.from_numpy(expression(cells[1], tokenizer).toarray())
    measured = measured_genes(cells[1].__getitems__(list(range(len(cells[1])))), tokenizer.num_genes)
    losses = count_loss(
        profile.expand_as(values), values, None if measured is None else torch.from_numpy(measured), "poisson"
    )
    return round(float(losses.mean()), 3)


def read(files: list[Path], tokenizer: Any, seed: int) -> tuple[Any, Any]:
    """Return the cells of files, all but 256, and these 256."""
    parts: list[Any] = []
    for file in files:
        first = sum(map(len, parts))
        parts.append(cells_dataset(tokenizer.read_counts(file), empty="drop", first_index=first))
    cells = concatenate_datasets(parts)
    order = np.random.default_rng(seed).permutation(len(cells))
    return cells.select(np.sort(order[HELD_OUT:])), cells.select(np.sort(order[:HELD_OUT]))


def main(
    files: Annotated[list[Path], typer.Argument(help="Files with cells.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path(
        "txfm_plateau.json"
    ),
    steps: Annotated[int, typer.Option(help="Steps of 32 cells.")] = 200,
    visible: Annotated[int, typer.Option(help="Genes of a cell that the encoder sees.")] = 256,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0",
    variants: Annotated[str, typer.Option(help="Names of variants, with semicolons.")] = ";".join(VARIANTS),
    quick: Annotated[bool, typer.Option("--quick", help="Two steps, one variant: whether it runs.")] = False,
) -> None:
    """Pre-train with each variant, and write what came out after each run."""
    if quick:
        steps, visible, variants = 2, 16, "as specified"
    tokenizer = families.family_of_preset(SIZE).tokenizer.default()
    cells = read(files, tokenizer, 0)
    found: dict[str, Any] = {
        "command": command(sys.argv[1:]),
        "files": [file.name for file in files],
        "cells": {"train": len(cells[0]), "held out": len(cells[1])},
        "steps": steps,
        "visible genes": visible,
        "loss of the mean profile": mean_loss(cells, tokenizer, 0),
        "variants": {},
    }
    for variant in variants.split(";"):
        for seed in map(int, seeds.split(",")):
            runs = found["variants"].setdefault(variant, [])
            runs.append(train(variant, cells, tokenizer, steps, visible, seed))
            output.write_text(json.dumps(found, indent=1))
            typer.echo(f"{variant}: { ({**runs[-1], 'curve': runs[-1]['curve'][-1:]}) }", err=True)


def command(typed: list[str]) -> str:
    """Return what to type to write the results anew, files by their names only."""
    names = [Path(word).name if "/" in word else word for word in typed]
    return " ".join(["python -m xtrimogene.recipes.studies.txfm_plateau", *names])


if __name__ == "__main__":
    typer.run(main)
