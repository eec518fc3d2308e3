"""Fine-tune a checkpoint on labelled cells: a classifier with a card, a calibration, and scores beside baselines.

labelled cells  ->  train | test  ->  classifier  ->  model, calibration, card, confusion, metrics.json
                      ^   |  baselines on the same cells  ->  the same metrics
unlabelled cells  ----+  those that a regression on the labelled ones is sure of
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from transformers import set_seed

from .. import families
from ..atomic import final_model
from ..eval.measures import baselines
from ..eval.measures.metrics import annotation_metrics
from ..eval.measures.trained_on import save_trained_on
from ..eval.report import pictures
from ..eval.tasks.annotation import Classified, Split, calibrate_classifier
from ..hub_cards.card import CardContent, DataSource, Metric
from ..inference.calibration import stratified_groups
from ..inference.cell_model import CellModel
from ..inference.devices import hardware, pick_device
from ..inference.saved import Saved
from ..training.adapters import save_tuned
from ..training.arguments import CellTrainingArguments, run_arguments
from ..training.data.cells import read_files, trained_on
from ..training.data.dataset import cells_dataset
from ..training.data.labelled import LabelledCells, read_labelled
from ..training.finetuning import (
    SURE,
    check_head,
    classified,
    classifier_of,
    finetune,
    finetuning_rate,
    joined,
    self_labelled,
)
from ..training.options import CHECKPOINTS
from .options import Finetuning
from .results import figures, known_hash, write_results

MOST_UNLABELLED = 5_000  # cells, drawn at random; more do not outweigh those with labels that are known
HELD_OUT = 0.2  # of the unlabelled cells that are sure


def finetune_file(
    file: str | Path,
    checkpoint: str,
    output: str | Path,
    recipe: Finetuning,
    *,
    resume: bool = False,
    command: str = "",
    say: Callable[[str], None] = print,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Fine-tune a checkpoint on labelled cells and return the metrics, which are also in `output/metrics.json`.

    When training has ended, it writes the classifier with its card, `confusion.png` and `calibration.safetensors` into
    `output`. Until then `output/checkpoints` holds the checkpoints to resume from, and `output` has no model.

    The held-out cells of each type are divided into two halves. The calibration (a temperature, and thresholds for
    unknown cells) is fitted to one half and tested on the other. Accuracy and F1 are those of all held-out cells, since
    calibration does not change labels.

    Of unlabelled cells that the annotator is sure of, it learns four fifths, with the labels that it gives them. The
    others calibrate with the labelled ones how far cells of the types lie.

    Args:
        file: Labelled cells.
        checkpoint: Folder or Hub name.
        output: Folder to write, made if it does not exist.
        recipe: Options of the fine-tuning.
        resume: Go on from the newest complete checkpoint of the same run.
        command: The command that repeats the run, for the card.
        say: Called with one line of text for each step.
        callbacks: Callbacks for the Trainer, such as a progress bar.

    Raises:
        ValueError: If the checkpoint cannot have such a head, a column or labels are missing, or there are cells
            without counts and `drop_empty` is not set. If the labelled file is among the unlabelled ones, or none of
            their cells gets a label that is sure.

    Example:
        >>> recipe = Finetuning(label_key="cell_type", group_key="donor")
        >>> metrics = finetune_file("labelled.h5ad", "checkpoint", "annotator", recipe)  # doctest: +SKIP
    """
    began = perf_counter()
    file, output = Path(file), Path(output)
    target, seed = pick_device(recipe.run.device).type, recipe.run.seed
    set_seed(seed)
    checkpoint = str(Saved.of(checkpoint))  # the Hub is asked once for the commit, of which all files are
    check_head(checkpoint, recipe)
    check_unlabelled(file, recipe.unlabelled or ())
    tokenizer = Saved.of(checkpoint).tokenizer()
    known = read_labelled(file, tokenizer, recipe, recipe.cells, seed, say)
    predicted = guessed(known, seed)  # baselines first: they take seconds, and what is wrong with the split shows
    model, share = classifier_of(checkpoint, known, recipe)
    if recipe.epochs:
        say(f"{share:.1%} of the weights learn (--peft {recipe.peft})")
    others = Others.of(model, tokenizer, known, recipe, say) if recipe.unlabelled else None
    arguments = arguments_of(recipe, model.config, output, target)
    train, test = datasets_of(known, others)
    finetune(model, tokenizer, train, test, arguments=arguments, callbacks=list(callbacks), resume=resume)
    said = judged(base_of(model, recipe), tokenizer, known, others)
    named = np.array(known.names)[said.probabilities[known.test].argmax(axis=1)]
    predicted = {families.family_of(model.config).about.name: named, **predicted}
    true = known.labels(known.test).tolist()
    scores = {name: annotation_metrics(true, guess.tolist()) for name, guess in predicted.items()}
    metrics = facts(scores, known, others, model, arguments, recipe) | {
        "trained share": share,
        "device": target,
        "hardware": hardware(target),
        "seconds": round(perf_counter() - began, 1),
    }
    with final_model(output) as folder:
        save_tuned(model, folder)
        tokenizer.save_pretrained(folder)
        save_trained_on(folder, train, tokenizer, checkpoint)
        pictures.confusion_matrix(true, named.tolist(), known.names, folder / "confusion.png")
        metrics["calibration"] = calibrated(said, known, others, seed, folder, say)
        files = [file, *map(Path, recipe.unlabelled or ())]
        write_card(folder, output.name, metrics, files, Path(checkpoint).name, command)
    shutil.rmtree(output / CHECKPOINTS)  # the run has come to its end
    return metrics


