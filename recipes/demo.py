"""All steps on real cells, without network: pre-train, save, load, fine-tune, compare, draw, write a card.

The cells are the 700 blood cells of Zheng et al. (2017) that every scanpy installation carries, with 10 labelled types.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForPreTraining, set_seed

from .. import families
from ..eval.measures import baselines
from ..eval.measures.metrics import annotation_metrics
from ..eval.measures.recovery import loss_baselines, recovery_scores
from ..eval.report import maps, pictures
from ..eval.tasks.annotation import Classified
from ..hub_cards.card import CardContent, DataSource, Metric, count_parameters, write_model_card
from ..inference.cell_model import CellModel
from ..inference.embedding import DEFAULT_KEY
from ..inference.options import Running
from ..records import plain
from ..training.arguments import CellTrainingArguments
from ..training.data.dataset import cells_dataset, expression
from ..training.data.labelled import LabelledCells
from ..training.data.splits import encode_labels, stratified_split
from ..training.finetuning import annotation_model, finetune, finetuning_rate
from ..training.pretraining import pretrain
from .finetune import calibrated
from .options import Demonstration
from .results import figures

if TYPE_CHECKING:
    from anndata import AnnData

LABEL_KEY = "bulk_labels"
TEST_SHARE = 0.25
SIZE = "tiny"
FAMILY = families.family_of_preset(SIZE)
NAME = FAMILY.about.name
RATIOS = (0.3, 0.03)  # of expressed and of zero genes that are masked


@dataclass(frozen=True)
class DemoCells:
    """The cells of the demo.

    Attributes:
        adata: The cells as in scanpy, without embeddings and graphs.
        tokenizer: Tokenizer of a panel that consists of the measured genes.
        cells: Counts on that panel.
        dataset: The same cells as a dataset with labels.
        names: Names of the types.
        ids: Place of the type of each cell in `names`.
        train: Rows to train on.
        test: Rows held out.
    """

    adata: "AnnData"
    tokenizer: Any
    cells: Any
    dataset: Any
    names: list[str]
    ids: np.ndarray
    train: np.ndarray
    test: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Name of the type of each cell."""
        return np.array(self.names)[self.ids]


def run_demo(
    output: str | Path,
    recipe: Demonstration,
    say: Callable[[str], None] = print,
    callbacks: list[Any] | None = None,
) -> dict[str, Any]:
    """Run the demo and return its metrics, which are also in `output/metrics.json`.

    Writes into `output`: `checkpoint` (pre-trained) and `annotator` (fine-tuned), each with a card, `metrics.json`,
    `loss.png`, `umap.png`, `confusion.png`, `recovery.png` and `cells.h5ad` with embedding and labels.

    Args:
        output: Folder to write, made if it does not exist.
        recipe: Options of the demo.
        say: Called with one line of text for each step.
        callbacks: Callbacks for the Trainers, such as a progress bar.

    Example:
        >>> recipe = Demonstration(pretrain_epochs=1, finetune_epochs=1)
        >>> metrics = run_demo("demo", recipe)  # doctest: +SKIP
    """
    began, threads = time.perf_counter(), torch.get_num_threads()  # numba, which draws the UMAP, changes their number
    output, seed = Path(output), recipe.run.seed
    checkpoint = output / "checkpoint"
    output.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    demo = read_demo_cells(checkpoint, seed)
    cells = demo.cells
    say(f"{demo.adata.n_obs} blood cells, {len(demo.names)} types; {cells.description}; {cells.match.summary()}")
    trainer = pretrain_demo(demo, output, recipe, callbacks)
    seconds = {"pre-training": time.perf_counter() - began}
    recovered = trainer.predict(demo.dataset.select(demo.test))
    recovery = recovery_of(recovered, demo, seed)
    trainer.model.save_pretrained(checkpoint)
    demo.tokenizer.save_pretrained(checkpoint)
    say(
        f"pre-trained {trainer.num_parameters:,} parameters in {seconds['pre-training']:.0f} s: Pearson of masked "
        f"values {recovery[NAME]['pearson']:.3f}, gene mean {recovery['gene mean']['pearson']:.3f}"
    )
    embedding, difference = reloaded(checkpoint, trainer.model, demo)
    say(f"saved and loaded with AutoModel: embeddings agree to {difference:.0e}")
    predicted, calibration = annotated(demo, output, trainer.model.config, recipe, say, callbacks)
    true = demo.labels[demo.test]

    beside = loss_baselines(recovery, trainer.model.config)
    pictures.loss_curve(trainer.state.log_history, output / "loss.png", beside)
    pictures.recovery_scatter(recovered.label_ids[0], recovered.predictions, output / "recovery.png")
    pictures.confusion_matrix(true.tolist(), predicted[NAME].tolist(), demo.names, output / "confusion.png")
    draw_cells(demo, embedding, output, seed)
    sizes = {"train": len(demo.train), "test": len(demo.test), "types": len(demo.names)}
    metrics = {
        "cells": {**sizes, "genes": demo.tokenizer.num_genes},
        "masked values of held-out cells": recovery,
        "annotation of held-out cells": {
            name: annotation_metrics(true.tolist(), guess.tolist()) for name, guess in predicted.items()
        },
        "calibration": calibration,
        "parameters": trainer.num_parameters,
        "reload difference": difference,
        "seconds": {**seconds, "all": time.perf_counter() - began},
        "seed": seed,
        "torch threads": threads,
    }
    (output / "metrics.json").write_text(json.dumps(plain(metrics), indent=2, allow_nan=False))
    write_cards(output, metrics, recipe)
    return metrics


