"""The whole road on real cells, without network: pre-train, save, load, fine-tune, compare, draw, write a card.

The cells are the 700 blood cells of Zheng et al. (2017) that every scanpy installation carries, with 10 labelled types.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LABEL_KEY = "bulk_labels"
TEST_SHARE = 0.25


def run_demo(
    output: str | Path,
    seed: int = 0,
    pretrain_epochs: int = 30,
    finetune_epochs: int = 3,
    device: str = "auto",
    say: Callable[[str], None] = print,
    callbacks: list[Any] | None = None,
) -> dict[str, Any]:
    """Run the demo and return its metrics, which are also in `output/metrics.json`.

    Writes into `output`: `checkpoint` (pre-trained) and `annotator` (fine-tuned), each with a card, `metrics.json`,
    `loss.png`, `umap.png`, `confusion.png`, `recovery.png` and `cells.h5ad` with embedding and labels.

    Args:
        output: Folder, made if it is not there.
        seed: Seed of split, weights, masks and order.
        pretrain_epochs: Epochs of pre-training.
        finetune_epochs: Epochs of fine-tuning, with and without pre-training alike.
        device: `auto` or `cpu`.
        say: Called with one line for each step.
        callbacks: Callbacks for the Trainers, such as a progress bar.
    """
    import scanpy as sc
    import torch
    from transformers import AutoModelForPreTraining, set_seed

    from .. import tl
    from ..eval.measures import baselines
    from ..eval.measures.metrics import annotation_metrics
    from ..eval.measures.recovery import loss_baselines, recovery_scores
    from ..eval.report import pictures
    from ..inference.cell_model import CellModel
    from ..inference.options import Running
    from ..modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
    from ..modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
    from ..records import plain
    from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from ..training.arguments import training_arguments
    from ..training.data.dataset import cells_dataset, expression
    from ..training.data.splits import encode_labels, stratified_split
    from ..training.finetuning import annotation_model, finetune, finetuning_rate
    from ..training.pretraining import pretrain

    began = time.perf_counter()
    output = Path(output)
    checkpoint, annotator = output / "checkpoint", output / "annotator"
    output.mkdir(parents=True, exist_ok=True)
    set_seed(seed)

    adata = sc.datasets.pbmc68k_reduced()
    del adata.obsm, adata.obsp, adata.uns  # others' results are not needed
    ids, names = encode_labels(adata.obs[LABEL_KEY], LABEL_KEY)
    labels = np.array(names)[ids]
    train, test = stratified_split(labels, TEST_SHARE, seed)
    measured = XTrimoGeneTokenizer.default()
    rows = np.unique(measured.matcher.match(list(adata.raw.var_names)).rows)
    tokenizer = XTrimoGeneTokenizer.from_genes([measured.genes[row] for row in rows if row >= 0], checkpoint)
    cells = tokenizer.read_counts(adata)
    say(f"{adata.n_obs} blood cells, {len(names)} types; {cells.description}; {cells.match.summary()}")
    dataset = cells_dataset(cells, ids)

    # On so few genes zero ones are worth their place in the decoder's context (docs/model.md).
    config = XTrimoGeneConfig.preset("tiny", num_genes=tokenizer.num_genes, decoder_context="all")
    model = XTrimoGeneForPreTraining(config)
    arguments = training_arguments(
        output / "runs" / "pretrain",
        num_train_epochs=pretrain_epochs,
        learning_rate=2e-3,
        warmup_steps=20,
        per_device_train_batch_size=32,
        eval_strategy="steps",
        eval_steps=0.1,  # of the run
        seed=seed,
        disable_tqdm=True,
        **({"use_cpu": True} if device == "cpu" else {}),
    )
    trainer = pretrain(
        model,
        tokenizer,
        dataset.select(train),
        dataset.select(test),
        arguments=arguments,
        callbacks=callbacks,
    )
    pretrain_seconds = time.perf_counter() - began
    recovered = trainer.predict(dataset.select(test))
    true, masked_ids = recovered.label_ids
    seen, ratios = expression(dataset.select(train), tokenizer), (0.3, 0.03)
    visible = baselines.hide(expression(dataset.select(test), tokenizer), masked_ids)
    recovery = recovery_scores(true, recovered.predictions, masked_ids, seen, visible, ratios, seed)
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    say(
        f"pre-trained {model.num_parameters():,} parameters in {pretrain_seconds:.0f} s: Pearson of masked values "
        f"{recovery['xTrimoGene']['pearson']:.3f}, gene mean {recovery['gene mean']['pearson']:.3f}"
    )

    embedding = CellModel.load(checkpoint, Running(device="cpu")).embed(cells)
    kept = CellModel(model.to("cpu"), tokenizer).embed(cells)
    difference = float(np.abs(embedding - kept).max())
    if (
        difference > 1e-5
        or AutoModelForPreTraining.from_pretrained(checkpoint).num_parameters() != model.num_parameters()
    ):
        raise RuntimeError(f"the checkpoint in {checkpoint} gives other embeddings than the model: {difference:.1e}")
    say(f"saved and loaded with AutoModel: embeddings agree to {difference:.0e}")

    fine_arguments = {
        "num_train_epochs": finetune_epochs,
        "learning_rate": finetuning_rate(config),
        "warmup_steps": 0.05,
        "per_device_train_batch_size": 32,
        "seed": seed,
        "disable_tqdm": True,
        **({"use_cpu": True} if device == "cpu" else {}),
    }
    predicted = {}
    for name, start in {"xTrimoGene": checkpoint, "xTrimoGene, not pre-trained": model.config}.items():
        set_seed(seed)
        classifier = annotation_model(start, names)
        finetune(
            classifier,
            tokenizer,
            dataset.select(train),
            arguments=training_arguments(output / "runs" / "finetune", **fine_arguments),
            callbacks=callbacks,
        )
        probabilities, _ = CellModel(classifier, tokenizer).classify(cells)
        predicted[name] = np.array(names)[probabilities[test].argmax(axis=1)]
        if start is checkpoint:
            classifier.save_pretrained(annotator)
            tokenizer.save_pretrained(annotator)
            adata.obs["xtrimogene_label"] = np.array(names)[probabilities.argmax(axis=1)]
            adata.obs["xtrimogene_probability"] = probabilities.max(axis=1)
        say(f"fine-tuned {name}")
    counts = cells.read()[0]
    predicted["logistic regression"] = baselines.logistic_regression(counts[train], labels[train], counts[test])
    predicted["k-NN on PCA"] = baselines.knn_on_pca(counts[train], labels[train], counts[test])
    annotation = {name: annotation_metrics(labels[test], predictions) for name, predictions in predicted.items()}

    adata.obsm[tl.DEFAULT_KEY] = embedding
    adata.obs["split"] = np.where(np.isin(np.arange(adata.n_obs), test), "test", "train")
    adata.write_h5ad(output / "cells.h5ad")
    fine_embedding = CellModel.load(annotator, Running(device="cpu")).embed(cells)
    pictures.loss_curve(trainer.state.log_history, output / "loss.png", loss_baselines(recovery, config.objective))
    pictures.recovery_scatter(true, recovered.predictions, output / "recovery.png")
    pictures.confusion_matrix(labels[test], predicted["xTrimoGene"], names, output / "confusion.png")
    pictures.umap({"pre-trained": embedding, "fine-tuned": fine_embedding}, labels, output / "umap.png", seed=seed)
    metrics = {
        "cells": {"train": len(train), "test": len(test), "types": len(names), "genes": tokenizer.num_genes},
        "masked values of held-out cells": recovery,
        "annotation of held-out cells": annotation,
        "parameters": model.num_parameters(),
        "reload difference": difference,
        "seconds": {"pre-training": pretrain_seconds, "all": time.perf_counter() - began},
        "seed": seed,
        "torch threads": torch.get_num_threads(),
    }
    (output / "metrics.json").write_text(json.dumps(plain(metrics), indent=2, allow_nan=False))
    write_cards(output, metrics, {"pretrain_epochs": pretrain_epochs, "finetune_epochs": finetune_epochs})
    return metrics


def write_cards(output: Path, metrics: dict[str, Any], epochs: dict[str, int]) -> None:
    """Write the model cards of the two checkpoints, with the pictures beside them."""
    import shutil

    from ..hub_cards.card import DataSource, Metric, write_model_card
    from ..modeling_xtrimogene.configuration_xtrimogene import PRESETS, XTrimoGeneConfig

    dataset = "Zheng 2017 PBMC, 700 cells (scanpy's pbmc68k_reduced)"
    recovery, annotation = metrics["masked values of held-out cells"], metrics["annotation of held-out cells"]
    command = (
        f"xtrimogene demo --seed {metrics['seed']} --pretrain-epochs {epochs['pretrain_epochs']} "
        f"--finetune-epochs {epochs['finetune_epochs']}"
    )
    cards = {
        "checkpoint": (
            "A small xTrimoGene, pre-trained on 525 blood cells to show the whole road. Not for analyses.",
            [
                Metric(
                    "masked value recovery",
                    dataset,
                    "Pearson",
                    recovery["xTrimoGene"]["pearson"],
                    {name: scores["pearson"] for name, scores in recovery.items() if name != "xTrimoGene"},
                )
            ],
            {
                "Loss and Pearson over pre-training": "loss.png",
                "Masked values of held-out cells": "recovery.png",
            },
        ),
        "annotator": (
            "A small xTrimoGene, pre-trained and fine-tuned on 525 blood cells of 10 types. Not for analyses.",
            [
                Metric(
                    "cell type annotation",
                    dataset,
                    label,
                    annotation["xTrimoGene"][key],
                    {name: scores[key] for name, scores in annotation.items() if name != "xTrimoGene"},
                )
                for key, label in (("accuracy", "accuracy"), ("macro_f1", "macro F1"))
            ],
            {
                "Held-out cells by true and predicted type": "confusion.png",
                "UMAP of all 700 cells, 525 of which it was trained on": "umap.png",
            },
        ),
    }
    for name, (summary, results, images) in cards.items():
        folder = output / name
        for image in images.values():
            shutil.copyfile(output / image, folder / image)
        config = XTrimoGeneConfig.from_pretrained(folder)
        write_model_card(
            folder,
            model_name=f"xtrimogene-demo-{name}",
            summary=summary,
            config={"parameters": count_parameters(folder), **{key: getattr(config, key) for key in PRESETS["tiny"]}},
            metrics=results,
            training={**epochs, "seed": metrics["seed"], "seconds": round(metrics["seconds"]["all"])},
            data=[
                DataSource(
                    "PBMC of Zheng et al. 2017",
                    "CC BY 4.0 (10x Genomics)",
                    "scanpy.datasets.pbmc68k_reduced",
                    metrics["cells"]["train"],
                )
            ],
            command=command,
            pictures=images,
            is_classifier=name == "annotator",
            origin="xtrimogene-demo-checkpoint" if name == "annotator" else None,
        )


def count_parameters(folder: Path) -> int:
    """Return the number of trained weights in a checkpoint."""
    from safetensors import safe_open

    buffers = ("projection", "running_mean", "running_var", "num_batches_tracked")
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if not name.endswith(buffers)]
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
