"""How much better TxFM reconstructs cells that it was not trained on than the mean profile does.

    python -m xtrimogene.recipes.studies.txfm_losses plan.yaml more.h5ad --kept checkpoints -o txfm_losses.json

    loss if each value is known  <  loss of the model  <  loss of the mean profile of the training cells
    explained = (mean profile - model) / (mean profile - known)            of the Poisson loss, as R2 of squared errors

The checkpoints are those that the study of embeddings keeps (`--keep`): one folder for each seed. Of each cell that the
plan evaluates, 30 % of the expressed and 3 % of the zero genes are masked, and the loss is over all measured genes.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from datasets import concatenate_datasets

from ...inference.cell_model import CellModel
from ...modeling_xtrimogene.count_loss_txfm import count_loss
from ...modeling_xtrimogene.reconstruction_xtrimogene import dense_values
from ...records import plain
from ...tokenization.reading import annotated, cells_of
from ...training.data.dataset import cells_dataset
from ...training.objectives import mean_profile, objective_of
from .embedding import cells_to_train_on, log

BATCH_SIZE = 16


@torch.inference_mode()
def losses_of(loaded: CellModel, dataset: Any, profile: np.ndarray, seed: int) -> dict[str, float]:
    """Return the mean loss of cells: of the model, of the mean profile, and of values that are known.

    Args:
        loaded: A TxFM with its decoder.
        dataset: The cells, from `cells_dataset`.
        profile: Mean profile of the training cells, `log1p` of counts per 100,000, `(G,)`.
        seed: Seed of the genes shown and masked.
    """
    config, num_genes = loaded.model.config, loaded.tokenizer.num_genes
    collator = objective_of(config).eval_collator(loaded.tokenizer, seed)
    sums = {"model": 0.0, "mean profile": 0.0, "known": 0.0}
    for start in range(0, len(dataset), BATCH_SIZE):
        rows = list(range(start, min(start + BATCH_SIZE, len(dataset))))
        batch = collator(dataset.__getitems__(rows))
        ids, values = batch["expressed_ids"], batch["expressed_values"]
        true_BG, measured_BG = dense_values(num_genes, ids, values, ids < num_genes), batch.get("measured")
        known_BG = torch.from_numpy(profile).expand_as(true_BG)
        sums["model"] += float(loaded.model(**batch).loss) * len(rows)
        for name, predicted_BG in (("mean profile", known_BG), ("known", true_BG)):
            losses_B = count_loss(predicted_BG, true_BG, measured_BG, config.loss, library_size=config.library_size)
            sums[name] += float(losses_B.sum())
    means = {name: total / len(dataset) for name, total in sums.items()}
    gap = means["mean profile"] - means["known"]
    return means | {"explained": (means["mean profile"] - means["model"]) / gap}


def main(
    plan: Annotated[Path, typer.Argument(help="Plan with embedding tasks, one for each file.")],
    more: Annotated[list[Path] | None, typer.Argument(help="Files to train on that are not evaluated.")] = None,
    kept: Annotated[Path, typer.Option(help="Folder with a checkpoint for each seed.")] = Path("kept"),
    output: Annotated[Path, typer.Option("-o", "--output", help="The .json file to write.")] = Path("txfm_losses.json"),
) -> None:
    """Compare losses of each checkpoint on the evaluated cells of each file, and write them."""
    entries = yaml.safe_load(plan.read_text(encoding="utf-8"))["tasks"]
    folders = sorted(folder for folder in kept.iterdir() if folder.is_dir())
    tokenizer = CellModel.load(str(folders[0]), task="reconstruct").tokenizer
    with tempfile.TemporaryDirectory() as folder:
        parts: list[Any] = []
        for path in [*cells_to_train_on(entries, Path(folder)), *(more or ())]:
            cells = tokenizer.read_counts(annotated(path))
            parts.append(cells_dataset(cells, empty="drop", first_index=sum(map(len, parts))))
        profile = mean_profile(concatenate_datasets(parts), tokenizer, 0)
    found: dict[str, Any] = {"cells": sum(map(len, parts)), "seeds": []}
    for seed, checkpoint in enumerate(folders):
        loaded = CellModel.load(str(checkpoint), task="reconstruct")
        of_files = {}
        for entry in entries:
            evaluated = cells_of(Path(entry["data"]), entry.get("where") or {}, entry.get("max_cells"))
            dataset = cells_dataset(loaded.read(evaluated), empty="drop")
            of_files[Path(entry["data"]).stem] = losses_of(loaded, dataset, profile, seed)
            log(f"{checkpoint.name}, {entry['data']}: {of_files[Path(entry['data']).stem]}")
        found["seeds"].append(of_files)
        output.write_text(json.dumps(plain(found), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
