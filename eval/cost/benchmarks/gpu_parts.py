"""Parts of the benchmark of a GPU: each gives the same work to several variants and adds a row for each.

    attention   softmax attention within ragged cells: varlen, flash, padded, flex, one cell after the other
    embedding   cell embeddings: the reference one cell at a time and padded, transformers' layers, ours
    training    pre-training steps with the optimizer, and the largest batch
    favor       FAVOR+ alone, and rows of zero genes that cells share
    profile     the ten kernels that take most of a pre-training step
    waits       how often a step makes the host wait
    graphs      the encoder compiled, with and without CUDA graphs, for batches of like length

Errors are those of float64 on a few cells. Weights are random and cells synthetic.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiled
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from ....modeling_xtrimogene import favor_xtrimogene, modeling_xtrimogene
from ....modeling_xtrimogene import varlen_xtrimogene as varlen
from ....modeling_xtrimogene.favor_xtrimogene import (
    PLAIN,
    Way,
    favor_attention,
    orthogonal_random_features,
    performer_attention,
)
from ....modeling_xtrimogene.flops_xtrimogene import encoder_flops, step_flops
from ....modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneModel
from ....modeling_xtrimogene.packed_xtrimogene import Packing, attention_by_cell
from ....tokenization.cell_batch import CellBatch
from .cases import step_config
from .gpu_tools import Bench, error_of, ragged_lengths, synthetic_cells
from .reference import ReferenceModel, plain_favor, transformers_encoder

HEADS, HEAD_DIM = 12, 64  # of the attention that is measured alone: those of the size 100M
FAVOR_HEADS, FAVOR_FEATURES, FAVOR_CELLS = 8, 266, 2
CELLS_OF_A_BATCH = 32
SEEN, MASKED = 1402, 1117  # genes of a cell of 2,000 expressed genes, after masking
DROPOUT = 0.1  # of attention weights, that of the sizes 3M and larger
CHUNKS = (2**22, 2**24)  # features of a chunk of FAVOR+ to try beside the default: 16 and 64 MiB of float32
Attend = Callable[..., torch.Tensor]
Embed = Callable[[list[CellBatch]], torch.Tensor]


def attention(bench: Bench) -> None:
    """Softmax attention within ragged cells, forward in two precisions, with its backward and dropout in bfloat16."""
    lengths = ragged_lengths(bench.sizes.attended, bench.sizes)
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    packing = Packing.of(is_token.to(bench.device), lengths)
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    flops = 4.0 * sum(length**2 for length in lengths) * HEADS * HEAD_DIM
    generator = torch.Generator(bench.device).manual_seed(0)
    whole = torch.randn(3, 1, HEADS, sum(lengths), HEAD_DIM, device=bench.device, generator=generator)
    start = sum(lengths[:shortest])
    segment = slice(start, start + lengths[shortest])
    exact = nn.functional.scaled_dot_product_attention(*whole[:, :, :, segment].double()).transpose(1, 2)

    def forward(name: str, parts: list[torch.Tensor], variants: dict[str, Attend]) -> None:
        for variant, attend in variants.items():

            def error(attend: Attend = attend) -> float:
                return error_of(attend(*parts)[:, segment], exact)

            with torch.no_grad():
                bench.time(variant, partial(attend, *parts), name, cells=len(lengths), flops=flops, error=error)

    def backward(name: str, parts: list[torch.Tensor], variants: dict[str, Attend]) -> None:
        for variant, attend in variants.items():

            def step(attend: Attend = attend) -> Any:
                return torch.autograd.grad(attend(*parts).float().square().sum(), parts)

            bench.time(variant, step, name, cells=len(lengths), flops=3.5 * flops)

    half = [part.to(torch.bfloat16) for part in whole]
    leaves = [part.clone().requires_grad_() for part in half]
    once, both = "attention, bfloat16", "attention, bfloat16, forward and backward"
    dropped = f"{both}, dropout {DROPOUT:.0%}"
    forward(once, half, attentions(bench, once, half, packing))
    backward(both, leaves, attentions(bench, both, leaves, packing))
    backward(dropped, leaves, attentions(bench, dropped, leaves, packing, DROPOUT))
    forward("attention, float32", list(whole), attentions(bench, "attention, float32", list(whole), packing))
    forward(once, half, {"flex": flex(bench, packing)})  # last, because it takes long to compile
    if bench.is_cuda:
        backward(both, leaves, {"flex": flex(bench, packing)})
    else:
        bench.missing("flex", both, "its backward needs a GPU")


def attentions(
    bench: Bench, group: str, parts: list[torch.Tensor], packing: Packing, dropout: float = 0.0
) -> dict[str, Attend]:
    """Return name -> function of packed query, key and value `(1, A, T, K)` that returns `(1, T, A, K)`.

    What cannot run gets a row that says why.
    """
    scale = HEAD_DIM**-0.5
    found: dict[str, Attend] = {}
    if varlen.has_varlen(parts[0], dropout):
        found["varlen"] = partial(varlen.by_varlen, packing=packing, scale=scale, dropout=dropout)
    else:
        why = "torch has none" if varlen.varlen_attn is None else "it needs a GPU and half precision"
        bench.missing("varlen", group, why)
    for version, is_there in (("2", is_flash_attn_2_available()), ("3", is_flash_attn_3_available())):
        variant = f"flash-attention {version}"
        if is_there and parts[0].dtype is torch.bfloat16 and bench.is_cuda:
            config = SimpleNamespace(_attn_implementation=f"flash_attention_{version}")
            module = SimpleNamespace(config=config, is_causal=False)
            found[variant] = partial(varlen.by_flash_attention, module, packing=packing, scale=scale, dropout=dropout)
        else:
            bench.missing(variant, group, "it is not installed" if not is_there else "it needs half precision")
    found["padded"] = partial(varlen.by_padding, packing=packing, scale=scale, dropout=dropout)

    def by_cell(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention_by_cell(query, key, value, packing.lengths, scale, dropout).transpose(1, 2)

    return found | {"one cell after the other": by_cell}


def flex(bench: Bench, packing: Packing) -> Attend:
    """Return flex attention with a mask of cells; the mask is made in the first run and kept."""
    attend: Any = torch.compile(flex_attention) if bench.is_cuda else flex_attention
    mask_of: Any = torch.compile(create_block_mask) if bench.is_cuda else create_block_mask  # else it is T x T
    masks: list[Any] = []

    def run(*parts: torch.Tensor) -> torch.Tensor:
        if not masks:
            size = sum(packing.lengths)
            cells_B = torch.arange(len(packing.lengths), device=bench.device)
            cell_T = cells_B.repeat_interleave(packing.starts.diff(), output_size=size)
            masks.append(mask_of(lambda b, h, q, k: cell_T[q] == cell_T[k], None, None, size, size, str(bench.device)))
        return attend(*parts, block_mask=masks[0]).transpose(1, 2)

    return run


def embedding(bench: Bench) -> None:
    """Cell embeddings of ragged cells, from host memory to the device and through the encoder, for each size."""
    lengths = ragged_lengths(bench.sizes.cells, bench.sizes)
    starts = range(0, len(lengths), CELLS_OF_A_BATCH)
    batches = [batch_of(bench, lengths[start : start + CELLS_OF_A_BATCH], start) for start in starts]
    few = [batch_of(bench, sorted(lengths)[:2])]
    for preset in bench.sizes.presets:
        if why := bench.attempt(partial(embedding_of, bench, preset, batches, few, lengths)):
            bench.missing("all", f"cell embeddings, {preset}", why)


def embedding_of(bench: Bench, preset: str, batches: list[CellBatch], few: list[CellBatch], lengths: list[int]) -> None:
    """Cell embeddings by a model of one size; errors are those of few cells."""
    torch.manual_seed(0)
    config = step_config(preset, **bench.sizes.changes)
    reference = ReferenceModel(config).eval()
    weights = {
        name.removeprefix("model."): part
        for name, part in reference.our_weights().items()
        if name.startswith("model.") and not name.startswith("model.decoder.")
    }
    ours = XTrimoGeneModel(config, add_decoder=False).eval()
    ours.load_state_dict(weights)
    ours, reference = ours.to(bench.device), reference.to(bench.device)
    flops = sum(float(encoder_flops(n, config.hidden_size, config.num_hidden_layers)) for n in lengths)
    with torch.inference_mode():
        exact = embed_by(copy.deepcopy(ours).double(), few)
        for variant, run in embedders(bench, reference, ours).items():

            def error(run: Embed = run) -> float:
                return error_of(run(few), exact)

            group = f"cell embeddings, {preset}"
            bench.time(variant, partial(run, batches), group, cells=len(lengths), flops=flops, error=error)


def batch_of(bench: Bench, lengths: list[int], seed: int = 0) -> CellBatch:
    """Return a batch of cells in memory that the device can read."""
    batch = CellBatch(synthetic_cells(lengths, bench.sizes.num_genes, seed))
    return batch.pin_memory() if bench.is_cuda else batch


def embed_by(model: XTrimoGeneModel, batches: list[CellBatch]) -> torch.Tensor:
    """Return the embeddings `(cells, D)` by our model."""
    moved = (batch.to(model.device, non_blocking=True) for batch in batches)
    return torch.cat([model(**batch).pooler_output for batch in moved])


def embedders(bench: Bench, reference: ReferenceModel, ours: XTrimoGeneModel) -> dict[str, Embed]:
    """Return name -> function from batches on the host to embeddings `(cells, 2 D)`."""
    half = XTrimoGeneModel.from_pretrained(
        None, config=ours.config, state_dict=ours.state_dict(), dtype=torch.bfloat16, add_decoder=False
    )
    half = half.eval().to(bench.device)
    bert = transformers_encoder(ours, ours.config).eval().to(bench.device)

    def one_by_one(batches: list[CellBatch]) -> torch.Tensor:
        found = []
        for batch in batches:
            for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
                cell = (batch[name][row : row + 1, :length].to(bench.device) for name in ("input_ids", "values"))
                found.append(reference.cell_embedding(*cell))
        return torch.cat(found)

    def padded(encode: Callable[..., torch.Tensor], batches: list[CellBatch]) -> torch.Tensor:
        found = []
        for batch in batches:
            ids, values, mask = (batch[name].to(bench.device) for name in ("input_ids", "values", "attention_mask"))
            found.append(ours.pool(encode(ids, values, mask), ids, mask))
        return torch.cat(found)

    def by_layers(layers: nn.Module, ids: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = ours.embeddings(ids, values).to(next(layers.parameters()).dtype)
        is_key = mask.bool()[:, None, None, :].expand(-1, -1, ids.shape[1], -1)
        return ours.encoder.norm(layers(rows, is_key)[0].float())

    return {
        "reference, one cell at a time": one_by_one,
        "reference, padded": partial(padded, reference.encode),
        "transformers layers, padded": partial(padded, partial(by_layers, bert)),
        "transformers layers, padded, bfloat16": partial(padded, partial(by_layers, copy.deepcopy(bert).bfloat16())),
        "ours": partial(embed_by, ours),
        "ours, bfloat16": partial(embed_by, half),
    }


def training(bench: Bench) -> None:
    """Pre-training steps with the optimizer, and the largest batch that would fit, for each size."""
    for preset in bench.sizes.presets:
        group = f"pre-training step, {preset}"
        few = max(bench.sizes.steps // 4, 1)  # the reference keeps many times the memory of a cell
        variants: dict[str, tuple[Callable[[], Any], int]] = {
            "reference, bfloat16": (lambda: ReferenceModel(step_config(preset, **bench.sizes.changes)), few)  # noqa: B023
        }
        for variant, changes in ways(bench, group).items():
            changes = bench.sizes.changes | changes
            variants[f"ours, bfloat16{variant}"] = partial(our_model, preset, changes), bench.sizes.steps
        for variant, (make, cells) in variants.items():
            bench.guarded(variant, group, partial(train, bench, make, cells))
        for variant, dropout in (("ours, bfloat16, ragged", 0.0), ("ours, bfloat16, ragged, dropout", DROPOUT)):
            make = partial(our_model, preset, bench.sizes.changes | {"attention_probs_dropout_prob": dropout})
            bench.guarded(variant, group, partial(train, bench, make, bench.sizes.steps, is_ragged=True))


def ways(bench: Bench, group: str) -> dict[str, dict[str, Any]]:
    """Return name -> fields of the configuration: the ways in which the decoder may compute."""
    found: dict[str, dict[str, Any]] = {"": {}, ", products in bfloat16": {"favor_products": "bfloat16"}}
    if not bench.is_cuda:
        bench.missing("ours, bfloat16, compiled", group, "it is measured on a GPU")
        return found
    compiled = {"favor_backend": "compiled"}
    both = {**compiled, "favor_products": "bfloat16"}
    return found | {", compiled": compiled, ", compiled, products in bfloat16": both}


def our_model(preset: str, changes: dict[str, Any]) -> XTrimoGeneForPreTraining:
    """Return our model with random weights."""
    torch.manual_seed(0)
    return XTrimoGeneForPreTraining(step_config(preset, **changes))


def train(bench: Bench, make: Callable[[], Any], cells: int, is_ragged: bool = False) -> dict[str, Any]:
    """Return time, memory, cells and model FLOPs a second of training steps, and the largest batch.

    Where so many cells do not fit, it takes half of them.
    """
    while True:
        try:
            return train_on(bench, make, cells, is_ragged)
        except torch.OutOfMemoryError:
            if cells == 1:
                raise
        cells //= 2
        torch.cuda.empty_cache()


def train_on(bench: Bench, make: Callable[[], Any], cells: int, is_ragged: bool) -> dict[str, Any]:
    """Return the row of `train` for batches of so many cells."""
    model = make().to(bench.device).train()
    begun = bench.begin_memory()
    run = step_of(bench, model, masked_batch(bench, max(cells // 2, 1), is_ragged))
    run()
    small = bench.memory()
    batch = masked_batch(bench, cells, is_ragged)
    run = step_of(bench, model, batch)
    bench.begin_memory()
    row: dict[str, Any] = {"seconds": bench.seconds(run), "cells": cells}
    row["cells a second"] = cells / row["seconds"]
    seen, masked = batch["attention_mask"].sum(1), (batch["labels"] >= 0).sum(1)
    row["TFLOP/s"] = float(step_flops(model.config, seen, masked).sum()) / row["seconds"] / 1e12
    if bench.is_cuda:
        row["GiB"] = bench.memory()
        of_a_cell = (row["GiB"] - small) / max(cells - cells // 2, 1)
        of_all = torch.cuda.get_device_properties(bench.device).total_memory / 2**30
        row["GiB of a cell"] = of_a_cell
        fixed = row["GiB"] - cells * of_a_cell
        row["largest batch"] = int((0.95 * of_all - max(fixed, begun / 2**30)) / of_a_cell) if of_a_cell > 0 else 0
    return row


def masked_batch(bench: Bench, cells: int, is_ragged: bool) -> CellBatch:
    """Return a masked batch on the host: cells of equal length, as the reference needs them, or ragged ones."""
    sizes = bench.sizes
    num_seen, num_masked = min(SEEN, sizes.num_genes // 3), min(MASKED, sizes.num_genes // 4)
    lengths = [min(length, sizes.num_genes // 2) for length in ragged_lengths(cells, sizes)] if is_ragged else None
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(cells, sizes.num_genes, generator=generator).argsort(1)
    batch = CellBatch(synthetic_cells(lengths or [num_seen] * cells, sizes.num_genes))
    longest = batch["input_ids"].shape[1]
    is_token = batch["attention_mask"].bool()
    batch["input_ids"] = order[:, :longest].masked_fill(~is_token, sizes.num_genes)
    batch["masked_ids"] = order[:, longest : longest + num_masked]
    batch["labels"] = torch.rand(cells, num_masked, generator=generator)
    return batch.pin_memory() if bench.is_cuda else batch


def step_of(bench: Bench, model: Any, batch: CellBatch) -> Callable[[], None]:
    """Return a training step: from the host, forward, backward, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=bench.is_cuda)
    is_ours = isinstance(model, XTrimoGeneForPreTraining)
    names = ("input_ids", "values", "masked_ids", "labels")

    def step() -> None:
        moved = batch.to(bench.device, non_blocking=True)
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = model(**moved).loss if is_ours else model.loss(**{name: moved[name] for name in names})
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def favor(bench: Bench) -> None:
    """FAVOR+ alone, forward and with its backward; and the decoder with zero genes shared or written out."""
    tokens = bench.sizes.tokens
    shape = (FAVOR_CELLS, FAVOR_HEADS, tokens, HEAD_DIM)
    generator = torch.Generator(bench.device).manual_seed(0)
    parts = [torch.randn(shape, device=bench.device, generator=generator) for _ in range(3)]
    projection = orthogonal_random_features(FAVOR_FEATURES, HEAD_DIM, seed=0).to(bench.device)
    few = [part[:1, :, : min(tokens, 2000)] for part in parts]
    query, key, value = (part.double() for part in few)
    exact = plain_favor(query, key, value, projection.double())
    flops = 8.0 * FAVOR_CELLS * tokens * FAVOR_HEADS * HEAD_DIM * FAVOR_FEATURES
    group = f"FAVOR+, {tokens:,} genes"
    leaves = [part.clone().requires_grad_() for part in parts]

    def measure(variant: str, attend: Attend) -> None:
        with torch.no_grad():
            run, error = partial(attend, *parts), lambda: error_of(attend(*few), exact)
            bench.time(variant, run, group, cells=FAVOR_CELLS, flops=flops, error=error)

        def step() -> Any:
            return torch.autograd.grad(attend(*leaves).square().sum(), leaves)

        bench.time(variant, step, f"{group}, forward and backward", cells=FAVOR_CELLS, flops=3 * flops)

    for variant, attend in favors(bench, group, projection).items():
        measure(variant, attend)
    for size in CHUNKS if bench.is_cuda else ():
        with mock.patch.object(favor_xtrimogene, "GPU_CHUNK_ELEMENTS", size):
            ours = partial(favor_attention, projection=projection, stabilizer="head")
            measure(f"ours, chunks of {4 * size // 2**20} MiB", ours)
    shared_or_written_out(bench)


