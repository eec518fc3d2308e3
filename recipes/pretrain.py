"""Pre-train from files or a corpus to a checkpoint with its card.

files  ->  cells  ->  train | held out  ->  model  ->  checkpoint, card, pictures, metrics.json
                            |  baselines on the same cells  ->  the same metrics
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..eval.measures.recovery import loss_baselines, recovery_scores
from ..tokenization.reading import cells_with_counts, read_cells
from ..training.arguments import CHECKPOINTS, event_writers, run_arguments
from .results import figures, write_results

if TYPE_CHECKING:
    from datasets import Dataset

    from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer


EVENTS = "tensorboard"  # folder in the output of a run that reports there
BASELINE_CELLS = 20_000  # training cells from which gene means are taken: more do not change them


def pretrain_files(
    files: Sequence[str | Path],
    output: str | Path,
    *,
    corpus: str | Path | None = None,
    config: str | None = None,
    checkpoint: str | None = None,
    epochs: int = 10,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_tokens: int | None = None,
    ema: float | None = None,
    expressed_ratio: float = 0.3,
    zero_ratio: float = 0.03,
    unmeasured: Literal["ignore", "zero"] = "ignore",
    depth_tokens: bool = False,
    read_depth_aware: bool = False,
    decoder_context: Literal["all", "nonzero"] | None = None,
    dropout: float | None = None,
    validation_share: float = 0.05,
    validation_by: str | None = None,
    balance_by: str | None = None,
    resume: bool = False,
    layer: str | None = None,
    gene_column: str | None = None,
    drop_empty: bool = False,
    seed: int = 0,
    device: str = "auto",
    command: str = "",
    say: Callable[[str], None] = print,
    callbacks: Sequence[Any] = (),
    **arguments: Any,
) -> dict[str, Any]:
    """Pre-train on the cells of some files or of a corpus; return the metrics, also in `output/metrics.json`.

    Writes the checkpoint with its card and `loss.png` into `output`. Started by torchrun or `accelerate launch`, all
    processes take part and the first one writes; the others return nothing.

    Args:
        files: Anything that `find_counts` reads, for as many cells as fit in memory.
        output: Folder, made if it is not there; `output/checkpoints` holds what a run needs to resume, until it ends.
        corpus: Folder from `convert_files`, instead of files.
        config: Preset of a new model; unless given `tiny` on a CPU and `3M` elsewhere.
        checkpoint: Continue from its weights; its tokenizer is used.
        epochs: Passes over the cells.
        max_steps: Stop after so many steps; instead of `epochs`.
        learning_rate: Largest rate; unless given 2e-3 for `tiny` and 1e-4, that of the released model, otherwise.
        batch_size: Cells of a step on each device; `auto` is that of `training_arguments`.
        max_tokens: See `CellTrainer`.
        ema: See `CellTrainer`.
        expressed_ratio: Share of the expressed genes that is masked.
        zero_ratio: Share of the zero genes that is masked.
        unmeasured: `ignore` neither masks nor scores genes that a file does not name; `zero` takes them for zero genes.
        depth_tokens: Whether a new model has depth tokens.
        read_depth_aware: See `DataCollatorForMaskedExpression`; needs depth tokens.
        decoder_context: See `XTrimoGeneConfig`; that of the preset unless given.
        dropout: Of the encoder, attention weights included; that of the preset unless given.
        validation_share: Share of the cells held out.
        validation_by: Column of a corpus whose values are on one side of the split each.
        balance_by: Column of a corpus whose values are drawn equally often.
        resume: Go on from the newest whole checkpoint of the same run.
        layer: Layer with the counts in every file, if they are not found by themselves.
        gene_column: Column of `var` with the gene names in every file.
        drop_empty: Leave out cells without counts on the panel.
        seed: Seed of weights, split, masks and order.
        device: `auto`, `cpu`, `cuda` or `mps`.
        command: What to type to repeat the run, for the card.
        say: Called with one line for each step.
        callbacks: Callbacks for the Trainer, such as a progress bar.
        **arguments: Other fields of `TrainingArguments`.

    Raises:
        ValueError: If cells without counts are there and `drop_empty` is not set, there are too few cells, or neither
            files nor a corpus is given.
    """
    from transformers import set_seed

    from ..atomic import final_model
    from ..eval.measures.baselines import hide
    from ..eval.report import pictures
    from ..hub_cards.card import DataSource, Metric
    from ..inference.devices import pick_device
    from ..modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
    from ..modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
    from ..records import first_names
    from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from ..training.data.corpus import read_corpus
    from ..training.data.dataset import expression
    from ..training.data.measured import num_measured
    from ..training.data.sampler import BalancedSampler
    from ..training.data.splits import split_corpus
    from ..training.pretraining import pretrain

    began = perf_counter()
    output = Path(output)
    target = pick_device(device).type
    if bool(files) == bool(corpus):
        raise ValueError("files and corpus exclude each other, and one is needed: give files with cells, or a corpus")
    if corpus is None and (validation_by or balance_by):
        raise ValueError("validation_by and balance_by name columns of a corpus: convert the files, then give --corpus")
    set_seed(seed)
    if checkpoint:
        if XTrimoGeneConfig.from_pretrained(checkpoint).architectures == ["XTrimoGeneForSequenceClassification"]:
            raise ValueError(f"{checkpoint} is a classifier and has no decoder to train: give a pre-trained checkpoint")
        tokenizer = XTrimoGeneTokenizer.from_pretrained(checkpoint)
        if read_depth_aware and not tokenizer.depth_tokens:
            raise ValueError(f"{checkpoint} has no depth tokens to be told depths by: pre-train a new model instead")
        model = XTrimoGeneForPreTraining.from_pretrained(checkpoint)
    else:
        config = config or ("tiny" if target == "cpu" else "3M")
        changes: dict[str, Any] = {} if decoder_context is None else {"decoder_context": decoder_context}
        if dropout is not None:
            changes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset(config, depth_tokens=depth_tokens, **changes))
        tokenizer = XTrimoGeneTokenizer.default(depth_tokens=depth_tokens)

    dataset: Any
    if corpus is not None:
        dataset = read_corpus(corpus, tokenizer)
        sources = dataset.manifest.sources
        numbers = [(source.name, source.cells_kept) for source in sources if source.cells_kept]
        train, held_out = split_corpus(dataset, validation_share, validation_by, seed)
        failed = [source.name for source in sources if source.state == "failed"]
        say(f"{corpus}: {len(dataset):,} cells of {len(numbers):,} files")
        if failed:
            say(f"{len(failed):,} files could not be converted and are not in it: {', '.join(failed)}")
    else:
        dataset, numbers = read_files(files, tokenizer, layer, gene_column, drop_empty, say)
        num_held_out = max(round(len(dataset) * validation_share), 1)
        if num_held_out >= len(dataset):
            raise ValueError(f"{num_held_out} of {len(dataset)} cells held out leave none to train on: give more cells")
        order = np.random.default_rng(seed).permutation(len(dataset))
        held_out, train = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    say(f"{len(held_out):,} of {len(dataset):,} cells held out")
    # Cells of like length side by side: evaluation goes through them as they stand.
    held_out = held_out[np.argsort(dataset["length"][:][held_out], kind="stable")]

    if learning_rate is None:
        learning_rate = 2e-3 if config == "tiny" else 1e-4
    arguments |= {"max_steps": max_steps} if max_steps else {"num_train_epochs": epochs}
    arguments |= {"learning_rate": learning_rate, "seed": seed}
    training = run_arguments(output, target, batch_size, **arguments)
    callbacks = [*callbacks, *event_writers(training, output / EVENTS)]
    ratios = {"expressed_ratio": expressed_ratio, "zero_ratio": zero_ratio}
    train_dataset, test_dataset = dataset.select(train), dataset.select(held_out)
    sampler = None
    if balance_by is not None:
        sampler = BalancedSampler(train_dataset[balance_by], seed)
    trainer = pretrain(
        model,
        tokenizer,
        train_dataset,
        test_dataset,
        arguments=training,
        callbacks=callbacks,
        resume=resume,
        max_tokens=max_tokens,
        train_sampler=sampler,
        ema=ema,
        read_depth_aware=read_depth_aware,
        unmeasured=unmeasured,
        **ratios,
    )
    predicted, (true, masked_ids) = trainer.predict(test_dataset)[:2]  # type: ignore[misc]
    if not trainer.is_world_process_zero():
        return {}
    few = np.random.default_rng(seed).permutation(train)[:BASELINE_CELLS]
    known = dataset.select(few)
    seen, visible = expression(known, tokenizer), hide(expression(test_dataset, tokenizer), masked_ids)
    shares = (expressed_ratio, zero_ratio)
    measured = num_measured(known, tokenizer.num_genes) if unmeasured == "ignore" else None
    recovery = recovery_scores(true, np.asarray(predicted), masked_ids, seen, visible, shares, seed, measured)
    metrics = {
        "cells": {"train": len(train), "held out": len(held_out)},
        "masked values of held-out cells": recovery,
        "parameters": model.num_parameters(),
        "epochs": round(trainer.state.epoch or 0, 2),
        "steps": trainer.state.global_step,
        "learning rate": learning_rate,
        "batch size": training.train_batch_size,
        "processes": training.world_size,
        "ema": ema,
        **ratios,
        "unmeasured": unmeasured,
        "seed": seed,
        "device": target,
        "seconds": round(perf_counter() - began, 1),
    }
    names = first_names(name for name, _ in numbers)
    results = [
        Metric("masked value recovery", f"held-out cells of {names}", title, *figures(recovery, key))
        for key, title in (("pearson", "Pearson"), ("pearson_expressed", "Pearson of expressed"))
    ]
    with final_model(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        baselines_of_loss = loss_baselines(recovery, model.config.objective)
        pictures.loss_curve(trainer.state.log_history, folder / "loss.png", baselines_of_loss)
        pictures.recovery_scatter(true, np.asarray(predicted), folder / "recovery.png")
        write_results(
            folder,
            metrics,
            results,
            name=output.name,
            summary=f"An xTrimoGene pre-trained on {len(train):,} cells of {names}.",
            data=[DataSource(name, "not stated", "given by the user", number) for name, number in numbers],
            pictures={
                "Loss, and Pearson of held-out cells": "loss.png",
                "Masked values of held-out cells": "recovery.png",
            },
            command=command,
            origin=checkpoint and Path(checkpoint).name,
        )
    shutil.rmtree(output / CHECKPOINTS)  # the run has come to its end
    return metrics


def read_files(
    files: Sequence[str | Path],
    tokenizer: "XTrimoGeneTokenizer",
    layer: str | None,
    gene_column: str | None,
    drop_empty: bool,
    say: Callable[[str], None],
) -> tuple["Dataset", list[tuple[str, int]]]:
    """Return the cells of all files as one dataset, and the names of the files with their numbers of cells."""
    from datasets import concatenate_datasets

    from ..training.data.dataset import cells_dataset

    parts, numbers = [], []
    for path in map(Path, files):
        cells = tokenizer.read_counts(path, layer=layer, gene_column=gene_column)
        is_there = cells_with_counts(cells, path.name, drop_empty, say)
        if not is_there.all():
            cells = tokenizer.read_counts(read_cells(path)[is_there], layer=layer, gene_column=gene_column)
        say(f"{path.name}: {cells.n_cells:,} cells; {cells.description}; {cells.match.summary()}")
        parts.append(cells_dataset(cells))
        numbers.append((path.name, cells.n_cells))
        cells.source.close()
    # Masks follow from seed, epoch and cell_index: cells of the same index in two files would be masked alike.
    dataset = concatenate_datasets(parts).remove_columns("cell_index")
    dataset = dataset.add_column("cell_index", np.arange(len(dataset))).with_format("numpy")
    return dataset, numbers
