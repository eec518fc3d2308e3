"""Cost of a pre-training: FLOPs, memory and time of a cell, multiplied for a corpus and a number of accelerators.

    xtrimogene plan

FLOPs come from a formula that agrees with torch's counter (`step_flops`). Memory is measured: the bytes that a forward
pass keeps for the backward pass. The share of an accelerator's peak that training reaches is an assumption, unless
`Measured` has it from the benchmark of a GPU; `measure` measures it for the CPU of this machine. Communication between
accelerators is not counted.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ...modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ...modeling_xtrimogene.flops_xtrimogene import step_flops
from ...modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneForPreTraining
from ...training.throughput import matmul_rate
from .flops import kept_bytes, masked_numbers, placeholder_cells

BYTES_OF_A_WEIGHT = 16  # the weight, its gradient and two moments of AdamW, in float32
EXPRESSED = 2000  # genes of a cell in the benchmark of a GPU


@dataclass(frozen=True)
class Accelerator:
    """A device to plan for.

    Args:
        teraflops: Peak in bfloat16, in 1e12 FLOP/s.
        share: Share of the peak that training reaches.
        memory: Memory in GiB.
        price: Price of an hour, in any currency.

    Example:
        >>> Accelerator(teraflops=312, memory=40).share
        0.3
    """

    teraflops: float = 989.0
    share: float = 0.3
    memory: float = 80.0
    price: float = 2.5


@dataclass(frozen=True)
class Measured:
    """What the benchmark of a GPU found: `python -m xtrimogene.eval.cost.benchmarks.gpu`.

    Args:
        device: Name of the GPU.
        accelerator: It, with the measured peak and memory.
        rates: Size -> FLOP/s of its pre-training steps, by the quickest variant of ours.
        cells: Size -> bytes that a cell of a batch takes, in that variant.

    Example:
        >>> Measured("GPU", Accelerator(teraflops=700), rates={"10M": 2e14}).rates["10M"]
        200000000000000.0
    """

    device: str
    accelerator: Accelerator
    rates: dict[str, float] = field(default_factory=dict)
    cells: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, accelerator: Accelerator) -> "Measured":
        """Read the `results.json` of the benchmark; `accelerator` has what it does not say, such as the price.

        Raises:
            ValueError: If the file holds no pre-training steps of ours, or only those of small work.
        """
        results = json.loads(path.read_text())
        if results.get("is_tiny"):
            raise ValueError(f"{path} was written with --tiny, whose work says nothing of a device: measure without it")
        machine, rows = results.get("machine", {}), results.get("parts", {}).get("training", {}).get("rows", [])
        best: dict[str, dict[str, float]] = {}
        for row in rows:
            preset = row["group"].removeprefix("pre-training step, ")
            if row["variant"].startswith("ours") and row.get("TFLOP/s", 0) > best.get(preset, {}).get("TFLOP/s", 0):
                best[preset] = row
        if not best:
            raise ValueError(
                f"{path} holds {len(rows)} rows of pre-training steps, and none of ours was measured: write it by "
                f"python -m xtrimogene.eval.cost.benchmarks.gpu --only training -o FOLDER"
            )
        accelerator = replace(
            accelerator,
            teraflops=results["peaks"]["bfloat16"],
            memory=machine.get("memory GiB", accelerator.memory),
        )
        return cls(
            machine.get("device", "the GPU"),
            accelerator,
            {preset: row["TFLOP/s"] * 1e12 for preset, row in best.items()},
            {preset: row["GiB of a cell"] * 2**30 for preset, row in best.items() if row.get("GiB of a cell")},
        )


@dataclass(frozen=True)
class Plan:
    """Cost of pre-training a model of one size.

    Args:
        preset: Name of the size.
        parameters: Number of parameters.
        gigaflops: GFLOPs of forward and backward of one cell.
        weights: GiB of weights, gradients and optimizer on each accelerator.
        cell: MiB that one cell of a batch takes.
        batch: Number of cells that fit on one accelerator.
        cells_per_second: Number of accelerators -> cells a second.
        hours: Number of accelerators -> hours for the whole corpus.
        cost: Price of the whole corpus, the same for any number of accelerators, since communication is not counted.
    """

    preset: str
    parameters: int
    gigaflops: float
    weights: float
    cell: float
    batch: int
    cells_per_second: dict[int, float]
    hours: dict[int, float]
    cost: float


def plan(
    presets: Sequence[str],
    cells: float,
    accelerator: Accelerator,
    numbers: Sequence[int] = (1, 8, 64),
    expressed: int = EXPRESSED,
    measured: Measured | None = None,
) -> list[Plan]:
    """Return the cost of pre-training each size on `cells` cells.

    Args:
        presets: Names of sizes, such as `10M`.
        cells: Number of cells times the number of epochs.
        accelerator: The device to plan for.
        numbers: Numbers of accelerators to plan for.
        expressed: Number of expressed genes of a cell.
        measured: What was measured of the device. Of a size that was not, time follows from the share of the peak.

    Example:
        >>> found = plan(["tiny"], cells=1e6, accelerator=Accelerator(), numbers=(1,), expressed=100)[0]
        >>> found.preset, found.batch > 0, found.hours[1] > 0
        ('tiny', True, True)
    """
    rates, cells_measured = ({}, {}) if measured is None else (measured.rates, measured.cells)
    plans = []
    for preset in presets:
        model = new_model(preset)
        flops = step_flops(model.config, *masked_numbers(expressed))
        cell: float = kept_of_a_cell(model, expressed)
        if preset in cells_measured:
            longer = 1.0 if expressed == EXPRESSED else cell / kept_of_a_cell(model, EXPRESSED)
            cell = cells_measured[preset] * longer
        weights = model.num_parameters() * BYTES_OF_A_WEIGHT
        rate = rates.get(preset, accelerator.teraflops * 1e12 * accelerator.share) / flops
        hours = {number: cells / (rate * number) / 3600 for number in numbers}
        plans.append(
            Plan(
                preset=preset,
                parameters=model.num_parameters(),
                gigaflops=flops / 1e9,
                weights=weights / 2**30,
                cell=cell / 2**20,
                batch=max(int((accelerator.memory * 2**30 - weights) / cell), 0),
                cells_per_second={number: rate * number for number in numbers},
                hours=hours,
                cost=cells / rate / 3600 * accelerator.price,
            )
        )
    return plans


def kept_of_a_cell(model: XTrimoGeneForPreTraining, expressed: int) -> int:
    """Return the bytes of one cell that a forward pass in bfloat16 keeps for the backward pass."""
    with torch.autocast("cpu", torch.bfloat16):
        kept = kept_bytes(lambda: model(**placeholder_cells(*masked_numbers(expressed))).loss)
    # The bfloat16 copies of linear weights are kept too, but only once for all cells.
    return kept - sum(2 * layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))


def new_model(preset: str) -> XTrimoGeneForPreTraining:
    """Return a model with random weights in training mode, without dropout."""
    config = XTrimoGeneConfig.preset(preset, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    return XTrimoGeneForPreTraining(config).train()


def measure(presets: Sequence[str], expressed: int = 2000, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Return the speed of training steps of one cell on this machine's CPU, in float32, beside plain matrix products.

    It checks the plan's assumption that time follows from FLOPs: all sizes should reach a similar share of the peak.

    Args:
        presets: Names of sizes, such as `10M`.
        expressed: Number of expressed genes of a cell.
        repeats: Number of runs, of which the fastest counts.

    Returns:
        Size -> `seconds`, `gigaflops per second` and `share of peak`.

    Example:
        >>> measure(["3M"])  # doctest: +SKIP
        {'3M': {'seconds': 0.5, 'gigaflops per second': 60.0, 'share of peak': 0.5}}
    """
    peak = matmul_rate(torch.device("cpu"), torch.float32) / 1e9
    found = {}
    for preset in presets:
        model, cell = new_model(preset), placeholder_cells(*masked_numbers(expressed))
        seconds = fastest(lambda: model(**cell).loss.backward(), repeats)  # noqa: B023
        rate = step_flops(model.config, *masked_numbers(expressed)) / seconds / 1e9
        found[preset] = {"seconds": seconds, "gigaflops per second": rate, "share of peak": rate / peak}
    return found


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of `repeats` runs, in seconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)
