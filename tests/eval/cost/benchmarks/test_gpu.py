"""The script for a GPU writes what it found after each part, whatever fails, and needs nothing but torch around it."""

import json
import subprocess
import sys
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


def test_parts_that_are_left_get_another_process(parts, tmp_path, monkeypatch):
    calls = []

    def worker(command, **options):
        names = command[command.index("--only") + 1 :: 2]
        calls.append(names)
        if len(calls) == 2:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        for name in names[:1]:
            gpu.note(tmp_path / "results.json", name, {"seconds": 1.0, "rows": []})
        return subprocess.CompletedProcess(command, -11, "", "")

    monkeypatch.setattr(gpu.subprocess, "run", worker)
    gpu.main(["-o", str(tmp_path), "--minutes", "0.01"])
    assert calls == [["first", "second", "third"], ["second", "third"], ["third"]]
    found = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert found["second"]["why not"] == "it was stopped after 46 s"
    assert (tmp_path / "table.md").read_text().count("## ") == 3


def test_the_script_imports_nothing_but_torch_transformers_and_numpy():
    code = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); import xtrimogene.eval.cost.benchmarks.gpu"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(xtrimogene.__file__).parent.parent, timeout=300)


@pytest.mark.slow
def test_every_part_runs_on_small_work(tmp_path):
    command = [sys.executable, "-m", "xtrimogene.eval.cost.benchmarks.gpu", "--tiny", "-o", str(tmp_path)]
    subprocess.run([*command, "--device", "cpu"], check=True, capture_output=True, timeout=900)
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["parts"]) == list(gpu.PARTS)
    assert not [name for name, part in found["parts"].items() if "why not" in part]
