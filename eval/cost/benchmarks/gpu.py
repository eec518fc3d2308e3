"""Measure a GPU: embedding, training, attention, FAVOR+, memory, errors, kernels.

    python -m xtrimogene.eval.cost.benchmarks.gpu -o gpu                # at most 4 minutes
    python -m xtrimogene.eval.cost.benchmarks.gpu --tiny -o gpu         # tries every part on small work, on a CPU too

It needs torch, transformers, numpy and scipy; flash-attention, performer-pytorch and matplotlib are used if they are
there. Cells are generated. It writes `results.json` after each part, `table.md`, and `picture.png`.

Parts run in a process of their own, which is started again for the parts that are left if it fails, or if a part takes
too long. What a part found until then stays.
`xtrimogene plan --measured results.json` plans with what was found.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from ....atomic import write_whole
from .gpu_parts import PARTS, WEIGHTS
from .gpu_tools import TINY, Bench, DeviceLostError, Sizes, peaks

GRACE = 45.0  # seconds that a part may take beyond its time, such as to compile, before it is stopped
RESERVE = 0.1  # share of the time that no part plans with, so that all have ended with it
POLL = 0.2  # seconds between two looks at a process
COLUMNS = {
    "seconds": "{:.3g}", "cells a second": "{:.4g}", "TFLOP/s": "{:.3g}", "GiB": "{:.2f}", "GiB of a cell": "{:.3f}",
    "largest batch": "{:,}", "error": "{:.1e}", "share": "{:.0%}", "calls": "{:,}", "waits": "{:,}",
}  # fmt: skip
EMBEDDINGS, STEP, ATTENTION = "cell embeddings, 100M", "pre-training step, 100M", "attention, bfloat16"
SPEED, OURS = "cells a second", "ours, bfloat16"
AIMS = [  # what, group, ours, peer, column, at least
    ("cell embeddings a second, 100M", EMBEDDINGS, OURS, "reference, one cell at a time", SPEED, 10),
    ("attention within ragged cells", ATTENTION, "varlen", "padded", SPEED, 2),
    ("cells of pre-training a second, 100M", STEP, OURS, "reference, bfloat16", SPEED, 3),
    ("largest batch, 100M", STEP, OURS, "reference, bfloat16", "largest batch", 8),
]
PEERS = ("reference, one cell at a time", "reference, bfloat16", "padded", "performer-pytorch", "plain formula")


def main(given: list[str] | None = None) -> None:
    """Measure in processes of their own, and write what was found."""
    parser = argparse.ArgumentParser("python -m xtrimogene.eval.cost.benchmarks.gpu", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu"), help="folder for results")
    parser.add_argument("--tiny", action="store_true", help="small work, to try the script")
    parser.add_argument("--minutes", type=float, default=4.0, help="how long it may take")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; all unless given")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    names = options.only or list(PARTS)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.json"
    if options.worker:
        measure(file, names, torch.device(options.device), TINY if options.tiny else Sizes(), 60 * options.minutes)
        return
    file.unlink(missing_ok=True)
    end = time.time() + 60 * options.minutes
    while left := [name for name in names if name not in read(file).get("parts", {})]:
        if time.time() > end:
            for name in left:
                note(file, name, {"seconds": 0.0, "rows": [], "why not": f"{options.minutes:g} minutes were over"})
            break
        began = time.time()
        why = run_worker(options, file, left, end)
        results = read(file)
        part, done = results.get("began", {}), results.get("parts", {})
        rest = [name for name in left if name not in done]
        if part.get("name") in rest:  # it failed in this part, or was stopped
            note(file, part["name"], {"seconds": time.time() - began, "rows": part["rows"], "why not": why})
        elif rest == left:  # it began none
            note(file, left[0], {"seconds": time.time() - began, "rows": [], "why not": why})
    results = {name: found for name, found in read(file).items() if name != "began"}
    write(file, results)
    (options.output / "table.md").write_text(table(results))
    if drawn := picture(results, options.output / "picture.png"):
        print(drawn, file=sys.stderr)
    print(table(results))


def run_worker(options: argparse.Namespace, file: Path, names: list[str], end: float) -> str:
    """Measure parts in a process of its own, and stop it if a part takes too long; return how it ended."""
    seconds = max(end - time.time(), 0.0)
    command = [sys.executable, "-m", "xtrimogene.eval.cost.benchmarks.gpu", "--worker", "-o", str(options.output)]
    command += ["--device", options.device, "--minutes", str(seconds * (1 - RESERVE) / 60)]
    command += [*(["--tiny"] if options.tiny else []), *(word for name in names for word in ("--only", name))]
    began, before = time.time(), read(file).get("began")
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stderr=said) as worker:
        while worker.poll() is None:
            time.sleep(POLL)
            part = read(file).get("began")
            stop = end if part is None or part == before else min(part["until"] + GRACE, end)
            if time.time() > stop:
                worker.kill()
                worker.wait()
                return f"it was stopped after {time.time() - began:.0f} s"
        said.seek(0)
        return f"the process ended with code {worker.returncode}: {' '.join(said.read().split())[-300:]}"


def measure(file: Path, names: list[str], device: torch.device, sizes: Sizes, seconds: float) -> None:
    """Measure parts one after the other, and write each as soon as it is done.

    Args:
        file: JSON file, to which parts are added.
        names: Names of parts.
        device: What to measure.
        sizes: How large the work is.
        seconds: How long all parts together may take. Each part may take its share of what is left.
    """
    end = time.perf_counter() + seconds
    if "peaks" not in (results := read(file)):
        results["machine"], results["is_tiny"] = machine(device), sizes is TINY
        results["peaks"] = peaks(device, 0.05 if sizes is TINY else 0.3)
        write(file, results)
    for number, name in enumerate(names):
        began = time.perf_counter()
        share = WEIGHTS[name] / sum(WEIGHTS[each] for each in names[number:])
        allowed = share * max(end - began, 0.0)
        until = time.time() + allowed
        bench = Bench(device, sizes, began + allowed, on_row=lambda rows: begin(file, name, until, rows))  # noqa: B023
        begin(file, name, until, [])
        found: dict[str, Any] = {}
        try:
            PARTS[name](bench)
        except Exception as error:  # the other parts are measured whatever fails
            found["why not"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        found |= {"seconds": time.perf_counter() - began, "rows": bench.rows}
        note(file, name, found)
        if "DeviceLostError" in found.get("why not", ""):
            sys.exit(f"{DeviceLostError.__doc__} The parts that are left need another process.")


def read(file: Path) -> dict[str, Any]:
    """Return the results so far."""
    return json.loads(file.read_text()) if file.exists() else {}


def write(file: Path, results: dict[str, Any]) -> None:
    """Write the results; whoever reads them meanwhile sees the earlier ones."""
    write_whole(file, json.dumps(results, indent=2))


def begin(file: Path, name: str, until: float, rows: list[dict[str, Any]]) -> None:
    """Say which part is under way, until when it may take (by `time.time`), and what it has found."""
    write(file, read(file) | {"began": {"name": name, "until": until, "rows": rows}})


def note(file: Path, name: str, found: dict[str, Any]) -> None:
    """Add a part to the results."""
    results = read(file)
    results.setdefault("parts", {})[name] = found
    write(file, results)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what is measured, and with which versions."""
    found: dict[str, Any] = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    found |= {"transformers": transformers.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"device": about.name, "memory GiB": about.total_memory / 2**30, "cuda": torch.version.cuda}
    return found


