"""Measure what it saves that TxFM sees some genes of a cell: training steps beside an encoder that sees all of them.

    python -m xtrimogene.eval.cost.benchmarks.txfm -o txfm_speed.json             # some minutes on 2 cores
    python -m xtrimogene.eval.cost.benchmarks.txfm --size txfm-S --genes 8248     # the paper's smallest size

Forward and backward of one batch of synthetic cells. The peer is torch's own Transformer encoder of the same depth and
widths, on all genes of the panel. Variants run in turn. Batches are made as in training on one core, with the
allocator's settings of our commands, and that is timed alone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from ....modeling_xtrimogene.configuration_txfm import TxFMConfig
from ....modeling_xtrimogene.modeling_txfm import TxFMForPreTraining
from ....tokenization.tokenization_txfm import TxFMTokenizer
from ....tokenization.visible_genes import DataCollatorForReconstruction
from ..flops import kept_bytes
from .__main__ import ALLOCATORS

SHOWN = (512, 1024, 2048)  # genes
EXPRESSED = 2_000  # genes of a cell
COLLATED = (16, 128, 1024)  # batches, cells of each, genes shown
PEER = "all genes"
app = typer.Typer(add_completion=False)


class PlainEncoder(nn.Module):
    """The same shape with torch's own layers: a token for each gene, and logits of all genes from the CLS token."""

    def __init__(self, config: TxFMConfig):
        super().__init__()
        width = config.hidden_size
        self.genes = nn.Embedding(config.num_genes, width - 1)
        self.cls = nn.Parameter(torch.zeros(width))
        layer = nn.TransformerEncoderLayer(
            width, config.num_attention_heads, config.intermediate_size or 0, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, config.num_hidden_layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, config.num_genes)

    def forward(self, input_ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, G)`."""
        tokens = torch.cat([self.genes(input_ids), values.unsqueeze(-1)], dim=-1)
        tokens = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], dim=1)
        return self.output(self.encoder(tokens)[:, 0])


def synthetic_cells(number: int, num_genes: int) -> list[dict[str, Any]]:
    """Return cells as those of a data set, with mostly small counts."""
    rng = np.random.default_rng(0)
    cells = []
    for index in range(number):
        ids = np.sort(rng.choice(num_genes, min(EXPRESSED, num_genes // 2), replace=False)).astype(np.int32)
        counts = rng.geometric(0.6, len(ids)).astype(np.float32)
        cells.append({"input_ids": ids, "counts": counts, "total": float(counts.sum()), "cell_index": index})
    return cells


def loss_of(variant: str, size: str, num_genes: int, num_cells: int) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """Return a model and a function to its loss of a batch.

    Args:
        variant: `all genes`, or how many genes are shown.
        size: Name of the preset.
        num_genes: Genes of the panel.
        num_cells: Cells of the batch.
    """
    torch.manual_seed(0)
    shown = num_genes if variant == PEER else int(variant)
    config = TxFMConfig.preset(size, num_genes=num_genes, num_visible=shown, anchored=False, drop_path_rate=0.0)
    batch = DataCollatorForReconstruction(tokenizer_of(num_genes), shown)(synthetic_cells(num_cells, num_genes))
    if variant != PEER:
        model = TxFMForPreTraining(config).train()
        return model, lambda: model(**batch).loss
    plain = PlainEncoder(config).train()

    def loss() -> torch.Tensor:
        predicted = plain(batch["input_ids"], batch["values"])
        true = torch.zeros_like(predicted).scatter(1, batch["input_ids"], batch["values"])
        return (predicted.exp() - predicted * true.exp()).mean()

    return plain, loss


def tokenizer_of(num_genes: int) -> TxFMTokenizer:
    """Return a tokenizer for a panel of so many genes, the packaged one if it has as many."""
    packaged = TxFMTokenizer.default()
    if num_genes == packaged.num_genes:
        return packaged
    with tempfile.TemporaryDirectory() as folder:
        return TxFMTokenizer.from_genes(packaged.genes[:num_genes], folder)


def collating(num_genes: int) -> dict[str, float]:
    """Return of how many cells a second one core makes batches, and how many genes of a cell are shown."""
    batches, num_cells, shown = COLLATED
    collator = DataCollatorForReconstruction(tokenizer_of(num_genes), min(shown, num_genes))
    cells = synthetic_cells(num_cells, num_genes)
    collator(cells)
    seconds = []
    for _ in range(batches):
        began = process_time()
        collator(cells)
        seconds.append(process_time() - began)
    return {"genes shown": shown, "cells a second of one core": round(num_cells / statistics.median(seconds))}


@app.command()
def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file.")] = Path("txfm_speed.json"),
    size: Annotated[str, typer.Option(help="Preset.")] = "txfm-tiny",
    genes: Annotated[int, typer.Option(help="Genes of the panel.")] = 19_264,
    cells: Annotated[int, typer.Option(help="Cells of a batch.")] = 4,
    repeats: Annotated[int, typer.Option(help="How often each variant runs.")] = 3,
    only_collating: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure, print and write."""
    if only_collating:  # this process was started below
        print(json.dumps(collating(genes)))
        return
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--genes", str(genes), "--only-collating"]
    tuned = {**os.environ, **ALLOCATORS["tuned"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=tuned, capture_output=True, text=True, check=True)
    variants = [PEER, *(str(shown) for shown in SHOWN if shown < genes)]
    models = {variant: loss_of(variant, size, genes, cells) for variant in variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(repeats):
        for variant, (model, loss) in models.items():
            model.zero_grad(set_to_none=True)
            began = perf_counter()
            loss().backward()
            seconds[variant].append(perf_counter() - began)
    found: dict[str, Any] = {
        "size": size, "genes": genes, "cells": cells, "repeats": repeats, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "collating": json.loads(done.stdout.splitlines()[-1]), "steps": {},
    }  # fmt: skip
    for variant in variants:
        ratios = [peer / own for peer, own in zip(seconds[PEER], seconds[variant], strict=True)]
        found["steps"][variant] = {
            "cells a second": cells / statistics.median(seconds[variant]),
            "times as fast as all genes": statistics.median(ratios),
            "MiB kept for the backward pass": kept_bytes(models[variant][1]) / 2**20,
        }
    print(json.dumps(found, indent=2))
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