def favors(bench: Bench, group: str, projection: torch.Tensor) -> dict[str, Attend]:
    """Return name -> FAVOR+ as a function of query, key and value."""
    found: dict[str, Attend] = {}
    if find_spec("performer_pytorch"):
        found["performer-pytorch"] = partial(performer_attention, projection=projection)
    else:
        bench.missing("performer-pytorch", group, "it is not installed; the plain formula is the same steps")
    found["plain formula"] = partial(plain_favor, projection=projection)
    ours = {"ours": PLAIN, "ours, products in bfloat16": Way(is_half=True)}
    if bench.is_cuda:
        ours |= {"ours, compiled": Way(True), "ours, compiled, products in bfloat16": Way(True, True)}
    else:
        bench.missing("ours, compiled", group, "it is measured on a GPU")
    attend = partial(favor_attention, projection=projection, stabilizer="head")
    return found | {name: partial(attend, way=way) for name, way in ours.items()}


def shared_or_written_out(bench: Bench) -> None:
    """Add rows of the decoder with zero genes shared, by differences in float64, and with all rows written out."""
    model = our_model(bench.sizes.presets[-1], bench.sizes.changes).to(bench.device).eval()
    batch = masked_batch(bench, max(bench.sizes.steps, 3), is_ragged=False).to(bench.device)
    chosen = modeling_xtrimogene.float64_is_fast(bench.device)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(**batch).logits
        for variant, is_fast in (("shared, differences in float64", True), ("written out", False)):

            def run(is_fast: bool = is_fast) -> torch.Tensor:
                with mock.patch.object(modeling_xtrimogene, "float64_is_fast", return_value=is_fast):
                    return model(**batch).logits

            def error(run: Callable[[], torch.Tensor] = run) -> float:
                return error_of(run(), exact)

            variant += ", chosen here" if is_fast == chosen else ""
            bench.time(variant, run, "decoder, zero genes", cells=len(batch["input_ids"]), error=error)


