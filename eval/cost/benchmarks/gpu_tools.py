"""What the benchmark of a GPU measures with: a clock, memory, errors, synthetic cells, and rows of a table.

It needs torch, transformers and numpy only.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ....modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from ....training.throughput import matmul_rate

FATAL = ("CUDA error", "device-side assert", "illegal memory access", "unspecified launch failure")


class DeviceLostError(RuntimeError):
    """A GPU failed so that this process cannot use it any more."""


@dataclass(frozen=True)
class Sizes:
    """How large the work is.

    Args:
        presets: Sizes of models.
        changes: Fields of their configurations to change.
        shortest: Fewest expressed genes of a cell.
        longest: Most expressed genes of a cell.
        cells: Cells to embed.
        attended: Cells of the attention that is measured alone.
        tokens: Genes of the FAVOR+ that is measured alone.
        steps: Cells of a training step.
        repeats: Largest number of runs of a variant.
    """

    presets: tuple[str, ...] = ("100M", "10M", "3M")
    changes: dict[str, Any] = field(default_factory=dict)
    shortest: int = 500
    longest: int = 6_000
    cells: int = 128
    attended: int = 32
    tokens: int = 19_266
    steps: int = 16
    repeats: int = 20

    @property
    def num_genes(self) -> int:
        """Genes of the panel."""
        return self.changes.get("num_genes", XTrimoGeneConfig().num_genes)


TINY = Sizes(
    presets=("3M",),
    changes={"num_genes": 300, "num_hidden_layers": 2},
    shortest=8,
    longest=40,
    cells=4,
    attended=3,
    tokens=300,
    steps=3,
    repeats=2,
)


@dataclass
class Bench:
    """Where and for how long variants run, and what is found.

    Args:
        device: Where they run.
        sizes: How large the work is.
        until: When the part that runs has to end, by `perf_counter`.
        rows: What was found: one dictionary for each variant.
        on_row: Called with all rows when one was added.

    Example:
        >>> bench = Bench(torch.device("cpu"), TINY)
        >>> bench.time("product", lambda: torch.ones(2, 2) @ torch.ones(2, 2), group="matrices")
        >>> bench.rows[0]["variant"], bench.rows[0]["seconds"] > 0
        ('product', True)
    """

    device: torch.device
    sizes: Sizes
    until: float = math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)
    on_row: Callable[[list[dict[str, Any]]], None] = lambda rows: None

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self.rows.append(row)
        self.on_row(self.rows)

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU of CUDA, of which more is measured."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done all it was given."""
        torch.get_device_module(self.device).synchronize()

    def seconds(self, run: Callable[[], Any]) -> float:
        """Return the median time of a run; it is repeated as often as time allows, and the first run is not counted."""
        run()
        self.wait()
        times: list[float] = []
        while not times or (len(times) < self.sizes.repeats and perf_counter() + times[-1] < self.until):
            began = perf_counter()
            run()
            self.wait()
            times.append(perf_counter() - began)
            if len(times) >= 3 and sum(times) > 2:  # long runs vary little
                break
        return statistics.median(times)

    def time(
        self,
        variant: str,
        run: Callable[[], Any],
        group: str,
        *,
        cells: int = 0,
        flops: float = 0.0,
        error: Callable[[], float] | None = None,
    ) -> None:
        """Add a row with the time of a variant and the memory that it takes.

        Args:
            variant: Its name.
            run: The work.
            group: Name of the work, the same for variants of it.
            cells: Cells of a run, if it has any.
            flops: Floating-point operations of a run, if they are known.
            error: Function that returns the error of the variant (`error_of`).
        """

        def measured() -> dict[str, Any]:
            before = self.begin_memory()
            seconds = self.seconds(run)
            row = {"seconds": seconds, **({"GiB": self.memory(before)} if self.is_cuda else {})}
            row |= {"cells a second": cells / seconds} if cells else {}
            row |= {"TFLOP/s": flops / seconds / 1e12} if flops else {}
            return row | ({"error": error()} if error else {})

        self.guarded(variant, group, measured)

    def guarded(self, variant: str, group: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Add the row that `measure` returns, or one that says why there is none.

        Raises:
            DeviceLostError: If the GPU cannot be used any more.
        """
        row: dict[str, Any] = {"group": group, "variant": variant}
        if perf_counter() > self.until:
            self.missing(variant, group, "no time was left")
            return
        if (why := self.attempt(lambda: row.update(measure()))) is not None:
            row["why not"] = why
        self.add(row)

    def attempt(self, run: Callable[[], Any]) -> str | None:
        """Run something that may fail; return why it did, None if it did not.

        Raises:
            DeviceLostError: If the GPU cannot be used any more.
        """
        try:
            run()
        except torch.OutOfMemoryError:
            why = "out of memory"
        except Exception as error:  # whatever fails, the other variants are measured
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if isinstance(error, DeviceLostError) or any(words in str(error) for words in FATAL):
                raise DeviceLostError(why) from error
        else:
            return None
        if self.is_cuda:
            torch.cuda.empty_cache()
        return why

    def missing(self, variant: str, group: str, why: str) -> None:
        """Add a row of a variant that cannot run here."""
        self.add({"group": group, "variant": variant, "why not": why})

    def begin_memory(self) -> int:
        """Forget the peak of memory so far; return the bytes that are taken now."""
        if not self.is_cuda:
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def memory(self, before: int = 0) -> float:
        """Return the largest memory since `begin_memory`, in GiB, without what was taken before."""
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**30 if self.is_cuda else 0.0


def error_of(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the error of a result, root mean square, in those of the exact one.

    >>> round(error_of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])), 3)
    0.707
    """
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def ragged_lengths(number: int, sizes: Sizes, seed: int = 0) -> list[int]:
    """Return expressed genes of cells: log-normal between the shortest and the longest, as those of tissues.

    >>> all(8 <= length <= 40 for length in ragged_lengths(100, TINY))
    True
    """
    middle = math.log(sizes.shortest * 3)
    drawn = np.random.default_rng(seed).lognormal(middle, 0.6, number)
    return drawn.clip(sizes.shortest, sizes.longest).astype(int).tolist()


def synthetic_cells(lengths: list[int], num_genes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a padded batch of cells with mostly small counts: `input_ids`, `values`, `attention_mask`.

    >>> synthetic_cells([2, 5], num_genes=9)["attention_mask"].sum(1)
    tensor([2, 5])
    """
    rng, longest = np.random.default_rng(seed), max(lengths)
    ids = np.full((len(lengths), longest), num_genes, np.int64)
    values = np.zeros((len(lengths), longest), np.float32)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.sort(rng.choice(num_genes, length, replace=False))
        counts = rng.geometric(0.6, length)
        values[row, :length] = np.log1p(counts * (1e4 / counts.sum()))
    mask = (ids < num_genes).astype(np.int64)
    arrays = {"input_ids": ids, "values": values, "attention_mask": mask}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def peaks(device: torch.device, seconds: float = 0.3) -> dict[str, float]:
    """Return what a device reaches: TFLOP/s of matrix products in each precision, and GB/s of memory.

    >>> sorted(peaks(torch.device("cpu"), seconds=0.01))
    ['GB/s', 'bfloat16', 'float32', 'float64']
    """
    found: dict[str, float] = {}
    bench = Bench(device, Sizes(repeats=10), perf_counter() + 10 * seconds)

    def rate(dtype: torch.dtype, precision: str) -> float:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return matmul_rate(device, dtype, seconds) / 1e12
        finally:
            torch.set_float32_matmul_precision(before)

    def bandwidth() -> float:
        number = 2**28 if device.type == "cuda" else 2**24
        source, target = torch.ones(number, device=device), torch.empty(number, device=device)
        return 8 * number / bench.seconds(lambda: target.copy_(source)) / 1e9  # read once and written once

    measures: dict[str, Callable[[], float]] = {
        "float64": lambda: rate(torch.float64, "highest"),
        "float32": lambda: rate(torch.float32, "highest"),
        "bfloat16": lambda: rate(torch.bfloat16, "highest"),
        **({"tf32": lambda: rate(torch.float32, "high")} if device.type == "cuda" else {}),
        "GB/s": bandwidth,
    }
    for name, measure in measures.items():  # on a small GPU some may not fit
        bench.attempt(lambda: found.update({name: measure()}))  # noqa: B023
    return found
