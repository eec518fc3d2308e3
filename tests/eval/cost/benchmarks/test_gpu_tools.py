"""The clock and the rows of the benchmark of a GPU: what fails is told, and loses nothing else."""

import math
from time import perf_counter

import pytest
import torch

from xtrimogene.eval.cost.benchmarks.gpu_tools import TINY, Bench, DeviceLostError, Sizes, ragged_lengths


def fail(error):
    raise error


def test_a_variant_that_fails_gets_a_row_that_says_why():
    bench = Bench(torch.device("cpu"), TINY)
    bench.time("one", lambda: fail(ValueError("no  such\nkernel")), "work")
    bench.time("two", lambda: fail(torch.OutOfMemoryError("of many lines")), "work")
    bench.time("three", lambda: None, "work", cells=4, flops=1e12, error=lambda: 0.5)
    assert [row.get("why not") for row in bench.rows] == ["ValueError: no such kernel", "out of memory", None]
    row = bench.rows[2]
    assert row["cells a second"] == pytest.approx(4 / row["seconds"])
    assert row["TFLOP/s"] == pytest.approx(1 / row["seconds"])
    assert row["error"] == 0.5


def test_after_its_time_a_part_measures_nothing_more_and_says_so():
    runs = []
    bench = Bench(torch.device("cpu"), Sizes(repeats=1000), until=perf_counter() + 0.05)
    bench.time("begun in time", lambda: runs.append(perf_counter()), "work")
    bench.until = -math.inf
    bench.time("too late", lambda: fail(AssertionError), "work")
    assert len(runs) >= 2  # one to begin with, and one that is measured
    assert bench.rows[1]["why not"] == "no time was left"


def test_a_lost_device_ends_the_part():
    bench = Bench(torch.device("cpu"), TINY)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        bench.time("one", lambda: fail(RuntimeError("CUDA error: an illegal memory access was encountered")), "work")


def test_cells_are_ragged_between_the_bounds():
    lengths = ragged_lengths(2000, Sizes())
    assert min(lengths) >= 500
    assert max(lengths) <= 6000
    assert 1.5 < max(lengths) * len(lengths) / sum(lengths) < 5  # as much as padding would cost
