"""Training runs from files to a checkpoint: read cells, split, train, compare with baselines, write what came out.

files  ->  cells  ->  train | held out  ->  model  ->  checkpoint, card, pictures, metrics.json
                            |  baselines on the same cells  ->  the same metrics
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData
    from datasets import Dataset
    from transformers import TrainingArguments

    from .hub_cards.card import DataSource, Metric
    from .tokenization.panel_xtrimogene import PanelCounts
    from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

CHUNK = 4096  # cells read at a time
CHECKPOINTS = "checkpoints"  # folder in the output of a run that has not ended
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

    from .eval import pictures
    from .eval.baselines import hide
    from .eval.inference import pick_device
    from .hub_cards.card import DataSource, Metric
    from .modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
    from .modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
    from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from .training.corpus import BalancedSampler, read_corpus, split_corpus
    from .training.dataset import expression
    from .training.folders import final_model
    from .training.messages import some
    from .training.pretraining import pretrain

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
        **ratios,
    )
    predicted, (true, masked_ids) = trainer.predict(test_dataset)[:2]  # type: ignore[misc]
    if not trainer.is_world_process_zero():
        return {}
    few = np.random.default_rng(seed).permutation(train)[:BASELINE_CELLS]
    seen, visible = expression(dataset.select(few), tokenizer), hide(expression(test_dataset, tokenizer), masked_ids)
    shares = (expressed_ratio, zero_ratio)
    recovery = recovery_scores(true, np.asarray(predicted), masked_ids, seen, visible, shares, seed)
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
        "seed": seed,
        "device": target,
        "seconds": round(perf_counter() - began, 1),
    }
    names = some(name for name, _ in numbers)
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

    from .training.dataset import cells_dataset

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


def finetune_file(
    file: str | Path,
    label_key: str,
    checkpoint: str,
    output: str | Path,
    *,
    test_share: float = 0.2,
    group_key: str | None = None,
    epochs: int = 3,
    learning_rate: float | None = None,
    batch_size: int | Literal["auto"] = "auto",
    trainable_layers: int | None = None,
    pooling: str | None = None,
    class_weights: Literal["none", "balanced"] = "none",
    layer: str | None = None,
    gene_column: str | None = None,
    drop_empty: bool = False,
    resume: bool = False,
    seed: int = 0,
    device: str = "auto",
    command: str = "",
    say: Callable[[str], None] = print,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Fine-tune a checkpoint on labelled cells and return the metrics, which are also in `output/metrics.json`.

    Writes the classifier with its card, `confusion.png` and `calibration.safetensors` into `output` when all is done;
    until then `output/checkpoints` holds what a run needs to resume, and no model.

    Held-out cells are dealt into two halves, type by type. One half sets the temperature and the thresholds for unknown
    cells, the other says how well they work. Accuracy and F1 are those of all held-out cells: a temperature changes no
    label.

    Args:
        file: Labelled cells.
        label_key: Column of `obs` with the cell types.
        checkpoint: Folder or Hub name.
        output: Folder, made if it is not there.
        test_share: Share of the cells, or of the groups, held out.
        group_key: Column of `obs` with donor or study: none of them on both sides of the split.
        epochs: Passes over the cells.
        learning_rate: Largest rate; unless given 1e-3 for models as narrow as `tiny`, else 5e-4.
        batch_size: See `pretrain_files`.
        trainable_layers: See `annotation_model`.
        pooling: See `XTrimoGeneConfig`; that of the checkpoint unless given.
        class_weights: See `balanced_class_weights`.
        layer: Layer with the counts, if they are not found by themselves.
        gene_column: Column of `var` with the gene names.
        drop_empty: Leave out cells without counts on the panel.
        resume: Go on from the newest whole checkpoint of the same run.
        seed: Seed of head, split and order.
        device: `auto`, `cpu`, `cuda` or `mps`.
        command: What to type to repeat the run, for the card.
        say: Called with one line for each step.
        callbacks: Callbacks for the Trainer, such as a progress bar.

    Raises:
        ValueError: If there is no such column, labels are missing, or cells without counts are there and `drop_empty`
            is not set.
    """
    from transformers import set_seed

    from .eval import baselines, pictures, rejection
    from .eval.inference import pick_device
    from .eval.metrics import annotation_metrics
    from .hub_cards.card import DataSource, Metric
    from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from .training.dataset import cells_dataset
    from .training.finetuning import (
        annotation_model,
        balanced_class_weights,
        encode_labels,
        finetune,
        finetuning_rate,
        stratified_split,
    )
    from .training.folders import final_model
    from .training.labels import every_label

    began = perf_counter()
    file, output = Path(file), Path(output)
    target = pick_device(device).type
    set_seed(seed)
    adata = read_cells(file)
    for name, key in {"label_key": label_key, "group_key": group_key}.items():
        if key is not None and key not in adata.obs:
            there = ", ".join(adata.obs.columns) or "(none)"
            raise ValueError(f"{name} is {key!r}, and obs of {file.name} has the columns {there}")
    tokenizer = XTrimoGeneTokenizer.from_pretrained(checkpoint)
    cells = tokenizer.read_counts(adata, layer=layer, gene_column=gene_column)
    is_there = cells_with_counts(cells, file.name, drop_empty, say)
    if not is_there.all():
        adata = adata[is_there].copy()
        cells = tokenizer.read_counts(adata, layer=layer, gene_column=gene_column)
    ids, names = encode_labels(adata.obs[label_key], label_key)
    groups = None if group_key is None else every_label(adata.obs[group_key], str(group_key)).tolist()
    labels = np.array(names)[ids]
    train, test = stratified_split(labels, test_share, seed, groups)
    say(
        f"{file.name}: {cells.n_cells:,} cells, {len(names)} types, {len(test):,} cells held out by "
        f"{group_key or 'cell'}; {cells.description}; {cells.match.summary()}"
    )

    for name, cells_of_split in {"train on": train, "test on": test}.items():
        if absent := sorted(set(names) - set(labels[cells_of_split])):
            say(f"no cells to {name} of {', '.join(absent)}: scores count them as they are")
    # Baselines first: they take seconds, and what is wrong with the split shows.
    counts = cells.read()[0]
    known = counts[train], labels[train].tolist(), counts[test]
    n_components, k = max(min(20, len(train) - 1), 1), min(15, len(train))
    predicted = {
        "logistic regression": baselines.logistic_regression(*known),
        "k-NN on PCA": baselines.knn_on_pca(*known, n_components, k, seed),
    }
    weights = balanced_class_weights(ids[train], len(names)) if class_weights == "balanced" else None
    changes = {} if pooling is None else {"pooling": pooling}
    model = annotation_model(checkpoint, names, weights, trainable_layers, **changes)
    dataset = cells_dataset(cells, ids)
    if learning_rate is None:
        learning_rate = finetuning_rate(model.config)
    arguments = run_arguments(
        output, target, batch_size, learning_rate=learning_rate, seed=seed, num_train_epochs=epochs
    )
    finetune(
        model,
        tokenizer,
        dataset.select(train),
        dataset.select(test),
        arguments=arguments,
        callbacks=list(callbacks),
        resume=resume,
    )
    probabilities, embeddings = rejection.classify_cells(model, tokenizer, cells)
    predicted = {"xTrimoGene": np.array(names)[probabilities[test].argmax(axis=1)], **predicted}
    true = labels[test].tolist()
    annotation = {name: annotation_metrics(true, guess.tolist()) for name, guess in predicted.items()}
    halves = rejection.deal(ids[test], 2, seed)
    metrics = {
        "cells": {"train": len(train), "test": len(test), "types": len(names)},
        "split by": group_key or "cell",
        "annotation of held-out cells": annotation,
        "epochs": epochs,
        "learning rate": learning_rate,
        "batch size": arguments.train_batch_size,
        "class weights": class_weights,
        "pooling": model.config.pooling,
        "trainable layers": "all" if trainable_layers is None else trainable_layers,
        "seed": seed,
        "device": target,
        "seconds": round(perf_counter() - began, 1),
    }
    with final_model(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        pictures.confusion_matrix(true, predicted["xTrimoGene"].tolist(), names, folder / "confusion.png")
        metrics["calibration"] = rejection.calibrate(
            probabilities, embeddings, ids, names, train, test[halves == 0], test[halves == 1], folder, say
        )
        write_results(
            folder,
            metrics,
            [
                Metric("cell type annotation", f"held-out cells of {file.name}", title, *figures(annotation, key))
                for key, title in (("accuracy", "accuracy"), ("macro_f1", "macro F1"))
            ],
            name=output.name,
            summary=f"An xTrimoGene fine-tuned on {len(train):,} cells of {file.name} to name {len(names)} cell types.",
            data=[DataSource(file.name, "not stated", "given by the user", len(train))],
            pictures={"Held-out cells by true and predicted type": "confusion.png"},
            command=command,
            is_classifier=True,
            origin=Path(checkpoint).name,
        )
    shutil.rmtree(output / CHECKPOINTS)  # the run has come to its end
    return metrics


def read_cells(path: str | Path, gene_names: Sequence[str] | None = None, total_key: str | None = None) -> "AnnData":
    """Read any file of cells as AnnData in memory.

    Args:
        path: The file.
        gene_names: Names of the columns of an array, which does not hold them.
        total_key: Move the last column of a table or array to `obs`, under this name.

    Raises:
        ValueError: If the file does not name its genes, or does so and names are given too, or has columns that hold no
            numbers.
    """
    import anndata
    from scipy.sparse import csr_matrix

    from .tokenization.counts_xtrimogene import checked_slots, frame_values, load

    path = Path(path)
    data = load(path)
    if isinstance(data, anndata.AnnData):
        if gene_names is not None:
            raise ValueError(f"{path.name} names its genes itself: leave the gene names out")
        return checked_slots(data.to_memory(), path.name) if data.isbacked else data
    is_table = hasattr(data, "columns")
    if is_table == (gene_names is not None):
        raise ValueError(
            f"{path.name} names its genes itself: leave the gene names out"
            if is_table
            else f"{path.name} does not name its genes: give --gene-names, a file with one name a line, or 'panel' if "
            f"its columns are the genes of the model in their order; or save it as .h5ad"
        )
    matrix = csr_matrix(frame_values(data, path.name) if is_table else data)
    names = data.columns.astype(str) if is_table else list(gene_names or ())
    totals = None
    if total_key is not None:
        totals, matrix = matrix[:, [-1]].toarray().ravel(), matrix[:, :-1]
        names = names[:-1] if is_table else names
    if len(names) != matrix.shape[1]:
        hint = "; if the last column is the total of each cell, give input type log-total" if total_key is None else ""
        raise ValueError(
            f"{path.name} has {matrix.shape[1]:,} columns of genes, and {len(names):,} names are given{hint}"
        )
    adata = anndata.AnnData(matrix)
    adata.var_names = names
    if is_table:
        adata.obs_names = data.index.astype(str)
    if totals is not None:
        adata.obs[total_key] = totals
    return adata


def open_cells(path: str | Path, gene_names: Sequence[str] | None = None, total_key: str | None = None) -> "AnnData":
    """Open any file of cells as AnnData: an .h5ad stays on disk, others are read into memory; see `read_cells`.

    Raises:
        ValueError: See `read_cells`.
    """
    from .tokenization.counts_xtrimogene import load

    if Path(path).suffix == ".h5ad" and gene_names is None:
        return load(Path(path))
    return read_cells(path, gene_names, total_key)


def cells_with_counts(
    cells: "PanelCounts", name: str, drop_empty: bool, say: Callable[[str], None] = print
) -> np.ndarray:
    """Return which cells have counts on the panel, and say how many are left out.

    Raises:
        ValueError: If some have none and `drop_empty` is not set.
    """
    lengths = [np.diff(cells.read(start, start + CHUNK)[0].indptr) for start in range(0, cells.n_cells, CHUNK)]
    is_there = np.concatenate(lengths) > 0
    num_empty = int((~is_there).sum())
    text = f"{name}: {num_empty:,} of {cells.n_cells:,} cells have no counts on the panel"
    if num_empty and not drop_empty:
        raise ValueError(f"{text}, and nothing can be learned from them; leave them out with --drop-empty")
    if num_empty:
        say(f"{text} and are left out")
    return is_there


def run_arguments(output: Path, device: str, batch_size: int | Literal["auto"], **changes: Any) -> "TrainingArguments":
    """Return the Trainer's arguments for a run of any length: evaluated each epoch, with ten checkpoints on the way."""
    from .training.trainer import training_arguments

    if batch_size != "auto":
        changes["per_device_train_batch_size"] = batch_size
    # Steps below 1 are shares of the run.
    often = {"eval_strategy": "epoch", "logging_steps": 0.01, "warmup_steps": 0.05}
    saved = {"save_strategy": "steps", "save_steps": 0.1}
    changes = {**often, **changes, **saved}
    return training_arguments(output / CHECKPOINTS, use_cpu=device == "cpu", disable_tqdm=True, **changes)


def event_writers(training: "TrainingArguments", folder: Path) -> list[Any]:
    """Return what writes for TensorBoard into `folder`, if `training` asks for it, in the place of the Trainer's own.

    That one would write into the folder of the checkpoints, which is deleted when the run ends.
    """
    if "tensorboard" not in training.report_to:
        return []
    from transformers.integrations import TensorBoardCallback

    training.report_to = [name for name in training.report_to if name != "tensorboard"]
    writer = TensorBoardCallback()
    writer.logging_dir = str(folder)
    return [writer]


def recovery_scores(
    true: np.ndarray,
    predicted: np.ndarray,
    masked_ids: np.ndarray,
    seen: Any,
    visible: Any,
    ratios: tuple[float, float],
    seed: int,
) -> dict[str, dict[str, float]]:
    """Return the scores of the model and of both baselines on the same masked values.

    Args:
        true: Values of the masked genes of held-out cells, -100 where padded, `(cells, M)`.
        predicted: What the model says of them.
        masked_ids: Which genes they are.
        seen: Values of the training cells, CSR `(cells, G)`.
        visible: Values of the held-out cells without the masked ones, CSR `(cells, G)`.
        ratios: Shares of expressed and of zero genes that are masked.
        seed: Seed of the PCA.
    """
    from .eval import baselines
    from .eval.metrics import gene_centred_pearson, masked_value_metrics

    guesses = {
        "xTrimoGene": predicted,
        "PCA": baselines.pca_imputer(seen, visible, masked_ids, ratios, seed),
        "gene mean": baselines.gene_mean(seen, masked_ids, ratios),
    }
    scores = {name: masked_value_metrics(true, guess) for name, guess in guesses.items()}
    for name, guess in guesses.items():
        scores[name]["pearson_beyond_gene_mean"] = gene_centred_pearson(true, guess, guesses["gene mean"])
    return scores


def loss_baselines(recovery: Mapping[str, Mapping[str, float]], objective: str) -> dict[str, dict[str, float]]:
    """Return what stands beside the curves of a run: scores of the baselines that are in the units of its curves.

    Args:
        recovery: From `recovery_scores`.
        objective: Of the configuration; only the loss of a regression is a squared error.
    """
    keys = ("pearson", "mse") if objective == "regression" else ("pearson",)
    return {name: {key: row[key] for key in keys} for name, row in recovery.items() if name != "xTrimoGene"}


def figures(scores: Mapping[str, Mapping[str, float]], key: str) -> tuple[float, dict[str, float]]:
    """Return the figure of the model and those of the baselines."""
    rest = {name: row[key] for name, row in scores.items() if name != "xTrimoGene"}
    return scores["xTrimoGene"][key], rest


def write_results(
    folder: Path,
    metrics: Mapping[str, Any],
    results: Sequence["Metric"],
    *,
    name: str,
    summary: str,
    data: Sequence["DataSource"],
    pictures: Mapping[str, str],
    command: str,
    is_classifier: bool = False,
    origin: str | None = None,
) -> None:
    """Write `metrics.json` and the card into a checkpoint folder."""
    from .hub_cards.card import write_model_card
    from .modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig

    text = json.dumps(plain(metrics), indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    config = XTrimoGeneConfig.from_pretrained(folder)
    shown = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_genes", "depth_tokens", "pooling")
    write_model_card(
        folder,
        model_name=name,
        summary=summary,
        config={key: getattr(config, key) for key in shown},
        metrics=[result for result in results if math.isfinite(result.value)],
        training={key: value for key, value in metrics.items() if isinstance(value, (int, float, str))},
        data=data,
        command=command,
        pictures=pictures,
        is_classifier=is_classifier,
        origin=origin,
        license="unknown",  # theirs to choose: it depends on the cells
    )


def plain(value: Any) -> Any:
    """Return values as JSON knows them: numpy's and paths too, and null for what is not a finite number."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