def arguments_of(recipe: Finetuning, config: Any, output: Path, device: str) -> CellTrainingArguments:
    """Return the arguments of the Trainer; unless a learning rate is given, it is the one that suits the model."""
    return run_arguments(
        output,
        device,
        recipe.batching.batch_size,
        learning_rate=finetuning_rate(config) if recipe.learning_rate is None else recipe.learning_rate,
        seed=recipe.run.seed,
        num_train_epochs=recipe.epochs,
    )


def datasets_of(known: LabelledCells, others: "Others | None") -> tuple[Any, Any]:
    """Return the cells to learn from, unlabelled ones that are learned among them, and the held-out labelled cells."""
    dataset = cells_dataset(known.cells, known.ids)
    train, test = dataset.select(known.train), dataset.select(known.test)
    return train if others is None else joined(train, others.cells.select(others.learned)), test


def check_unlabelled(file: Path, unlabelled: Sequence[str]) -> None:
    """Refuse the labelled file among the unlabelled ones: cells that are held out of it would be learned.

    Raises:
        ValueError: If it is there.
    """
    if any(os.path.realpath(each) == os.path.realpath(file) for each in unlabelled):
        raise ValueError(
            f"{file} is the labelled file and unlabelled names it too, so that cells held out for the test would be "
            f"learned: give unlabelled cells in another file"
        )


def guessed(known: LabelledCells, seed: int) -> dict[str, np.ndarray]:
    """Return the labels that simple baselines give the held-out cells."""
    counts = known.cells.read()[0]
    seen = counts[known.train], known.labels(known.train).tolist(), counts[known.test]
    n_components, k = max(min(20, len(known.train) - 1), 1), min(15, len(known.train))
    return {
        "logistic regression": baselines.logistic_regression(*seen),
        "k-NN on PCA": baselines.knn_on_pca(*seen, n_components, k, seed),
    }


def facts(
    scores: dict[str, dict[str, float]],
    known: LabelledCells,
    others: "Others | None",
    model: Any,
    arguments: Any,
    recipe: Finetuning,
) -> dict[str, Any]:
    """Return the metrics and settings of a run, for `metrics.json` and the card."""
    unlabelled = {} if others is None else {"unlabelled cells": others.numbers}
    steps = {"learning rate": arguments.learning_rate, "batch size": arguments.train_batch_size}
    return unlabelled | {
        "cells": {"train": len(known.train), "test": len(known.test), "types": len(known.names)},
        "split by": recipe.group_key or "cell",
        "annotation of held-out cells": scores,
        "epochs": recipe.epochs,
        **(steps if recipe.epochs else {}),
        "class weights": recipe.class_weights,
        "pooling": model.config.pooling,
        "trainable layers": "all" if recipe.trainable_layers is None else recipe.trainable_layers,
        "peft": recipe.peft,
        "seed": recipe.run.seed,
    }


