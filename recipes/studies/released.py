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
import torch
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
from .annotators import BLOOD, SORTED, TEST_SHARE, TYPED
from .embedding import log

if TYPE_CHECKING:
    from anndata import AnnData

# Other experiments on blood.
INTERFERON, CITESEQ, CHEMISTRIES = "kang_ifnb_typed", "pbmc_hao_citeseq", "pbmc_3chemistries"
BY_GENES = {
    "CITE-seq study, others": CITESEQ, "blood, PISCES": "pbmc_pisces", "lymphoma": "lymphoma_malt_10x",
    "immune cells, CellTypist": "immune_celltypist_sample", "blood by three chemistries": CHEMISTRIES,
}  # fmt: skip
GENES = {
    "T": ("CD3D", "CD3E", "CD3G"), "B": ("MS4A1", "CD79A", "CD79B"), "NK": ("NKG7", "GNLY", "KLRD1", "KLRF1"),
    "monocyte": ("S100A8", "S100A9", "FCN1", "CD14", "LYZ"),
}  # fmt: skip
# Type -> genes that it has at least, and at most so many of those of others. NK cells share genes with killer T cells.
LEAST = {"T": 2, "B": 2, "NK": 3, "monocyte": 4}
MOST = {
    "T": {"B": 0, "monocyte": 1}, "B": {"T": 0, "NK": 0, "monocyte": 1}, "NK": {"T": 0, "B": 0, "monocyte": 1},
    "monocyte": {"T": 0, "B": 0},
}  # fmt: skip
NO_TYPE = ""  # of cells whose genes do not tell
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
    """Labels that a method gives cells, as types that sorted blood and the interferon study both have.

    Attributes:
        types: Type of the best label of each cell, `(cells,)`.
        probability: Sum of the probabilities of the labels of that type, `(cells,)`.
        is_unknown: Whether each cell is called unknown, `(cells,)`; None if the method does not tell.
    """

    types: np.ndarray
    probability: np.ndarray
    is_unknown: np.ndarray | None = None

    @classmethod
    def of(cls, probabilities: np.ndarray, names: list[str], is_unknown: np.ndarray | None = None) -> "Coarse":
        """Return them for probabilities of the labels of sorted blood, `(cells, C)`.

        The type is that of the best label, which is what `annotate` writes. The type with the highest sum would be
        another: of nine labels six are T cells, whose sum grows where probabilities are lowered.
        """
        of_labels = np.array([name if name in COARSE else SORTED.get(name, "T") for name in names])
        types = of_labels[probabilities.argmax(axis=1)]
        return cls(types, (probabilities * (of_labels == types[:, None])).sum(axis=1), is_unknown)

    def scores(self, true: np.ndarray) -> dict[str, Any]:
        """Return accuracy, calibration error and share called unknown for true types, `(cells,)`.

        Cells without a type count for the share called unknown alone.
        """
        has_type = true != NO_TYPE
        is_right = (self.types == true)[has_type]
        found: dict[str, Any] = {"cells": int(has_type.sum())}
        if has_type.any():
            found["accuracy"] = float(is_right.mean())
            found["calibration error"] = calibration_error(self.probability[has_type], is_right)
        if self.is_unknown is not None:
            known = is_right[~self.is_unknown[has_type]]
            found["called unknown"] = float(self.is_unknown.mean())
            if has_type.any():
                found["accuracy of the others"] = float(known.mean()) if len(known) else None
                found["called unknown of those with a type"] = float(self.is_unknown[has_type].mean())
        return found


def types_by_genes(counts: Any, genes: list[str]) -> np.ndarray:
    """Return the types of cells by genes that are known for them, `(cells,)`; no text where these do not tell.

    Args:
        counts: CSR `(cells, G)`.
        genes: Names of the genes.

    >>> from scipy.sparse import csr_matrix
    >>> counts = csr_matrix([[3, 1, 0, 0], [3, 0, 0, 0], [0, 0, 2, 5], [2, 2, 2, 2]])
    >>> types_by_genes(counts, ["CD3D", "CD3E", "CD79A", "MS4A1"]).tolist()
    ['T', '', 'B', '']
    """
    place = {gene: index for index, gene in enumerate(genes)}
    number = {
        name: np.asarray((counts[:, [place[gene] for gene in known if gene in place]] > 0).sum(axis=1)).ravel()
        for name, known in GENES.items()
    }
    types = np.full(counts.shape[0], NO_TYPE, dtype="<U8")
    for name, least in LEAST.items():
        is_it = number[name] >= least
        for other, most in MOST[name].items():
            is_it &= number[other] <= most
        types[is_it] = name
    return types


