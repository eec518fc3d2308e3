"""Measure speed and memory against the reference procedure, with both settings of the allocator.

    python -m xtrimogene.eval.cost.benchmarks -o benchmarks          # about an hour on 2 cores
    python -m xtrimogene.eval.cost.benchmarks --only B3 --only B5    # a minute

Each case runs twice, each time in its own process: `default` with the allocator's default settings, and `tuned` with
settings that keep freed memory (`keep_freed_memory`, as in our own commands), for the peer as well. Variants run in
turn, and the median of their times counts. If variants compute the same numbers, these are compared before anything is
timed. Needs performer-pytorch.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

ALLOCATORS = {
    "default": {},
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "1073741824"},
}
DEFAULT_OUTPUT = Path("benchmarks")
NAMES = ["B1", "B2", "B2-4", "B3", "B3b", "B4", "B4-10M", "B4-3M", "B5", "B6-1000", "B6-3200", "B6-8000", "growth"]
app = typer.Typer(add_completion=False)


def in_own_process(arguments: list[str], allocator: str) -> Any:
    """Run this module with other arguments in a new process, and return the JSON that it prints."""
    command = [sys.executable, "-W", "ignore", "-m", "xtrimogene.eval.cost.benchmarks", *arguments]
    done = subprocess.run(command, env={**os.environ, **ALLOCATORS[allocator]}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@app.command()
def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for table, figures, picture")] = DEFAULT_OUTPUT,
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NAMES)}; all unless given")] = None,
    repeats: Annotated[int, typer.Option(help="How often each variant runs")] = 3,
    threads: Annotated[int, typer.Option(help="Threads; 0 leaves them as they are")] = 0,
    run: Annotated[str | None, typer.Option(hidden=True)] = None,
    memory: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, and write a table, its figures and a picture."""
    import torch

    from . import cases, report
    from .growth import measure_growth

    if threads:
        torch.set_num_threads(threads)
    if run:  # this process was started by `in_own_process` for one case
        if memory:
            print(json.dumps(cases.peak_memory(run, memory)))
        else:
            print(json.dumps(measure_growth() if run == "growth" else cases.measure(run, repeats)))
        return
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.json"
    results = json.loads(file.read_text()) if only and file.exists() else {}
    results["machine"] = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    options = ["--repeats", str(repeats), "--threads", str(threads)]
    for name in only or NAMES:
        for allocator in ALLOCATORS if name != "growth" else ["tuned"]:
            print(f"{name}, allocator {allocator}", file=sys.stderr)
            results[f"{name} {allocator}"] = found = in_own_process(["--run", name, *options], allocator)
            if name in cases.STEPS and allocator == "default":  # the tuned allocator does not return freed memory
                found["GiB"] = {
                    variant: in_own_process(["--run", name, "--memory", variant, *options], allocator)
                    for variant in found["seconds"]
                }
            file.write_text(json.dumps(results, indent=2))
    (output / "table.md").write_text(report.table(results))
    report.picture(results, output / "ratios.png")
    print(report.table(results))


if __name__ == "__main__":
    app()
