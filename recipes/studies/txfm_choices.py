"""What the choices of TxFM are worth at a small scale: genes shown, zeros, loss, activation, depth of the decoder.

    python -m xtrimogene.recipes.studies.txfm_choices labelled.h5ad -o txfm_choices.json

    2,000 genes with the most counts, `txfm-tiny` without an anchor, one choice changed at a time
        ->  Pearson of masked values beyond gene means, k-NN and linear probe on the cell embedding of held-out cells

All runs see the same cells for the same number of steps. At inference a cell is read in parts of as many genes as in
training, until all are read, so that no model meets cells of a size that it was not trained on.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.decomposition import PCA
from transformers import set_seed

from ... import families
from ...eval.measures.baselines import COMPONENTS, hide, log_normalise, pca_imputer
from ...eval.measures.probes import probe_statistics
from ...eval.measures.recovery import within_genes
from ...eval.tasks.few_labels import labelled_cells
from ...eval.tasks.recovery import padded
from ...eval.tasks.run import Run
from ...inference.cell_model import CellModel
from ...modeling_xtrimogene.reconstruction_xtrimogene import per_10k
from ...records import plain
from ...tokenization.collators import IGNORED
from ...tokenization.expression_xtrimogene import cell_rows
from ...tokenization.masking import Masking
from ...tokenization.panel_xtrimogene import InMemory
from ...tokenization.reading import cells_of
from ...tokenization.visible_genes import DataCollatorForReconstruction
from ...training.arguments import CellTrainingArguments
from ...training.data.dataset import cells_dataset
from ...training.objectives import objective_of
from ...training.trainer import CellTrainer
from .txfm_plateau import SIZE, command

GENES, BATCH_SIZE, RATE = 2_000, 32, 3e-3
HELD_OUT, IMPUTED = 600, 200  # cells whose neighbours are looked at; those of them whose masked values are
DEFAULT, SIMPLE = "as in the paper, 90 % hidden", "principal components"
BEYOND = "Pearson beyond gene means"


@dataclass(frozen=True)
class Choice:
    """What is changed.

    Attributes:
        group: What kind of choice it is.
        hidden: Share of the genes that the encoder does not see.
        keeps_zeros: Whether genes are shown that the cell does not express.
        config: Fields of the configuration.
    """

    group: str
    hidden: float = 0.9
    keeps_zeros: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)


CHOICES = {
    DEFAULT: Choice(""),
    **{f"{hidden:.0%} hidden": Choice("genes shown", hidden) for hidden in (0.25, 0.5, 0.75, 0.95)},
    "only expressed genes shown": Choice("zeros", keeps_zeros=False),
    "squared error": Choice("loss", config={"loss": "mse"}),
    "Huber's loss": Choice("loss", config={"loss": "smooth_l1"}),
    "negative binomial": Choice("loss", config={"loss": "nb"}),
    "ReLU": Choice("activation", config={"count_activation": "relu"}),
    "clamped ReLU": Choice("activation", config={"count_activation": "clamped_relu"}),
    "softmax": Choice("activation", config={"count_activation": "softmax"}),
    **{
        f"{layers} layers": Choice("decoder", config={"decoder_num_hidden_layers": layers}) for layers in (0, 1, 8)
    },
}  # fmt: skip


class ExpressedGenes(DataCollatorForReconstruction):
    """Show genes that the cell expresses, none that are zero."""

    def shown(
        self,
        examples: Sequence[dict[str, Any]],
        expressed: tuple[np.ndarray, np.ndarray, np.ndarray],
        panels: Sequence[np.ndarray],
        epoch: int,
    ) -> dict[str, list[np.ndarray]]:
        """Return what each cell has of the batch; arguments as of the base class."""
        ids, _, lengths = expressed
        return super().shown(examples, expressed, cell_rows(ids, lengths), epoch)


def most_counted(adata: Any, number: int) -> list[str]:
    """Return the genes of the panel that have the most counts in the cells."""
    tokenizer = families.family_of_preset(SIZE).tokenizer.default()
    sums = np.asarray(tokenizer.read_counts(adata).read()[0].sum(0)).ravel()
    return [tokenizer.genes[gene] for gene in np.sort(np.argsort(-sums)[:number])]


def trained(choice: Choice, tokenizer: Any, dataset: Any, steps: int, seed: int) -> CellModel:
    """Return a new model that was trained with one choice changed."""
    set_seed(seed)
    num_visible = round((1 - choice.hidden) * tokenizer.num_genes)
    sizes = {"num_genes": tokenizer.num_genes, "num_visible": num_visible, "anchored": False}
    inference = {"inference_passes": math.ceil(tokenizer.num_genes / num_visible)}
    config = families.family_of_preset(SIZE).configure(SIZE, **sizes, **inference, **choice.config)
    model, objective = families.model_class(config, "reconstruct")(config), objective_of(config)
    objective.begin(model, tokenizer, dataset, seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = CellTrainingArguments(
            folder, max_steps=steps, learning_rate=RATE, warmup_steps=0.1, seed=seed, use_cpu=True, save_strategy="no",
            per_device_train_batch_size=BATCH_SIZE, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        collator = objective.collator(tokenizer, seed)
        if not choice.keeps_zeros:
            collator, tokenizer.shows_zeros = ExpressedGenes(tokenizer, num_visible, seed=seed), False
        CellTrainer(model, arguments, data_collator=collator, train_dataset=dataset, processing_class=tokenizer).train()
    return CellModel(model.eval(), tokenizer)


def recovered(model: CellModel, counts: Any, keeps_zeros: bool, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return true values of masked genes, what a model predicts, and the ids of these genes, `(cells, M)` each.

    It is shown all genes that are left, or all expressed ones.
    """
    examples: Any = cells_dataset(InMemory(counts, None))
    collator = (DataCollatorForReconstruction if keeps_zeros else ExpressedGenes)(
        model.tokenizer, model.tokenizer.num_genes, Masking(), seed=seed, epoch=0
    )
    parts = []
    for start in range(0, len(examples), BATCH_SIZE):
        batch = collator(examples.__getitems__(list(range(start, min(start + BATCH_SIZE, len(examples))))))
        labels = batch.pop("labels")
        with torch.inference_mode():
            logits = model.model(**batch).logits.float()
        true, guess = (per_10k(each, model.tokenizer.target_sum) for each in (labels, logits))
        parts.append((labels.where(labels == IGNORED, true).numpy(), guess.numpy(), batch["masked_ids"].numpy()))
    fills = (IGNORED, 0, model.tokenizer.num_genes)
    true_values, guesses, masked_ids = (padded([part[i] for part in parts], fill) for i, fill in enumerate(fills))
    return true_values, guesses, masked_ids


