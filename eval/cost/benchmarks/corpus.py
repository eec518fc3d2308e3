"""Measure how fast files become a corpus, in how much memory, and how fast a corpus becomes batches.

    python -m xtrimogene.eval.cost.benchmarks.corpus -o benchmarks                       # reading, two minutes
    python -m xtrimogene.eval.cost.benchmarks.corpus -o benchmarks --convert 1000000     # and conversion, half an hour

Cells are generated, with as many and as unevenly expressed genes as real cells. All ways of reading give the same cells
in the same order to the same collator. They run in turn, on one core and the cores of their workers. The memory of a
conversion is that of a process that imports no more than it needs, so imports are inside of functions.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer

COLUMNS = 20_000  # genes of a file, of which the panel knows 19,264
BATCH = 32
GENERATED = 2000  # cells generated at a time
PEER = "AnnData backed, a batch at a time"
Way = Callable[[Any], Iterator[Any]]  # collator -> batches
app = typer.Typer(add_completion=False)


def generate(path: Path, num_cells: int, num_nonzeros: int, genes: list[str], seed: int = 0) -> None:
    """Write an .h5ad of cells with about `num_nonzeros` expressed genes, some thousand at a time.

    Args:
        path: The file to write.
        num_cells: Number of cells.
        num_nonzeros: Mean number of expressed genes of a cell; its standard deviation is a third of it.
        genes: Gene names of the first columns, such as a panel. Further columns have names that no panel has.
        seed: Seed of the counts.
    """
    import anndata
    import h5py
    import pandas as pd
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(seed)
    names = [*genes, *(f"unknown{number}" for number in range(COLUMNS - len(genes)))]
    obs = pd.DataFrame({"batch": [f"batch{number % 20}" for number in range(num_cells)]}).astype("category")
    obs.index = obs.index.astype(str)
    shell = anndata.AnnData(csr_matrix((num_cells, COLUMNS), dtype=np.uint16), obs=obs, var=pd.DataFrame(index=names))
    shell.write_h5ad(path)
    shares = np.cumsum(rng.lognormal(0, 1.0, COLUMNS))
    shares /= shares[-1]
    # Draws repeat genes, the more the more they are expressed. Find the number of draws that gives enough genes.
    tries = np.arange(1, 20) * num_nonzeros // 4
    distinct = [(1 - (1 - np.diff(shares, prepend=0)) ** draws).sum() for draws in tries]
    num_draws = int(np.interp(num_nonzeros, distinct, tries))
    with h5py.File(path, "r+") as file:
        group = file["X"]
        for name in ("data", "indices", "indptr"):
            del group[name]
        data = group.create_dataset("data", (0,), np.uint16, maxshape=(None,), chunks=(1 << 17,))
        indices = group.create_dataset("indices", (0,), np.int32, maxshape=(None,), chunks=(1 << 17,))
        starts = np.zeros(num_cells + 1, np.int64)
        for first in range(0, num_cells, GENERATED):
            size = min(GENERATED, num_cells - first)
            depth = np.clip(rng.normal(num_draws, num_draws / 3, size), num_draws / 5, 2 * num_draws).astype(int)
            rows = np.repeat(np.arange(size), depth)
            columns = np.searchsorted(shares, rng.random(len(rows)))
            cells = csr_matrix((np.ones(len(rows), np.uint16), (rows, columns)), shape=(size, COLUMNS))
            cells.sum_duplicates()
            begin, end = int(starts[first]), int(starts[first]) + cells.nnz
            for stored, values in ((data, cells.data), (indices, cells.indices)):
                stored.resize((end,))
                stored[begin:end] = values
            starts[first + 1 : first + size + 1] = begin + cells.indptr[1:]
        group.create_dataset("indptr", data=starts)


def measure_conversion(folder: Path, num_cells: int, num_nonzeros: int) -> dict[str, Any]:
    """Convert generated cells in a new process, and return its speed and largest memory."""
    from ....tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

    file = folder / "cells.h5ad"
    began = perf_counter()
    generate(file, num_cells, num_nonzeros, XTrimoGeneTokenizer.default().genes)
    print(f"generated {num_cells:,} cells in {perf_counter() - began:.0f} s", file=sys.stderr)
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--run", str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    shards = list((folder / "corpus" / "data").iterdir())
    return found | {
        "cells": num_cells,
        "columns": COLUMNS,
        "cells per second": num_cells / found["seconds"],
        "GB of the file": file.stat().st_size / 1e9,
        "GB of the corpus": sum(shard.stat().st_size for shard in shards) / 1e9,
        "shards": len(shards),
    }


def convert_and_report(file: Path) -> dict[str, Any]:
    """Convert a file into a corpus beside it; return the seconds, and the GiB before and at most."""
    import anndata  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.sparse  # noqa: F401

    from ....tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from ....training.data.convert import convert_files
    from ....training.progress import cell_progress

    def peak() -> float:
        # Linux only. ru_maxrss is no help: it begins with the peak of the parent process.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20

    tokenizer = XTrimoGeneTokenizer.default()
    before = peak()
    began = perf_counter()
    with cell_progress() as progress:
        bar = progress.add_task("Converting", total=0, unit="cells", note="")
        done = convert_files(
            [file],
            file.parent / "corpus",
            tokenizer=tokenizer,
            obs=["batch"],
            say=lambda line: None,
            progress=lambda name, cells, total: progress.update(bar, completed=cells, total=total),
        )
    return {
        "seconds": perf_counter() - began,
        "kept": done.manifest.num_cells,
        "nonzeros per cell": sum(shard.nonzeros for shard in done.manifest.shards) / done.manifest.num_cells,
        "GiB of the interpreter": before,
        "GiB at most": peak(),
    }


class Backed:
    """Cells of a backed AnnData, a batch or a cell at a time."""

    def __init__(self, path: Path, size: int, num_genes: int):
        import anndata

        self.stored = anndata.read_h5ad(path, backed="r").X
        self.size, self.num_genes = size, num_genes

    def __len__(self) -> int:
        return self.stored.shape[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        cells = []
        for start in range(0, len(indices), self.size):
            rows, back = np.unique(indices[start : start + self.size], return_inverse=True)  # ascending, as HDF5 asks
            block = self.stored[rows][back]
            totals = np.asarray(block.sum(axis=1)).ravel()
            known = block[:, : self.num_genes].tocsr()
            for row, (first, last) in enumerate(zip(known.indptr[:-1], known.indptr[1:], strict=True)):
                index = indices[start + row]
                values = {"input_ids": known.indices[first:last], "counts": known.data[first:last]}
                cells.append({**values, "total": totals[row], "cell_index": index})
        return cells


def measure_reading(folder: Path, num_cells: int, num_nonzeros: int, repeats: int) -> dict[str, Any]:
    """Return the cells a second from each kind of storage into masked batches, and without collating."""
    import anndata
    import datasets
    import torch
    from torch.utils.data import DataLoader

    from ....tokenization.collators import DataCollatorForMaskedExpression
    from ....tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from ....training.data.convert import convert_files
    from ....training.data.corpus import read_corpus, stream_corpus

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # `datasets` waits so many seconds at the end of each stream
    tokenizer = XTrimoGeneTokenizer.default()
    file, cache = folder / "few.h5ad", str(folder / "cache")
    generate(file, num_cells, num_nonzeros, tokenizer.genes)
    convert_files([file], folder / "few", tokenizer=tokenizer, min_genes=0, say=lambda line: None)
    corpus = read_corpus(folder / "few", tokenizer, cache_dir=cache)
    default = datasets.load_dataset("parquet", data_files=f"{folder}/few/data/*", split="train", cache_dir=cache)
    gzipped = folder / "gzipped.h5ad"  # most published files are compressed so
    anndata.read_h5ad(file).write_h5ad(gzipped, compression="gzip")
    collator = DataCollatorForMaskedExpression(tokenizer)
    order = np.random.default_rng(0).permutation(len(corpus))

    def loader(dataset: Any, share: float = 1.0, workers: int = 0) -> Way:
        part = order[: int(len(order) * share)].tolist()
        return lambda collate: iter(DataLoader(dataset, BATCH, sampler=part, collate_fn=collate, num_workers=workers))

    def streamed(workers: int) -> Way:
        stream = stream_corpus(folder / "few", tokenizer)
        return lambda collate: iter(DataLoader(stream, BATCH, collate_fn=collate, num_workers=workers))

    ways: dict[str, Way] = {
        "corpus": loader(corpus),
        "corpus, 1 worker": loader(corpus, workers=1),
        "corpus, 2 workers": loader(corpus, workers=2),
        "corpus, streamed": streamed(0),
        "corpus, streamed, 2 workers": streamed(2),
        "datasets, default settings": loader(default, 0.2),
        PEER: loader(Backed(file, BATCH, tokenizer.num_genes), 0.1),
        "AnnData backed, a cell at a time": loader(Backed(file, 1, tokenizer.num_genes), 0.05),
        "AnnData backed, gzip, a batch at a time": loader(Backed(gzipped, BATCH, tokenizer.num_genes), 0.05),
        "AnnData backed, gzip, a cell at a time": loader(Backed(gzipped, 1, tokenizer.num_genes), 0.02),
    }
    check_same(ways, collator)
    kinds: dict[str, Any] = {"cells": list, "batches": collator}
    rates: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in ways} for kind in kinds}
    for _ in range(repeats):
        for kind, collate in kinds.items():
            for name, way in ways.items():
                began = perf_counter()
                num_read = 0
                for batch in way(collate):
                    num_read += len(batch if kind == "cells" else batch["input_ids"])
                rates[kind][name].append(num_read / (perf_counter() - began))
    medians = {kind: {name: float(np.median(found)) for name, found in rates[kind].items()} for kind in kinds}
    return {
        "cells": num_cells,
        "expressed genes": float(corpus["length"].mean()),
        "batch": BATCH,
        **{f"{kind}: cells per second": found for kind, found in medians.items()},
    }


def check_same(ways: dict[str, Way], collator: Any) -> None:
    """Check that all ways of reading, but for streams, give the same first batch."""
    import torch

    first = {name: next(way(collator)) for name, way in ways.items() if "streamed" not in name}
    for name, batch in first.items():
        assert all(torch.equal(batch[key], first["corpus"][key]) for key in batch), name


def table(results: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = []
    if "reading" in results:
        reading = results["reading"]
        lines += [
            f"{reading['cells']:,} cells of {reading['expressed genes']:,.0f} genes, {reading['batch']} a batch:",
            "",
            "| read from | masked batches: cells/s | x AnnData backed | cells only: cells/s | x AnnData backed |",
            "|---|---|---|---|---|",
        ]
        for name in reading["batches: cells per second"]:
            figures = []
            for kind in ("batches", "cells"):
                rates = reading[f"{kind}: cells per second"]
                figures += [f"{rates[name]:,.0f}", f"{rates[name] / rates[PEER]:.1f}"]
            lines.append(f"| {name} | {' | '.join(figures)} |")
    if "conversion" in results:
        rows = {
            name: f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
            for name, value in results["conversion"].items()
        }
        lines += [
            "",
            "| conversion of an h5ad | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
        ]
    return "\n".join(lines) + "\n"


@app.command()
def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for corpus.json and corpus.md")] = Path(
        "benchmarks"
    ),
    cells: Annotated[int, typer.Option(help="Cells to read; 0 leaves reading out")] = 20_000,
    genes: Annotated[int, typer.Option(help="Expressed genes of a cell, for reading")] = 2000,
    convert: Annotated[int, typer.Option(help="Cells to convert; 0 leaves conversion out")] = 0,
    repeats: Annotated[int, typer.Option(help="How often each way of reading runs")] = 3,
    scratch: Annotated[Path | None, typer.Option(help="Where generated files lie; they are removed")] = None,
    run: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, and write figures and a table."""
    if run:  # this process was started by `measure_conversion`
        print(json.dumps(convert_and_report(run)))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    output.mkdir(parents=True, exist_ok=True)
    file = output / "corpus.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with TemporaryDirectory(dir=scratch) as folder:
        if cells:
            results["reading"] = measure_reading(Path(folder), cells, genes, repeats)
            file.write_text(json.dumps(results, indent=2))
        if convert:
            results["conversion"] = measure_conversion(Path(folder), convert, 1000)
            file.write_text(json.dumps(results, indent=2))
    (output / "corpus.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    app()
