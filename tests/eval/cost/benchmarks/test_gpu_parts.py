"""Parts of the benchmark of a GPU run on small work, give numbers, and their variants agree."""

from dataclasses import replace

import pytest
import torch

from xtrimogene.eval.cost.benchmarks import gpu_parts
from xtrimogene.eval.cost.benchmarks.gpu_tools import TINY, Bench

SMALLEST = replace(TINY, changes={"num_genes": 60, "num_hidden_layers": 1}, tokens=40, cells=3, repeats=1)
LARGEST_ERROR = {True: 0.03, False: 1e-5}  # in bfloat16 or not


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(gpu_parts, "FAVOR_FEATURES", 16)

    def run(name):
        bench = Bench(torch.device("cpu"), SMALLEST)
        gpu_parts.PARTS[name](bench)
        return bench.rows

    return run


ON_A_GPU_ONLY = ("varlen", "flash-attention 2", "flash-attention 3", "flex")


def test_ways_to_attend_agree_with_float64(run):
    rows = run("attention")
    assert {row["variant"] for row in rows if "why not" in row} <= set(ON_A_GPU_ONLY)
    errors = {(row["group"], row["variant"]): row["error"] for row in rows if "error" in row}
    assert {variant for _, variant in errors} == {"padded", "one cell after the other", "flex"}
    for (group, _), error in errors.items():
        assert error < LARGEST_ERROR["bfloat16" in group]


def test_embeddings_of_all_variants_agree_with_float64(run):
    rows = run("embedding")
    assert [row["variant"] for row in rows] == [
        "reference, one cell at a time", "reference, padded", "transformers layers, padded",
        "transformers layers, padded, bfloat16", "ours", "ours, bfloat16",
    ]  # fmt: skip
    for row in rows:
        assert "why not" not in row, row
        assert row["error"] < LARGEST_ERROR["bfloat16" in row["variant"]]
        assert row["cells a second"] > 0


@pytest.mark.slow  # products in bfloat16 are slow on a CPU
def test_steps_of_a_pretraining_are_measured(run):
    rows = run("training")
    assert all(row["TFLOP/s"] > 0 for row in rows if "why not" not in row)
    assert [row["variant"] for row in rows if "why not" in row] == ["ours, bfloat16, compiled"]
    assert {"reference, bfloat16", "ours, bfloat16", "ours, bfloat16, ragged"} < {row["variant"] for row in rows}


def test_favor_and_shared_zero_genes_agree_with_float64(run):
    rows = {(row["group"], row["variant"]): row for row in run("favor")}
    errors = {variant: row["error"] for (_, variant), row in rows.items() if "error" in row}
    assert {"plain formula", "ours", "shared, differences in float64, chosen here", "written out"} < set(errors)
    for variant, error in errors.items():
        assert error < LARGEST_ERROR["bfloat16" in variant]


def test_what_needs_a_gpu_says_so_and_kernels_are_listed(run):
    assert [row["why not"] for row in run("waits") + run("graphs")] == [
        "a GPU counts them; a test counts operations on a CPU",
        "it is measured on a GPU",
    ]
    rows = run("profile")
    assert len(rows) == 10
    assert rows[0]["share"] == max(row["share"] for row in rows) < 1


def test_a_size_that_fails_does_not_lose_the_others(run, monkeypatch):
    make = gpu_parts.step_config
    monkeypatch.setattr(gpu_parts, "step_config", lambda preset, **changes: make({"10M": "none"}.get(preset, preset)))
    bench = Bench(torch.device("cpu"), replace(SMALLEST, presets=("10M",)))
    gpu_parts.embedding(bench)
    assert bench.rows[0]["why not"].startswith("ValueError: no preset 'none'")


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    tried = []

    def on(bench, make, cells, is_ragged):
        tried.append(cells)
        if cells > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"cells": cells}

    monkeypatch.setattr(gpu_parts, "train_on", on)
    assert gpu_parts.train(None, None, 16) == {"cells": 4}
    assert tried == [16, 8, 4]


def test_cells_of_like_length_are_padded_to_few_lengths():
    batches = gpu_parts.bucketed(Bench(torch.device("cpu"), TINY), [40, 8, 30, 9, 12, 31], number=3)
    assert [batch["attention_mask"].sum(1).tolist() for batch in batches] == [[8, 9], [12, 30], [31, 40]]
    assert {batch["input_ids"].shape[1] for batch in batches} == {64}
