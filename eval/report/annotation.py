"""A page about annotated cells for people who did not annotate them: types, a map, how sure, which genes.

    obs and uns that `annotate` wrote  ->  counts, shares, provenance
    the model, over some of the cells  ->  map, why cells are unknown, genes     ->  one HTML file

`annotation.html` holds the frame of the page, and this file what is counted, drawn and said.

Letters: G genes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import families
from ...inference.annotation import Judged
from ...inference.calibration import Calibration
from ...inference.cell_model import CellModel
from ...inference.explanation import explained, gene_table, some_of_each
from ...inference.options import Running
from ...inference.saved import Saved
from ...released import KNOWS
from ...tokenization.reading import CellInput
from . import maps
from .colours import GREY, Look, apart
from .pages import page, picture
from .pictures import gene_bars

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

ON_THE_MAP = 5_000  # cells; the UMAP of more takes minutes and shows no more
LEAST_ON_A_MAP = 10  # cells
MOST_TYPES = 40  # on the map and in the pictures of genes, the largest ones
OTHER = "other types"
EXPLAINED = 30  # cells of each type whose genes are looked at
GENES = 8  # of each type in the picture
NAMED_GENES = 5  # of each type in the table
MANY_UNKNOWN = 0.2  # share of cells from which on the page says first what to do about them

Genes = dict[str, tuple[list[str], list[float]]]  # type -> its genes, and a number for each


@dataclass(frozen=True)
class Labelled:
    """What `annotate` wrote about cells.

    Attributes:
        labels: Label of each cell; no text for cells without counts. `(cells,)`
        probabilities: Probability of the label, `(cells,)`.
        unknown: Which cells are called unknown, `(cells,)`; None if that was not told.
        made_by: Provenance of the labels.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    unknown: np.ndarray | None
    made_by: Mapping[str, Any]

    @classmethod
    def of(cls, adata: "AnnData", key: str) -> "Labelled":
        """Read what `annotate` wrote.

        Raises:
            ValueError: If there are no such columns.
        """
        wanted = [f"{key}_label", f"{key}_probability"]
        if not set(wanted) <= set(adata.obs) or key not in adata.uns:
            raise ValueError(
                f"obs has no {' and '.join(wanted)} of an annotation, it has {', '.join(map(str, adata.obs)) or 'none'}"
                f": call annotate first, or give its key_added"
            )
        labels = adata.obs[wanted[0]]
        unknown = adata.obs.get(f"{key}_unknown")
        return cls(
            np.where(labels.isna(), "", labels.astype(str)),
            adata.obs[wanted[1]].to_numpy(float),
            None if unknown is None else unknown.to_numpy(bool),
            adata.uns[key],
        )

    @property
    def counts(self) -> dict[str, int]:
        """Label -> number of its cells, the largest first."""
        return counted(self.labels)

    @property
    def is_unknown(self) -> np.ndarray:
        """Which cells are called unknown, `(cells,)`; none if that was not told."""
        return np.zeros(len(self.labels), bool) if self.unknown is None else self.unknown

    @property
    def share_unknown(self) -> float:
        """Share of the cells with counts that are called unknown; 0 if that was not told."""
        has_label = self.labels != ""
        return float(self.is_unknown[has_label].mean()) if has_label.any() else 0.0