def read_demo_cells(folder: Path, seed: int) -> DemoCells:
    """Read and split the cells; the panel consists of the measured genes, and its files are written into `folder`."""
    import scanpy as sc

    adata = sc.datasets.pbmc68k_reduced()
    del adata.obsm, adata.obsp, adata.uns  # embeddings and graphs made by scanpy's authors
    ids, names = encode_labels(adata.obs[LABEL_KEY], LABEL_KEY)
    train, test = stratified_split(np.array(names)[ids], TEST_SHARE, seed)
    panel = FAMILY.tokenizer.default()
    rows = np.unique(panel.matcher.match(list(adata.raw.var_names)).rows)
    tokenizer = FAMILY.tokenizer.from_genes([panel.genes[row] for row in rows if row >= 0], folder)
    cells = tokenizer.read_counts(adata)
    return DemoCells(adata, tokenizer, cells, cells_dataset(cells, ids), names, ids, train, test)


def pretrain_demo(demo: DemoCells, output: Path, recipe: Demonstration, callbacks: list[Any] | None) -> Any:
    """Pre-train a small model, and return its Trainer."""
    # With so few genes, zero genes help in the decoder's context (docs/model.md).
    config = FAMILY.configure(SIZE, num_genes=demo.tokenizer.num_genes, decoder_context="all")
    arguments = CellTrainingArguments(
        output / "runs" / "pretrain",
        num_train_epochs=recipe.pretrain_epochs,
        learning_rate=2e-3,
        warmup_steps=20,
        per_device_train_batch_size=32,
        eval_strategy="steps",
        eval_steps=0.1,  # of the run
        seed=recipe.run.seed,
        disable_tqdm=True,
        **({"use_cpu": True} if recipe.run.device == "cpu" else {}),
    )
    return pretrain(
        families.model_class(config, "reconstruct")(config),
        demo.tokenizer,
        demo.dataset.select(demo.train),
        demo.dataset.select(demo.test),
        arguments=arguments,
        callbacks=callbacks,
    )


def recovery_of(recovered: Any, demo: DemoCells, seed: int) -> dict[str, dict[str, float]]:
    """Return the scores of predicted masked values of held-out cells, beside those of baselines."""
    true, masked_ids = recovered.label_ids
    seen = expression(demo.dataset.select(demo.train), demo.tokenizer)
    visible = baselines.hide(expression(demo.dataset.select(demo.test), demo.tokenizer), masked_ids)
    return recovery_scores(NAME, true, recovered.predictions, masked_ids, seen, visible, RATIOS, seed)


def reloaded(checkpoint: Path, model: Any, demo: DemoCells) -> tuple[np.ndarray, float]:
    """Load the checkpoint; return its embeddings, and their largest difference from those of the trained model.

    Raises:
        RuntimeError: If the embeddings or the numbers of parameters differ.
    """
    embedding = CellModel.load(checkpoint, Running(device="cpu")).embed(demo.cells)
    kept = CellModel(model.to("cpu"), demo.tokenizer).embed(demo.cells)
    difference = float(np.abs(embedding - kept).max())
    again = AutoModelForPreTraining.from_pretrained(checkpoint)
    if difference > 1e-5 or again.num_parameters() != model.num_parameters():
        raise RuntimeError(f"the checkpoint in {checkpoint} gives other embeddings than the model: {difference:.1e}")
    return embedding, difference