def probed(embedding: np.ndarray, labels: np.ndarray, seed: int, standardize: bool) -> dict[str, float]:
    """Return macro-F1 of nearest neighbours and of a linear probe on embeddings of labelled cells."""
    found, everyone = probe_statistics(embedding, labels, None, seed, standardize=standardize), np.arange(len(labels))
    return {name: float(found[name](everyone)) for name in ("k-NN macro-F1", "linear probe macro-F1")}


def simple_method(seen: Any, test: Any, labels: np.ndarray, model: CellModel, seed: int) -> dict[str, float]:
    """Return the scores of 50 principal components of the training cells: as an embedding, and as an imputer."""
    known, values = log_normalise(seen).toarray(), log_normalise(test)
    scores = probed(PCA(COMPONENTS, random_state=seed).fit(known).transform(values.toarray()), labels, seed, False)
    true, _, masked_ids = recovered(model, test[:IMPUTED], True, seed)
    hidden, ratios = hide(values[:IMPUTED], masked_ids), (Masking().expressed_ratio, Masking().zero_ratio)
    guess = pca_imputer(log_normalise(seen), hidden, masked_ids, ratios, seed)
    return scores | {BEYOND: float(within_genes(true, guess, masked_ids)(np.arange(len(true))))}


def main(
    labelled: Annotated[Path, typer.Argument(help="File with labelled cells.")],
    label_key: Annotated[str, typer.Option(help="Column of obs with the labels.")] = "cell_type",
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path(
        "txfm_choices.json"
    ),
    steps: Annotated[int, typer.Option(help="Steps of 32 cells.")] = 300,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    genes: Annotated[int, typer.Option(help="Genes of the panel.")] = GENES,
    choices: Annotated[str, typer.Option(help="Names of choices, with semicolons.")] = ";".join(CHOICES),
) -> None:
    """Train with each choice changed and each seed, and write what came out after each run."""
    cells, _ = labelled_cells(cells_of(labelled, {}, None), label_key, Run(say=lambda line: typer.echo(line, err=True)))
    order = np.random.default_rng(0).permutation(cells.adata.n_obs)
    held_out, train = (cells.adata[np.sort(rows)].to_memory() for rows in (order[:HELD_OUT], order[HELD_OUT:]))
    labels = cells.ids[np.sort(order[:HELD_OUT])]
    found: dict[str, Any] = {
        "command": command([str(labelled), "-o", "txfm_choices.json"]),
        "cells": {"train": train.n_obs, "held out": held_out.n_obs},
        "genes": genes, "steps": steps, "runs": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        panel = most_counted(train, genes)
        for seed in map(int, seeds.split(",")):
            for name in choices.split(";"):
                tokenizer = families.family_of_preset(SIZE).tokenizer.from_genes(panel, Path(folder) / "panel")
                counts = tokenizer.read_counts(train)
                began = process_time()
                model = trained(CHOICES[name], tokenizer, cells_dataset(counts, empty="drop"), steps, seed)
                seconds = round(process_time() - began)
                tested = tokenizer.read_counts(held_out)
                scores = probed(model.embed(tested), labels, seed, standardize=True)
                true, guess, masked_ids = recovered(model, tested.read()[0][:IMPUTED], CHOICES[name].keeps_zeros, seed)
                scores[BEYOND] = float(within_genes(true, guess, masked_ids)(np.arange(len(true))))
                found["runs"].append({"choice": name, "seed": seed, "CPU seconds": seconds} | scores)
                if name == DEFAULT:
                    scores = simple_method(counts.read()[0], tested.read()[0], labels, model, seed)
                    found["runs"].append({"choice": SIMPLE, "seed": seed, "CPU seconds": None} | scores)
                output.write_text(json.dumps(plain(found), indent=1), encoding="utf-8")
                typer.echo(f"{found['runs'][-1]}", err=True)


if __name__ == "__main__":
    typer.run(main)
