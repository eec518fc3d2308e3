"""Fine-tune from labelled cells to a classifier with its card, its calibration and its test beside baselines."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from ..tokenization.reading import cells_with_counts, read_cells
from ..training.arguments import CHECKPOINTS, run_arguments
from .results import figures, write_results


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

    from ..atomic import final_model
    from ..eval.measures import baselines
    from ..eval.measures.metrics import annotation_metrics
    from ..eval.report import pictures
    from ..eval.tasks.annotation import calibrate_classifier
    from ..hub_cards.card import DataSource, Metric
    from ..inference import calibration
    from ..inference.cell_model import CellModel
    from ..inference.devices import pick_device
    from ..tokenization.labels import every_label
    from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from ..training.data.dataset import cells_dataset
    from ..training.data.splits import encode_labels, stratified_split
    from ..training.finetuning import annotation_model, balanced_class_weights, finetune, finetuning_rate

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
    probabilities, embeddings = CellModel(model, tokenizer).classify(cells)
    predicted = {"xTrimoGene": np.array(names)[probabilities[test].argmax(axis=1)], **predicted}
    true = labels[test].tolist()
    scores = {name: annotation_metrics(true, guess.tolist()) for name, guess in predicted.items()}
    halves = calibration.stratified_groups(ids[test], 2, seed)
    metrics = {
        "cells": {"train": len(train), "test": len(test), "types": len(names)},
        "split by": group_key or "cell",
        "annotation of held-out cells": scores,
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
        metrics["calibration"] = calibrate_classifier(
            probabilities, embeddings, ids, names, train, test[halves == 0], test[halves == 1], folder, say
        )
        write_results(
            folder,
            metrics,
            [
                Metric("cell type annotation", f"held-out cells of {file.name}", title, *figures(scores, key))
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