def annotated(
    demo: DemoCells,
    output: Path,
    config: Any,
    recipe: Demonstration,
    say: Callable[[str], None],
    callbacks: list[Any] | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the labels that fine-tuned models, with and without pre-training, and baselines give held-out cells.

    The model with pre-training is saved in `output/annotator` with its calibration, whose scores are returned too, and
    its labels of all cells in `obs`.
    """
    arguments: dict[str, Any] = {
        "num_train_epochs": recipe.finetune_epochs,
        "learning_rate": finetuning_rate(config),
        "warmup_steps": 0.05,
        "per_device_train_batch_size": 32,
        "seed": recipe.run.seed,
        "disable_tqdm": True,
        **({"use_cpu": True} if recipe.run.device == "cpu" else {}),
    }
    checkpoint, annotator, names = output / "checkpoint", output / "annotator", np.array(demo.names)
    predicted, calibration = {}, {}
    known = LabelledCells(demo.cells, demo.ids, demo.names, demo.train, demo.test)
    for name, start in {NAME: checkpoint, f"{NAME}, not pre-trained": config}.items():
        set_seed(recipe.run.seed)
        classifier = annotation_model(start, demo.names)
        finetune(
            classifier,
            demo.tokenizer,
            demo.dataset.select(demo.train),
            arguments=CellTrainingArguments(output / "runs" / "finetune", **arguments),
            callbacks=callbacks,
        )
        probabilities, embeddings = CellModel(classifier, demo.tokenizer).classify(demo.cells)
        predicted[name] = names[probabilities[demo.test].argmax(axis=1)]
        if start is checkpoint:
            classifier.save_pretrained(annotator)
            demo.tokenizer.save_pretrained(annotator)
            said = Classified(probabilities, embeddings, known.ids, known.names)
            calibration = calibrated(said, known, None, recipe.run.seed, annotator, say)
            demo.adata.obs["xtrimogene_label"] = names[probabilities.argmax(axis=1)]
            demo.adata.obs["xtrimogene_probability"] = probabilities.max(axis=1)
        say(f"fine-tuned {name}")
    counts = demo.cells.read()[0]
    seen = counts[demo.train], demo.labels[demo.train], counts[demo.test]
    predicted["logistic regression"] = baselines.logistic_regression(*seen)
    predicted["k-NN on PCA"] = baselines.knn_on_pca(*seen)
    return predicted, calibration


def draw_cells(demo: DemoCells, embedding: np.ndarray, output: Path, seed: int) -> None:
    """Write the cells with embedding and split, and draw a UMAP of the pre-trained and of the fine-tuned embeddings."""
    adata = demo.adata
    adata.obsm[DEFAULT_KEY] = embedding
    adata.obs["split"] = np.where(np.isin(np.arange(adata.n_obs), demo.test), "test", "train")
    adata.write_h5ad(output / "cells.h5ad")
    fine_embedding = CellModel.load(output / "annotator", Running(device="cpu")).embed(demo.cells)
    embeddings = {"pre-trained": embedding, "fine-tuned": fine_embedding}
    maps.umap(embeddings, demo.labels.tolist(), output / "umap.png", seed=seed)


def write_cards(output: Path, metrics: dict[str, Any], recipe: Demonstration) -> None:
    """Write the model cards of the two checkpoints, with the pictures beside them."""
    dataset = "Zheng 2017 PBMC, 700 cells (scanpy's pbmc68k_reduced)"
    recovery, annotation = metrics["masked values of held-out cells"], metrics["annotation of held-out cells"]
    epochs = {"pretrain_epochs": recipe.pretrain_epochs, "finetune_epochs": recipe.finetune_epochs}
    command = (
        f"xtrimogene demo --seed {metrics['seed']} --pretrain-epochs {recipe.pretrain_epochs} "
        f"--finetune-epochs {recipe.finetune_epochs}"
    )
    cards = {
        "checkpoint": (
            f"A small {NAME}, pre-trained on 525 blood cells to show the whole road. Not for analyses.",
            [Metric("masked value recovery", dataset, "Pearson", *figures(recovery, "pearson"))],
            {
                "Loss and Pearson over pre-training": "loss.png",
                "Masked values of held-out cells": "recovery.png",
            },
        ),
        "annotator": (
            f"A small {NAME}, pre-trained and fine-tuned on 525 blood cells of 10 types. Not for analyses.",
            [
                Metric("cell type annotation", dataset, label, *figures(annotation, key))
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
        config = AutoConfig.from_pretrained(folder)
        content = CardContent(
            model_name=f"xtrimogene-demo-{name}",
            summary=summary,
            config={
                "parameters": count_parameters(folder),
                **{key: getattr(config, key) for key in FAMILY.presets[SIZE]},
            },
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
        write_model_card(folder, content)
