"""How fast a training runs: cells and tokens a second, model FLOPs utilisation, memory."""

import math
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Return the FLOP/s of a product of square matrices on a device: the fastest one within `seconds`.

    It has its own random generator, so it does not change the random numbers of a run.

    Args:
        device: Where to measure.
        dtype: Precision of the matrices.
        seconds: How long products are repeated.

    Example:
        >>> matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01) > 0
        True
    """
    size = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # a GPU multiplies zeros or ones faster than random numbers
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    wait = torch.get_device_module(device).synchronize
    _ = left @ right  # the first product also loads the library
    wait()
    fastest, end = math.inf, perf_counter() + seconds
    while fastest == math.inf or perf_counter() < end:
        began = perf_counter()
        _ = left @ right
        wait()
        fastest = min(fastest, perf_counter() - began)
    return 2 * size**3 / fastest


class Throughput:
    """Count cells, tokens and FLOPs between one log and the next.

    Args:
        flops_of: Function from a batch to the FLOPs of a step for each cell, `(B,)`; no FLOPs are counted unless given.

    Attributes:
        peak: FLOP/s that this process can reach; FLOPs are counted only if it is above 0.

    Example:
        >>> throughput = Throughput()
        >>> throughput.count({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})
        >>> throughput.cells, int(throughput.tokens)
        (2, 5)
    """

    def __init__(self, flops_of: Callable[[dict[str, Any]], torch.Tensor] | None = None):
        self.flops_of = flops_of
        self.peak = 0.0
        self.begin()

    def begin(self) -> None:
        """Set all counts to 0 and start the clock."""
        self.began, self.cells, self.tokens, self.flops = perf_counter(), 0, torch.tensor(0), torch.tensor(0.0)

    def count(self, batch: dict[str, Any]) -> None:
        """Add a batch to the counts, without waiting for its device."""
        tokens_B = batch["attention_mask"].sum(1)
        self.cells += len(tokens_B)
        self.tokens = self.tokens.to(tokens_B.device) + tokens_B.sum()
        if self.peak and self.flops_of is not None:
            self.flops = self.flops.to(tokens_B.device) + self.flops_of(batch).sum()

    def pause(self, seconds: float) -> None:
        """Subtract time that was not spent on training."""
        self.began += seconds

    def figures(self, accelerator: Any) -> dict[str, float]:
        """Return cells and tokens a second of all processes, MFU, and the peak memory of this process; begin anew.

        MFU, the model FLOPs utilisation, is the model's FLOP/s divided by the FLOP/s that all processes can reach.
        """
        counted = [self.cells, int(self.tokens), float(self.flops), self.peak]
        counts = torch.tensor(counted, dtype=torch.float32, device=accelerator.device)
        seconds = max(perf_counter() - self.began, 1e-9)
        cells, tokens, flops, peak = accelerator.reduce(counts).tolist()
        self.begin()
        return {
            "cells_per_second": round(cells / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
            **({"mfu": round(flops / seconds / peak, 6)} if peak else {}),
            "memory_gib": round(peak_memory(accelerator.device) / 2**30, 3),
        }


def peak_memory(device: torch.device) -> float:
    """Return the largest memory of this process so far, in bytes: on its GPU, or in RAM if `device` is no GPU.

    Example:
        >>> peak_memory(torch.device("cpu")) > 2**20
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        from psutil import Process

        return Process().memory_info().peak_wset
    from resource import RUSAGE_SELF, getrusage

    peak = getrusage(RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
