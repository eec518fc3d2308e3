"""Score the checkpoints that come with the package, on cells that they were not trained on.

    evaluated cells of docs/embedding.yaml  ->  neighbours, clusters and mixing of batches, beside PCA of the corpus
    the same cells                          ->  what storing weights in half precision changes
    cells of other experiments              ->  how many are called unfamiliar
    cells of other experiments              ->  the annotator beside logistic regression on the same labels

`make checkpoints` does so after training (`recipes/checkpoints.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ...eval.measures.baselines import log_normalise
from ...eval.measures.certainty import calibration_error
from ...eval.measures.corpus_pca import CORPUS_PCA_NAME, CorpusPCA
from ...eval.measures.probes import columns, embedding_statistics
from ...eval.measures.trained_on import TrainedOn, seen_of
from ...inference.calibration import Calibration
from ...inference.cell_model import CellModel
from ...inference.familiarity import Familiarity
from ...tokenization.reading import annotated, cells_of
from ...training.data.splits import encode_labels, stratified_split
from ...training.finetuning import logistic_classifier
from .annotators import SORTED, TEST_SHARE, TYPED
from .embedding import log

if TYPE_CHECKING:
    from anndata import AnnData

# Other experiments on blood.
INTERFERON, CITESEQ, CHEMISTRIES = "kang_ifnb_typed", "pbmc_hao_citeseq", "pbmc_3chemistries"
MARKERS = {"LYZ": 10, "S100A8": 5}  # of monocytes: more counts than these
MOST_TRIED = 100  # cells of each data set of which is asked whether they are familiar
SHOWN = ("k-NN macro-F1", "ARI", "mixing of batches")
COARSE = ("B", "NK", "T", "monocyte")  # what sorted blood and the interferon study both have
HALVES = ("float16", "bfloat16")


def file_of(data: Path, name: str) -> Path:
    """Return the file of a data set."""
    return data / name / f"{name}.h5ad"


def evaluated(plan: Path, data: Path) -> list[dict[str, Any]]:
    """Return the entries of a plan with embedding tasks, whose paths are moved to a folder of data sets."""
    entries = yaml.safe_load(plan.read_text(encoding="utf-8"))["tasks"]
    return [entry | {"data": str(file_of(data, Path(entry["data"]).stem))} for entry in entries]


def embedding_scores(
    entries: list[dict[str, Any]], name: str, folder: Path, trained: Path
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return data set -> method -> metric -> value of the evaluated cells, and how many of them the method has seen.

    The baseline is PCA of the cells that the checkpoint was trained on.

    Args:
        entries: What is evaluated.
        name: Name of the checkpoint.
        folder: Its folder.
        trained: Folder with the components of its training cells.
    """
    loaded = CellModel.load(folder)
    trained_on = TrainedOn.load(folder, loaded.tokenizer)
    components = CorpusPCA.load(trained, loaded.tokenizer)
    assert components is not None  # each pre-training leaves them
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in entries:
        adata = cells_of(Path(entry["data"]), {}, entry.get("max_cells"))
        labels, batches, keep = columns(adata, entry.get("label_key"), entry.get("batch_key"))
        cells = loaded.read(adata[keep].copy())
        seen = {"seen": seen_of(trained_on, cells)}
        values = {name: loaded.embed(cells), CORPUS_PCA_NAME: components.transform(cells)}
        data = Path(entry["data"]).stem
        found[data] = {method: scores_of(each, labels, batches) | seen for method, each in values.items()}
        log(f"{data}: {found[data]}")
    return found


def scores_of(embedding: np.ndarray, labels: np.ndarray | None, batches: np.ndarray | None) -> dict[str, Any]:
    """Return metric -> value of an embedding that has a scale of its own."""
    statistics = embedding_statistics(embedding, labels, batches, seed=0, standardize=False)
    return {name: statistics[name](np.arange(len(embedding))) for name in SHOWN if name in statistics}


