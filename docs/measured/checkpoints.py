"""The checkpoints that come with the package."""

from collections.abc import Callable
from typing import Any

from . import paragraph, results, share, table
from .embedding import DATA_SETS
from .evaluation import ZERO_SHOT, scores_of

CHECKPOINTS = {"small": "xTrimoGene", "txfm-small": "TxFM", "blood-annotator": "annotator on `small`"}
AS_TRAINED = "sorted blood, held out"  # cells of the experiment whose labels the annotator learned
TRIED = {
    "pbmc_hao_citeseq": "blood, another laboratory",
    "kang_ifnb_typed": "blood, other cells of a study that was trained on",
    "lymphoma_malt_10x": "lymphoma",
    "bonemarrow_aml_seqwell": "bone marrow, healthy and leukaemic, Seq-Well",
    "retina_rgc_ascend": "retina from stem cells",
    "ipsc_cm_timecourse_c1": "stem cells becoming heart muscle, full-length reads",
    "brain_allen2023_pcmp": "nuclei of the cortex, full-length reads",
}


def released() -> dict[str, Any]:
    """Return name -> what was measured, of the checkpoints that come with the package and are measured.

    Raises:
        FileNotFoundError: If none is.
    """
    found = results("results/checkpoints")
    return {name: found[name] for name in CHECKPOINTS if name in found}


def released_table() -> str:
    """Return the checkpoints that come with the package: size, cells, time of training."""
    rows = []
    for name, found in released().items():
        run = found["run"]
        cells, size = f"{run['cells']['train']:,}", f"{found['bytes'] / 1e6:.1f} MB"
        if "unlabelled cells" in run:
            cells += f" with labels, {run['unlabelled cells']['learned from']:,} without"
        rows.append([f"`{name}`", CHECKPOINTS[name], cells, size])
    return table(["checkpoint", "what it is", "cells trained on", "files"], rows)


def released_beside() -> str:
    """Return the table of README.md: released checkpoints beside PCA, scVI and logistic regression."""
    found = released()
    questions = {
        "neighbours of a cell are of its type: sorted blood, k-NN macro-F1": ("pbmc_facs_zheng", "k-NN macro-F1"),
        "clusters are types: sorted blood, ARI": ("pbmc_facs_zheng", "ARI"),
        "batches mix: blood by three chemistries": ("pbmc_3chemistries", "mixing of batches"),
    }
    rows = []
    for question, (data, metric) in questions.items():
        scores = found["small"]["embedding"][data]
        scvi = scores_of(ZERO_SHOT, f"{data}.h5ad", "evaluation_scvi")["scVI"][metric]["value"]
        values = in_bold(scores["small"][metric], scores["PCA of the corpus"][metric], scvi)
        rows.append(["`small`", question, *values, "-"])
    for title, methods in found["blood-annotator"]["annotation"].items():
        if "logistic regression" in methods:
            ours, theirs = in_bold(*(methods[name]["accuracy"] for name in ("blood-annotator", "logistic regression")))
            rows.append(["`blood-annotator`", f"names are right: {title}, accuracy", ours, "-", "-", theirs])
    unknown = [
        methods["blood-annotator"]["called unknown"]
        for title, methods in annotated_sets().items()
        if "logistic regression" in methods and title != AS_TRAINED
    ]
    said = paragraph(
        "No evaluated cell was trained on. Of the interferon study and of the three chemistries the annotator learned "
        "other cells, without labels. Names of cells that it calls unknown count too; of cells of other experiments it "
        f"calls {share(min(unknown))} to {share(max(unknown))} unknown. Behind the interferon study, types are told "
        "by genes, and cells in which these do not tell are left out. PCA is of the cells that `small` was trained "
        "on, scVI was trained on the evaluated cells themselves, and logistic regression learned from the labels of "
        "the annotator."
    )
    return table(["", "", "this checkpoint", "PCA", "scVI", "logistic regression"], rows) + f"\n\n{said}"


