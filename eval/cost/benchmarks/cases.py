"""Cases: each gives the same work to several variants, checks that their results agree, and times them in turn.

Weights are random and cells synthetic, so no data is needed; times do not depend on the values of weights.
"""

import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from ....modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ....modeling_xtrimogene.favor_xtrimogene import favor_attention
from ....modeling_xtrimogene.flops_xtrimogene import encoder_flops
from ....modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneModel
from ..flops import decoder_flops, kept_bytes
from .reference import ReferenceModel, transformers_encoder

NUM_GENES = 19_264
RAGGED = [500, 1150, 1850, 2500]  # expressed genes of the cells to embed
EXPRESSED, MASKED = 1402, 1117  # of a cell of 2,000 expressed genes, after masking
FLOAT32_TOLERANCE, BFLOAT16_COSINE = 1e-5, 0.999
GRADIENT_TOLERANCE = 1e-4  # relative; larger, because the gradient passes 18 layers in float32


@dataclass
class Case:
    """Variants of one piece of work.

    Args:
        title: Name of the work.
        peer: Name of the variant that the others are compared with.
        variants: Name of a variant -> function to time.
        cells: Number of cells in one run; 0 if the work is not on cells.
        flops: Floating-point operations of one run of the reference.
        agreement: Name of a comparison -> difference of the results, checked before anything is timed.
    """

    title: str
    peer: str
    variants: dict[str, Callable[[], Any]]
    cells: int = 1
    flops: float = 0.0
    agreement: dict[str, float] = field(default_factory=dict)