def rounding(folder: Path, entry: Mapping[str, Any], task: str = "embed") -> dict[str, dict[str, float]]:
    """Return dtype of stored weights -> what rounding them to it changes, beside float32.

    The shift of an embedding is the mean distance between the embeddings of a cell, in units of the mean distance
    between cells. For an annotator, accuracy is that of the labels of the evaluated cells.

    Args:
        folder: Checkpoint with weights in float32.
        entry: What is evaluated, with labels.
        task: `embed`, or `classify` for an annotator.
    """
    adata = cells_of(Path(entry["data"]), {}, entry.get("max_cells"))
    labels = adata.obs[entry["label_key"]].astype(str).to_numpy()
    ids = np.unique(labels, return_inverse=True)[1]
    found: dict[str, dict[str, float]] = {}
    before: tuple[np.ndarray, np.ndarray] | None = None
    for dtype in ("float32", *HALVES):
        loaded = CellModel.load(folder, task=task)  # type: ignore[arg-type]
        if task == "classify":  # labels that it did not learn do not count
            is_known = np.isin(labels, list(loaded.model.config.id2label.values()))
            adata, labels, ids = adata[is_known], labels[is_known], ids[is_known]
        cells = loaded.read(adata.copy())
        round_weights(loaded.model, dtype)
        outputs = loaded.classify(cells) if task == "classify" else (np.zeros((len(ids), 1)), loaded.embed(cells))
        probabilities, embedding = outputs
        before = before or outputs
        spread = np.linalg.norm(before[1] - before[1][::-1], axis=1).mean()
        row = {
            "shift of embeddings": float(np.linalg.norm(embedding - before[1], axis=1).mean() / spread),
            "k-NN macro-F1": scores_of(embedding, ids, None)["k-NN macro-F1"],
        }
        if task == "classify":
            names = np.array([loaded.model.config.id2label[place] for place in range(probabilities.shape[1])])
            row["accuracy"] = float((names[probabilities.argmax(axis=1)] == labels).mean())
            row["largest change of a probability"] = float(np.abs(probabilities - before[0]).max())
        found[dtype] = row
    return found


def round_weights(model: Any, dtype: str) -> None:
    """Round the weights and buffers of a model to a dtype, and leave them in float32."""
    import torch

    with torch.no_grad():
        for part in (*model.parameters(), *model.buffers()):
            if part.is_floating_point():
                part.copy_(part.to(getattr(torch, dtype)))


def familiar(folder: Path, entries: list[dict[str, Any]], tried: list[dict[str, str]], data: Path) -> dict[str, Any]:
    """Return data set -> share of its cells that lie far from those that a checkpoint was trained on.

    Args:
        folder: Checkpoint.
        entries: Evaluated cells, of data sets whose other cells it was trained on.
        tried: Other data sets.
        data: Folder of the data sets.
    """
    loaded, familiarity = CellModel.load(folder), Familiarity.load(folder)
    if familiarity is None:
        raise ValueError(f"{folder} does not tell which cells are familiar: train it with more held-out cells")
    known = [
        (Path(entry["data"]).stem, cells_of(Path(entry["data"]), {}, entry.get("max_cells")), True) for entry in entries
    ]
    others = [(each["name"], annotated(file_of(data, each["name"])), False) for each in tried]
    found = {}
    for name, adata, is_known in [*known, *others]:
        rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:MOST_TRIED])
        embedding = loaded.embed(loaded.read(adata[rows].to_memory()))
        share = float(familiarity.is_unfamiliar(embedding).mean())
        found[name] = {"cells": len(rows), "unfamiliar": share, "trained on others of the data set": is_known}
        log(f"{name}: {share:.1%} unfamiliar")
    return found


@dataclass(frozen=True)
class Coarse:
    """Probabilities of the types that sorted blood and the interferon study both have, and of the other labels.

    Attributes:
        probabilities: `(cells, 5)`: those of `COARSE`, each the sum over its finer labels, and of all others.
        is_unknown: Whether each cell is called unknown, `(cells,)`; None if the method does not tell.
    """

    probabilities: np.ndarray
    is_unknown: np.ndarray | None = None

    def scores(self, true: np.ndarray) -> dict[str, float]:
        """Return accuracy, calibration error and share called unknown for true coarse types, `(cells,)`."""
        best = np.array([*COARSE, "other"])[self.probabilities.argmax(axis=1)]
        is_right = best == true
        found = {
            "cells": len(true),
            "accuracy": float(is_right.mean()),
            "calibration error": calibration_error(self.probabilities.max(axis=1), is_right),
        }
        if self.is_unknown is not None:
            found["called unknown"] = float(self.is_unknown.mean())
            known = is_right[~self.is_unknown]
            found["accuracy of the others"] = float(known.mean()) if len(known) else float("nan")
        return found


def coarsely(probabilities: np.ndarray, names: list[str]) -> np.ndarray:
    """Return probabilities of `COARSE` and of all others `(cells, 5)` from those of labels of sorted blood.

    >>> coarsely(np.array([[0.5, 0.2, 0.3]]), ["CD4+ T Helper2", "CD8+ Cytotoxic T", "CD34+"]).tolist()
    [[0.0, 0.0, 0.7, 0.0, 0.3]]
    """
    types = [name if name in COARSE else SORTED.get(name, "T") for name in names]
    columns = [[place for place, found in enumerate(types) if found == wanted] for wanted in (*COARSE, "CD34+")]
    return np.stack([probabilities[:, places].sum(axis=1) for places in columns], axis=1)


