"""Write the figures of README.md and docs/*.md from the files of results: no measured number is typed by hand.

    docs/results/*.json, docs/benchmarks/results.json  ->  blocks from `<!-- results: NAME -->` to `<!-- end -->`

    python docs/figures.py            # writes the blocks anew, and names figures that stand outside of them

Files of results are what commands write, unchanged: `metrics.json` of `xtrimogene pretrain`, `finetune`, `evaluate` and
`demo`, `corpus.json` and `results.json` of the benchmarks, and what `xtrimogene plan --json` prints. Files that were
transcribed from older tables say so, with the commit and the command: the command writes them anew.
"""

import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- results: ([\w, .-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
CODE = re.compile(r"^```.*?^```|^ {4,}\S.*?$|`[^`]*`|\]\([^)]*\)|<!--.*?-->", re.DOTALL | re.MULTILINE)
UNIT = r" ?(?:x|%|ms|s|seconds?|minutes?|hours?|days?|times|[KMG]i?B|[GT]FLOP(?:/s)?|cells/s|cells a second)(?!\w)"
# Decimals, powers of ten, and whole numbers of a unit that is measured.
FIGURE = re.compile(rf"(?<![\w.,/-])(?:\d[\d,]*(?:\.\d+(?:e-?\d+)?|e-?\d+)[a-zA-Z]?|\.\d+|\d[\d,]*(?={UNIT}))")
# Numbers that nothing measures: of the method, its sources, file formats, options, and tolerances that tests assert.
CONSTANTS = (
    "arXiv:2311.15156", "10x .h5", "10x Genomics", "Python 3.11 or later", "version 0.1 saved",
    "torch's format from before version 1.6",
    "30 % of expressed and 3 % of zero genes", "30 % of expressed, 3 % of zero genes",
    "from 30 % to all counts", "mask vector at 80 %", "same cell at 10 %", "true value at 10 %",
    "a probability of 0.9 or more", "with a warning from 40 % on",
    "AdamW, learning rate 1e-4", "has 2e-3", "min(0.999, (1 + t) / (10 + t))", "95 % intervals",
    "at 30 % of an H100's 989 TFLOP/s and 2.5 an hour", "19,264 x 512 numbers, 38 MiB a cell",
    "9.85e12, 1.05e12, 3.35e11 for Transformer, Performer, xTrimoGene",  # by formula, tests/eval/cost/test_flops.py
    "1e-5 in float32, 1e-10 in float64", "the same random features, 1e-10 in float64", "authors' code to 1e-5",
    "within 1e-12 and gradients within 1e-10 in float64, outputs within 1e-5 in float32",  # test_favor_backend.py
    "cell embeddings to 1e-5", "to 1e-5 of the same run", "to 5e-5 of the files", "99.8 % of the values to 1e-5",
    "in 8 MB.", "lie farther than 95 % of these", "so 5 % of cells like the training cells",  # checkpoints.md
    "within 5e-5 of each other", "99.8 % of the values within 1e-5", "within 1e-5 of the same run",
)  # fmt: skip
NOT_MEASURED = "*Not measured yet.*"
OF_TRAINING_MEANS = (
    "Beyond gene means here is beyond the means over training cells, as version 0.1 computed it; runs now give it "
    "beyond the means over the test cells."
)


def documents() -> list[Path]:
    """Return the files whose figures are written here."""
    return [ROOT / "README.md", *sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/tutorials").glob("*.md")])]


def results(name: str) -> Any:
    """Return a file of results.

    Raises:
        FileNotFoundError: If it is not there.
    """
    return json.loads((ROOT / "docs" / name).with_suffix(".json").read_text(encoding="utf-8"))


def rendered(text: str) -> str:
    """Return a document with every block written anew.

    Raises:
        ValueError: If a block has a name that nothing writes.
    """

    def block(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in BLOCKS:
            raise ValueError(f"there are no results called {name!r}, only {', '.join(BLOCKS)}: correct the marker")
        try:
            inside = BLOCKS[name]()
        except FileNotFoundError:
            inside = NOT_MEASURED
        return f"{begin}{inside.strip()}\n{end}"

    return BLOCK.sub(block, text)


def uncovered(text: str) -> list[str]:
    """Return the measured-looking numbers of a document that stand outside of blocks and code, with what is around."""
    for pattern in (BLOCK, CODE):
        text = pattern.sub(" ", text)
    text = " ".join(text.split())
    for constant in CONSTANTS:
        text = text.replace(constant, " ")
    return [text[max(found.start() - 30, 0) : found.end() + 20] for found in FIGURE.finditer(text)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["|".join(["", *(f" {cell} " if cell else " " for cell in line), ""]) for line in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def paragraph(text: str) -> str:
    """Return text in lines of the width of these documents."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


# -- training ---------------------------------------------------------------------------------------------------------

RECOVERY = "masked values of held-out cells"
ANNOTATION = "annotation of held-out cells"


def best(rows: Mapping[str, Mapping[str, float]], key: str, decimals: int, sign: int = 1) -> dict[str, str]:
    """Return a column as text, the best in bold; `-` where a row has no such score."""
    known = {name: row[key] for name, row in rows.items() if row.get(key) is not None}
    top = max(known.values(), key=lambda value: sign * value)
    shown = {name: f"{value:.{decimals}f}" for name, value in known.items()}
    bold = {name: f"**{text}**" if known[name] == top else text for name, text in shown.items()}
    return {name: bold.get(name, "-") for name in rows}


def pretrain_blood() -> str:
    """Return what pre-training on blood came to, beside the baselines."""
    found = results("results/pretrain_blood")
    cells = found["cells"]
    scores = {name: dict(found[RECOVERY][name]) for name in ("xTrimoGene", "gene mean", "PCA")}
    scores["gene mean"]["pearson_beyond_gene_mean"] = None  # 0 by definition
    titles = {
        "xTrimoGene": f"xTrimoGene, tiny, {found['steps']:,} steps",
        "gene mean": "mean of each gene, given that it is masked",
        "PCA": "PCA, chosen on training cells",
    }
    columns = [
        best(scores, "pearson", 3), best(scores, "mse", 3, -1), best(scores, "pearson_beyond_gene_mean", 2),
        best(scores, "mse_expressed", 3, -1),
    ]  # fmt: skip
    header = [
        f"masked values of {cells['held out']:,} held-out cells",
        "Pearson",
        "MSE",
        "Pearson beyond each gene's mean",
    ]
    intro = paragraph(
        f"{sum(cells.values()):,} blood cells (sorted and unsorted, 10x v1), {cells['held out']:,} of them held out, "
        f"the full panel, `tiny` ({found['parameters'] / 1e6:.1f}M parameters), {found['steps']:,} steps of "
        f"{found['batch size']} cells ({found['epochs']:.1f} epochs), {found['seconds'] / 60:.0f} minutes on 2 shared "
        f"CPU cores:"
    )
    rows = [[title, *(column[name] for column in columns)] for name, title in titles.items()]
    return f"{intro}\n\n" + table([*header, "MSE of expressed genes"], rows) + f"\n\n{paragraph(OF_TRAINING_MEANS)}"


def decoder_context() -> str:
    """Return how far both forms of the decoder come in the same time."""
    rows = []
    for name, context in {"pretrain_blood_context_all": "all", "pretrain_blood": "nonzero"}.items():
        found = results(f"results/{name}")
        scores = found[RECOVERY]
        ours = scores["xTrimoGene"]
        rows.append([
            f"`{context}`, {found['seconds'] / 60:.0f} minutes: {found['steps']:,} steps of {found['batch size']}",
            f"{ours['pearson_beyond_gene_mean']:.2f}", f"{ours['mse']:.3f}",
        ])  # fmt: skip
    header = f"MSE (gene means: {scores['gene mean']['mse']:.3f})"
    shown = table(["", "masked values: Pearson beyond each gene's mean", header], rows)
    return f"{shown}\n\n{paragraph(OF_TRAINING_MEANS)}"


def favor_backend() -> str:
    """Return what a training step takes with each backend of the decoder's attention."""
    found = results("results/favor_backend")
    ours, theirs = found["native"], found["performer-pytorch"]
    rows = [
        [name, f"{row['processor seconds']:.1f}", f"{row['GiB']:.2f}"]
        for name, row in (("`native`", ours), ("`performer-pytorch`", theirs))
    ]
    rows.append(["ratio", *(f"{theirs[key] / ours[key]:.1f}" for key in ("processor seconds", "GiB"))])
    header = "10M, forward and backward of one masked cell of 19,264 genes, float32, one core"
    return table([header, "seconds", "GiB"], rows)


def int8() -> str:
    """Return what weights in int8 cost and give, of a small checkpoint."""
    found = results("results/int8")
    rows = [
        [name, f"{found[name]['processor seconds']:.2f}", f"{found[name]['bytes'] / 1024:,.0f}", shared]
        for name, shared in (("float32", "-"), ("int8", share(found["15 neighbours shared"])))
    ]
    header = [
        f"encoder, {found['cells']} cells, one core, torchao {found['torchao']}",
        "seconds",
        "KiB of its weights",
        "15 neighbours shared",
    ]
    return table(header, rows)


def criss_cross() -> str:
    """Return how much faster the encoder is with criss-cross attention, by the length of a cell."""
    rows = []
    for found in results("results/criss_cross")["cases"]:
        seconds, ratio = found["seconds"], found["times as fast as the peer"]["criss_cross"]
        rows.append([found["title"], *(f"{seconds[kind]:.2f}" for kind in ("full", "criss_cross")), f"{ratio:.1f}"])
    return table(["one cell, one core", "full, seconds", "criss-cross, seconds", "times as fast"], rows)


def demo() -> str:
    """Return the demo's recovery of masked values."""
    found = results("results/demo")
    ours, means = (found[RECOVERY][name]["pearson"] for name in ("xTrimoGene", "gene mean"))
    beyond, of_pca = (found[RECOVERY][name]["pearson_beyond_gene_mean"] for name in ("xTrimoGene", "PCA"))
    return paragraph(
        f"The demo, which has `all`, came to a Pearson of {ours:.3f} on {found['cells']['test']} held-out cells (gene "
        f"means: {means:.3f}), and beyond the means of genes to {beyond:.3f} (PCA: {of_pca:.3f}), with seed "
        f"{found['seed']} and torch threads: {found['torch threads']}. Another number "
        f"of threads adds in another order, which changes these figures less than another seed does."
    )


def finetune_blood() -> str:
    """Return accuracy and macro-F1 of annotators over seeds."""
    methods = {
        "xTrimoGene": "xTrimoGene, tiny",
        "k-NN on PCA": "k-NN on PCA",
        "logistic regression": "logistic regression on log-normalised counts",
    }
    runs = [json.loads(path.read_text()) for path in sorted((ROOT / "docs/results").glob("finetune_blood_seed*.json"))]
    cells, epochs, seeds = runs[0]["cells"], runs[0]["epochs"], len(runs)
    values = {
        name: {key: [run[ANNOTATION][name][key] for run in runs] for key in ("accuracy", "macro_f1")}
        for name in methods
    }
    mean = {name: {key: fmean(each) for key, each in row.items()} for name, row in values.items()}
    std = {name: {key: stdev(each) for key, each in row.items()} for name, row in values.items()}
    columns = [(best(mean, key, 3), key) for key in ("accuracy", "macro_f1")]
    rows = [
        [title, *(f"{column[name]} ± {std[name][key]:.3f}" for column, key in columns)]
        for name, title in methods.items()
    ]
    winner = max(mean, key=lambda name: mean[name]["accuracy"])
    intro = paragraph(
        f"Cell types of {cells['train'] + cells['test']:,} sorted blood cells, {cells['types']} types (six of them T "
        f"cells), a fifth held out, mean and standard deviation of {seeds} seeds; the same checkpoint, which saw these "
        f"cells without labels, fine-tuned for {epochs} epochs"
        f"{'. The simple baselines win' if winner != 'xTrimoGene' else ''}:"
    )
    return f"{intro}\n\n" + table(["", "accuracy", "macro-F1"], rows)


def share(value: float | None) -> str:
    """Return a share in percent, `-` where it is not known."""
    return "-" if value is None else f"{100 * value:.1f} %"


def annotators() -> str:
    """Return how annotators do on cells that they were not trained on; `rows`: one for each test set and method."""
    rows = []
    for row in results("results/annotators")["rows"]:
        spread = "" if row["accuracy std"] is None else f" ± {row['accuracy std']:.3f}"  # of one seed there is none
        shares = (share(row.get(key)) for key in ("sure", "right of probability >= .9", "called unknown"))
        figures = f"{row['accuracy']:.3f}{spread}", f"{row['macro_f1']:.3f}", *shares
        rows.append([row["test set"], row["method"], str(row["seeds"]), *figures])
    header = ["", "", "seeds", "accuracy", "macro-F1", "sure", "right of these", "called unknown"]
    return table(header, rows)


def order() -> str:
    """Return what random batches and batches of cells of like length pad and come to; the mean of seeds."""
    found = results("results/order")
    rows = [
        [name, *(f"{fmean(run[key] for run in found[name]):.{decimals}f}" for key, decimals in (
            ("padding", 2), ("beyond gene means, xTrimoGene", 3), ("beyond gene means, PCA", 3),
        ))]
        for name in ("random", "like lengths")
    ]  # fmt: skip
    intro = paragraph(
        f"`tiny`, {found['steps']:,} steps of 16 cells, {sum(found['cells'].values()):,} cells of "
        f"{len(found['cells'])} files, mean of {len(found['random'])} seed(s):"
    )
    header = ["batches", "share of padding", "Pearson beyond gene means", "PCA"]
    return f"{intro}\n\n" + table(header, rows) + f"\n\n{paragraph(OF_TRAINING_MEANS)}"


def attention() -> str:
    """Return what the transformer adds to the bag of genes, by cells and steps: the mean of seeds and data sets."""
    found = results("results/attention")
    shown = {"k-NN macro-F1": "k-NN macro-F1", "Pearson": "Pearson", "beyond gene means": "Pearson beyond gene means"}
    rows = []
    for cells, steps in dict.fromkeys((run["cells"], run["steps"]) for run in found):
        runs = [run for run in found if (run["cells"], run["steps"]) == (cells, steps)]
        row = [f"{cells:,}", f"{steps:,}"]
        for metric in shown.values():
            scores = [data[metric] for run in runs for data in run["scores"].values()]
            without = fmean(each["without"] for each in scores)
            added = fmean(each["with"] - each["without"] for each in scores)
            row.append(f"{without:.3f} {'+-'[added < 0]} {abs(added):.3f}")
        rows.append(row)
    seeds, data_sets = len({run["seed"] for run in found}), len(found[0]["scores"])
    said = f"Mean of {seeds} seed(s) and {data_sets} data sets; what the transformer adds stands behind the sign:"
    return paragraph(said) + "\n\n" + table(["cells", "steps", *shown], rows)


def tuning() -> str:
    """Return what poolings of one checkpoint and ways to tune it score: mean and range of the seeds."""
    found = results("results/tuning")
    shown, number = ("k-NN", "linear probe", "macro-F1"), len(found["genes"])
    rows = []
    for pooling, peft in dict.fromkeys((row["pooling"], row["peft"]) for row in found["rows"]):
        runs = [row for row in found["rows"] if (row["pooling"], row["peft"]) == (pooling, peft)]
        scores = [with_range([run[key] for run in runs]) if key in runs[0] else "" for key in shown]
        width = f"{runs[0]['width']:,}" if "width" in runs[0] else ""
        rows.append([f"`{pooling}`", width, f"`{peft}`", f"{100 * runs[0]['share']:.1f} %", *scores])
    said = (
        f"{found['data']}: mean and range of {number} seed(s), each a pre-training of {found['steps']} steps and "
        f"{found['epochs']} passes over the labelled cells. Logistic regression on genes: {with_range(found['genes'])}."
    )
    header = ["pooling", "width", "`--peft`", "weights that learn", "k-NN", "linear probe", "fine-tuned"]
    return paragraph(said) + "\n\n" + table(header, rows)


def txfm_plateau() -> str:
    """Return what the first steps of TxFM come to with some choices changed."""
    found = results("results/txfm_plateau")
    rows = [
        [name, *(f"{fmean(run[key] for run in runs):.{decimals}f}" for key, decimals in (
            ("held-out loss", 2), ("beyond gene means", 3),
        ))]
        for name, runs in found["variants"].items()
    ]  # fmt: skip
    seeds = {run["seed"] for runs in found["variants"].values() for run in runs}
    intro = paragraph(
        f"`txfm-tiny`, {found['visible genes']} genes shown, {found['steps']} steps of 32 cells, "
        f"{found['cells']['train']:,} cells, {len(seeds)} seed(s). The mean profile has a held-out loss of "
        f"{found['loss of the mean profile']:.2f}:"
    )
    return f"{intro}\n\n" + table(["changed", "held-out loss", "Pearson beyond gene means"], rows)


def unmeasured() -> str:
    """Return how many zeros were never measured, and what models recover that left them out or learned them."""
    found = results("results/unmeasured")
    corpus, sources = found["corpus"], found["corpus"]["sources"]
    panel = corpus["panel"]

    def masked_share(row: Mapping[str, Any]) -> str:
        return share(row["masked zero genes not measured"] / row["masked zero genes"])

    def counts(row: Mapping[str, Any]) -> list[str]:
        pairs, masked = share(row["pairs not measured"] / row["pairs"]), masked_share(row)
        genes = f"{row['genes measured']:,}" if "genes measured" in row else ""
        return [f"{row['cells']:,}", genes, pairs, masked]

    files = table(
        ["file", "cells", "genes measured", "pairs not measured", "masked zero genes not measured"],
        [[name.removesuffix(".h5ad"), *counts(row)] for name, row in sources.items()] + [["**all**", *counts(corpus)]],
    )
    num_seeds = min(len(found["ignore"]), len(found["zero"]))  # a run that was stopped may have one more of the first
    intro = paragraph(
        f"Of the {corpus['pairs'] / 1e6:,.0f} million pairs of a cell and a gene of the panel ({panel:,} genes) in "
        f"{len(sources)} public files, {corpus['pairs not measured'] / 1e6:,.0f} million were not measured, and of the "
        f"zero genes that were masked until now {masked_share(corpus)}:"
    )
    keys = {"pearson": "Pearson", "pearson_expressed": "of expressed"}

    def spread(setting: str, key: str) -> str:
        values = [run[key] for run in found[setting][:num_seeds] if key in run]
        if not values:
            return ""
        return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

    rows = []
    for suffix, what in (("", "measured genes"), (", unmeasured scored too", "all genes, as until now")):
        for setting, title in (("ignore", "`ignore`"), ("zero", "`zero`")):
            rows.append([what, title, *(spread(setting, f"{key}{suffix}") for key in keys)])
        rows.append([what, "mean of each gene", *(spread("ignore", f"gene mean, {key}{suffix}") for key in keys)])
    names = ", ".join(name.removesuffix(".h5ad") for name in found["trained on"])
    trained = paragraph(
        f"`tiny`, {found['steps']} steps of 16 cells of {names}; held-out cells, "
        + (
            f"mean and standard deviation of {num_seeds} seeds:"
            if num_seeds > 1
            else "one seed, which shows no spread:"
        )
    )
    return f"{intro}\n\n{files}\n\n{trained}\n\n" + table(["scored", "`--unmeasured`", *keys.values()], rows)


def precision() -> str:
    """Return how what an annotator says in bfloat16 differs from what it says in float32."""
    found = results("results/precision")
    unknown = found["unknown by the calibration made in float32"]
    return table(
        ["cells", "neighbours shared", "labels equal", "called unknown in float32", "in bfloat16"],
        [
            [
                f"{found['cells']:,}",
                share(found["15 neighbours shared"]),
                share(found["labels equal"]),
                *map(str, unknown),
            ]
        ],
    )


def half_hour() -> str:
    """Return what 3M and 10M came to in about half an hour."""
    titles = {"pretrain_3M": "3M", "pretrain_10M": "10M", "pretrain_10M_longer": "10M, {minutes:.0f} minutes"}
    found = {name: results(f"results/{name}") for name in titles}
    keys = ("pearson", "pearson_expressed", "pearson_beyond_gene_mean", "mse_expressed")

    def scores(row: Mapping[str, float | None]) -> list[str]:
        return ["" if row.get(key) is None else f"{row[key]:.3f}" for key in keys]

    rows = [
        [
            titles[name].format(minutes=run["seconds"] / 60),
            str(run["steps"]),
            f"{run['epochs']:.2f}",
            *scores(run[RECOVERY]["xTrimoGene"]),
        ]
        for name, run in found.items()
    ]
    means = dict(found["pretrain_3M"][RECOVERY]["gene mean"], pearson_beyond_gene_mean=None)
    rows += [
        ["PCA imputer", "", "", *scores(found["pretrain_3M"][RECOVERY]["PCA"])],
        ["gene mean", "", "", *scores(means)],
    ]
    header = ["", "steps", "epochs", "Pearson", "of expressed", "beyond gene means", "MSE of expressed"]
    return table(header, rows) + f"\n\n{paragraph(OF_TRAINING_MEANS)}"


def plan() -> str:
    """Return what pre-training would take, and whether FLOPs tell the time."""
    found = results("results/plan")
    rows = []
    for each in found["plans"]:
        speeds = " / ".join(f"{speed:,.0f}" for speed in each["cells_per_second"].values())
        days = " / ".join(f"{hours / 24:.2g}" for hours in each["hours"].values())
        rows.append([
            each["preset"], f"{each['gigaflops']:,.0f}", f"{each['cell']:,.0f}", f"{each['batch']:,}", speeds, days,
            f"{each['cost']:,.0f}",
        ])  # fmt: skip
    header = ["", "GFLOP a cell", "MiB a cell", "cells in 80 GiB", "cells/s on 1 / 8 / 64", "days", "cost"]
    measured = [
        f"a step of one cell of {name} ran at {row['gigaflops per second']:.0f} GFLOP/s, "
        f"{100 * row['share of peak']:.0f} % of what a plain matrix product reached beside it"
        for name, row in found["measured"].items()
    ]
    question = f"Do FLOPs tell the time? `--measure`, on 2 CPU cores: {'; '.join(measured)}."
    return f"{table(header, rows)}\n\n{paragraph(question)}"


# -- speed ------------------------------------------------------------------------------------------------------------


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


# -- evaluation -------------------------------------------------------------------------------------------------------


def scores_of(task: str, data: str, *reports: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return method -> metric -> score of one data set, from the first report, and what further ones have besides."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for report in reports:
        for result in results(f"results/{report}")["results"]:
            for score in result["scores"]:
                if (score["task"], score["data"]) == (task, data):
                    found.setdefault(score["method"], {}).setdefault(score["metric"], score)
    return found


def shown(score: Mapping[str, Any] | None, with_spread: bool = False) -> str:
    """Return a score with its interval, and its deviation over seeds if asked for."""
    if score is None or score["value"] is None:
        return "-"
    value, low, high = (f"{round(score[key], 3) + 0.0:.3f}" for key in ("value", "low", "high"))  # + 0.0: no "-0.000"
    text = f"{value} [{low}, {high}]"
    return f"{text} ± {score['spread']:.3f}" if with_spread else text


def scores_table(
    title: str, task: str, data: str, columns: Mapping[str, str], *reports: str, with_spread: bool = False
) -> Callable[[], str]:
    """Return what writes a table of one data set; `columns` are metrics by their headers."""

    def write() -> str:
        found = scores_of(task, data, *reports)
        rows = [
            [method, *(shown(row.get(metric), with_spread) for metric in columns.values())]
            for method, row in sorted(found.items(), key=lambda item: "random" in item[0] or "shuffled" in item[0])
            if any(metric in row for metric in columns.values())
        ]
        return table([title, *columns], rows)

    return write


def sparsity_table(
    title: str, task: str, data: str, metric: str, levels: Sequence[int], report: str, as_read: bool = False
) -> Callable[[], str]:
    """Return what writes a table of one metric against the share of zeros, in per cent."""

    def write() -> str:
        places = {"as read": data} if as_read else {}
        places |= {f"{level} %": f"{data}, {level}% zeros" for level in levels}
        found = {header: scores_of(task, place, report) for header, place in places.items()}
        methods = [method for method, row in next(iter(found.values())).items() if metric in row]
        rows = [[method, *(shown(each.get(method, {}).get(metric)) for each in found.values())] for method in methods]
        return table([title, *found], rows)

    return write


def lines_table() -> str:
    """Return the error of the genes that change most, and of all, in three cell lines of another screen."""
    columns = {"mse top20": "mse_top20", "mae": "mae"}
    found = {line: scores_of("perturbation", f"{MCFALINE} {line}, split by genes", "perturbation") for line in LINES_3}
    rows = [
        [method, *(shown(of_line[method][metric]) for of_line in found.values() for metric in columns.values())]
        for method in found[LINES_3[0]]
    ]
    headers = [f"{line}: {header}" for line in LINES_3 for header in columns]
    return table(["perturbation, unseen genes, another screen", *headers], rows)


EMBEDDING = {name: name for name in ("k-NN macro-F1", "linear probe macro-F1", "ARI", "NMI")}
BLOOD, PANCREAS, LINES = "pbmc_facs_zheng.h5ad", "pancreas_pdac_moncada7000.h5ad", "celllines_mixology_dev.h5ad"
CHEMISTRIES, FROZEN, KANG = "pbmc_3chemistries.h5ad", "pbmc_frozen_donorA.h5ad", "kang_ifnb.h5ad"
NORMAN = "perturbseq_norman_mcfaline500.h5ad, dataset norman19, split by"
MCFALINE, LINES_3 = "perturbseq_norman_mcfaline500.h5ad, cell_type", ("A172", "T98G", "U87MG")
SYNERGY = "oneil_loewe_deepsynergy_folds0-3.csv.gz, by pair"
BEYOND = "Pearson beyond gene means"
ZERO_SHOT, MASKED = "zero-shot embedding", "masked values"
OF_BATCHES = {name: name for name in ("ASW of batches", "mixing of batches")}
ACROSS = {name: name for name in ("k-NN macro-F1", "linear probe macro-F1", "ARI", "mixing of batches")}
RESPONSE = {name: name for name in ("k-NN macro-F1", "linear probe macro-F1", "ASW of labels")}
NAMING = {
    "accuracy": "accuracy", "macro-F1": "macro-F1", "calibration error": "calibration error",
    "coverage of 95 % sets": "coverage of 95 % sets", "unknown AUROC": "unknown AUROC",
    "unknown AUROC, probability alone": "unknown AUROC, probability alone",
}  # fmt: skip
RELATIONS = {"Reactome": "recall, Reactome", "CORUM": "recall, CORUM", "STRING": "recall, StringDB"}
CHANGES = {
    name.replace("_", " "): name for name in ("mse_top20", "pearson_change", "pearson_beyond_mean", "centroid_accuracy")
}
PAIRS = {name: name for name in ("mse", "pearson", "spearman")}
SCREENS = "screens.h5ad, dataset"
REPRESENTED = {
    name: name
    for name in (
        "linear probe", "k-NN", "perturbation consistency", "invertibility, Spearman", "structural integrity", "iLISI"
    )
}  # fmt: skip
ALL_RELATIONS = RELATIONS | {"all three": "recall, all files"}
ABLATION = {
    "Pearson": "Pearson", "of expressed values": "Pearson of expressed",
    "beyond gene means": BEYOND,
    "k-NN macro-F1": "k-NN macro-F1", "linear probe macro-F1": "linear probe macro-F1", "ARI": "ARI", "NMI": "NMI",
}  # fmt: skip
WITH_SCVI = ("evaluation", "evaluation_scvi")

# -- embedding ---------------------------------------------------------------------------------------------------------


def studied_methods(size: str) -> dict[str, str]:
    """Return the methods of the study of embeddings with a model of a size, and how tables name them."""
    return {
        size: f"`{size}`",
        f"bag of genes of {size}": "its bag of genes alone",
        f"PCA of the corpus of {size}": "PCA of the same corpus",
        "PCA of variable genes": "PCA of the evaluated cells",
        f"{size}, not trained": f"`{size}`, not trained",
    }


DATA_SETS = {
    "pbmc_facs_zheng": "sorted blood", "pancreas_pdac_moncada7000": "pancreatic tumour",
    "celllines_mixology_dev": "cell lines", "pbmc_3chemistries": "three chemistries", "kang_ifnb": "interferon",
}  # fmt: skip


def with_range(values: Sequence[float]) -> str:
    """Return the mean of values and their range, as `0.790 (0.782 to 0.794)`."""
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def studied(title: str, dataset: str, columns: Mapping[str, str]) -> Callable[[], str]:
    """Return a function to the scores of embeddings of a data set: the mean of the seeds, and their range."""

    def block() -> str:
        runs = [run["scores"][dataset] for run in results("results/embedding")["seeds"]]
        rows = []
        for method, name in studied_methods("tiny").items():
            of_seeds = {metric: [run[metric][method]["value"] for run in runs] for metric in columns.values()}
            cells = [with_range(each) for each in of_seeds.values()]
            rows.append([name, *cells, str(runs[0][next(iter(columns.values()))][method]["seen"])])
        return table([title, *columns, "trained on these cells"], rows)

    return block


SUMMARY = {
    "blood: k-NN macro-F1": ("pbmc_facs_zheng", "k-NN macro-F1"), "ARI": ("pbmc_facs_zheng", "ARI"),
    "tumour: k-NN": ("pancreas_pdac_moncada7000", "k-NN macro-F1"), "its ARI": ("pancreas_pdac_moncada7000", "ARI"),
    "cell lines: k-NN": ("celllines_mixology_dev", "k-NN macro-F1"),
    "mixing": ("celllines_mixology_dev", "mixing of batches"),
    "chemistries: mixing": ("pbmc_3chemistries", "mixing of batches"),
    "interferon: k-NN": ("kang_ifnb", "k-NN macro-F1"),
}  # fmt: skip


def summary_rows(runs: Sequence[Mapping[str, Any]], methods: Mapping[str, str], ranges: bool) -> list[list[str]]:
    """Return a row for each method: a score of each data set, the mean of the seeds, with their range if asked for."""
    rows = []
    for method, name in methods.items():
        of_seeds = [[run["scores"][data][metric][method]["value"] for run in runs] for data, metric in SUMMARY.values()]
        rows.append([name, *(with_range(each) if ranges else f"{fmean(each):.3f}" for each in of_seeds)])
    return rows


def studied_summary() -> str:
    """Return one score of each data set for each method, the mean of the seeds."""
    runs = results("results/embedding")["seeds"]
    return table([f"mean of {len(runs)} seeds", *SUMMARY], summary_rows(runs, studied_methods("tiny"), ranges=False))


def txfm_summary() -> str:
    """Return the same for TxFM beside xTrimoGene, with the range of the seeds, and what the pre-training cost."""
    found, ours = results("results/embedding_txfm"), results("results/embedding")["seeds"]
    runs, kept = found["seeds"], ("tiny", "bag of genes of tiny")
    cpu = [run["CPU seconds"] for run in runs]
    said = paragraph(
        f"One `txfm-tiny` for all five data sets, {runs[0]['cells']['train']:,} cells; the evaluated cells are not "
        f"among them. {found['steps']} steps of 16 cells after the bag of genes, {min(cpu)} to {max(cpu)} CPU "
        f"seconds. Mean and range of {len(runs)} pre-training(s), beside those of xTrimoGene:"
    )
    rows = summary_rows(runs, studied_methods("txfm-tiny"), ranges=True)
    beside = {name: {"tiny": "xTrimoGene `tiny`"}.get(name, "bag of genes of `tiny`") for name in kept}
    return f"{said}\n\n" + table(["", *SUMMARY], rows + summary_rows(ours, beside, ranges=True))


def beside() -> str:
    """Return the table of README.md: models of this package beside PCA, scVI and logistic regression."""
    seeds = [run["scores"] for run in results("results/embedding")["seeds"]]
    questions = {
        "Neighbours of a cell are of its type: sorted blood, k-NN macro-F1": ("pbmc_facs_zheng", "k-NN macro-F1"),
        "Clusters are types: sorted blood, ARI": ("pbmc_facs_zheng", "ARI"),
        "Batches mix: blood by three chemistries": ("pbmc_3chemistries", "mixing of batches"),
    }
    rows = []
    for question, (data, metric) in questions.items():
        ours, pca = (
            fmean(run[data][metric][name]["value"] for run in seeds) for name in ("tiny", "PCA of the corpus of tiny")
        )
        scvi = scores_of(ZERO_SHOT, f"{data}.h5ad", "evaluation_scvi")["scVI"][metric]["value"]
        rows.append([question, *in_bold(ours, pca, scvi), "-"])
    found = {(row["test set"], row["method"]): row["accuracy"] for row in results("results/annotators")["rows"]}
    for test_set in dict.fromkeys(name for name, _ in found):
        ours, regression = (found[test_set, name] for name in ("xTrimoGene, fine-tuned", "logistic regression"))
        first, last = in_bold(ours, regression)
        rows.append([f"Names are right: {test_set}, accuracy", first, "-", "-", last])
    said = paragraph(
        f"Embeddings are of `tiny`, {len(seeds)} seeds, beside PCA of the same cells that it was trained on; scVI was "
        f"trained on the evaluated cells themselves. Annotators and logistic regression learned from the same labels."
    )
    return table(["", "xTrimoGene", "PCA", "scVI", "logistic regression"], rows) + f"\n\n{said}"


def in_bold(*values: float) -> list[str]:
    """Return scores as text, those that are best to three decimals in bold."""
    texts = [f"{value:.3f}" for value in values]
    return [f"**{text}**" if text == max(texts) else text for text in texts]


def txfm_speed() -> str:
    """Return the speed of training steps by genes shown, beside an encoder that sees all of them."""
    found = results("results/txfm_speed")
    rows = [
        [
            f"{int(shown):,} genes" if shown.isdigit() else f"all {found['genes']:,} genes, plain encoder",
            f"{each['cells a second']:.2f}",
            f"{each['times as fast as all genes']:.1f}x",
            f"{each['MiB kept for the backward pass']:,.0f}",
        ]
        for shown, each in found["steps"].items()
    ]
    said = paragraph(
        f"`{found['size']}`, forward and backward of {found['cells']} cells on {found['threads']} thread(s). Batches "
        f"of {found['collating']['genes shown']:,} genes are made of "
        f"{found['collating']['cells a second of one core']:,} cells a second by one core."
    )
    header = ["shown", "cells a second", "times as fast", "MiB kept for the backward pass"]
    return f"{said}\n\n" + table(header, rows)


def studied_masks() -> str:
    """Return how masked values of cells that were not trained on are recovered: the mean of the seeds."""
    runs = [run["recovered"] for run in results("results/embedding")["seeds"]]
    names = {"tiny": "`tiny`", "PCA": "PCA imputer"}
    rows = []
    for dataset, title in DATA_SETS.items():
        for level in runs[0][dataset]:
            row = [f"{title}, {level.replace(' zeros', ' of the genes zero')}"]
            for metric in ("Pearson beyond gene means", "Pearson"):
                each = {name: [run[dataset][level][name][metric] for run in runs] for name in names}
                row += [with_range(values) for values in each.values()]
            rows.append(row)
    columns = [f"{metric}: {name}" for metric in ("beyond gene means", "Pearson") for name in names.values()]
    return table(["masked values", *columns], rows)


def studied_cost() -> str:
    """Return what was trained, and for how long."""
    found = results("results/embedding")
    runs, cells = found["seeds"], found["seeds"][0]["cells"]
    cpu, wall = ([run[key] for run in runs] for key in ("CPU seconds", "seconds"))
    return paragraph(
        f"One `tiny` for all five data sets, {cells['train']:,} cells of six files; the evaluated cells are not among "
        f"them. After the bag of genes, {found['steps']:,} steps of 16 cells. Mean and range of {len(runs)} "
        f"pre-trainings, {min(wall):,} to {max(wall):,} seconds each ({min(cpu):,} to {max(cpu):,} CPU seconds on "
        f"shared cores, reading and baselines included)."
    )


ADAPTED = {
    "adapted": "`tiny`, adapted without labels", "tiny": "`tiny`", "PCA of the corpus of tiny": "PCA of the corpus",
    "PCA of variable genes": "PCA of the scored cells",
}  # fmt: skip


def adapted() -> str:
    """Return scores of data sets that are left out of pre-training, before and after adaptation to half of them."""
    runs = [run["data sets"] for run in results("results/adaptation")["seeds"]]
    metrics = {"k-NN macro-F1": "k-NN macro-F1", "ARI": "ARI", "mixing": "mixing of batches"}
    rows = []
    for dataset in runs[0]:
        scores = [run[dataset]["scores"] for run in runs]
        for method, name in ADAPTED.items():
            of_seeds = (
                [each[metric][method]["value"] for each in scores if metric in each] for metric in metrics.values()
            )
            cells = [with_range(values) if values else "" for values in of_seeds]
            rows.append([DATA_SETS[dataset], name, *cells])
    return table(["data set", "", *metrics], rows)


def adapted_cost() -> str:
    """Return to how many cells `tiny` was adapted, and what that took and gained."""
    found = results("results/adaptation")["seeds"]
    parts = []
    for dataset in found[0]["data sets"]:
        each = [run["data sets"][dataset] for run in found]
        cells = sum(each[0]["gained"]["cells"].values())
        cpu = [run["CPU seconds"] for run in each]
        before, after = (
            fmean(run["gained"][f"nats of a count {when}"] for run in each) for when in ("before", "after")
        )
        parts.append(
            f"{DATA_SETS[dataset]}: {cells:,} cells, {min(cpu)} to {max(cpu)} CPU seconds, {before:.2f} to {after:.2f} "
            f"nats"
        )
    return paragraph(
        f"Pre-trained on {found[0]['cells']['train']:,} blood cells, with {len(found)} seeds. Adapted to half of the "
        f"cells of a data set, and scored on the other half. {'; '.join(parts)} of a held-out count."
    )


FEW_LABELS = ("5 labels", "10 labels", "20 labels", "all labels")
ANNOTATORS = {
    "tiny, first step": "`tiny`, first step",
    "tiny, fine-tuned": "`tiny`, fine-tuned",
    "logistic regression on PCA of the corpus of tiny": "PCA of the corpus",
    "logistic regression": "genes",
}
LABELLED = {
    "pbmc_facs_zheng": "sorted blood", "pancreas_pdac_moncada7000": "pancreatic tumour",
    "kang_ifnb_typed": "blood of lupus patients", "bonemarrow_aml_seqwell": "bone marrow, AML or healthy",
    "brain_allen2023_pcmp": "cortex", "ipsc_cm_timecourse_c1": "heart cells from stem cells, day",
}  # fmt: skip


def few_labels(has_differences: bool) -> Callable[[], str]:
    """Return a function to the macro-F1 of annotators with few labels, or to what it differs from that on genes."""

    def block() -> str:
        rows = []
        for result in results("results/few_labels")["results"]:
            data = f"{result['data']}, less logistic regression" if has_differences else result["data"]
            found = {(each["method"], each["metric"]): each for each in result["scores"] if each["data"] == data}
            for method, name in ANNOTATORS.items():
                scores = [found.get((method, f"macro-F1, {number}")) for number in FEW_LABELS]
                if any(scores):
                    seen = next(each["seen"] for each in scores if each)
                    rows.append([LABELLED[result["data"]], name, *map(shown, scores), seen])
        title = "macro-F1, less that on genes" if has_differences else "macro-F1"
        return table([title, "", *FEW_LABELS, "trained on these cells"], rows)

    return block


def few_labels_cost() -> str:
    """Return what annotators of few labels were trained on, and for how long."""
    found = results("results/few_labels")
    runs, cells = found["seeds"], found["seeds"][0]["cells"]
    seconds = [run["seconds of pre-training"] for run in runs]
    epochs = " or ".join(sorted({str(each["fine-tuning epochs"]) for each in found["results"]} - {"0"}))
    tests = "; ".join(
        f"{LABELLED[each['data']]}: {each['scores'][0]['units']} of {each['cells']:,} cells, {each['types']} labels"
        for each in found["results"]
    )
    return paragraph(
        f"Mean of {len(runs)} seed(s), each a pre-training of {cells['train']:,} cells with {found['steps']} step(s) "
        f"after the bag of genes ({min(seconds)} to {max(seconds)} seconds on shared cores), and test cells and "
        f"labelled cells of its own; fine-tuned in {epochs} pass(es) over the labelled cells. "
        f"Test cells: {tests}."
    )


# -- checkpoints that come with the package ---------------------------------------------------------------------------

CHECKPOINTS = {"small": "xTrimoGene", "txfm-small": "TxFM", "blood-annotator": "annotator on `small`"}
TRIED = {
    "pbmc_hao_citeseq": "blood, another laboratory",
    "kang_ifnb_typed": "blood, other cells of a study that was trained on",
    "lymphoma_malt_10x": "lymphoma",
    "bonemarrow_aml_seqwell": "bone marrow, healthy and leukaemic, Seq-Well",
    "retina_rgc_ascend": "retina from stem cells",
    "ipsc_cm_timecourse_c1": "stem cells becoming heart muscle, full-length reads",
    "brain_allen2023_pcmp": "nuclei of the cortex, full-length reads",
}


def released() -> dict[str, Any]:
    """Return name -> what was measured, of the checkpoints that come with the package and are measured.

    Raises:
        FileNotFoundError: If none is.
    """
    found = results("results/checkpoints")
    return {name: found[name] for name in CHECKPOINTS if name in found}


def released_table() -> str:
    """Return the checkpoints that come with the package: size, cells, time of training."""
    rows = []
    for name, found in released().items():
        run = found["run"]
        cells, size = run["cells"]["train"], f"{found['bytes'] / 1e6:.1f} MB"
        rows.append([f"`{name}`", CHECKPOINTS[name], f"{cells:,}", size])
    return table(["checkpoint", "what it is", "cells trained on", "files"], rows)


def released_embedding() -> str:
    """Return scores of the embeddings of the checkpoints, beside PCA of the cells that they were trained on."""
    metrics = ("k-NN macro-F1", "ARI", "mixing of batches")
    rows = []
    bases = {name: found["embedding"] for name, found in released().items() if "embedding" in found}
    for data, title in DATA_SETS.items():
        for name, scores in bases.items():
            for method, row in scores[data].items():
                if method != name and name != next(iter(bases)):
                    continue  # PCA of the same cells is one for all
                shown = f"`{method}`" if method == name else method
                values = (f"{row[metric]:.3f}" if metric in row else "-" for metric in metrics)
                rows.append([title, shown, *values, row["seen"]])
    return table(["evaluated cells", "", *metrics, "trained on these cells"], rows)


def released_rounding() -> str:
    """Return what rounding weights changes."""
    rows = []
    for name, found in released().items():
        for dtype, row in found["rounding"].items():
            accuracy = f"{row['accuracy']:.3f}" if "accuracy" in row else "-"
            change = f"{row['largest change of a probability']:.4f}" if "accuracy" in row else "-"
            shift = f"{row['shift of embeddings']:.5f}"
            rows.append([f"`{name}`", dtype, shift, f"{row['k-NN macro-F1']:.3f}", accuracy, change])
    header = ["", "weights", "shift of embeddings", "k-NN macro-F1", "accuracy", "largest change of a probability"]
    return table(header, rows)


def released_familiar() -> str:
    """Return the share of cells that are called unfamiliar, by data set."""
    bases = {name: found["familiar"] for name, found in released().items() if "familiar" in found}
    first = next(iter(bases.values()))
    rows = [
        [
            (DATA_SETS | TRIED)[data],
            "other cells" if row["trained on others of the data set"] else "no",
            f"{row['cells']:,}",
            *(share(found[data]["unfamiliar"]) for found in bases.values()),
        ]
        for data, row in first.items()
    ]
    return table(["cells", "trained on", "number", *(f"unfamiliar to `{name}`" for name in bases)], rows)


def released_annotation() -> str:
    """Return how the annotator does on cells of other experiments."""
    if "blood-annotator" not in (found := released()):
        raise FileNotFoundError("the annotator is not measured")
    rows = []
    for title, methods in found["blood-annotator"]["annotation"].items():
        for method, row in methods.items():
            figures = (
                "-" if row.get(key) is None else f"{row[key]:.3f}"
                for key in ("accuracy", "accuracy of the others", "calibration error")
            )
            shown = f"`{method}`" if method in CHECKPOINTS else method
            rows.append([title, f"{row['cells']:,}", shown, *figures, share(row.get("called unknown"))])
    header = ["cells", "number", "", "accuracy", "of those not called unknown", "calibration error", "called unknown"]
    return table(header, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "pretrain_blood": pretrain_blood,
    "beside": beside,
    "finetune_blood": finetune_blood,
    "annotators": annotators,
    "order": order,
    "attention": attention,
    "tuning": tuning,
    "txfm_plateau": txfm_plateau,
    "txfm, summary": txfm_summary,
    "txfm_speed": txfm_speed,
    "unmeasured": unmeasured,
    "precision": precision,
    "speed": speed,
    "corpus": corpus,
    "decoder_context": decoder_context,
    "favor_backend": favor_backend,
    "int8": int8,
    "criss_cross": criss_cross,
    "demo": demo,
    "plan": plan,
    "half_hour": half_hour,
    "checkpoints": released_table,
    "checkpoints, embedding": released_embedding,
    "checkpoints, rounding": released_rounding,
    "checkpoints, familiar": released_familiar,
    "checkpoints, annotation": released_annotation,
    "embedding, cost": studied_cost,
    "embedding, summary": studied_summary,
    "embedding, blood": studied("sorted blood cells", "pbmc_facs_zheng", EMBEDDING),
    "embedding, pancreas": studied("pancreatic tumour", "pancreas_pdac_moncada7000", EMBEDDING),
    "embedding, cell lines": studied("cell lines, across batches", "celllines_mixology_dev", ACROSS),
    "embedding, chemistries": studied("three chemistries", "pbmc_3chemistries", OF_BATCHES),
    "embedding, interferon": studied("interferon or not", "kang_ifnb", RESPONSE),
    "embedding, masked values": studied_masks,
    "adaptation, cost": adapted_cost,
    "adaptation": adapted,
    "few labels, cost": few_labels_cost,
    "few labels": few_labels(has_differences=False),
    "few labels, differences": few_labels(has_differences=True),
    "zero-shot, blood": scores_table("zero-shot, sorted blood cells", ZERO_SHOT, BLOOD, EMBEDDING, *WITH_SCVI),
    "zero-shot, pancreas": scores_table("zero-shot, pancreatic tumour", ZERO_SHOT, PANCREAS, EMBEDDING, *WITH_SCVI),
    "zero-shot, cell lines": scores_table(
        "zero-shot, cell lines, across batches", ZERO_SHOT, LINES, ACROSS, *WITH_SCVI
    ),
    "zero-shot, chemistries": scores_table(
        "zero-shot, three chemistries", ZERO_SHOT, CHEMISTRIES, OF_BATCHES, *WITH_SCVI
    ),
    "zero-shot, interferon": scores_table("zero-shot, interferon or not", ZERO_SHOT, KANG, RESPONSE, *WITH_SCVI),
    "annotation, blood": scores_table("annotation, sorted blood cells", "annotation", BLOOD, NAMING, "evaluation"),
    "annotation, pancreas": scores_table("annotation, pancreatic tumour", "annotation", PANCREAS, NAMING, "evaluation"),
    "recovery": sparsity_table("masked values, Pearson", MASKED, FROZEN, "Pearson", (95, 96, 97, 98), "evaluation"),
    "recovery, chemistries": sparsity_table(
        "three chemistries, Pearson", MASKED, CHEMISTRIES, "Pearson", (90, 92, 94, 96, 98), "evaluation"
    ),
    "recovery beyond means": sparsity_table(
        "masked values, beyond gene means", MASKED, FROZEN, BEYOND, (95, 96, 97, 98), "evaluation"
    ),
    "recovery beyond means, chemistries": sparsity_table(
        "three chemistries, beyond gene means", MASKED, CHEMISTRIES, BEYOND, (90, 92, 94, 96, 98), "evaluation"
    ),
    "relations": scores_table("gene relations, recall", "gene relations", BLOOD, RELATIONS, "evaluation"),
    "representation, K562": scores_table(
        "K562, embeddings as they are", "representation", f"{SCREENS} norman19, as it is", REPRESENTED, "representation"
    ),
    "representation, K562, best": scores_table(
        "K562, best of four", "representation", f"{SCREENS} norman19, best of these", REPRESENTED, "representation"
    ),
    "representation, lines, best": scores_table(
        "three lines, best of four",
        "representation",
        f"{SCREENS} mcfaline23, best of these",
        REPRESENTED,
        "representation",
    ),
    "representation, relations": scores_table(
        "gene relations, recall", "gene relations", BLOOD, ALL_RELATIONS, "representation"
    ),
    "perturbation, genes": scores_table(
        "perturbation, unseen genes", "perturbation", f"{NORMAN} genes", CHANGES, "perturbation"
    ),
    "perturbation, doubles": scores_table(
        "perturbation, doubles from singles", "perturbation", f"{NORMAN} doubles", CHANGES, "perturbation"
    ),
    "perturbation, lines": lines_table,
    "synergy": scores_table("synergy, unseen pairs", "synergy", SYNERGY, PAIRS, "evaluation"),
    "performer": sparsity_table(
        "cell lines, Pearson", "ablation", LINES, "Pearson", (70, 80, 90, 95, 98), "performer", as_read=True
    ),
    "performer beyond means": sparsity_table(
        "cell lines, beyond gene means", "ablation", LINES, BEYOND, (70, 80, 90, 95, 98), "performer", as_read=True
    ),
    "ablation": scores_table("ablation", "ablation", BLOOD, ABLATION, "ablation", with_spread=True),
}


def main() -> int:
    """Write all documents; return 1 if figures stand outside of blocks."""
    loose = 0
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: figures written anew")
        for figure in uncovered(after):
            loose += 1
            print(f"{path.relative_to(ROOT)}: not from a file of results: ... {figure} ...", file=sys.stderr)
    return int(loose > 0)


if __name__ == "__main__":
    sys.exit(main())
