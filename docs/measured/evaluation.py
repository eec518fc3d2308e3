"""Scores of the tasks of `xtrimogene evaluate`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import results, table


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
CHEMISTRIES, KANG, LUPUS = "pbmc_3chemistries.h5ad", "kang_ifnb.h5ad", "kang_ifnb_typed.h5ad"
MARROW, HEART, CORTEX = "bonemarrow_aml_seqwell.h5ad", "ipsc_cm_timecourse_c1.h5ad", "brain_allen2023_pcmp.h5ad"
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
RECOVERY = {
    name: (
        sparsity_table(f"{title}, Pearson", MASKED, data, "Pearson", levels, "evaluation"),
        sparsity_table(f"{title}, beyond gene means", MASKED, data, BEYOND, levels, "evaluation"),
    )
    for name, title, data, levels in (
        ("chemistries", "three chemistries", CHEMISTRIES, (90, 92, 94, 96, 98)),
        ("bone marrow", "bone marrow", MARROW, (95, 96, 97, 98)),
        ("heart", "heart cells", HEART, (80, 90, 95, 98)),
    )
}


BLOCKS: dict[str, Callable[[], str]] = {
    "zero-shot, blood": scores_table("zero-shot, sorted blood cells", ZERO_SHOT, BLOOD, EMBEDDING, *WITH_SCVI),
    "zero-shot, pancreas": scores_table("zero-shot, pancreatic tumour", ZERO_SHOT, PANCREAS, EMBEDDING, *WITH_SCVI),
    "zero-shot, cell lines": scores_table(
        "zero-shot, cell lines, across batches", ZERO_SHOT, LINES, ACROSS, *WITH_SCVI
    ),
    "zero-shot, chemistries": scores_table(
        "zero-shot, three chemistries", ZERO_SHOT, CHEMISTRIES, OF_BATCHES, *WITH_SCVI
    ),
    "zero-shot, interferon": scores_table("zero-shot, interferon or not", ZERO_SHOT, KANG, RESPONSE, *WITH_SCVI),
    "zero-shot, lupus": scores_table("zero-shot, blood of lupus patients", ZERO_SHOT, LUPUS, ACROSS, "evaluation"),
    "zero-shot, bone marrow": scores_table(
        "zero-shot, bone marrow, AML or healthy", ZERO_SHOT, MARROW, RESPONSE, "evaluation"
    ),
    "zero-shot, heart": scores_table("zero-shot, heart cells, day", ZERO_SHOT, HEART, EMBEDDING, "evaluation"),
    "zero-shot, cortex": scores_table("zero-shot, cortex, across donors", ZERO_SHOT, CORTEX, ACROSS, "evaluation"),
    "annotation, blood": scores_table("annotation, sorted blood cells", "annotation", BLOOD, NAMING, "evaluation"),
    "annotation, pancreas": scores_table("annotation, pancreatic tumour", "annotation", PANCREAS, NAMING, "evaluation"),
    "annotation, lupus": scores_table("annotation, blood of lupus patients", "annotation", LUPUS, NAMING, "evaluation"),
    "annotation, bone marrow": scores_table(
        "annotation, bone marrow, AML or healthy", "annotation", MARROW, NAMING, "evaluation"
    ),
    "annotation, heart": scores_table("annotation, heart cells, day", "annotation", HEART, NAMING, "evaluation"),
    "annotation, cortex": scores_table("annotation, cortex", "annotation", CORTEX, NAMING, "evaluation"),
    **{f"recovery, {name}": of_pearson for name, (of_pearson, _) in RECOVERY.items()},
    **{f"recovery beyond means, {name}": beyond for name, (_, beyond) in RECOVERY.items()},
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
