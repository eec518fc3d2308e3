"""Compare the results of a checkpoint in bfloat16 with those in float32, on real cells.

    python -m xtrimogene.eval.cost.benchmarks.precision CHECKPOINT CELLS.h5ad -o precision.json

For any checkpoint, it compares the nearest neighbours of cell embeddings. For a fine-tuned one, it also compares the
labels, and the cells that are called unknown by the calibration made in float32. For a pre-trained one, it also
compares the predicted values of 50 cells.

On a processor without bfloat16 products the results are the same, but take a hundred times as long.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import anndata
import numpy as np
import typer
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from transformers import AutoConfig

from .... import families
from ....inference.calibration import Calibration
from ....inference.cell_model import CellModel
from ....inference.genes import enhance
from ....inference.options import Running
from ....options import spelled_out

NEIGHBORS = 15
PREDICTED_CELLS = 50  # cells whose expression is predicted: predicting all genes of many cells takes long
app = typer.Typer(add_completion=False)


def neighbors_shared(one: np.ndarray, other: np.ndarray, n_neighbors: int = NEIGHBORS) -> float:
    """Return the mean share of a cell's nearest neighbours that two embeddings `(cells, D)` have in common."""

    def neighbors(embedding: np.ndarray) -> np.ndarray:
        scaled = StandardScaler().fit_transform(embedding)  # annotation by a reference does the same
        return NearestNeighbors(n_neighbors=n_neighbors).fit(scaled).kneighbors(return_distance=False)

    pairs = zip(neighbors(one), neighbors(other), strict=True)
    return float(np.mean([len(np.intersect1d(*pair)) / n_neighbors for pair in pairs]))


def compare(checkpoint: str, cells: Any, device: str = "auto") -> dict[str, Any]:
    """Return how well the results of a checkpoint in bfloat16 agree with those in float32.

    Args:
        checkpoint: Folder or Hub name.
        cells: AnnData with counts.
        device: Device on which the model computes.
    """
    able = families.abilities(AutoConfig.from_pretrained(checkpoint).architectures or [])
    names = "classify" in able

    def both(run: Any) -> Any:
        return [run(dtype) for dtype in ("float32", "bfloat16")]

    def run(dtype: Any) -> tuple[Any, np.ndarray]:
        loaded = CellModel.load(checkpoint, Running(device=device, dtype=dtype), task="classify" if names else "embed")
        counts = loaded.read(cells)
        return loaded.classify(counts) if names else (None, loaded.embed(counts))

    (probabilities, one), (others, other) = both(run)
    is_there = np.isfinite(one).all(axis=1)
    off = (other[is_there] - one[is_there]) / one[is_there].std(axis=0).clip(min=1e-12)
    found: dict[str, Any] = {
        "cells": int(is_there.sum()),
        f"{NEIGHBORS} neighbours shared": neighbors_shared(one[is_there], other[is_there]),
        "error of the embedding, in standard deviations of cells": float(np.sqrt((off**2).mean())),
        "the same, of their mean": float(np.sqrt((off.mean(axis=0) ** 2).mean())),
    }
    if names:
        labels = [part[is_there].argmax(axis=1) for part in (probabilities, others)]
        found["labels equal"] = float((labels[0] == labels[1]).mean())
        calibration = Calibration.load(checkpoint)
        if calibration is not None:
            applied = calibration.apply(probabilities, one), calibration.apply(others, other)
            found["unknown by the calibration made in float32"] = [int(part.is_unknown.sum()) for part in applied]
    if "reconstruct" in able:
        predicted, filled = cells[:PREDICTED_CELLS], spelled_out(enhance)
        enhanced = both(lambda dtype: filled(predicted, checkpoint, device=device, dtype=dtype, copy=True))
        one, other = (adata.layers["enhanced"] for adata in enhanced)
        is_gene = np.isfinite(one)
        found["predicted values: root mean square, and of the error"] = [
            float(np.sqrt((part[is_gene] ** 2).mean())) for part in (one, other - one)
        ]
    return found


@app.command()
def main(
    checkpoint: str,
    cells: Path,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file.")] = None,
    number: Annotated[int, typer.Option(help="Cells, drawn at random.")] = 400,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure, print and write."""
    adata = anndata.read_h5ad(cells)
    drawn = np.random.default_rng(0).permutation(adata.n_obs)[:number]
    found = compare(checkpoint, adata[np.sort(drawn)].copy(), device)
    print(json.dumps(found, indent=2))
    if output:
        output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    app()
