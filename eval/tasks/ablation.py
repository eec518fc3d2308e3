"""Ablations of the paper on a laptop: small models that differ in one thing, trained alike on the same cells.

Source: arXiv:2311.15156 (value embedding, masking of zeros, regression against classification, sizes).
"""

import inspect
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...inference.cell_model import CellModel
from ...inference.devices import pick_device
from ...modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ...modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
from ...tokenization.panel_xtrimogene import InMemory
from ...tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
from ...training.arguments import CellTrainingArguments
from ...training.data.dataset import cells_dataset
from ...training.pretraining import pretrain
from ..measures.probes import columns, embedding_statistics, say_left_out
from ..measures.results import TaskResult, score
from .recovery import at_sparsities, curves, recovery_statistics

if TYPE_CHECKING:
    from anndata import AnnData


BASE = "auto-discretisation, regression"
PERFORMER = "Performer over all genes"
# Name -> changes of the configuration, and the share of zero genes that is masked.
VARIANTS: dict[str, tuple[dict[str, Any], float]] = {
    BASE: ({}, 0.03),
    "rounded bins": ({"value_embedding": "rounded_bin"}, 0.03),
    "linear value": ({"value_embedding": "linear"}, 0.03),
    "classification": ({"objective": "classification"}, 0.03),
    "zeros never masked": ({}, 0.0),
    # As many layers as encoder and decoder of `tiny`; every gene is a token of each. Many times slower.
    PERFORMER: ({"num_hidden_layers": 0, "decoder_num_hidden_layers": 3, "decoder_context": "all"}, 0.03),
}
QUICK = tuple(name for name in VARIANTS if name != PERFORMER)
LEARNING_RATE = {"tiny": 2e-3, "3M": 1e-3, "10M": 1e-3}
PROTOCOL = (
    "Each variant is trained from scratch on the same cells in the same order, for the same number of steps, and "
    "differs from the first in one thing, but for the Performer, which has three layers of all genes. A fifth of the "
    "cells is held out: their masked values (30 % of the expressed, 3 % of the measured zero genes, whatever the "
    "variant was trained on) are predicted, and where cells have labels their embeddings are scored without training "
    "(five folds; not those of the Performer, which has no encoder). Sizes are trained for the same number of steps, "
    "not for the same time. Where shares of zeros are given, held-out cells rich enough for the lowest are thinned to "
    "each. Intervals: 95 %, bootstrap over cells; seeds change data order, initial weights, split and masks."
)


def evaluate_ablation(
    adata: "AnnData",
    data: str,
    *,
    label_key: str | None = None,
    variants: Sequence[str] = QUICK,
    sizes: Sequence[str] = ("tiny",),
    steps: int = 400,
    batch_size: int = 16,
    sparsities: Sequence[float] = (),
    num_test: int = 200,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    say: Callable[[str], object] = print,
) -> TaskResult:
    """Train variants and compare them on held-out cells.

    Args:
        adata: Cells with counts.
        data: Name of the data set.
        label_key: Column of obs with labels, to score embeddings by.
        variants: Names of `VARIANTS`, trained at the first of the sizes; all but the Performer unless given.
        sizes: Presets, which are compared as they are if there are several.
        steps: Training steps of each.
        batch_size: Cells of a step.
        sparsities: Shares of zeros on the panel to which held-out cells are thinned besides.
        num_test: Cells of these, at most.
        seeds: Seeds; each trains all variants.
        device: See `pick_device`.
        say: Told what is going on.

    Raises:
        ValueError: If a variant or size is unknown, or cells are too sparse (`recovery.at_sparsities`).
    """
    unknown = [name for name in variants if name not in VARIANTS] + [
        size for size in sizes if size not in LEARNING_RATE
    ]
    if unknown:
        raise ValueError(f"no such variant: {unknown[0]!r}; there are {', '.join([*VARIANTS, *LEARNING_RATE])}")
    plans = {name: (sizes[0], *VARIANTS[name]) for name in variants}
    plans |= {f"size {size}": (size, {}, 0.03) for size in sizes} if len(sizes) > 1 else {}
    configs = {name: XTrimoGeneConfig.preset(size, **changes) for name, (size, changes, _) in plans.items()}
    labels, keep = None, np.ones(adata.n_obs, bool)
    if label_key is not None:
        labels, _, keep = columns(adata, label_key, None)
        say_left_out(keep, say)
    place = pick_device(device)
    tokenizer = XTrimoGeneTokenizer.default()
    cells = tokenizer.read_counts(adata[keep].copy() if not keep.all() else adata)
    counts, _ = cells.read()
    found: dict[tuple[float, str, str], list[tuple[Callable[[np.ndarray], float], int]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(counts.shape[0])
        test, train = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])
        dataset = cells_dataset(InMemory(counts[train], cells.measured))
        thinned_to = at_sparsities(counts[train], counts[test], sparsities, num_test, seed)
        levels = [(0.0, counts[train], counts[test]), *thinned_to]
        models = {}
        for name, (size, _, zero_ratio) in plans.items():
            say(f"seed {seed}: {steps} steps of {batch_size} cells, {name}")
            torch.manual_seed(seed)
            model = XTrimoGeneForPreTraining(configs[name])
            with tempfile.TemporaryDirectory() as folder:
                arguments = CellTrainingArguments(
                    folder, max_steps=steps, per_device_train_batch_size=batch_size, learning_rate=LEARNING_RATE[size],
                    warmup_steps=0.05, seed=seed, eval_strategy="no", save_strategy="no", use_cpu=place.type == "cpu",
                    disable_tqdm=True,
                )  # fmt: skip
                began = time.perf_counter()
                pretrain(model, tokenizer, dataset, None, arguments=arguments, zero_ratio=zero_ratio)
                seconds.setdefault(name, []).append(round(time.perf_counter() - began, 1))
            models[name] = CellModel(model.to(place).eval(), tokenizer)
        for sparsity, seen, held_out in levels:
            statistics = recovery_statistics(models, seen, held_out, seed, cells.measured)
            for name, loaded in models.items():
                if labels is not None and not sparsity and loaded.model.config.num_hidden_layers:
                    embedding = loaded.embed(InMemory(held_out))
                    statistics[name] |= embedding_statistics(embedding, labels[test], None, seed)
            for method, of_method in statistics.items():
                for metric, statistic in of_method.items():
                    found.setdefault((sparsity, method, metric), []).append((statistic, held_out.shape[0]))
    scores = []
    for (sparsity, method, metric), of_seeds in found.items():
        each, units = zip(*of_seeds, strict=True)
        title = f"{data}, {sparsity:.0%} zeros" if sparsity else data
        scores.append(score("ablation", title, method, metric, each, units, draws=100))
    thinned = [(each, key[0]) for each, key in zip(scores, found, strict=True) if key[0]]
    pictures = curves(*zip(*thinned, strict=True)) if thinned else {}
    settings = {
        "seeds": list(seeds), "steps": steps, "cells of a step": batch_size, "sizes": list(sizes),
        "cells": counts.shape[0], "left out": int((~keep).sum()), "seconds of training": seconds,
    }  # fmt: skip
    return TaskResult("ablation", data, PROTOCOL, scores, pictures, settings)


def ablate(adata: "AnnData", data: str, checkpoints: Mapping[str, str], **options: Any) -> TaskResult:
    """Train and compare variants; checkpoints take no part."""
    return evaluate_ablation(adata, data, **options)


ablate.__signature__ = inspect.signature(evaluate_ablation)  # type: ignore[attr-defined]
