"""The studies of TxFM: beside xTrimoGene, held-out losses, the paper's choices one by one, and speed."""

from collections.abc import Callable
from statistics import fmean

from . import paragraph, results, table, with_range
from .embedding import DATA_SETS, SUMMARY, scvi_row, studied_methods, summary_rows


def txfm_summary() -> str:
    """Return a score of each data set for TxFM beside xTrimoGene, with their ranges, and what pre-training cost."""
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
    return f"{said}\n\n" + table(["", *SUMMARY], [*rows, *summary_rows(ours, beside, ranges=True), scvi_row()])


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


def txfm_losses() -> str:
    """Return which share of the loss that the mean profile leaves is explained in held-out cells of each data set."""
    runs = results("results/txfm_losses")["seeds"]
    rows = [
        [
            name,
            *(f"{fmean(run[data][loss] for run in runs):.2f}" for loss in ("mean profile", "model", "known")),
            with_range([run[data]["explained"] for run in runs]),
        ]
        for data, name in DATA_SETS.items()
    ]
    means = [fmean(run[data]["explained"] for data in DATA_SETS) for run in runs]
    rows.append(["mean of the data sets", "", "", "", with_range(means)])
    header = ["held-out cells of", "loss of the mean profile", "of `txfm-tiny`", "of known values", "explained"]
    return table(header, rows)


CHOSEN = ("Pearson beyond gene means", "k-NN macro-F1", "linear probe macro-F1")


def txfm_choices() -> str:
    """Return what TxFM without an anchor comes to with one choice changed, and on which cells."""
    found = results("results/txfm_choices")
    of_choices: dict[str, list[dict[str, float]]] = {}
    for run in found["runs"]:
        of_choices.setdefault(run["choice"], []).append(run)
    rows = [
        [name, *(with_range([run[metric] for run in runs]) for metric in CHOSEN)] for name, runs in of_choices.items()
    ]
    said = paragraph(
        f"`txfm-tiny` without an anchor on {found['genes']:,} genes, {found['steps']} steps of 32 cells; "
        f"{found['cells']['train']:,} sorted blood cells, {found['cells']['held out']} held out. Mean and range of "
        f"{len(next(iter(of_choices.values())))} seed(s):"
    )
    return f"{said}\n\n" + table(["changed", *CHOSEN], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "txfm, summary": txfm_summary,
    "txfm_losses": txfm_losses,
    "txfm_choices": txfm_choices,
    "txfm_speed": txfm_speed,
}