@dataclass(frozen=True)
class Others:
    """Unlabelled cells with the labels that a regression on the labelled ones is sure of.

    Attributes:
        cells: These cells.
        num_read: How many cells were read.
        by_file: Name of each file that is learned from -> how many of its cells are.
        learned: Rows to learn from.
        held_out: Rows held out.
    """

    cells: Any
    num_read: int
    by_file: dict[str, int]
    learned: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, known: LabelledCells, recipe: Finetuning, say: Callable[[str], None]
    ) -> "Others":
        """Read unlabelled cells and label them by a regression; a fifth of those that it is sure of are held out.

        Args:
            model: The classifier that is fine-tuned, whose head is new and stays so.
            tokenizer: Its tokenizer.
            known: The labelled cells.
            recipe: Options of the fine-tuning, with files.
            say: Called with one line of text for each file.

        Raises:
            ValueError: If it is sure of no cell.
        """
        rng = np.random.default_rng(recipe.run.seed)
        read, numbers = read_files(recipe.unlabelled or (), tokenizer, recipe.cells, None, say)
        drawn = read.select(np.sort(rng.permutation(len(read))[:MOST_UNLABELLED]))
        classifier = base_of(model, recipe).to(pick_device(recipe.run.device))
        sure = self_labelled(classifier, tokenizer, datasets_of(known, None)[0], drawn)
        if len(sure) == 0:
            raise ValueError(
                f"none of {len(drawn):,} unlabelled cells gets a label with a probability of at least {SURE}: give "
                f"cells of the labelled types, or leave unlabelled out"
            )
        is_held_out = rng.random(len(sure)) < HELD_OUT
        say(f"{len(sure):,} of {len(drawn):,} unlabelled cells get a label with a probability of at least {SURE}")
        learned = np.flatnonzero(~is_held_out)
        by_file = dict(trained_on(numbers, sure["cell_index"][:][learned]))
        return cls(sure, len(drawn), by_file, learned, np.flatnonzero(is_held_out))

    @property
    def numbers(self) -> dict[str, Any]:
        """How many cells were read, learned from, of which file, and held out."""
        learned, held_out = len(self.learned), len(self.held_out)
        return {"read": self.num_read, "learned from": learned, "by file": self.by_file, "held out": held_out}


def base_of(model: Any, recipe: Finetuning) -> Any:
    """Return the classifier itself of a model that may be wrapped in adapters."""
    return model.get_base_model() if recipe.peft == "lora" else model


def judged(model: Any, tokenizer: Any, known: LabelledCells, others: Others | None) -> Classified:
    """Return the output of a classifier for labelled cells, and below it that for the others."""
    probabilities, embeddings = CellModel(model, tokenizer).classify(known.cells)
    if others is None:
        return Classified(probabilities, embeddings, known.ids, known.names)
    of_others = classified(model, tokenizer, others.cells)
    return Classified(
        np.concatenate([probabilities, of_others[0]]),
        np.concatenate([embeddings, of_others[1]]),
        np.concatenate([known.ids, others.cells["labels"][:]]),
        known.names,
    )


def calibrated(
    said: Classified, known: LabelledCells, others: Others | None, seed: int, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Fit a calibration to half of the held-out cells, write it into `folder`; return its scores on the other half.

    Args:
        said: Output of the classifier for labelled cells, and below it for the others.
        known: The labelled cells.
        others: Unlabelled cells that it learned from; those that are held out calibrate too.
        seed: Seed of the halves.
        folder: Folder of the classifier.
        say: Called with one line of text if nothing is written.
    """
    halves = stratified_groups(known.ids[known.test], 2, seed)
    first, second = known.test[halves == 0], known.test[halves == 1]
    if others is None:
        return calibrate_classifier(said, Split(known.train, first, second), folder, say)
    learned, held_out = (len(known.ids) + rows for rows in (others.learned, others.held_out))
    parts = Split(np.concatenate([known.train, learned]), first, second)
    return calibrate_classifier(said, parts, folder, say, held_out)


def write_card(
    folder: Path, name: str, metrics: dict[str, Any], files: Sequence[Path], origin: str, command: str
) -> None:
    """Write `metrics.json` and the card of a checkpoint, fine-tuned on labelled cells and files of unlabelled ones."""
    scores, cells, (file, *unlabelled) = metrics["annotation of held-out cells"], metrics["cells"], files
    results = [
        Metric("cell type annotation", f"held-out cells of {file.name}", title, *figures(scores, key))
        for key, title in (("accuracy", "accuracy"), ("macro_f1", "macro F1"))
    ]
    learned = metrics.get("unlabelled cells", {})
    of_cells = f"{cells['train']:,} cells of {file.name}"
    if learned:
        of_cells += f", with {learned['learned from']:,} cells without labels"
    hashes = {path.name: known_hash(path) for path in unlabelled}
    card = CardContent(
        model_name=name,
        summary=f"{{a model}} fine-tuned on {of_cells} to name {cells['types']} types.",
        metrics=results,
        data=[
            DataSource(file.name, "not stated", "given by the user", cells["train"], known_hash(file)),
            *(
                DataSource(f"{path}, without labels", "not stated", "given by the user", number, hashes[path])
                for path, number in learned.get("by file", {}).items()
            ),
        ],
        pictures={"Held-out cells by true and predicted type": "confusion.png"},
        command=command,
        is_classifier=True,
        origin=origin,
    )
    write_results(folder, metrics, card)
