"""The script for a GPU writes what it found after each part, whatever fails, and needs nothing but torch around it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import xtrimogene
from xtrimogene.eval.cost.benchmarks import gpu
from xtrimogene.eval.cost.benchmarks.gpu_tools import TINY

ABSENT = ("accelerate", "anndata", "datasets", "matplotlib", "pandas", "performer_pytorch", "rich", "scanpy",
          "scipy", "sklearn", "typer")  # fmt: skip


@pytest.fixture
def parts(monkeypatch):
    """Two quick parts and one that fails in between."""

    def good(bench):
        bench.time("padded", lambda: None, "work", cells=2, flops=1e6, error=lambda: 1e-3)
        bench.missing("varlen", "work", "it needs a GPU")

    def bad(bench):
        good(bench)
        raise RuntimeError("broken")

    monkeypatch.setattr(gpu, "PARTS", {"first": good, "second": bad, "third": good})
    monkeypatch.setattr(gpu, "WEIGHTS", {"first": 1, "second": 1, "third": 1})
    monkeypatch.setattr(gpu, "peaks", lambda device, seconds: {"float32": 1.0, "GB/s": 100.0})


def test_a_part_that_fails_loses_nothing(parts, tmp_path):
    file = tmp_path / "results.json"
    gpu.measure(file, ["first", "second", "third"], torch.device("cpu"), TINY, seconds=9)
    results = json.loads(file.read_text())
    assert results["parts"]["second"]["why not"] == "RuntimeError: broken"
    assert [len(part["rows"]) for part in results["parts"].values()] == [2, 2, 2]
    table = gpu.table(results)
    assert "It failed: RuntimeError: broken" in table
    assert table.count("| varlen | it needs a GPU |") == 3
    assert table.count("| 1.0e-03 | 1.00 |") == 3  # its error, and as fast as itself
    assert gpu.picture(results, tmp_path / "picture.png") == ""
    assert (tmp_path / "picture.png").stat().st_size > 5_000


def test_a_part_that_hangs_is_stopped_and_keeps_its_rows_and_the_rest_gets_another_process(
    parts, tmp_path, monkeypatch
):
    calls, killed, file = [], [], tmp_path / "results.json"

    class Worker:
        """Measure one part; the second process never ends."""

        returncode = -11

        def __init__(self, command, stderr):
            names = command[command.index("--only") + 1 :: 2]
            calls.append(names)
            gpu.begin(file, names[0], time.time() - 99, [{"group": "work", "variant": "padded", "seconds": 1.0}])
            if len(calls) != 2:
                gpu.note(file, names[0], {"seconds": 1.0, "rows": []})

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def poll(self):
            return None if len(calls) == 2 else -11

        def kill(self):
            killed.append(calls[-1][0])

        def wait(self):
            pass

    monkeypatch.setattr(gpu.subprocess, "Popen", Worker)
    monkeypatch.setattr(gpu, "POLL", 0)
    gpu.main(["-o", str(tmp_path)])
    assert calls == [["first", "second", "third"], ["second", "third"], ["third"]]
    assert killed == ["second"]
    found = json.loads(file.read_text())["parts"]
    assert found["second"]["why not"] == "it was stopped after 0 s"
    assert [len(part["rows"]) for part in found.values()] == [0, 1, 0]
    assert (tmp_path / "table.md").read_text().count("## ") == 3


def test_a_process_that_begins_nothing_and_time_that_is_over_are_said(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "run_worker", lambda options, file, names, end: f"{len(names)} left")
    gpu.main(["-o", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert [part["why not"] for part in found.values()] == ["3 left", "2 left", "1 left"]
    gpu.main(["-o", str(tmp_path), "--minutes", "0"])
    found = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {part["why not"] for part in found.values()} == {"0 minutes were over"}


def test_the_table_says_what_a_gpu_is_to_reach():
    rows = [{"group": "pre-training step, 100M", "variant": name, "cells a second": speed, "largest batch": batch}
            for name, speed, batch in (("reference, bfloat16", 2.0, 10), ("ours, bfloat16", 7.0, 60))]  # fmt: skip
    lines = gpu.aims({"parts": {"training": {"rows": rows}}})
    assert lines[2:] == [
        "| cells of pre-training a second, 100M | 3 | 3.5 | yes |",
        "| largest batch, 100M | 8 | 6.0 | no |",
    ]
    assert gpu.aims({}) == []


def test_the_script_imports_nothing_but_torch_transformers_and_numpy():
    code = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); import xtrimogene.eval.cost.benchmarks.gpu"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(xtrimogene.__file__).parent.parent, timeout=300)


@pytest.mark.slow
def test_every_part_runs_on_small_work(tmp_path):
    command = [sys.executable, "-m", "xtrimogene.eval.cost.benchmarks.gpu", "--tiny", "-o", str(tmp_path)]
    subprocess.run([*command, "--device", "cpu", "--minutes", "14"], check=True, capture_output=True, timeout=900)
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["parts"]) == list(gpu.PARTS)
    assert not [name for name, part in found["parts"].items() if "why not" in part]