def table(results: dict[str, Any]) -> str:
    """Return results as Markdown: the machine, what it reaches, and a table for each group of variants."""
    lines = [", ".join(f"{name} {value}" for name, value in results.get("machine", {}).items()), ""]
    lines += ["; ".join(f"{name} {value:.4g}" for name, value in results.get("peaks", {}).items()), ""]
    lines[2] = f"Peaks, TFLOP/s of matrix products and GB/s of a copy: {lines[2]}."
    lines += [*found, ""] if (found := aims(results)) else []
    for name, part in results.get("parts", {}).items():
        lines += [f"## {name}, {part['seconds']:.0f} s", ""]
        lines += [f"It failed: {part['why not']}", ""] if "why not" in part else []
        for group in dict.fromkeys(row["group"] for row in part["rows"]):
            rows = [row for row in part["rows"] if row["group"] == group]
            lines += [*rows_as_table(group, rows, results.get("peaks", {})), ""]
    return "\n".join(lines)


def aims(results: dict[str, Any]) -> list[str]:
    """Return the lines of a table of what a GPU is to reach, with what it reached; none if nothing was measured."""
    rows = {(row["group"], row["variant"]): row for part in results.get("parts", {}).values() for row in part["rows"]}
    lines = []
    for what, group, ours, peer, column, least in AIMS:
        pair = [rows.get((group, variant), {}).get(column) for variant in (ours, peer)]
        if all(pair):
            reached = pair[0] / pair[1]
            lines.append(f"| {what} | {least:g} | {reached:.1f} | {'yes' if reached >= least else 'no'} |")
    return ["| times as much as the peer | at least | reached | enough |", "|---|---|---|---|", *lines] if lines else []