def annotation_report(
    adata: "AnnData",
    output: str | Path,
    cells: CellInput,
    running: Running,
    *,
    model: Any = None,
    judged: Judged | None = None,
    key_added: str = "xtrimogene",
    title: str = "Cell types",
    command: str = "",
) -> None:
    """Write a page about cells that `annotate` labelled: one HTML file that can be sent to somebody.

    It shows how many cells are of which type, how many are called unknown and why, a map (UMAP) coloured by type and by
    probability, genes of each type, what was read, and the model. Of a classifier the genes are those that add most to
    the score of the type (`explain`); of labels from a reference, those that are higher than in other cells. Map and
    genes are of at most 5,000 cells, drawn with a fixed seed.

    Args:
        adata: Cells that `annotate` labelled; they are not changed.
        output: The HTML file to write; an earlier one is replaced.
        cells: Where the counts are, as for `annotate`.
        running: Batch size, device, precision.
        model: The model that labelled them; that which `uns` names unless given.
        judged: What `inference.annotation.judge` found of all of these cells, so that they are not computed anew.
        key_added: Beginning of the names of the columns, as for `annotate`.
        title: Heading of the page.
        command: The command that labelled the cells, if it is to be shown.

    Raises:
        ValueError: If `obs` has no labels of `annotate` under this name.

    Example:
        >>> xtrimogene.tl.annotate(adata, "annotator")                # doctest: +SKIP
        >>> xtrimogene.tl.annotation_report(adata, "report.html")     # doctest: +SKIP
    """
    said = Labelled.of(adata, key_added)
    if judged is None:
        loaded, is_classifier = model_of(model or said.made_by["adapter"] or said.made_by["model"], said, running)
    else:
        loaded, is_classifier = judged.model, judged.decided_by == "classifier"
    shown = some_of_each(np.where(said.labels == "", -1, 0), ON_THE_MAP)
    looks: dict[str, Look] = dict.fromkeys(said.counts, (GREY, "o"))
    drawing, genes, reasons = None, {}, None
    if len(shown):
        few = in_memory(adata, shown)
        panel = loaded.read(few, cells)
        probabilities, embeddings = found_of(loaded, is_classifier, panel, judged, shown, running)
        if is_classifier:
            reasons = why_unknown(loaded, said, shown, probabilities, embeddings)
            genes = deciding_genes(loaded, few, said.labels[shown], cells, running)
        else:
            genes = marker_genes(panel.values(1e4)[0], said.labels[shown], loaded.tokenizer.genes)
        if len(shown) >= LEAST_ON_A_MAP:
            drawing, looks = drawn_map(said, shown, embeddings)
    metrics = metrics_of(loaded) if is_classifier else {}
    html = page(
        "annotation.html",
        title=title,
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        command=command,
        summary=summary(said),
        doubts=list(map(str, said.made_by["unknown"].get("doubts", ()))),
        rows=type_rows(said, looks, genes),
        is_calibrated=said.unknown is not None,
        map=drawing and picture(drawing),
        map_note=map_note(said, len(shown)),
        certainty=certainty(said, reasons, metrics),
        advice=advice(),
        advice_title="What to do about so many unknown cells"
        if said.share_unknown >= MANY_UNKNOWN
        else "What to do if many cells are unknown",
        genes_title="genes that decide the type" if is_classifier else "genes that are higher in the type",
        genes_note=genes_note(is_classifier),
        bars=picture(drawn_genes(genes, looks, is_classifier)) if genes else None,
        read=what_was_read(said),
        model=about_model(said, loaded, metrics),
    )
    Path(output).write_text(html, encoding="utf-8")


def counted(labels: np.ndarray) -> dict[str, int]:
    """Return label -> number of its cells, the largest first; empty text is no label.

    >>> counted(np.array(["B", "T", "", "T"]))
    {'T': 2, 'B': 1}
    """
    names, counts = np.unique(labels[labels != ""], return_counts=True)
    return {str(names[index]): int(counts[index]) for index in np.argsort(-counts, kind="stable")}


def model_of(model: Any, said: Labelled, running: Running) -> tuple[CellModel, bool]:
    """Return the model that labelled cells, and whether it did so as a classifier, which knows all of their labels."""
    loaded_already = hasattr(model, "config")
    config = model.config if loaded_already else Saved.of(model).config()
    able = families.abilities_of(model) if loaded_already else families.abilities(config.architectures or ["model"])
    is_of_reference = said.made_by.get("decided_by") == "reference"  # a classifier may embed the cells, and no more
    is_classifier = not is_of_reference and "classify" in able and set(said.counts) <= set(config.id2label.values())
    return CellModel.load(model, running, task="classify" if is_classifier else "embed"), is_classifier