def profile(bench: Bench) -> None:
    """Add the ten kernels that take most of the time of a pre-training step of the first size."""
    preset = bench.sizes.presets[0]
    model = our_model(preset, bench.sizes.changes).to(bench.device).train()
    run = step_of(bench, model, masked_batch(bench, bench.sizes.steps, is_ragged=True))
    run()
    with profiled(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_cuda else [])]) as found:
        run()
        bench.wait()
    kind = "self_device_time_total" if bench.is_cuda else "self_cpu_time_total"
    where = torch.autograd.DeviceType.CUDA if bench.is_cuda else torch.autograd.DeviceType.CPU
    events = [event for event in found.key_averages() if event.device_type == where]
    if not events:
        raise RuntimeError("the profiler saw no kernels: it may lack the permission, or the library CUPTI")
    events.sort(key=lambda event: -getattr(event, kind))
    total = sum(getattr(event, kind) for event in events) or 1
    for event in events[:10]:
        time = getattr(event, kind)
        row = {"group": f"kernels of a pre-training step, {preset}", "variant": event.key[:80]}
        bench.add(row | {"seconds": time / 1e6, "share": time / total, "calls": event.count})


def waits(bench: Bench) -> None:
    """Add how often a pre-training step and an embedding make the host wait for the GPU."""
    group, preset = "waits of the host", bench.sizes.presets[-1]
    if not bench.is_cuda:
        bench.missing("all", group, "a GPU counts them; a test counts operations on a CPU")
        return
    model = our_model(preset, bench.sizes.changes).to(bench.device).train()
    batch = masked_batch(bench, bench.sizes.steps, is_ragged=True)
    step, few = step_of(bench, model, batch), [batch_of(bench, ragged_lengths(4, bench.sizes))]
    runs = {"pre-training step": step, "cell embeddings": lambda: embed_by(model.model, few)}
    for variant, run in runs.items():

        def counted(run: Callable[[], Any] = run) -> dict[str, Any]:
            run()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            said = [each for each in caught if "synchroniz" in str(each.message)]
            places = sorted({f"{each.filename.rsplit('/', 1)[-1]}:{each.lineno}" for each in said})
            return {"waits": len(said), "where": ", ".join(places[:5])}

        bench.guarded(variant, group, counted)


