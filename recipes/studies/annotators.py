"""Test annotators on held-out cells and on cells of other experiments, beside logistic regression.

    python -m xtrimogene.recipes.studies.annotators checkpoint data -o annotators.json        # an hour on one core

`data` holds the folders `pbmc_facs_zheng` (sorted blood, 10x v1), `kang_ifnb_typed` (blood of lupus patients with and
without interferon, GSE96583) and `celllines_mixology_dev` (five cell lines in three batches, GSE118767). Annotators are
trained with the defaults of `xtrimogene finetune`; logistic regression learns from the same cells.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import anndata
import numpy as np
import typer
from sklearn.metrics import f1_score
from transformers import AutoConfig, AutoTokenizer

from ...eval.measures.baselines import log_normalise
from ...families import family_of
from ...inference.annotation import annotate
from ...inference.calibration import stratified_groups
from ...options import spelled_out
from ...records import plain
from ...training.data.splits import encode_labels, stratified_split
from ...training.finetuning import logistic_classifier
from ...training.options import Seeded
from ..finetune import finetune_file
from ..options import Finetuning

if TYPE_CHECKING:
    from anndata import AnnData


BLOOD, INTERFERON, LINES = "pbmc_facs_zheng", "kang_ifnb_typed", "celllines_mixology_dev"
LABEL_KEY, TEST_SHARE = "cell_type", 0.2
MOST_LINES = 100, 150  # cells to train and calibrate with, and to test on: with 6,500 genes each they are slow
TRAINED_BATCH = "sc_celseq2_5cl_p1"  # the first of the two with all five lines
# Names of both studies -> types that both have. Cells of the second study with other names are left out.
SORTED = {"CD19+ B": "B", "CD34+": "CD34+", "CD56+ NK": "NK", "CD14+ Monocyte": "monocyte"}  # all others are T cells
TYPED = {
    "B": "B", "B Activated": "B", "NK": "NK", "CD14 Mono": "monocyte", "CD16 Mono": "monocyte", "CD4 Naive T": "T",
    "CD4 Memory T": "T", "CD8 T": "T", "T activated": "T",
}  # fmt: skip
SURE = 0.9
Scores = dict[str, dict[str, dict[str, float]]]  # test set -> method -> score


@dataclass
class Named:
    """True labels of cells, and the labels that a method gives them.

    Attributes:
        true: True labels, `(cells,)`.
        label: Predicted labels, `(cells,)`.
        probability: Probability of the predicted label, `(cells,)`.
        is_unknown: Whether each cell is called unknown, `(cells,)`; None if the method does not tell.
    """

    true: np.ndarray
    label: np.ndarray
    probability: np.ndarray
    is_unknown: np.ndarray | None = None

    def scores(self) -> dict[str, float]:
        """Return accuracy, macro-F1 over the true labels, and accuracy of cells with a probability of at least 0.9."""
        is_right, is_sure = self.label == self.true, self.probability >= SURE
        names = np.unique(self.true)
        return {
            "accuracy": float(is_right.mean()),
            "macro_f1": float(f1_score(self.true, self.label, labels=names, average="macro", zero_division=0)),
            "sure": float(is_sure.mean()),
            "right of probability >= .9": float(is_right[is_sure].mean()) if is_sure.any() else float("nan"),
            **({} if self.is_unknown is None else {"called unknown": float(self.is_unknown.mean())}),
        }


def by_annotator(annotator: Path, cells: "AnnData") -> Named:
    """Return the labels that `annotate` gives cells."""
    spelled_out(annotate)(cells, annotator)
    said = cells.obs
    return Named(
        said[LABEL_KEY].astype(str).to_numpy(),
        said["xtrimogene_label"].astype(str).to_numpy(),
        said["xtrimogene_probability"].to_numpy(),
        said["xtrimogene_unknown"].to_numpy(),
    )


def by_regression(known: "AnnData", cells: "AnnData", tokenizer: Any) -> Named:
    """Return the labels that logistic regression on log-normalised counts of the panel gives cells."""
    classifier = logistic_classifier()
    classifier.fit(log_normalise(tokenizer.read_counts(known).read()[0]), known.obs[LABEL_KEY].astype(str))
    probabilities = classifier.predict_proba(log_normalise(tokenizer.read_counts(cells).read()[0]))
    best = classifier.classes_[probabilities.argmax(axis=1)]
    return Named(cells.obs[LABEL_KEY].astype(str).to_numpy(), best, probabilities.max(axis=1))


def coarse(named: Named) -> Named:
    """Return predicted labels (sorted blood) and true labels (interferon study) as types that both studies have."""
    label = np.array([SORTED.get(name, "T") for name in named.label])
    return Named(np.array([TYPED[name] for name in named.true]), label, named.probability, named.is_unknown)


def train(cells: "AnnData", checkpoint: str, folder: Path, seed: int) -> tuple["AnnData", "AnnData"]:
    """Fine-tune on cells with the defaults; return the cells to train on, and held-out ones that do not calibrate."""
    folder.mkdir()
    cells.write_h5ad(folder / "cells.h5ad")
    recipe = Finetuning(label_key=LABEL_KEY, run=Seeded(seed=seed))
    finetune_file(folder / "cells.h5ad", checkpoint, folder / "annotator", recipe)
    ids, names = encode_labels(cells.obs[LABEL_KEY], LABEL_KEY)
    known, test = stratified_split(np.array(names)[ids], TEST_SHARE, seed)
    return cells[known].copy(), cells[test[stratified_groups(ids[test], 2, seed) == 1]].copy()


def on_blood(checkpoint: str, data: Path, seed: int, folder: Path) -> Scores:
    """Return scores of annotators of sorted blood, on held-out cells and on those of the interferon study."""
    blood, typed = read(data, BLOOD), read(data, INTERFERON)
    typed = typed[typed.obs[LABEL_KEY].isin(TYPED)].copy()
    known, held_out = train(blood, checkpoint, folder / f"blood{seed}", seed)
    run = methods(folder / f"blood{seed}" / "annotator", known)
    return {
        "sorted blood, held out": {name: said(held_out).scores() for name, said in run.items()},
        "interferon study, types of both": {name: coarse(said(typed)).scores() for name, said in run.items()},
    }


def on_lines(checkpoint: str, data: Path, seed: int, folder: Path) -> Scores:
    """Return scores of annotators of one batch of cell lines, on the other batches."""
    lines = read(data, LINES)
    is_known = (lines.obs["batch"] == TRAINED_BATCH).to_numpy()
    of_batch, others = (drawn(lines[part], most) for part, most in zip((is_known, ~is_known), MOST_LINES, strict=True))
    known, _ = train(of_batch, checkpoint, folder / f"lines{seed}", seed)
    run = methods(folder / f"lines{seed}" / "annotator", known)
    return {"cell lines, other batches": {name: said(others).scores() for name, said in run.items()}}


def drawn(cells: "AnnData", most: int) -> "AnnData":
    """Return at most `most` cells, drawn at random, in their order."""
    return cells[np.sort(np.random.default_rng(0).permutation(cells.n_obs)[:most])].copy()


def read(data: Path, name: str) -> "AnnData":
    """Return the cells of a data set."""
    return anndata.read_h5ad(data / name / f"{name}.h5ad")


def methods(annotator: Path, known: "AnnData") -> dict[str, Callable[["AnnData"], Named]]:
    """Return method -> function that names cells: the annotator, and logistic regression on the same training cells."""
    tokenizer = AutoTokenizer.from_pretrained(annotator)
    ours = family_of(AutoConfig.from_pretrained(annotator)).about.name
    return {
        f"{ours}, fine-tuned": lambda cells: by_annotator(annotator, cells),
        "logistic regression": lambda cells: by_regression(known, cells, tokenizer),
    }


def rows(runs: list[Scores]) -> list[dict[str, Any]]:
    """Return means over seeds, a row for each test set and method."""
    table = []
    pairs = dict.fromkeys((test_set, method) for run in runs for test_set in run for method in run[test_set])
    for test_set, method in pairs:
        seeds: list[Mapping[str, float]] = [run[test_set][method] for run in runs if test_set in run]
        # A seed without a cell of high probability has no accuracy of such cells.
        means = {
            key: fmean([value for each in seeds if (value := each[key]) == value and value is not None] or [math.nan])
            for key in seeds[0]
        }
        std = {"accuracy std": stdev(scores["accuracy"] for scores in seeds) if len(seeds) > 1 else math.nan}
        table.append({"test set": test_set, "method": method, "seeds": len(seeds), **means, **std})
    return table


def main(
    checkpoint: Annotated[str, typer.Argument(help="Pre-trained checkpoint.")],
    data: Annotated[Path, typer.Argument(help="Folder with the three data sets.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file; runs are added to those in it.")],
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    of: Annotated[str, typer.Option(help="What is named: blood, lines or both, with a comma.")] = "blood,lines",
    keep: Annotated[Path | None, typer.Option(help="Folder in which the annotators stay.")] = None,
) -> None:
    """Measure, and write what came out after each run."""
    parts = {"blood": on_blood, "lines": on_lines}
    runs = json.loads(output.read_text())["runs"] if output.exists() else []
    for seed in map(int, seeds.split(",")):
        for name in of.split(","):
            with tempfile.TemporaryDirectory() as temporary:
                runs.append(parts[name](checkpoint, data, seed, keep or Path(temporary)))
            found = plain({"rows": rows(runs), "runs": runs})
            output.write_text(json.dumps(found, indent=2, allow_nan=False))


if __name__ == "__main__":
    typer.run(main)
