"""What training came to, and what choices in it do."""

from collections.abc import Callable, Mapping
from statistics import fmean, stdev
from typing import Any

from . import OF_TRAINING_MEANS, paragraph, results, runs, share, table, with_range

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
    found = runs("finetune_blood_seed*.json")
    cells, epochs, seeds = found[0]["cells"], found[0]["epochs"], len(found)
    values = {
        name: {key: [run[ANNOTATION][name][key] for run in found] for key in ("accuracy", "macro_f1")}
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


BLOCKS: dict[str, Callable[[], str]] = {
    "pretrain_blood": pretrain_blood,
    "finetune_blood": finetune_blood,
    "annotators": annotators,
    "order": order,
    "attention": attention,
    "tuning": tuning,
    "txfm_plateau": txfm_plateau,
    "unmeasured": unmeasured,
    "precision": precision,
    "decoder_context": decoder_context,
    "favor_backend": favor_backend,
    "int8": int8,
    "criss_cross": criss_cross,
    "demo": demo,
    "plan": plan,
    "half_hour": half_hour,
}
