"""The studies of embeddings: beside PCA and scVI, adaptation, few labels."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from . import paragraph, results, table, with_range
from .evaluation import ACROSS, EMBEDDING, OF_BATCHES, RESPONSE, scores_of, shown


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


def summary_rows(
    runs: Sequence[Mapping[str, Any]], methods: Mapping[str, str], ranges: bool, columns: Sequence[str] = tuple(SUMMARY)
) -> list[list[str]]:
    """Return a row for each method: its scores in columns, the mean of the seeds, with their range if asked for."""
    rows = []
    for method, name in methods.items():
        of_seeds = [
            [run["scores"][data][metric][method]["value"] for run in runs]
            for data, metric in (SUMMARY[column] for column in columns)
        ]
        rows.append([name, *(with_range(each) if ranges else f"{fmean(each):.3f}" for each in of_seeds)])
    return rows


def scvi_row() -> list[str]:
    """Return the row of scVI, which was trained on the evaluated cells themselves: the mean of its seeds."""
    cells = []
    for data, metric in SUMMARY.values():
        scores = scores_of("zero-shot embedding", f"{data}.h5ad", "evaluation_scvi")["scVI"]
        cells.append(f"{scores[metric]['value']:.3f}" if metric in scores else "-")
    return ["scVI, trained on the evaluated cells", *cells]


def studied_summary() -> str:
    """Return one score of each data set for each method, the mean of the seeds."""
    runs = results("results/embedding")["seeds"]
    rows = summary_rows(runs, studied_methods("tiny"), ranges=False)
    return table([f"mean of {len(runs)} seeds", *SUMMARY], [*rows, scvi_row()])


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


def time_to_quality() -> str:
    """Return the best k-NN score of `tiny` and scVI on each data set, and CPU seconds until it is nearly reached."""
    rows = []
    for dataset, seeds in results("results/time_to_quality")["data sets"].items():
        rows.append([DATA_SETS[dataset], str(len(seeds))])
        for method in ("tiny", "scVI"):
            seconds = [run[method]["seconds"] for run in seeds]
            rows[-1] += [
                with_range([run[method]["best"] for run in seeds]),
                f"{min(seconds):.0f} to {max(seconds):.0f}",
            ]
        shares = [run["tiny"]["seconds"] / run["scVI"]["seconds"] for run in seeds]
        rows[-1].append(f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %")
    header = ["data set", "seeds", "best of `tiny`", "its CPU seconds", "best of scVI", "its CPU seconds"]
    return table([*header, "`tiny` / scVI"], rows)


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


MIXED = ("blood: k-NN macro-F1", "cell lines: k-NN", "mixing", "chemistries: mixing")  # of the summary


def mixed() -> str:
    """Return how batches mix with what is done for it, beside PCA of the same corpus: the mean of the seeds."""
    seeds = results("results/batches")["seeds"]
    of_ways = {way: [{"scores": run["scores"][way]} for run in seeds] for way in seeds[0]["scores"]}
    rows = [row for way, runs in of_ways.items() for row in summary_rows(runs, {"tiny": way}, True, MIXED)]
    of_pca = {"PCA of the corpus of tiny": "PCA of the same corpus"}
    rows += summary_rows(next(iter(of_ways.values())), of_pca, True, MIXED)
    return table([f"mean of {len(seeds)} seed(s)", *MIXED], rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "batches": mixed,
    "embedding, cost": studied_cost,
    "embedding, summary": studied_summary,
    "embedding, blood": studied("sorted blood cells", "pbmc_facs_zheng", EMBEDDING),
    "embedding, pancreas": studied("pancreatic tumour", "pancreas_pdac_moncada7000", EMBEDDING),
    "embedding, cell lines": studied("cell lines, across batches", "celllines_mixology_dev", ACROSS),
    "embedding, chemistries": studied("three chemistries", "pbmc_3chemistries", OF_BATCHES),
    "embedding, interferon": studied("interferon or not", "kang_ifnb", RESPONSE),
    "embedding, masked values": studied_masks,
    "time to quality": time_to_quality,
    "adaptation, cost": adapted_cost,
    "adaptation": adapted,
    "few labels, cost": few_labels_cost,
    "few labels": few_labels(has_differences=False),
    "few labels, differences": few_labels(has_differences=True),
}
