"""The checkpoints that come with the package."""

from collections.abc import Callable
from typing import Any

from . import results, share, table
from .embedding import DATA_SETS

CHECKPOINTS = {"small": "xTrimoGene", "txfm-small": "TxFM", "blood-annotator": "annotator on `small`"}
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
        cells, size = run["cells"]["train"], f"{found['bytes'] / 1e6:.1f} MB"
        rows.append([f"`{name}`", CHECKPOINTS[name], f"{cells:,}", size])
    return table(["checkpoint", "what it is", "cells trained on", "files"], rows)


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


def released_annotation() -> str:
    """Return how the annotator does on cells of other experiments."""
    if "blood-annotator" not in (found := released()):
        raise FileNotFoundError("the annotator is not measured")
    rows = []
    for title, methods in found["blood-annotator"]["annotation"].items():
        for method, row in methods.items():
            figures = (
                "-" if row.get(key) is None else f"{row[key]:.3f}"
                for key in ("accuracy", "accuracy of the others", "calibration error")
            )
            shown = f"`{method}`" if method in CHECKPOINTS else method
            rows.append([title, f"{row['cells']:,}", shown, *figures, share(row.get("called unknown"))])
    header = ["cells", "number", "", "accuracy", "of those not called unknown", "calibration error", "called unknown"]
    return table(header, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "checkpoints": released_table,
    "checkpoints, embedding": released_embedding,
    "checkpoints, rounding": released_rounding,
    "checkpoints, familiar": released_familiar,
    "checkpoints, annotation": released_annotation,
}