def is_monocyte(counts: Any, genes: list[str]) -> np.ndarray:
    """Return which cells have many counts of the genes by which monocytes are known, `(cells,)`.

    >>> from scipy.sparse import csr_matrix
    >>> is_monocyte(csr_matrix([[40, 20], [40, 0]]), ["LYZ", "S100A8"])
    array([ True, False])
    """
    found = [np.asarray(counts[:, [genes.index(gene)]].todense()).ravel() > least for gene, least in MARKERS.items()]
    return np.logical_and(*found)


def by_released(annotator: Path, adata: "AnnData") -> Coarse:
    """Return what an annotator of sorted blood says of cells, as `annotate` calibrates it."""
    loaded, calibration = CellModel.load(annotator, task="classify"), Calibration.load(annotator)
    if calibration is None:
        raise ValueError(f"{annotator} has no calibration: train it with more held-out cells")
    applied = calibration.apply(*loaded.classify(loaded.read(adata)))
    return Coarse(coarsely(applied.probabilities, calibration.names), applied.is_unknown)


def on_other_experiments(annotator: Path, labelled: Path, test: "AnnData", data: Path) -> dict[str, Any]:
    """Return cells -> method -> scores of an annotator of blood and of logistic regression on the same labels.

    One regression learns all labels of sorted blood, as the annotator does. Another learns only the four types of both
    studies, for which it has to know beforehand that no other type will come.

    Args:
        annotator: Folder of the annotator.
        labelled: File of the cells that it was fine-tuned on, with the cells it held out.
        test: Evaluated cells of the same experiment, in neither.
        data: Folder of the data sets.
    """
    known = annotated(labelled).to_memory()
    ids, names = encode_labels(known.obs["cell_type"], "cell_type")
    labels = np.array(names)[ids]
    train, _ = stratified_split(labels, TEST_SHARE, 0)
    loaded = CellModel.load(annotator, task="classify")
    values, labels = log_normalise(loaded.read(known).read()[0])[train], labels[train]
    is_both = np.array([SORTED.get(name, "T") in COARSE for name in labels])
    types = np.array([SORTED.get(name, "T") for name in labels])
    regressions = {
        "logistic regression": logistic_classifier().fit(values, labels),
        "logistic regression on four types": logistic_classifier().fit(values[is_both], types[is_both]),
    }
    typed = annotated(file_of(data, INTERFERON)).to_memory()
    typed = typed[typed.obs["cell_type"].isin(TYPED)].copy()
    hao = annotated(file_of(data, CITESEQ)).to_memory()
    t_cells = hao[
        hao.obs["sub"].str.contains("T cells")
    ].copy()  # selected as T cells by others; the rest has no labels
    of_sorted = test[test.obs["cell_type"].map(lambda name: SORTED.get(name, "T")).isin(COARSE)].copy()
    sets = {
        "sorted blood, held out": (of_sorted, of_sorted.obs["cell_type"].map(lambda name: SORTED.get(name, "T"))),
        "interferon study": (typed, typed.obs["cell_type"].map(TYPED)),
        "T cells of the CITE-seq study": (t_cells, np.full(t_cells.n_obs, "T")),
    }
    others = hao[~hao.obs["sub"].str.contains("T cells")].copy()
    three = annotated(file_of(data, CHEMISTRIES)).to_memory()
    for title, adata in {"the CITE-seq study": others, "blood by three chemistries": three}.items():
        by_markers = adata[is_monocyte(loaded.read(adata).read()[0], loaded.tokenizer.genes)].copy()
        sets[f"monocytes by their genes, {title}"] = by_markers, np.full(by_markers.n_obs, "monocyte")
    found: dict[str, Any] = {}
    for title, (adata, true) in sets.items():
        said = {"blood-annotator": by_released(annotator, adata)}
        counts = log_normalise(loaded.read(adata).read()[0])
        for method, fitted in regressions.items():
            said[method] = Coarse(coarsely(fitted.predict_proba(counts), list(fitted.classes_)))
        found[title] = {method: each.scores(np.asarray(true, str)) for method, each in said.items()}
        log(f"{title}: {found[title]}")
    unknown = np.asarray(by_released(annotator, others).is_unknown)
    found["unsorted blood of the CITE-seq study"] = {
        "blood-annotator": {"cells": others.n_obs, "called unknown": float(unknown.mean())}
    }
    return found