def in_bold(*values: float) -> list[str]:
    """Return scores as text, those that are best to three decimals in bold."""
    texts = [f"{value:.3f}" for value in values]
    return [f"**{text}**" if text == max(texts) else text for text in texts]


def released_embedding() -> str:
    """Return scores of the embeddings of the checkpoints, beside PCA of the cells that they were trained on."""
    metrics = ("k-NN macro-F1", "ARI", "mixing of batches")
    rows = []
    bases = {name: found["embedding"] for name, found in released().items() if "embedding" in found}
    for data, title in DATA_SETS.items():
        for name, scores in bases.items():
            for method, row in scores[data].items():
                if method != name and name != next(iter(bases)):
                    continue  # PCA of the same cells is one for all
                shown = f"`{method}`" if method == name else method
                values = (f"{row[metric]:.3f}" if metric in row else "-" for metric in metrics)
                rows.append([title, shown, *values, row["seen"]])
    return table(["evaluated cells", "", *metrics, "trained on these cells"], rows)


def released_rounding() -> str:
    """Return what rounding weights changes."""
    rows = []
    for name, found in released().items():
        for dtype, row in found["rounding"].items():
            accuracy = f"{row['accuracy']:.3f}" if "accuracy" in row else "-"
            change = f"{row['largest change of a probability']:.4f}" if "accuracy" in row else "-"
            shift = f"{row['shift of embeddings']:.5f}"
            rows.append([f"`{name}`", dtype, shift, f"{row['k-NN macro-F1']:.3f}", accuracy, change])
    header = ["", "weights", "shift of embeddings", "k-NN macro-F1", "accuracy", "largest change of a probability"]
    return table(header, rows)


def released_familiar() -> str:
    """Return the share of cells that are called unfamiliar, by data set."""
    bases = {name: found["familiar"] for name, found in released().items() if "familiar" in found}
    first = next(iter(bases.values()))
    rows = [
        [
            (DATA_SETS | TRIED)[data],
            "other cells" if row["trained on others of the data set"] else "no",
            f"{row['cells']:,}",
            *(share(found[data]["unfamiliar"]) for found in bases.values()),
        ]
        for data, row in first.items()
    ]
    return table(["cells", "trained on", "number", *(f"unfamiliar to `{name}`" for name in bases)], rows)


def annotated_sets() -> dict[str, Any]:
    """Return cells -> method -> scores of the annotator that comes with the package."""
    if "blood-annotator" not in (found := released()):
        raise FileNotFoundError("the annotator is not measured")
    return found["blood-annotator"]["annotation"]


def released_annotation() -> str:
    """Return how the annotator does on cells of other experiments."""
    rows = []
    for title, methods in annotated_sets().items():
        for method, row in methods.items():
            if "accuracy" not in row:
                continue
            figures = (
                "-" if row.get(key) is None else f"{row[key]:.3f}"
                for key in ("accuracy", "accuracy of the others", "calibration error")
            )
            shown = f"`{method}`" if method in CHECKPOINTS else method
            rows.append([title, f"{row['cells']:,}", shown, *figures, share(row.get("called unknown"))])
    header = ["cells", "number", "", "accuracy", "of those not called unknown", "calibration error", "called unknown"]
    return table(header, rows)


def released_unknown() -> str:
    """Return which share of cells of unknown types the annotator calls unknown."""
    sets = {title: found for title, found in annotated_sets().items() if "accuracy" not in found["blood-annotator"]}
    methods = list(next(iter(sets.values())))
    rows = [
        [title, f"{found[methods[0]]['cells']:,}", *(share(found[method]["called unknown"]) for method in methods)]
        for title, found in sets.items()
    ]
    return table(["cells", "number", *(f"`{name}`" if name in CHECKPOINTS else name for name in methods)], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "beside": released_beside,
    "checkpoints": released_table,
    "checkpoints, embedding": released_embedding,
    "checkpoints, rounding": released_rounding,
    "checkpoints, familiar": released_familiar,
    "checkpoints, annotation": released_annotation,
    "checkpoints, unknown": released_unknown,
}