def synthetic_cell(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sorted ids and values `(1, L)` of a cell with mostly small counts."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(NUM_GENES, length, replace=False))
    counts = rng.geometric(0.6, length)
    values = np.log1p(counts * (1e4 / counts.sum()))
    return torch.from_numpy(ids)[None], torch.from_numpy(values).float()[None]


def ragged(
    lengths: list[int],
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return a list of cells, and the same cells as a padded batch of ids, values and mask."""
    cells = [synthetic_cell(length, seed) for seed, length in enumerate(lengths)]
    batch = [torch.full((len(cells), max(lengths)), NUM_GENES), torch.zeros(len(cells), max(lengths))]
    for row, cell in enumerate(cells):
        for table, part in zip(batch, cell, strict=True):
            table[row, : part.shape[1]] = part[0]
    ids, values = batch
    return cells, (ids, values, (ids < NUM_GENES).long())


def step_config(preset: str, **changes: Any) -> XTrimoGeneConfig:
    """Return the configuration of a size, without dropout."""
    # performer-pytorch takes the maximum of the features over each head.
    changes |= {"favor_stabilizer": "head", "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    return XTrimoGeneConfig.preset(preset, pooling="all", **changes)


def models(preset: str, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """Return the reference model and ours, with the same random weights and without dropout."""
    torch.manual_seed(seed)
    config = step_config(preset, **changes)
    reference, ours = ReferenceModel(config), XTrimoGeneForPreTraining(config)
    ours.load_state_dict(reference.our_weights())
    return reference.eval(), ours.eval()


def difference(one: torch.Tensor, other: torch.Tensor, name: str) -> dict[str, float]:
    """Return the largest absolute difference of two results; raise an error if it is above the tolerance."""
    found = float((one - other).abs().max())
    if found > FLOAT32_TOLERANCE:
        raise RuntimeError(f"{name}: results differ by {found:.1e}, at most {FLOAT32_TOLERANCE} is accepted")
    return {f"{name}: largest difference": found}


def cosine(one: torch.Tensor, other: torch.Tensor, name: str) -> dict[str, float]:
    """Return the smallest cosine of two results' rows; raise an error if it is below the accepted one."""
    found = float(nn.functional.cosine_similarity(one.float(), other.float(), dim=-1).min())
    if found < BFLOAT16_COSINE:
        raise RuntimeError(f"{name}: smallest cosine is {found:.5f}, at least {BFLOAT16_COSINE} is accepted")
    return {f"{name}: smallest cosine": found}


def in_bfloat16(model: XTrimoGeneModel) -> XTrimoGeneModel:
    """Return a copy of a model as `from_pretrained` loads it in bfloat16: only matrix products are in bfloat16."""
    weights = model.state_dict()
    return XTrimoGeneModel.from_pretrained(None, config=model.config, state_dict=weights, dtype=torch.bfloat16).eval()


@torch.inference_mode()
def cell_embedding(preset: str = "100M") -> Case:
    """B1, B1b: cell embeddings of a ragged batch."""
    reference, whole = models(preset, decoder_num_hidden_layers=1)
    config, ours = whole.config, whole.model
    cells, (ids, values, mask) = ragged(RAGGED)
    half, bert = in_bfloat16(ours), transformers_encoder(ours, config).eval()
    bert_half = transformers_encoder(ours, config).eval().bfloat16()

    def one_by_one() -> torch.Tensor:
        return torch.cat([reference.cell_embedding(*cell) for cell in cells])

    def padded(encoder: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        rows = ours.embeddings(ids, values).to(dtype)
        is_token = mask.bool()[:, None, None, :].expand(-1, -1, max(RAGGED), -1)
        return ours.pool(ours.encoder.norm(encoder(rows, is_token)[0].float()), ids, mask)

    variants = {
        "reference, one cell at a time": one_by_one,
        "reference, padded": lambda: reference.encode(ids, values, mask),
        "transformers encoder, padded": lambda: padded(bert, torch.float32),
        "transformers encoder, padded, bfloat16": lambda: padded(bert_half, torch.bfloat16),
        "ours": lambda: ours(ids, values, mask).pooler_output,
        "ours, bfloat16": lambda: half(ids, values, mask).pooler_output,
    }
    expected = one_by_one()
    agreement = difference(variants["ours"](), expected, "ours")
    agreement |= difference(padded(bert, torch.float32), expected, "transformers encoder")
    agreement |= cosine(variants["ours, bfloat16"](), expected, "ours, bfloat16")
    flops = sum(encoder_flops(int(n), config.hidden_size, config.num_hidden_layers) for n in RAGGED)
    return Case("cell embeddings, ragged", "reference, one cell at a time", variants, len(cells), flops, agreement)


@torch.inference_mode()
def gene_embedding(lengths: list[int], preset: str = "100M") -> Case:
    """B2: contextual embeddings of all genes of each cell."""
    reference, whole = models(preset)
    config, ours = whole.config, whole.model
    cells, batch = ragged(lengths)
    half, chosen = in_bfloat16(ours), torch.arange(0, NUM_GENES, 193)

    def one_by_one() -> torch.Tensor:
        return torch.cat([reference.gene_embedding(*cell) for cell in cells])

    variants = {
        "reference": one_by_one,
        "ours": lambda: ours.contextual_gene_embeddings(*batch),
        "ours, bfloat16": lambda: half.contextual_gene_embeddings(*batch),
        "ours, 100 genes": lambda: ours.contextual_gene_embeddings(*batch, gene_ids=chosen),
    }
    expected = one_by_one()
    agreement = difference(variants["ours"](), expected, "ours")
    agreement |= difference(variants["ours, 100 genes"](), expected[:, chosen], "ours, 100 genes")
    agreement |= cosine(variants["ours, bfloat16"](), expected, "ours, bfloat16")
    flops = sum(forward_flops(config, length) for length in lengths)
    title = f"contextual embeddings of all genes, {len(cells)} cell{'s' * (len(cells) > 1)}"
    return Case(title, "reference", variants, len(cells), flops, agreement)


def favor(tokens: int = 19_266, heads: int = 8, head_dim: int = 64, backward: bool = False) -> Case:
    """B3: the attention alone, against performer-pytorch's."""
    from performer_pytorch import FastAttention

    torch.manual_seed(0)
    fast = FastAttention(head_dim)
    query, key, value = (torch.randn(1, heads, tokens, head_dim).requires_grad_(backward) for _ in range(3))

    def ours() -> torch.Tensor:
        return favor_attention(query, key, value, fast.projection_matrix, stabilizer="head")

    def with_gradients(attend: Callable[[], torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        return lambda: list(torch.autograd.grad(attend().square().sum(), (query, key, value)))

    plain = {"performer-pytorch": lambda: fast(query, key, value), "ours": ours}
    agreement = difference(plain["ours"](), plain["performer-pytorch"](), "output")
    variants: dict[str, Callable[[], Any]] = dict(plain)
    if backward:
        variants = {name: with_gradients(attend) for name, attend in plain.items()}
        for name, one, other in zip("qkv", *(run() for run in variants.values()), strict=True):
            agreement |= difference(one, other, f"gradient of {name}")
        kept = {name: kept_bytes(attend) for name, attend in plain.items()}
        agreement["kept for the backward pass, ours / performer-pytorch"] = kept["ours"] / kept["performer-pytorch"]
    features = fast.nb_features
    flops = 8 * tokens * heads * head_dim * features * (3 if backward else 1)
    title = "FAVOR+ alone, forward and backward" if backward else "FAVOR+ alone"
    return Case(title, "performer-pytorch", variants, 0, flops, agreement)


def encoder_attention(tokens: int, preset: str = "10M") -> Case:
    """B6: the encoder with full and with criss-cross attention, one cell. Both are models of their own."""
    torch.manual_seed(0)
    ids, values = synthetic_cell(tokens, seed=0)
    configs = {kind: step_config(preset, encoder_attention=kind) for kind in ("full", "criss_cross")}
    encoders = {kind: XTrimoGeneModel(config, add_decoder=False).eval() for kind, config in configs.items()}
    variants: dict[str, Callable[[], Any]] = {kind: partial(each, ids, values) for kind, each in encoders.items()}
    flops = encoder_flops(tokens, configs["full"].hidden_size, configs["full"].num_hidden_layers)
    return Case(f"encoder, {preset}, {tokens:,} genes", "full", variants, 1, flops)


def masked_cell() -> dict[str, torch.Tensor]:
    """Return a batch of one cell, masked for pre-training."""
    ids, values = synthetic_cell(EXPRESSED + MASKED, 0)
    order = torch.from_numpy(np.random.default_rng(1).permutation(EXPRESSED + MASKED))
    seen, hidden = order[:EXPRESSED].sort().values, order[EXPRESSED:].sort().values
    parts = {"input_ids": ids[:, seen], "values": values[:, seen]}
    return {**parts, "masked_ids": ids[:, hidden], "labels": values[:, hidden]}


def training_steps(name: str, model: Any) -> dict[str, Callable[[], torch.Tensor]]:
    """Return forward and backward of `reference` or `ours`, in float32 and in bfloat16; each returns the loss."""
    batch = masked_cell()
    model.train()

    def step(half: bool) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(**batch) if name == "reference" else model(**batch).loss
        loss.backward()
        return loss.detach()

    return {name: lambda: step(False), f"{name}, bfloat16": lambda: step(True)}


def training_step(preset: str = "100M") -> Case:
    """B4, B4b: forward and backward of one masked cell."""
    reference, ours = models(preset)
    variants = {**training_steps("reference", reference), **training_steps("ours", ours)}
    losses = {name: float(variants[name]()) for name in ("reference, bfloat16", "ours, bfloat16", "reference", "ours")}
    agreement = {f"loss, {name}, relative": abs(losses[name] / losses["reference"] - 1) for name in losses}
    wanted, found = reference.pos_emb.weight.grad, ours.model.embeddings.gene_embedding.weight.grad
    agreement["gradient of the gene table, relative"] = float((found - wanted).norm() / wanted.norm())
    for name, apart in agreement.items():
        accepted = 1e-2 if "bfloat16" in name else GRADIENT_TOLERANCE if "gradient" in name else 1e-6
        if apart > accepted:
            raise RuntimeError(f"{name}: {apart:.1e} apart, at most {accepted} is accepted")
    for model in (reference, ours):
        model.zero_grad(set_to_none=True)
    flops = 3 * forward_flops(ours.config, EXPRESSED)
    return Case(f"pre-training step, {preset}", "reference", variants, 1, flops, agreement)


def collating(num_batches: int = 8, num_cells: int = 128, length: int = 2000) -> Case:
    """B5: from sparse counts to masked batches, against a dense matrix and the reference's selection by sorting."""
    # They need accelerate, which is not there where `gpu.py` runs, and that imports this file.
    from ....tokenization.collators import DataCollatorForMaskedExpression
    from ....tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

    torch.set_num_threads(1)  # a worker of a data loader has one core
    rng = np.random.default_rng(0)
    tokenizer = XTrimoGeneTokenizer.default()
    collator = DataCollatorForMaskedExpression(tokenizer)
    batches: list[list[dict[str, Any]]] = [[] for _ in range(num_batches)]
    for index in range(num_batches * num_cells):
        ids = np.sort(rng.choice(NUM_GENES, length, replace=False)).astype(np.int32)
        counts = rng.geometric(0.6, length).astype(np.float32)
        example = {"input_ids": ids, "counts": counts, "total": float(counts.sum()), "cell_index": index}
        batches[index // num_cells].append(example)

    def select(table: torch.Tensor, is_seen: torch.Tensor, padding: float) -> torch.Tensor:
        """Pack the visible genes of each row to the left, in the order of genes."""
        longest = int(is_seen.sum(1).max())
        table = torch.hstack([table, torch.full((len(table), longest), padding)])
        priority = torch.where(is_seen, 0.0, -torch.inf) + torch.arange(NUM_GENES, 0, -1) * 2.0
        priority = torch.hstack([priority, torch.zeros(len(table), longest)])
        return table.gather(1, priority.topk(longest, dim=1).indices)

    def dense(examples: list[dict[str, Any]]) -> list[torch.Tensor]:
        values = torch.zeros(num_cells, NUM_GENES)
        for row, example in enumerate(examples):
            normed = np.log1p(example["counts"] / example["total"] * 1e4)
            values[row, torch.from_numpy(example["input_ids"]).long()] = torch.from_numpy(normed)
        is_masked = torch.rand_like(values) < torch.where(values > 0, 0.3, 0.03)
        shown = values.masked_fill(is_masked, 102.0)  # what the decoder sees
        is_seen = (values > 0) & ~is_masked
        ids = torch.arange(NUM_GENES, dtype=torch.float32).expand_as(values)
        return [shown, select(values, is_seen, 103.0), select(ids, is_seen, 103.0)]

    def each(collate: Callable[[list[dict[str, Any]]], Any]) -> Callable[[], Any]:
        return lambda: [len(collate(examples)) for examples in batches]  # one batch after the other, as a worker does

    variants = {"dense matrix, sorted": each(dense), "ours": each(collator)}
    title = f"masking and collating {num_batches} x {num_cells} cells of 2,000 genes"
    return Case(title, "dense matrix, sorted", variants, num_batches * num_cells)


def forward_flops(config: XTrimoGeneConfig, tokens: int) -> float:
    """Return the FLOPs of the reference's encoder and decoder for one cell with `tokens` expressed genes."""
    return encoder_flops(tokens, config.hidden_size, config.num_hidden_layers) + decoder_flops(
        config.num_positions,
        config.hidden_size,
        config.decoder_hidden_size,
        config.decoder_num_attention_heads,
        config.decoder_head_dim,
        config.favor_num_features or 0,
        config.decoder_num_hidden_layers,
    )


ENCODED = (1_000, 3_200, 8_000)  # expressed genes of a cell
STEPS = {"B4": "100M", "B4-10M": "10M", "B4-3M": "3M"}
CASES: dict[str, Callable[[], Case]] = {
    "B1": cell_embedding,
    "B2": partial(gene_embedding, [2002]),
    "B2-4": partial(gene_embedding, RAGGED),
    "B3": favor,
    "B3b": partial(favor, backward=True),
    **{name: partial(training_step, preset) for name, preset in STEPS.items()},
    "B5": collating,
    **{f"B6-{tokens}": partial(encoder_attention, tokens) for tokens in ENCODED},
}
IN_INFERENCE = {"B1", "B2", "B2-4", *(f"B6-{tokens}" for tokens in ENCODED)}


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Time the variants of a case in turn, `repeats` times; return medians, and ratios to the peer."""
    case = CASES[name]()
    seconds: dict[str, list[float]] = {variant: [] for variant in case.variants}
    with torch.inference_mode(name in IN_INFERENCE):
        for _ in range(repeats):
            for variant, run in case.variants.items():
                began = perf_counter()
                run()
                seconds[variant].append(perf_counter() - began)
    medians = {variant: statistics.median(times) for variant, times in seconds.items()}
    # Ratios of neighbouring times vary less than ratios of medians if other programs use the machine too.
    ratios = {
        variant: statistics.median(peer / each for peer, each in zip(seconds[case.peer], times, strict=True))
        for variant, times in seconds.items()
    }
    return {
        "title": case.title,
        "peer": case.peer,
        "cells": case.cells,
        "gigaflops as written": case.flops / 1e9,
        "seconds": medians,
        "fastest": {variant: min(times) for variant, times in seconds.items()},
        "times as fast as the peer": ratios,
        "agreement": case.agreement,
        "ceiling": ceiling(),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
    }


def peak_memory(name: str, variant: str) -> float:
    """Return the memory in GiB that one training step of a variant takes, with gradients and without weights."""
    kind, config = variant.split(",")[0], step_config(STEPS[name])
    model = ReferenceModel(config) if kind == "reference" else XTrimoGeneForPreTraining(config)
    step = training_steps(kind, model)[variant]  # only one model is built: the memory of another one would count too
    unit = 2**20 if sys.platform != "darwin" else 2**30
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit


def ceiling(size: int = 2048, repeats: int = 8) -> dict[str, float]:
    """Return the GFLOP/s of a matrix product on this machine, for each precision."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        one, other = (torch.randn(size, size).to(dtype) for _ in range(2))
        best = float("inf")
        for _ in range(repeats):
            began = perf_counter()
            one @ other
            best = min(best, perf_counter() - began)
        found[str(dtype).removeprefix("torch.")] = 2 * size**3 / best / 1e9
    return found
