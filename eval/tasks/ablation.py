"""Ablations of the paper on a laptop: small models that differ in one thing, trained in the same way on the same cells.

Source: arXiv:2311.15156 (value embedding, masking of zeros, regression against classification, sizes).
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch

from ...inference.cell_model import CellModel
from ...inference.devices import pick_device
from ...modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ...modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
from ...options import Option, group
from ...tokenization.masking import Masking
from ...tokenization.panel_xtrimogene import InMemory
from ...tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
from ...training.arguments import CellTrainingArguments
from ...training.data.dataset import cells_dataset
from ...training.pretraining import pretrain
from ..measures.probes import columns, embedding_statistics, say_left_out
from ..measures.results import TaskResult, score
from .recovery import at_sparsities, curves, recovery_statistics
from .run import DrawnCells, Run

if TYPE_CHECKING:
    from anndata import AnnData


RUN = Run(seeds=(0,))
BASE = "auto-discretisation, regression"
PERFORMER = "Performer over all genes"
# Name -> changes of the configuration, and the share of zero genes that is masked.
VARIANTS: dict[str, tuple[dict[str, Any], float]] = {
    BASE: ({}, 0.03),
    "rounded bins": ({"value_embedding": "rounded_bin"}, 0.03),
    "linear value": ({"value_embedding": "linear"}, 0.03),
    "classification": ({"objective": "classification"}, 0.03),
    "zeros never masked": ({}, 0.0),
    # Three layers, as many as encoder and decoder of `tiny` have together, over all genes. It is many times slower.
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


@group
class AblationOptions(DrawnCells):
    """Which variants are trained, and for how long.

    >>> AblationOptions(steps=10).sizes
    ('tiny',)
    """

    label_key: Annotated[str | None, Option("Column of obs with labels, to score embeddings by.")] = None
    variants: Annotated[
        Sequence[str], Option("Variants, trained at the first of the sizes.", default="all but the Performer")
    ] = QUICK
    sizes: Annotated[Sequence[str], Option("Presets, which are compared as they are if there are several.")] = ("tiny",)
    steps: Annotated[int, Option("Training steps of each.", least=1)] = 400
    batch_size: Annotated[int, Option("Cells of a step.", least=1)] = 16
    sparsities: Annotated[
        Sequence[float], Option("Shares of zeros on the panel to which held-out cells are thinned besides.")
    ] = ()
    num_test: Annotated[int, Option("Cells of these, at most.", least=2)] = 200


class Plan(NamedTuple):
    """A model to train: its size, its configuration and the share of zero genes that is masked."""

    size: str
    config: XTrimoGeneConfig
    zero_ratio: float


def evaluate_ablation(
    adata: "AnnData", data: str, checkpoints: Mapping[str, str], options: AblationOptions, run: Run = RUN
) -> TaskResult:
    """Train variants and compare them on held-out cells.

    Args:
        adata: Cells with counts.
        data: Name of the data set.
        checkpoints: Ignored, since all models are trained here.
        options: Which variants are trained, and for how long.
        run: Seeds, for each of which all variants are trained.

    Raises:
        ValueError: If a variant or size is unknown, or no cells have enough expressed genes for `sparsities`.

    Example:
        >>> options = AblationOptions(steps=100)
        >>> result = evaluate_ablation(adata, "blood", {"small": "checkpoint"}, options)  # doctest: +SKIP
    """
    plans = plans_of(options)
    labels, keep = None, np.ones(adata.n_obs, bool)
    if options.label_key is not None:
        labels, _, keep = columns(adata, options.label_key, None)
        say_left_out(keep, run.say)
    tokenizer = XTrimoGeneTokenizer.default()
    cells = tokenizer.read_counts(adata[keep].copy() if not keep.all() else adata)
    counts, _ = cells.read()
    found: dict[tuple[float, str, str], list[tuple[Callable[[np.ndarray], float], int]]] = {}
    seconds: dict[str, list[float]] = {}
    run.tell(0.0)
    for seed in run.seeds:
        order = np.random.default_rng(seed).permutation(counts.shape[0])
        test, train = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])
        dataset = cells_dataset(InMemory(counts[train], cells.measured))
        thinned_to = at_sparsities(counts[train], counts[test], options.sparsities, options.num_test, seed)
        levels = [(0.0, counts[train], counts[test]), *thinned_to]
        models = {}
        for name, plan in plans.items():
            run.say(f"seed {seed}: {options.steps} steps of {options.batch_size} cells, {name}")
            began = time.perf_counter()
            models[name] = train_variant(plan, tokenizer, dataset, options, seed, run.device)
            seconds.setdefault(name, []).append(round(time.perf_counter() - began, 1))
            run.tell(sum(map(len, seconds.values())) / (len(run.seeds) * len(plans)))
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
        "seeds": list(run.seeds), "steps": options.steps, "cells of a step": options.batch_size,
        "sizes": list(options.sizes), "cells": counts.shape[0], "left out": int((~keep).sum()),
        "seconds of training": seconds,
    }  # fmt: skip
    return TaskResult("ablation", data, PROTOCOL, scores, pictures, settings)


def plans_of(options: AblationOptions) -> dict[str, Plan]:
    """Return name -> model to train.

    Raises:
        ValueError: If a variant or size is unknown.
    """
    sizes, variants = options.sizes, options.variants
    unknown = [name for name in variants if name not in VARIANTS] + [
        size for size in sizes if size not in LEARNING_RATE
    ]
    if unknown:
        raise ValueError(f"no such variant: {unknown[0]!r}; there are {', '.join([*VARIANTS, *LEARNING_RATE])}")
    plans = {name: (sizes[0], *VARIANTS[name]) for name in variants}
    plans |= {f"size {size}": (size, {}, 0.03) for size in sizes} if len(sizes) > 1 else {}
    return {  # an anchor, which no published model has, would hide what a part contributes
        name: Plan(size, XTrimoGeneConfig.preset(size, anchored=False, **changes), ratio)
        for name, (size, changes, ratio) in plans.items()
    }


def train_variant(
    plan: Plan, tokenizer: XTrimoGeneTokenizer, dataset: Any, options: AblationOptions, seed: int, device: str
) -> CellModel:
    """Train a variant and return it."""
    place = pick_device(device)
    torch.manual_seed(seed)
    model = XTrimoGeneForPreTraining(plan.config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = CellTrainingArguments(
            folder, max_steps=options.steps, per_device_train_batch_size=options.batch_size,
            learning_rate=LEARNING_RATE[plan.size], warmup_steps=0.05, seed=seed, eval_strategy="no",
            save_strategy="no", use_cpu=place.type == "cpu", disable_tqdm=True,
        )  # fmt: skip
        pretrain(model, tokenizer, dataset, None, arguments=arguments, options=Masking(zero_ratio=plan.zero_ratio))
    return CellModel(model.to(place).eval(), tokenizer)
