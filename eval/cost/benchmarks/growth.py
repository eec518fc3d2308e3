"""How the cost of a pre-training step grows with genes, expressed genes, cells and width; exponents are fitted."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ....modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ....modeling_xtrimogene.flops_xtrimogene import transformer_flops
from ....modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
from ..flops import count_flops, performer_flops

BASE = {"genes": 8000, "expressed": 800, "cells": 4, "width": 128}
SERIES = {
    "genes": [2000, 4000, 8000, 16000, 32000],
    "expressed": [200, 400, 800, 1600, 3200],
    "cells": [4, 8, 16],
    "width": [64, 128, 256, 512],
}
EXPRESSED_RATIO, ZERO_RATIO = 0.3, 0.03
NUM_LAYERS, NUM_DECODER_LAYERS = 4, 2


def training_step(genes: int, expressed: int, cells: int, width: int, attention: str = "sdpa") -> Callable[[], None]:
    """Return a function that runs forward and backward on a masked batch of cells with `expressed` of `genes` genes."""
    torch.manual_seed(0)
    config = XTrimoGeneConfig(
        num_genes=genes,
        hidden_size=width,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=max(width // 64, 1),
        decoder_hidden_size=width,
        decoder_num_hidden_layers=NUM_DECODER_LAYERS,
        decoder_num_attention_heads=max(width // 64, 1),
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    model = XTrimoGeneForPreTraining(config)
    model.set_attn_implementation(attention)
    seen = round((1 - EXPRESSED_RATIO) * expressed)
    masked = expressed - seen + round(ZERO_RATIO * (genes - expressed))
    ids = torch.stack([torch.randperm(genes)[: seen + masked] for _ in range(cells)])
    values = torch.randint(1, 5, (cells, seen)).float().log1p()
    batch = {"input_ids": ids[:, :seen], "values": values, "masked_ids": ids[:, seen:]}
    batch["labels"] = torch.rand(cells, masked)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()

    return step


def median_seconds(run: Callable[[], None], repeats: int = 3) -> float:
    """Return the median time of several runs; a first run is not counted."""
    run()
    times = []
    for _ in range(repeats):
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    return float(np.median(times))


def measure_growth() -> dict[str, Any]:
    """Return times and FLOPs for each size, fitted exponents, and the FLOPs of other architectures by formula."""
    found: dict[str, Any] = {}
    for name, sizes in SERIES.items():
        points = []
        for size in sizes:
            at: dict[str, Any] = {**BASE, name: size}
            seconds = median_seconds(training_step(**at))
            # torch's counter does not know the fused attention of CPUs
            flops = count_flops(training_step(**at, attention="eager"))
            points.append({name: size, "seconds": seconds, "gigaflops": flops / 1e9})
        last = points[-3:]  # small sizes measure overhead
        fitted = {
            key: float(np.polyfit(np.log([p[name] for p in last]), np.log([p[key] for p in last]), 1)[0])
            for key in ("seconds", "gigaflops")
        }
        found[name] = {"points": points, "exponents": fitted}
    # Other architectures of the same width and number of layers, over all genes; they are not run.
    layers, cells, width = NUM_LAYERS + NUM_DECODER_LAYERS, BASE["cells"], BASE["width"]
    found["others"] = [
        {
            "dense": 3 * cells * transformer_flops(genes, width, layers) / 1e9,
            "Performer": 3 * cells * performer_flops(genes, width, width // 64, 64, 266, layers) / 1e9,
        }
        for genes in SERIES["genes"]
    ]
    return found