def rows_as_table(group: str, rows: list[dict[str, Any]], peaks: dict[str, float]) -> list[str]:
    """Return the lines of the table of a group."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    peer = next((row for name in PEERS for row in rows if row["variant"] == name and "seconds" in row), None)
    titles = [*columns, *(["times as fast"] if peer else []), *(["of peak"] if "TFLOP/s" in columns else [])]
    titles = titles or [""]  # nothing was measured, and why stands there
    lines = [f"| {group} | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for row in rows:
        if "why not" in row:
            lines.append(f"| {row['variant']} | {row['why not']} |" + " |" * (len(titles) - 1))
            continue
        cells = [COLUMNS[name].format(row[name]) if name in row else "" for name in columns]
        cells += [f"{speed(row) / speed(peer):.2f}"] if peer and "seconds" in row else [""] * bool(peer)
        if "TFLOP/s" in columns:
            peak = peaks.get("bfloat16" if "bfloat16" in group + row["variant"] else "float32", 0)
            cells += [f"{row['TFLOP/s'] / peak:.1%}" if peak and "TFLOP/s" in row else ""]
        lines.append(f"| {row['variant']} | {' | '.join(cells)} |")
    return lines


def speed(row: dict[str, Any]) -> float:
    """Return cells a second, or runs a second of work without cells."""
    return row.get("cells a second", 1 / row["seconds"])


def picture(results: dict[str, Any], path: Path) -> str:
    """Draw the speed of every variant beside the peer of its group; return why not if there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture: matplotlib is not installed"
    groups: dict[str, list[tuple[str, float]]] = {}
    for part in results.get("parts", {}).values():
        for row in part["rows"]:
            if "cells a second" in row:
                groups.setdefault(row["group"], []).append((row["variant"], row["cells a second"]))
    if not groups:
        return "no picture: nothing was measured"
    heights = [len(rows) + 1 for rows in groups.values()]
    figure = Figure(figsize=(11, 0.3 * sum(heights) + 1), layout="constrained")
    all_axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (group, rows) in zip(all_axes, groups.items(), strict=True):
        colors = ["#08519c" if name.startswith(("ours", "varlen")) else "#9ecae1" for name, _ in rows]
        axes.barh(range(len(rows)), [value for _, value in rows], color=colors)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
        axes.invert_yaxis()
        axes.set_title(f"{group}, cells a second", loc="left", fontsize=9)
    figure.savefig(path, dpi=100)
    return ""


if __name__ == "__main__":
    main()