def metrics_of(loaded: CellModel) -> dict[str, Any]:
    """Return what fine-tuning wrote into `metrics.json` beside a classifier; nothing if there is no such file."""
    path = Saved.of(loaded.model).file("metrics.json")
    if path is None:
        return {}
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def in_memory(adata: "AnnData", rows: np.ndarray) -> "AnnData":
    """Return some of the cells, read from their file if they are in one."""
    few = adata[rows]
    return few.to_memory() if few.isbacked else few.copy()


# -- what is drawn ----------------------------------------------------------------------------------------------------


def drawn_map(said: Labelled, shown: np.ndarray, embeddings: np.ndarray) -> tuple["Figure", dict[str, Look]]:
    """Return the map of the cells shown, and the look of each type on it; rare types share one where there are many."""
    largest = list(said.counts)[:MOST_TYPES]
    labels = np.where(np.isin(said.labels[shown], largest), said.labels[shown], OTHER)
    places = maps.umap_places(embeddings)
    looks = apart(list(np.unique(labels)), labels, [places])
    unknown = None if said.unknown is None else said.unknown[shown]
    figure = maps.annotation_map(places, labels.tolist(), said.probabilities[shown], unknown, looks)
    return figure, {name: looks.get(name) or looks.get(OTHER) or (GREY, "o") for name in said.counts}


def drawn_genes(genes: Genes, looks: Mapping[str, Look], is_classifier: bool) -> "Figure":
    """Return bars of the genes of the largest types, in the colours of the map."""
    largest = {name: genes[name] for name in looks if name in genes}
    chosen = {name: largest[name] for name in list(largest)[:MOST_TYPES]}
    label = "adds to the score of the type" if is_classifier else "log1p of counts per 10,000, above other cells"
    return gene_bars(chosen, label, {name: looks[name][0] for name in chosen})


# -- what is computed -------------------------------------------------------------------------------------------------