def blood(tests: Mapping[str, "AnnData"], data: Path, loaded: CellModel) -> dict[str, tuple["AnnData", np.ndarray]]:
    """Return title -> cells of blood and their types, `(cells,)`: by sorting, by their authors, or by their genes."""
    test = tests[BLOOD]
    typed = annotated(file_of(data, INTERFERON)).to_memory()
    of_study = typed.obs["cell_type"].astype(str).map(TYPED).fillna(NO_TYPE)
    of_sorted = test.obs["cell_type"].astype(str).map(lambda name: SORTED.get(name, "T"))
    is_known = of_sorted.isin(COARSE).to_numpy()
    sets = {
        "sorted blood, held out": (test[is_known].copy(), of_sorted[is_known].to_numpy(str)),
        "interferon study": (typed, of_study.to_numpy(str)),
    }
    for title, name in BY_GENES.items():
        adata = tests[name] if name in tests else annotated(file_of(data, name)).to_memory()
        if name == CITESEQ:  # others selected some of the cells as T cells
            is_t = adata.obs["sub"].str.contains("T cells").to_numpy()
            sets["T cells of the CITE-seq study"] = adata[is_t].copy(), np.full(is_t.sum(), "T")
            adata = adata[~is_t].copy()
        sets[title] = adata, types_by_genes(loaded.read(adata).read()[0], loaded.tokenizer.genes)
    return sets


def of_unknown_types(test: "AnnData", data: Path) -> dict[str, "AnnData"]:
    """Return title -> cells of types that an annotator of blood does not know, at most 100 of each."""
    typed = annotated(file_of(data, INTERFERON)).to_memory()
    sets = {
        "blood sorted by CD34": test[(test.obs["cell_type"] == "CD34+").to_numpy()],
        "dendritic cells, interferon study": typed[typed.obs["cell_type"].isin(["DC", "pDC"]).to_numpy()],
        "platelets, interferon study": typed[(typed.obs["cell_type"] == "Mk").to_numpy()],
    }
    for title, name in {
        "pancreatic tumour": "pancreas_pdac_moncada7000", "cell lines": "celllines_mixology_dev",
        "retina from stem cells": "retina_rgc_ascend",
    }.items():  # fmt: skip
        sets[title] = annotated(file_of(data, name))
    rng = np.random.default_rng(0)
    drawn = {title: cells[np.sort(rng.permutation(cells.n_obs)[:MOST_TRIED])] for title, cells in sets.items()}
    return {title: cells.to_memory() for title, cells in drawn.items()}


def by_annotator(annotator: Path, adata: "AnnData") -> Coarse:
    """Return what an annotator of sorted blood says of cells, as `annotate` calibrates it."""
    loaded, calibration = CellModel.load(annotator, task="classify"), Calibration.load(annotator)
    if calibration is None:
        raise ValueError(f"{annotator} has no calibration: train it with more held-out cells")
    applied = calibration.apply(*loaded.classify(loaded.read(adata)))
    return Coarse.of(applied.probabilities, calibration.names, applied.is_unknown)


def on_other_experiments(
    annotator: Path, without: Path, labelled: Path, tests: Mapping[str, "AnnData"], data: Path
) -> dict[str, Any]:
    """Return cells -> method -> scores of two annotators of blood and of logistic regression on the same labels.

    One regression learns all labels of sorted blood, as the annotators do. Another learns only the four types of both
    studies, for which it has to know beforehand that no other type will come.

    Args:
        annotator: Folder of the annotator.
        without: Folder of one that learned from the labelled cells alone.
        labelled: File of the labelled cells, with those that were held out.
        tests: Evaluated cells of the data sets that were trained on, by their names.
        data: Folder of the data sets.
    """
    known = annotated(labelled).to_memory()
    ids, names = encode_labels(known.obs["cell_type"], "cell_type")
    labels = np.array(names)[ids]
    train, _ = stratified_split(labels, TEST_SHARE, 0)
    loaded = CellModel.load(annotator, task="classify")
    values, labels = log_normalise(loaded.read(known).read()[0])[train], labels[train]
    types = np.array([SORTED.get(name, "T") for name in labels])
    is_both = np.isin(types, COARSE)
    regressions = {
        "logistic regression": logistic_classifier().fit(values, labels),
        "logistic regression on four types": logistic_classifier().fit(values[is_both], types[is_both]),
    }
    found: dict[str, Any] = {}
    for title, (adata, true) in blood(tests, data, loaded).items():
        said = {"blood-annotator": by_annotator(annotator, adata)}
        said["without unlabelled cells"] = by_annotator(without, adata)
        counts = log_normalise(loaded.read(adata).read()[0])
        for method, fitted in regressions.items():
            said[method] = Coarse.of(fitted.predict_proba(counts), list(fitted.classes_))
        found[title] = {method: each.scores(true) for method, each in said.items()}
        log(f"{title}: {found[title]}")
    for title, adata in of_unknown_types(tests[BLOOD], data).items():
        said = {"blood-annotator": by_annotator(annotator, adata)}
        said["without unlabelled cells"] = by_annotator(without, adata)
        none = np.full(adata.n_obs, NO_TYPE)
        found[title] = {method: each.scores(none) | {"cells": adata.n_obs} for method, each in said.items()}
        log(f"{title}: {found[title]}")
    return found
