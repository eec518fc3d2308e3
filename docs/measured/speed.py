"""How fast it is, and what it needs: the benchmarks of models and of corpora."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from . import paragraph, results, table


def speed() -> str:
    """Return times and ratios of the benchmarks."""
    found = results("benchmarks/results")
    differences = [
        value
        for case in found.values()
        for name, value in case.get("agreement", {}).items()
        if "largest difference" in name and "bfloat16" not in name
    ]
    cosines = [
        value
        for case in found.values()
        for name, value in case.get("agreement", {}).items()
        if "smallest cosine" in name
    ]
    tuned = {
        key.removesuffix(" tuned"): case for key, case in found.items() if key.endswith(" tuned") and "seconds" in case
    }
    default = {key.removesuffix(" default"): case for key, case in found.items() if key.endswith(" default")}
    peaks = [max(case["ceiling"][kind] for case in tuned.values()) for kind in ("float32", "bfloat16")]

    def ratio(cases: Mapping[str, Any], case: str, ours: str, theirs: str) -> float:
        return cases[case]["times as fast as the peer"][ours] / cases[case]["times as fast as the peer"][theirs]

    def row(title: str, case: str, theirs: str, theirs_in_bfloat16: str | None = None) -> list[str]:
        seconds = tuned[case]["seconds"]
        has_bfloat16 = "ours, bfloat16" in seconds
        ratios = []
        for cases in (default, tuned):
            texts = [f"{ratio(cases, case, 'ours', theirs):.1f}x"]
            if has_bfloat16:
                half = ratio(cases, case, "ours, bfloat16", theirs_in_bfloat16 or theirs)
                texts.append(f"bfloat16 {half:.1f}x")
            ratios.append(", ".join(texts))
        times = [seconds[theirs], seconds["ours"], seconds.get("ours, bfloat16")]
        return [title, *("-" if time is None else f"{time:.3g} s" for time in times), *ratios]

    memory = default["B4"]["GiB"]
    encoder = "transformers encoder, padded"
    rows = [
        row("cell embeddings, 4 cells of 500 to 2,500 genes, one at a time", "B1", "reference, one cell at a time"),
        row("the same, transformers' padded encoder (bfloat16: in bfloat16)", "B1", encoder, f"{encoder}, bfloat16"),
        row("embeddings of all 19,264 genes of a cell", "B2", "reference"),
        row(
            f"pre-training step, 1 cell; {memory['ours']:.1f} GiB instead of {memory['reference']:.1f}",
            "B4",
            "reference",
        ),
        row("FAVOR+ alone, forward and backward", "B3b", "performer-pytorch"),
    ]
    half = [1 / ratio(cases, "B4", "reference, bfloat16", "ours, bfloat16") for cases in (tuned, default)]
    embedding = tuned["B1"]
    shares = [
        embedding["gigaflops as written"] / embedding["seconds"][name] / embedding["ceiling"]["float32"]
        for name in ("ours", "reference, one cell at a time")
    ]
    collating = tuned["B5"]
    apart = f"{max(differences):.1e}".replace("e-0", "e-")
    intro = paragraph(
        f"Results are compared before the clock runs: at most {apart} apart in float32, cosine above "
        f"{math.floor(min(cosines) * 1e4) / 1e4:.4f} in bfloat16. *As it comes* and *tuned* are two settings of the "
        f"memory allocator, for both sides; our commands use the tuned one. Peaks of this machine: "
        f"{peaks[0]:.0f} GFLOP/s in float32, {peaks[1]:,.0f} in bfloat16."
    )
    rate = collating["cells"] / collating["seconds"]["ours"]
    rest = paragraph(
        f"Seconds are tuned ones, medians of {embedding['repeats']} runs; ratios are medians of those of runs side by "
        f"side, on cores shared with others. A step of the reference in bfloat16 takes {half[0]:.1f} times as long as "
        f"ours in bfloat16 when tuned, {half[1]:.1f} times as it comes. In float32 little is left: cell embeddings run "
        f"at {100 * shares[0]:.0f} % of the peak of plain matrix products, those of the reference at "
        f"{100 * shares[1]:.0f} %. Masking and collating: {rate:,.0f} cells of 2,000 genes a second on one core, "
        f"{ratio(tuned, 'B5', 'ours', collating['peer']):.0f} times as many as from a dense matrix."
    )
    header = ["100M shape", "reference", "ours", "ours, bfloat16", "as it comes", "tuned"]
    return f"{intro}\n\n{table(header, rows)}\n\n{rest}"


def corpus() -> str:
    """Return how fast files become a corpus, and a corpus batches."""
    found = results("results/corpus")
    made, read = found["conversion"], found["reading"]
    header = (
        f"converting generated .h5ad of {made['columns']:,} genes, {made['nonzeros per cell']:.0f} of them expressed"
    )
    sizes = f"{made['GB of the file']:.1f} GB to {made['GB of the corpus']:.2f} GB in {made['shards']} shards"
    above = made["GiB at most"] - made["GiB of the interpreter"]
    conversion = table(
        [
            f"{header} in a cell",
            "cells/s",
            f"GiB above the {made['GiB of the interpreter']:.2f} of the interpreter",
        ],
        [[f"{made['cells']:,} cells, by rows ({sizes})", f"{made['cells per second']:,.0f}", f"{above:.2f}"]],
    )
    titles = {
        "corpus": "`read_corpus`", "corpus, 1 worker": "`read_corpus`, 1 worker",
        "corpus, 2 workers": "`read_corpus`, 2 workers", "corpus, streamed": "`stream_corpus`",
        "corpus, streamed, 2 workers": "`stream_corpus`, 2 workers",
        "datasets, default settings": '`load_dataset("parquet")`, default settings',
    }  # fmt: skip
    batches, cells = (read[f"{kind}: cells per second"] for kind in ("batches", "cells"))
    rows = [
        [
            titles.get(name, name.replace("AnnData backed", "backed AnnData")),
            f"{batches[name]:,.0f}",
            f"{cells[name]:,.0f}",
        ]
        for name in batches
    ]
    intro = paragraph(
        f"{read['cells']:,} cells of {read['expressed genes']:,.0f} genes in random order, {read['batch']} a batch, "
        f"the same cells to the same collator:"
    )
    return f"{conversion}\n\n{intro}\n\n" + table(["read from", "masked batches, cells/s", "cells only, cells/s"], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "speed": speed,
    "corpus": corpus,
}