def found_of(
    loaded: CellModel, is_classifier: bool, panel: Any, judged: Judged | None, shown: np.ndarray, running: Running
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities `(shown, C)` and embeddings `(shown, D)` of the cells shown, computed only if not known yet.

    A model that is no classifier gives no probabilities, `(shown, 0)`, where nothing is known yet.
    """
    if judged is not None:
        return judged.probabilities[shown], judged.embeddings[shown]
    if is_classifier:
        return loaded.classify(panel, running)
    return np.empty((len(shown), 0)), loaded.embed(panel, running)


def deciding_genes(
    loaded: CellModel, adata: "AnnData", labels: np.ndarray, cells: CellInput, running: Running
) -> Genes:
    """Return the genes that add most to the score of each type, and how much."""
    id_of = {name: number for number, name in loaded.model.config.id2label.items()}
    ids = np.array([id_of[label] for label in labels])
    table = gene_table(explained(loaded, adata, ids, cells, EXPLAINED, running), GENES)
    table = table[table["contribution"] > 0]
    return {
        str(name): (part["gene"].tolist(), part["contribution"].tolist())
        for name, part in table.groupby("type", sort=False)
    }


def marker_genes(values: Any, labels: np.ndarray, genes: Sequence[str]) -> Genes:
    """Return the genes that are higher in the cells of each type than in the others, and by how much.

    They are ordered by that difference in units of the spread within the two groups.

    Args:
        values: `log1p` of counts per 10,000, CSR `(cells, G)`.
        labels: Label of each cell, `(cells,)`.
        genes: Names of the genes.
    """
    found: Genes = {}
    for name in np.unique(labels):
        parts = values[labels == name], values[labels != name]
        if not parts[1].shape[0]:
            continue
        means = [np.asarray(part.mean(axis=0)).ravel() for part in parts]
        squares = [np.asarray(part.multiply(part).mean(axis=0)).ravel() for part in parts]
        variances = [square - mean**2 for square, mean in zip(squares, means, strict=True)]
        difference = means[0] - means[1]
        spread = np.sqrt((variances[0] + variances[1]) / 2)
        first = np.argsort(-difference / (spread + 0.1), kind="stable")[:GENES]  # 0.1: not genes of a few counts
        first = first[difference[first] > 0]
        found[str(name)] = [genes[index] for index in first], difference[first].tolist()
    return found


def why_unknown(
    loaded: CellModel, said: Labelled, shown: np.ndarray, probabilities: np.ndarray, embeddings: np.ndarray
) -> tuple[int, int] | None:
    """Return how many unknown cells fit no label, and how many lie far from all types; None if that cannot be told."""
    calibration = Calibration.load(loaded.model)
    if calibration is None or said.unknown is None or not said.unknown[shown].any():
        return None
    is_unknown = said.unknown[shown]
    of_labels, of_distance = calibration.p_values(probabilities[is_unknown], embeddings[is_unknown])
    is_far = of_distance <= of_labels.max(axis=1)
    return int((~is_far).sum()), int(is_far.sum())


# -- what is said -----------------------------------------------------------------------------------------------------


def summary(said: Labelled) -> str:
    """Return what was found, in one paragraph."""
    num_cells, counts = len(said.labels), counted(said.labels[~said.is_unknown])
    num_named, num_empty = sum(counts.values()), int((said.labels == "").sum())
    text = f"{num_cells:,} cells were read, and {num_named:,} of them ({num_named / num_cells:.1%}) are named"
    if counts:
        first = next(iter(counts))
        text += f", as {len(counts)} types. The largest is {first}, with {counts[first]:,} cells"
        text += f" ({counts[first] / num_cells:.1%})"
    text += "."
    if said.unknown is None:
        text += " Whether cells are of a type that the model does not know is not told."
    else:
        text += f" {int(said.unknown.sum()):,} cells ({said.share_unknown:.1%}) are called unknown."
    return text + (f" {num_empty:,} cells have no counts and get no type." if num_empty else "")


def type_rows(said: Labelled, looks: Mapping[str, Look], genes: Genes) -> list[dict[str, Any]]:
    """Return a row of the table for each type, the largest first."""
    rows, num_cells = [], len(said.labels)
    largest = max(said.counts.values(), default=1)
    for name, count in said.counts.items():
        is_it = said.labels == name
        is_told = is_it & ~said.is_unknown
        median = f"{np.median(said.probabilities[is_told]):.2f}" if is_told.any() else "-"
        rows.append(
            {
                "name": name,
                "cells": f"{count:,}",
                "width": round(100 * count / largest, 1),
                "share": f"{count / num_cells:.1%}",
                "colour": looks[name][0],
                "unknown": "-" if said.unknown is None else f"{int((is_it & said.unknown).sum()):,}",
                "probability": median,
                "genes": ", ".join(genes.get(name, ([], []))[0][:NAMED_GENES]) or "-",
            }
        )
    return rows


def map_note(said: Labelled, num_shown: int) -> str:
    """Return which cells are on the map."""
    num_labelled = int((said.labels != "").sum())
    if num_shown < LEAST_ON_A_MAP:
        return f"There is no map: {num_shown} cells have counts, and a map needs {LEAST_ON_A_MAP}."
    if num_shown < num_labelled:
        return f"{num_shown:,} of the {num_labelled:,} cells are shown, drawn at random."
    return f"All {num_shown:,} cells with counts are shown."


def certainty(said: Labelled, reasons: tuple[int, int] | None, metrics: Mapping[str, Any]) -> list[str]:
    """Return sentences on how far the labels can be trusted, and why cells are unknown."""
    about = said.made_by["unknown"]
    if said.unknown is None:
        return [
            f"The probabilities are not calibrated: {about['note']}. A probability of 0.9 need not mean that nine of "
            f"ten such labels are right, and cells of types that the model does not know get one of its labels."
        ]
    sure = said.probabilities[(said.labels != "") & ~said.is_unknown]
    sentences = [
        f"The probabilities are calibrated on cells that the model was not trained on ({about['calibrated on']}): of "
        f"those with labels, {about['accuracy on these cells']:.1%} got the right type. For cells like these, about "
        f"nine of ten labels with a probability of 0.9 are right."
    ]
    if KNOWS in metrics:  # of an annotator that comes with the package: of which cells it is right
        sentences.append(metrics[KNOWS])
    if "calibration error" in (tested := metrics.get("calibration", {})):
        sentences.append(
            f"On {tested['cells']['that these scores are of']:,} further cells, probabilities and shares of right "
            f"labels differed by {tested['calibration error']:.3f} on average (expected calibration error)."
        )
    if len(sure):
        sentences.append(
            f"Of the cells here that are not called unknown, half have a probability of at least "
            f"{np.floor(100 * np.median(sure)) / 100:.2f}, and {(sure < 0.5).mean():.1%} have one below 0.5: look "
            f"at their second label too."
        )
    sentences.append(
        f"A cell is called unknown if it fits none of the types or lies unusually far from all of them: of cells like "
        f"those that calibrate, {about['threshold']:.0%} are. It keeps the most probable type."
    )
    if reasons is not None:
        between, far = reasons
        sentences.append(
            f"Of the unknown cells on the map, {far:,} lie far from all types, as cells of other types, tissues or "
            f"methods do, and {between:,} fit no single type, as doublets and damaged cells do."
        )
    return sentences


def advice() -> list[tuple[str, str]]:
    """Return what people can do if cells are unknown or labels look wrong, and the command for it."""
    return [
        (
            "Look at the map: unknown cells that form a group of their own are probably a type that the model was not "
            "taught. Unknown cells everywhere mean that the whole data set differs from what it was taught: another "
            "tissue, chemistry, laboratory or preparation.",
            "",
        ),
        (
            "Check the genes below against the markers that you know. Labels whose genes make sense can be right "
            "although their cells are called unknown.",
            "",
        ),
        ("Remove doublets, empty droplets and cells with few genes: they are often called unknown.", ""),
        (
            "Label some hundred cells of this data set and fine-tune on them.",
            "xtrimogene finetune labelled.h5ad --label-key COLUMN --model CHECKPOINT -o annotator",
        ),
        (
            "Or give the labelled cells as a reference, without training.",
            "xtrimogene annotate my.h5ad --model CHECKPOINT --reference labelled.h5ad --label-key COLUMN -o out.h5ad",
        ),
    ]


def genes_note(is_classifier: bool) -> str:
    """Return what the numbers of genes mean."""
    if is_classifier:
        return (
            f"How much each gene adds to the score of a type, above the mean score of all types, averaged over at most "
            f"{EXPLAINED} cells of the type: its value times the gradient of the score. These are the genes by which "
            f"the model told the type. They need not be the genes that make the cells what they are."
        )
    return (
        "How much higher a gene is in the cells of a type than in all other cells. The types came from labelled "
        "reference cells, and these genes were not used to tell them: markers that you know should be among them."
    )


def what_was_read(said: Labelled) -> dict[str, str]:
    """Return what was read of the file, by name."""
    made_by, genes = said.made_by, said.made_by["genes"]
    return {
        "Counts": f"{made_by['counts']}",
        "Genes": f"{genes['n_matched']:,} of the {genes['n_panel']:,} genes of the model are in the file, by "
        f"{genes['source']}; {genes['n_absent']:,} are not and count as zero; {genes['n_unmatched']:,} columns of the "
        f"file are none of its genes",
        "Cells": f"{len(said.labels):,}, {int((said.labels == '').sum()):,} of them without counts",
    }


def about_model(said: Labelled, loaded: CellModel, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return what is known of the model, by name."""
    made_by, config = said.made_by, loaded.model.config
    about = {
        "Model": f"{made_by['model']}" + (f", revision {made_by['revision']}" if made_by["revision"] else ""),
        "Kind": f"{families.family_of(config).about.name}, {loaded.model.num_parameters():,} parameters, computed in "
        f"{made_by['dtype']}",
        "Versions": ", ".join(f"{name} {made_by[name]}" for name in ("xtrimogene", "transformers", "torch")),
    }
    if "classify" in families.abilities_of(loaded.model):
        about["Types that it knows"] = ", ".join(map(str, config.id2label.values()))
    scores = metrics.get("annotation of held-out cells", {})
    if accuracies := [f"{name} {score['accuracy']:.3f}" for name, score in scores.items() if "accuracy" in score]:
        about["Accuracy on cells held out of its training"] = ", ".join(accuracies)
    return about