def graphs(bench: Bench) -> None:
    """The encoder of the smallest size: packed, beside batches padded to few lengths, compiled and in CUDA graphs."""
    preset = bench.sizes.presets[-1]
    group = f"cell embeddings, {preset}, batches of like length"
    if not bench.is_cuda:
        bench.missing("all", group, "it is measured on a GPU")
        return
    config = step_config(preset, **bench.sizes.changes)
    model = XTrimoGeneModel(config, add_decoder=False).bfloat16().eval().to(bench.device)
    batches = bucketed(bench, ragged_lengths(bench.sizes.cells, bench.sizes))
    fixed = [CellBatch({name: part.to(bench.device) for name, part in batch.items()}) for batch in batches]
    cells = sum(len(batch["input_ids"]) for batch in batches)
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=True)
    in_graphs: Any = torch.compile(model, fullgraph=True, dynamic=True, mode="reduce-overhead")
    padded = {"padded, compiled": compiled, "padded, compiled, CUDA graphs": in_graphs}
    with torch.no_grad():
        bench.time("packed", partial(embed_by, model, batches), group, cells=cells)
        for variant, embed in padded.items():

            def run(embed: Any = embed) -> list[torch.Tensor]:
                return [embed(**batch).pooler_output for batch in fixed]

            bench.time(variant, run, group, cells=cells)


def bucketed(bench: Bench, lengths: list[int], number: int = 4) -> list[CellBatch]:
    """Return batches of cells of like length, each padded to one of few lengths, which are multiples of 64."""
    order = sorted(lengths)
    size = -(-len(order) // number)
    batches = []
    for start in range(0, len(order), size):
        batch = batch_of(bench, order[start : start + size], start)
        missing = -batch["input_ids"].shape[1] % 64
        batches.append(CellBatch({name: nn.functional.pad(part, (0, missing)) for name, part in batch.items()}))
    return batches


PARTS: dict[str, Callable[[Bench], None]] = {
    "embedding": embedding,
    "attention": attention,
    "training": training,
    "favor": favor,
    "profile": profile,
    "waits": waits,
    "graphs": graphs,
}
WEIGHTS = {"embedding": 4, "attention": 2, "training": 5, "favor": 2, "profile": 1, "waits": 1, "graphs": 2}
