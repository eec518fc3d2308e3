"""Pre-train a model on files or a corpus, and write a checkpoint with a card.

files  ->  cells  ->  train | held out  ->  model  ->  checkpoint, card, pictures, metrics.json
                            |  baselines on the same cells  ->  the same metrics
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from transformers import set_seed

from .. import families
from ..atomic import final_model
from ..eval.measures.baselines import hide
from ..eval.measures.corpus_pca import CorpusPCA
from ..eval.measures.recovery import loss_baselines, recovery_scores
from ..eval.measures.trained_on import save_trained_on
from ..eval.report import pictures
from ..hub_cards.card import CardContent, DataSource, Metric
from ..inference.devices import hardware, pick_device
from ..inference.familiarity import LEAST_HELD_OUT, MOST_KEPT, Familiarity
from ..inference.saved import Saved
from ..options import flat
from ..records import first_names
from ..tokenization.collators import DataCollatorForExpression
from ..training.arguments import CellTrainingArguments, event_writers, run_arguments
from ..training.data.cells import Cells, check_source, open_cells
from ..training.data.dataset import expression, run_dataset
from ..training.data.measured import num_measured
from ..training.data.sampler import BalancedSampler
from ..training.objectives import objective_of
from ..training.options import CHECKPOINTS, CellSource, FirstModel
from ..training.pretraining import pretrain
from ..training.starting import first_model, pretraining_rate
from .options import EVENTS, Pretraining
from .results import figures, known_hash, write_results

BASELINE_CELLS = 20_000  # training cells that baselines are fitted to; more do not change them


def pretrain_files(
    files: Sequence[str | Path],
    output: str | Path,
    recipe: Pretraining,
    *,
    resume: bool = False,
    command: str = "",
    say: Callable[[str], None] = print,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Pre-train on the cells of files or of a corpus, and return the metrics, which are also in `output/metrics.json`.

    It writes the checkpoint with its card and pictures into `output`. If torchrun or `accelerate launch` started
    several processes, the first one writes, and the others return an empty dict.

    Args:
        files: Files with cells that fit in memory: .h5ad, 10x .h5 or mtx folders, .csv or .tsv; none if the recipe
            names a corpus.
        output: Folder to write, made if it does not exist; until the run ends, `output/checkpoints` holds checkpoints.
        recipe: Options of the pre-training.
        resume: Go on from the newest complete checkpoint of the same run.
        command: The command that repeats the run, for the card.
        say: Called with one line of text for each step.
        callbacks: Callbacks for the Trainer, such as a progress bar.

    Raises:
        ValueError: If there are cells without counts and `drop_empty` is not set, if there are too few cells, or if not
            exactly one of files and corpus is given.

    Example:
        >>> from xtrimogene.training.options import NewModel
        >>> recipe = Pretraining(epochs=3, new=NewModel(config="tiny"))
        >>> metrics = pretrain_files(["a.h5ad", "b.h5ad"], "checkpoint", recipe)  # doctest: +SKIP
    """
    began = perf_counter()
    if recipe.epochs and recipe.max_steps:
        raise ValueError(
            f"epochs is {recipe.epochs} and max_steps is {recipe.max_steps}: give one, they exclude each other"
        )
    output = Path(output)
    target, seed = pick_device(recipe.run.device).type, recipe.run.seed
    source = CellSource(
        files=[str(file) for file in files], corpus=recipe.corpus, **flat(recipe.cells), **flat(recipe.batches)
    )
    check_source(source, recipe.held_out.validation_by, recipe.balance_by)
    set_seed(seed)
    if recipe.checkpoint:  # the Hub is asked once for the commit, of which all files are
        recipe = replace(recipe, checkpoint=str(Saved.of(recipe.checkpoint)))
    first = FirstModel(checkpoint=recipe.checkpoint, **flat(recipe.new))
    model, tokenizer = first_model(first, target)
    if recipe.checkpoint and recipe.masking.read_depth_aware and not tokenizer.depth_tokens:
        raise ValueError(f"{recipe.checkpoint} has no depth tokens to be told depths by: pre-train a new model instead")
    cells = open_cells(source, recipe.held_out, tokenizer, seed, say)
    arguments = trainer_arguments(recipe, first, output, target)
    writers = event_writers(arguments, output / EVENTS)
    trainer = train(model, tokenizer, cells, recipe, arguments, [*callbacks, *writers], resume)
    predicted, (true, masked_ids) = trainer.predict(cells.dataset.select(cells.held_out))[:2]  # type: ignore[misc]
    if not trainer.is_world_process_zero():
        return {}
    masked = Masked(true, np.asarray(predicted), masked_ids)
    recovery = recovered(families.family_of(model.config).about.name, masked, cells, tokenizer, recipe)
    metrics = facts(recovery, trainer, cells, recipe) | {
        "device": target,
        "hardware": hardware(target),
        "seconds": round(perf_counter() - began, 1),
    }
    with final_model(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        trained = cells.dataset.select(cells.train)
        save_trained_on(folder, trained, tokenizer, recipe.checkpoint)
        CorpusPCA.fit(trained, tokenizer, seed).save(folder)
        save_familiarity(folder, model, tokenizer, cells, seed)
        beside = loss_baselines(recovery, model.config)
        pictures.loss_curve(trainer.state.log_history, folder / "loss.png", beside)
        pictures.recovery_scatter(masked.true, masked.predicted, folder / "recovery.png")
        hashes = {Path(file).name: known_hash(Path(file)) for file in files}
        write_card(folder, output.name, metrics, (cells, hashes), recipe.checkpoint, command)
    shutil.rmtree(output / CHECKPOINTS)  # the run has come to its end
    return metrics


def trainer_arguments(recipe: Pretraining, first: FirstModel, output: Path, target: str) -> CellTrainingArguments:
    """Return the Trainer's arguments for a recipe."""
    optimization, batching = recipe.optimization, recipe.batching
    learning_rate = optimization.learning_rate
    if learning_rate is None:
        learning_rate = pretraining_rate(first, target)
    length = {"max_steps": recipe.max_steps} if recipe.max_steps else {"num_train_epochs": recipe.epochs or 10}
    return run_arguments(
        output,
        target,
        batching.batch_size,
        **length,
        learning_rate=learning_rate,
        seed=recipe.run.seed,
        lr_scheduler_type=optimization.schedule,
        warmup_steps=optimization.warmup,
        weight_decay=optimization.weight_decay,
        max_grad_norm=optimization.max_grad_norm,
        gradient_accumulation_steps=batching.accumulate,
        bf16=batching.bf16,
        activation_checkpointing=batching.gradient_checkpointing,
        torch_compile=batching.compile_model,
        report_to=recipe.report_to,
    )


def train(
    model: Any,
    tokenizer: Any,
    cells: Cells,
    recipe: Pretraining,
    arguments: CellTrainingArguments,
    callbacks: list[Any],
    resume: bool,
) -> Any:
    """Train the model, and return its Trainer."""
    dataset, balance_by = cells.dataset.select(cells.train), recipe.balance_by
    return pretrain(
        model,
        tokenizer,
        dataset,
        cells.dataset.select(cells.held_out),
        arguments=arguments,
        callbacks=callbacks,
        resume=resume,
        max_tokens=recipe.batching.max_tokens,
        train_sampler=None if balance_by is None else BalancedSampler(dataset[balance_by], recipe.run.seed),
        ema=recipe.optimization.ema,
        options=recipe.masking,
    )


def save_familiarity(folder: Path, model: Any, tokenizer: Any, cells: Cells, seed: int) -> None:
    """Write where the training cells lie, by which `embed` tells cells that are unlike them.

    Nothing is written for models that are not anchored, whose distances mean little, and with few held-out cells.
    """
    if not getattr(model.config, "anchored", False) or len(cells.held_out) < LEAST_HELD_OUT:
        return
    rng = np.random.default_rng(seed)
    parts = (np.sort(rng.permutation(rows)[:MOST_KEPT]) for rows in (cells.train, cells.held_out))
    known, held_out = (embeddings(model, tokenizer, cells.dataset.select(rows)) for rows in parts)
    source = f"{len(cells.train):,} cells of {first_names(file for file, _ in cells.sources)}"
    found = Familiarity.fit(known, held_out, source, seed)
    assert found is not None  # enough cells are held out
    found.save(folder)


def embeddings(model: Any, tokenizer: Any, dataset: Any) -> np.ndarray:
    """Return the embeddings of cells as inference has them, `(cells, D)`."""
    model.eval()
    collator = DataCollatorForExpression(tokenizer)
    return run_dataset(dataset, collator, model.device, lambda batch: model.model(**batch).pooler_output).cpu().numpy()


@dataclass(frozen=True)
class Masked:
    """True and predicted masked values of held-out cells and their gene ids, `(cells, M)` each, padded on the right."""

    true: np.ndarray
    predicted: np.ndarray
    ids: np.ndarray


def recovered(
    name: str, masked: Masked, cells: Cells, tokenizer: Any, recipe: Pretraining
) -> dict[str, dict[str, float]]:
    """Return the scores of masked values as a model of this name predicts them, beside those of baselines."""
    few = np.random.default_rng(recipe.run.seed).permutation(cells.train)[:BASELINE_CELLS]
    known = cells.dataset.select(few)
    measured = num_measured(known, tokenizer.num_genes) if recipe.masking.unmeasured == "ignore" else None
    seen = expression(known, tokenizer)
    visible = hide(expression(cells.dataset.select(cells.held_out), tokenizer), masked.ids)
    ratios = (recipe.masking.expressed_ratio, recipe.masking.zero_ratio)
    seed = recipe.run.seed
    return recovery_scores(name, masked.true, masked.predicted, masked.ids, seen, visible, ratios, seed, measured)


def facts(recovery: dict[str, dict[str, float]], trainer: Any, cells: Cells, recipe: Pretraining) -> dict[str, Any]:
    """Return the metrics and settings of a run, for `metrics.json` and the card."""
    return {
        "cells": {"train": len(cells.train), "held out": len(cells.held_out), "trained on": dict(cells.sources)},
        "masked values of held-out cells": recovery,
        "parameters": trainer.num_parameters,
        "epochs": round(trainer.state.epoch or 0, 2),
        "steps": trainer.state.global_step,
        "learning rate": trainer.args.learning_rate,
        "batch size": trainer.args.train_batch_size,
        "processes": trainer.args.world_size,
        "ema": recipe.optimization.ema,
        **objective_of(trainer.model.config).settings(recipe.masking),
        "seed": recipe.run.seed,
    }


def write_card(
    folder: Path,
    name: str,
    metrics: dict[str, Any],
    data: tuple[Cells, dict[str, str]],
    checkpoint: str | None,
    command: str,
) -> None:
    """Write `metrics.json` and the card of a pre-trained checkpoint; `data` is its cells, and the hash of each file."""
    cells, hashes = data
    names = first_names(file for file, _ in cells.sources)
    recovery = metrics["masked values of held-out cells"]
    results = [
        Metric("masked value recovery", f"held-out cells of {names}", title, *figures(recovery, key))
        for key, title in (("pearson", "Pearson"), ("pearson_expressed", "Pearson of expressed"))
    ]
    card = CardContent(
        model_name=name,
        summary=f"{{a model}} pre-trained on {len(cells.train):,} cells of {names}.",
        metrics=results,
        data=[
            DataSource(file, "not stated", "given by the user", number, hashes.get(file, ""))
            for file, number in cells.sources
        ],
        pictures={
            "Loss, and Pearson of held-out cells": "loss.png",
            "Masked values of held-out cells": "recovery.png",
        },
        command=command,
        origin=checkpoint and Path(checkpoint).name,
    )
    write_results(folder, metrics, card)
