"""Annotators on cells that they were not trained on: held out, and of other experiments, beside logistic regression.

    python -m xtrimogene.eval.benchmarks.annotators checkpoint data -o annotators.json        # some minutes a seed

`data` holds the folders `pbmc_facs_zheng` (sorted blood, 10x v1), `kang_ifnb_typed` (blood of lupus patients with and
without interferon, GSE96583) and `celllines_mixology_dev` (five cell lines in three batches, GSE118767). Each annotator
is what `xtrimogene finetune` makes with its defaults, and logistic regression learns from the same cells.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

if TYPE_CHECKING:
    from anndata import AnnData

BLOOD, INTERFERON, LINES = "pbmc_facs_zheng", "kang_ifnb_typed", "celllines_mixology_dev"
LABEL_KEY, TEST_SHARE = "cell_type", 0.2
TRAINED_BATCH = "sc_celseq2_5cl_p1"  # the first of the two with all five lines
# What names of both studies come to; what is in neither has no counterpart, and takes no part.
SORTED = {"CD19+ B": "B", "CD34+": "CD34+", "CD56+ NK": "NK", "CD14+ Monocyte": "monocyte"}  # all others are T cells
TYPED = {
    "B": "B", "B Activated": "B", "NK": "NK", "CD14 Mono": "monocyte", "CD16 Mono": "monocyte", "CD4 Naive T": "T",
    "CD4 Memory T": "T", "CD8 T": "T", "T activated": "T",
}  # fmt: skip
METHODS = ("xTrimoGene, fine-tuned", "logistic regression")
SURE = 0.9


@dataclass
class Named:
    """Cells with their true labels, and what a method says of them.

    Attributes:
        true: True labels, `(cells,)`.
        label: Best labels, `(cells,)`.
        probability: Of the best label, `(cells,)`.
        is_unknown: Which cells are called unknown, `(cells,)`; none by a method that cannot tell.
    """

    true: np.ndarray
    label: np.ndarray
    probability: np.ndarray
    is_unknown: np.ndarray | None = None

    def scores(self) -> dict[str, float]:
        """Return accuracy, macro-F1 over the true labels, and how far certainty can be trusted."""
        from sklearn.metrics import f1_score

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
    """Return what `annotate` says of cells."""
    from ... import tl

    tl.annotate(cells, annotator)
    said = cells.obs
    return Named(
        said[LABEL_KEY].astype(str).to_numpy(),
        said["xtrimogene_label"].astype(str).to_numpy(),
        said["xtrimogene_probability"].to_numpy(),
        said["xtrimogene_unknown"].to_numpy(),
    )


def by_regression(known: "AnnData", cells: "AnnData", tokenizer: Any) -> Named:
    """Return what logistic regression on the panel's log-normalised counts says of cells."""
    from ..baselines import log_normalise, logistic_classifier

    classifier = logistic_classifier()
    classifier.fit(log_normalise(tokenizer.read_counts(known).read()[0]), known.obs[LABEL_KEY].astype(str))
    probabilities = classifier.predict_proba(log_normalise(tokenizer.read_counts(cells).read()[0]))
    best = classifier.classes_[probabilities.argmax(axis=1)]
    return Named(cells.obs[LABEL_KEY].astype(str).to_numpy(), best, probabilities.max(axis=1))


def coarse(named: Named) -> Named:
    """Return labels of sorted blood, and true ones of the interferon study, as types that both studies have."""
    label = np.array([SORTED.get(name, "T") for name in named.label])
    return Named(np.array([TYPED[name] for name in named.true]), label, named.probability, named.is_unknown)


def train(cells: "AnnData", checkpoint: str, folder: Path, seed: int) -> tuple["AnnData", "AnnData"]:
    """Fine-tune on cells with the defaults; return the cells to train on, and held-out ones that do not calibrate."""
    from ...eval.rejection import deal
    from ...runs import finetune_file
    from ...training.finetuning import encode_labels, stratified_split

    folder.mkdir()
    cells.write_h5ad(folder / "cells.h5ad")
    finetune_file(folder / "cells.h5ad", LABEL_KEY, checkpoint, folder / "annotator", seed=seed)
    ids, names = encode_labels(cells.obs[LABEL_KEY], LABEL_KEY)
    known, test = stratified_split(np.array(names)[ids], TEST_SHARE, seed)
    return cells[known].copy(), cells[test[deal(ids[test], 2, seed) == 1]].copy()


def measure(checkpoint: str, data: Path, seed: int, keep: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of both methods on each test set, for one seed."""
    import anndata

    from ...tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

    tokenizer = XTrimoGeneTokenizer.from_pretrained(checkpoint)
    blood, typed, lines = (anndata.read_h5ad(data / name / f"{name}.h5ad") for name in (BLOOD, INTERFERON, LINES))
    typed = typed[typed.obs[LABEL_KEY].isin(TYPED)].copy()
    is_known = lines.obs["batch"] == TRAINED_BATCH
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        known, held_out = train(blood, checkpoint, folder / f"blood{seed}", seed)
        of = {METHODS[0]: lambda cells: by_annotator(folder / f"blood{seed}" / "annotator", cells)}
        of[METHODS[1]] = lambda cells: by_regression(known, cells, tokenizer)
        found["sorted blood, held out"] = {name: run(held_out).scores() for name, run in of.items()}
        found["interferon study, types of both"] = {name: coarse(run(typed)).scores() for name, run in of.items()}
        known, _ = train(lines[is_known].copy(), checkpoint, folder / f"lines{seed}", seed)
        others = lines[~is_known].copy()
        found["cell lines, other batches"] = {
            METHODS[0]: by_annotator(folder / f"lines{seed}" / "annotator", others).scores(),
            METHODS[1]: by_regression(known, others, tokenizer).scores(),
        }
    return found


def rows(runs: list[dict[str, dict[str, dict[str, float]]]]) -> list[dict[str, Any]]:
    """Return means over seeds, a row for each test set and method."""
    table = []
    for test_set, methods in runs[0].items():
        for method in methods:
            seeds: list[Mapping[str, float]] = [run[test_set][method] for run in runs]
            # Where no cell is sure in a seed, nothing is said of how many are right.
            means = {
                key: fmean([value for each in seeds if (value := each[key]) == value] or [math.nan]) for key in seeds[0]
            }
            std = {"accuracy std": pstdev(scores["accuracy"] for scores in seeds)}
            table.append({"test set": test_set, "method": method, **means, **std})
    return table


def main(
    checkpoint: Annotated[str, typer.Argument(help="Pre-trained checkpoint.")],
    data: Annotated[Path, typer.Argument(help="Folder with the three data sets.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("annotators.json"),
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    keep: Annotated[Path | None, typer.Option(help="Folder in which the annotators stay.")] = None,
) -> None:
    """Measure, and write what came out after each seed."""
    from ...runs import plain

    runs = []
    for seed in map(int, seeds.split(",")):
        runs.append(measure(checkpoint, data, seed, keep))
        found = plain({"seeds": len(runs), "rows": rows(runs), "runs": runs})
        output.write_text(json.dumps(found, indent=2, allow_nan=False))


if __name__ == "__main__":
    typer.run(main)
