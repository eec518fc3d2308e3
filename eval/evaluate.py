"""Run protocols by name on files: one, or a plan of many, and write one report.

plan.yaml                                    TASKS[task](file, checkpoints, ...)
  checkpoints: {name: folder}        ---->   TaskResult, TaskResult, ...   ---->   report.html, metrics.json, table.md
  tasks: [{task, data, ...}, ...]
"""

import inspect
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..tokenization.counts_xtrimogene import checked_slots, load
from .ablation import evaluate_ablation
from .annotation import evaluate_annotation
from .embedding import evaluate_embedding
from .perturbation import PerturbationPredictions, evaluate_perturbation
from .pictures import scatter_panels
from .recovery import evaluate_recovery
from .relations import evaluate_relations
from .report import check_output, file_hash, write_report
from .results import TaskResult
from .synergy import evaluate_synergy

if TYPE_CHECKING:
    from anndata import AnnData

PANELS = 8  # perturbations in the picture
PERTURBATION_PROTOCOL = (
    "Mean profiles after perturbing genes are predicted from control cells. Split: {split}. Errors over the 20 "
    "genes that change most and over all, correlation of the change from control (all genes, the 20, and beyond the "
    "mean change of the training perturbations, as in Systema), direction of the change, and centroid accuracy. The "
    "head stands on gene embeddings of a checkpoint or learns its own (without pre-training); baselines are no "
    "change, the mean of the perturbed, additive, and linear. Of a single gene that no training perturbation has, "
    "linear on which genes are perturbed knows nothing and predicts the mean of the perturbed; additive predicts the "
    "mean of the single ones, which is the same where all training perturbations are single. Intervals: 95 %, "
    "bootstrap over perturbations."
)
SYNERGY_PROTOCOL = (
    "Synergy of pairs of drugs in cell lines ({problem}); new in the test: {by}. A network after DeepSynergy sees "
    "drug features and the embedding of the cell line, its raw expression, or its name; baselines are gradient "
    "boosting on the same features and means of the pair, of the cell line, and of drugs and cell line added. "
    "Intervals: 95 %, bootstrap over what is new in the test."
)


def annotated(path: str | Path) -> "AnnData":
    """Return the AnnData of a file; an .h5ad stays on disk.

    Raises:
        ValueError: If the file holds none.
    """
    adata = load(Path(path))
    if not hasattr(adata, "obs"):
        raise ValueError(f"{path} holds no obs with labels: give an .h5ad or .zarr file")
    return adata


def check_columns(path: str | Path, adata: "AnnData", names: Sequence[str]) -> None:
    """Refuse names of columns that obs does not have.

    Raises:
        ValueError: Naming those there are.
    """
    if absent := [name for name in names if name not in adata.obs]:
        raise ValueError(f"{path} has no column {absent[0]!r} in obs, only {', '.join(map(str, adata.obs)) or 'none'}")


def cells_of(path: str | Path, where: Mapping[str, Any] | None = None, max_cells: int | None = None) -> "AnnData":
    """Return the cells of a file with given values in obs, at most so many, drawn with seed 0, in their order.

    Raises:
        ValueError: If the file holds no AnnData, or no cell has these values.
    """
    adata = annotated(path)
    keep = np.ones(adata.n_obs, bool)
    for key, value in (where or {}).items():
        check_columns(path, adata, [key])
        keep &= (adata.obs[key].astype(str) == str(value)).to_numpy()
    if not keep.any():
        raise ValueError(f"{path}: no cell has {', '.join(f'{key} = {value}' for key, value in (where or {}).items())}")
    rows = np.flatnonzero(keep)
    if max_cells is not None and len(rows) > max_cells:
        rows = np.sort(np.random.default_rng(0).choice(rows, max_cells, replace=False))
    chosen = adata[rows]
    return checked_slots(chosen.to_memory() if adata.isbacked else chosen.copy(), Path(path).name)


def on_cells(evaluate: Callable[..., TaskResult]) -> Callable[..., TaskResult]:
    """Return a task on a file for one on cells, with options of `cells_of`."""

    def run(
        path: str | Path,
        data: str,
        checkpoints: Mapping[str, str],
        *,
        where: Mapping[str, Any] | None = None,
        max_cells: int | None = None,
        **options: Any,
    ) -> TaskResult:
        parts = [data, *(f"{key} {value}" for key, value in (where or {}).items())]
        result = evaluate(cells_of(path, where, max_cells), ", ".join(parts), checkpoints, **options)
        result.settings |= {} if max_cells is None else {"cells drawn, at most": max_cells}
        return result

    own = inspect.signature(run).parameters
    theirs = inspect.signature(evaluate).parameters
    keywords = [p for p in (*own.values(), *theirs.values()) if p.kind is p.KEYWORD_ONLY]
    run.__signature__ = inspect.Signature([*list(own.values())[:3], *keywords])  # type: ignore[attr-defined]
    return run


# Names of baselines and controls: a checkpoint of the same name would be mistaken for them.
RESERVED = {
    "PCA", "PCA of variable genes", "PCA loadings", "gene mean", "random numbers", "random vectors", "k-NN on PCA",
    "logistic regression", "scVI",
}  # fmt: skip


def ablate(adata: "AnnData", data: str, checkpoints: Mapping[str, str], **options: Any) -> TaskResult:
    """Train and compare variants; checkpoints take no part."""
    return evaluate_ablation(adata, data, **options)


ablate.__signature__ = inspect.signature(evaluate_ablation)  # type: ignore[attr-defined]


def perturb(
    adata: "AnnData",
    data: str,
    checkpoints: Mapping[str, str],
    *,
    split: Literal["genes", "doubles"] = "genes",
    relations: Sequence[str] = (),
    perturbation_key: str = "perturbation",
    total_key: str | None = None,
    min_cells: int = 10,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "auto",
    say: Callable[[str], object] = print,
) -> TaskResult:
    """Score predictions of perturbations; see `evaluate_perturbation`."""
    from .inference import pick_device

    say(f"perturbations of {data}, split by {split}: {len(seeds)} seeds")
    scores, predictions = evaluate_perturbation(
        adata, checkpoints, seeds, data=f"{data}, split by {split}", split=split, relations=relations,
        perturbation_key=perturbation_key, total_key=total_key, min_cells=min_cells, device=str(pick_device(device)),
    )  # type: ignore[arg-type]  # fmt: skip
    first = next(
        (name for name in checkpoints if name in predictions[0].predicted), next(iter(predictions[0].predicted))
    )
    num_test = len(predictions[0].split.test)
    title = (
        f"Change of each gene, {first}: the first {min(PANELS, num_test)} of {num_test} test perturbations of seed "
        f"{predictions[0].seed}"
    )
    scores.sort(key=lambda each: each.method not in checkpoints)  # the checkpoints first, all else as it was
    kinds = {name: kind for own in predictions for name, kind in own.split.test.items()}
    settings = {
        "seeds": list(seeds), "split": split, "relations": [Path(file).name for file in relations],
        "test perturbations of each kind": dict(sorted(Counter(kinds.values()).items())),
    }  # fmt: skip
    return TaskResult(
        "perturbation",
        data,
        PERTURBATION_PROTOCOL.format(split=split),
        scores,
        {title: change_panels(predictions[0], first)},
        settings,
    )


def change_panels(predictions: PerturbationPredictions, method: str) -> Any:
    """Draw predicted against true change of every gene for some test perturbations."""
    names = list(predictions.split.test)[:PANELS]
    true, predicted = (each - predictions.control for each in (predictions.truth, predictions.predicted[method]))
    panels = {str(name): (true[row], predicted[row]) for row, name in enumerate(names)}
    return scatter_panels(panels, "true change", "predicted change")


def synergise(
    path: str | Path,
    data: str,
    checkpoints: Mapping[str, str],
    *,
    drugs: str,
    expression: str,
    score_column: str,
    fold_column: str | None = None,
    problem: str = "regression",
    by: str = "pair",
    folds: int | None = None,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    say: Callable[[str], object] = print,
) -> TaskResult:
    """Score predictions of synergy; see `evaluate_synergy`.

    Pairs in cell lines without expression are left out, and pairs whose repeated measurements are of both classes.
    """
    import pandas as pd

    from ..modeling_xtrimogene.modeling_xtrimogene import XTrimoGeneModel
    from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from ..training.messages import some
    from ..training.synergy import (
        describe_scores,
        drug_features,
        embed_cell_lines,
        named_scores,
        read_drugs,
        read_expression,
        read_scores,
        splits,
    )
    from .inference import pick_device

    profiles = read_expression(expression)
    scores = read_scores(path, score_column, fold_column)
    say(describe_scores(scores))
    settings: dict[str, Any] = {
        "measurements": int(scores.measurements.sum()), "measured more than once": int((scores.measurements > 1).sum())
    }  # fmt: skip
    if problem != "regression":  # the mean of both classes is none
        conflicts = named_scores(scores[scores.differs])
        if conflicts:
            say(f"{len(conflicts)} of them were measured as both classes and are left out: {some(conflicts)}")
        scores = scores[~scores.differs]
        settings["left out, measured as both classes"] = conflicts
    is_known = scores.cell_line.isin(profiles.index)
    say(f"{int(is_known.sum()):,} of {len(scores):,} scores are of the {len(profiles)} cell lines in {expression}")
    scores = scores[is_known].reset_index(drop=True)
    cell_lines: dict[str, Any] = {}
    for name, checkpoint in checkpoints.items():
        model = XTrimoGeneModel.from_pretrained(checkpoint).to(pick_device(device))
        cell_lines[name] = embed_cell_lines(model, XTrimoGeneTokenizer.from_pretrained(checkpoint), profiles)
    cell_lines["raw expression"] = np.log1p(profiles)
    if by != "cell_line":  # what is not known of new ones
        names = pd.DataFrame(np.eye(len(profiles), dtype=np.float32), index=profiles.index)
        cell_lines["names of cell lines"] = names
    chosen = splits(scores, by)[:folds] if folds else None  # type: ignore[arg-type]
    found = evaluate_synergy(
        scores,
        drug_features(read_drugs(drugs)),
        cell_lines,
        data=data,
        by=by,  # type: ignore[arg-type]
        problem=problem,  # type: ignore[arg-type]
        folds=chosen,
        seeds=seeds,
        progress=say,
    )
    settings |= {
        "seeds": list(seeds), "scores": len(scores), "scores without expression": int((~is_known).sum()),
        "problem": problem, "new in the test": by,
    }  # fmt: skip
    return TaskResult("synergy", data, SYNERGY_PROTOCOL.format(problem=problem, by=by), found, {}, settings)


TASKS: dict[str, Callable[..., TaskResult]] = {
    "embedding": on_cells(evaluate_embedding),
    "annotation": on_cells(evaluate_annotation),
    "recovery": on_cells(evaluate_recovery),
    "relations": on_cells(evaluate_relations),
    "perturbation": on_cells(perturb),
    "synergy": synergise,
    "ablation": on_cells(ablate),
}


def check_task(entry: Mapping[str, Any]) -> None:
    """Refuse an entry of a plan that cannot run, before anything has.

    Raises:
        ValueError: If the task is unknown, its file is not there or lacks a column, or options are unknown or missing.
    """
    if not isinstance(entry, Mapping) or entry.get("task") not in TASKS or "data" not in entry:
        raise ValueError(
            f"an entry of the plan is {dict(entry) if isinstance(entry, Mapping) else entry!r}: it needs data, a file, "
            f"and a task, one of {', '.join(TASKS)}"
        )
    known = {
        name: parameter
        for name, parameter in inspect.signature(TASKS[entry["task"]]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("seeds", "device", "say")
    }
    options = {name: value for name, value in entry.items() if name not in ("task", "data", "seeds")}
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"task {entry['task']} has no option {unknown[0]!r}: there are {', '.join(sorted(known))}")
    if missing := [name for name, each in known.items() if each.default is each.empty and name not in options]:
        raise ValueError(f"task {entry['task']} needs {', '.join(missing)}")
    if "where" in options and not isinstance(options["where"], Mapping):
        raise ValueError(f"where is {options['where']!r}: give columns of obs and values, as {{batch: donor1}}")
    if "relations" in options and (not isinstance(options["relations"], list) or not options["relations"]):
        raise ValueError(f"relations is {options['relations']!r}: give a list of files, as [pairs.csv]")
    if "relations" in options and len({Path(file).name for file in options["relations"]}) < len(options["relations"]):
        raise ValueError("two files of relations have the same name: rename one, since scores are called after them")
    if "sparsities" in options and not (
        isinstance(options["sparsities"], list)
        and options["sparsities"]
        and all(isinstance(each, float) and 0 < each < 1 for each in options["sparsities"])
    ):
        raise ValueError(f"sparsities is {options['sparsities']!r}: give a list of shares of zeros, as [0.95, 0.98]")
    files = files_of(entry)
    if absent := [str(file) for file in files if not file.exists()]:
        raise ValueError(
            f"{len(absent)} of {len(files)} files of task {entry['task']} do not exist: {', '.join(absent)}"
        )
    keys = [value for name, value in options.items() if name.endswith("_key") and value is not None]
    if named := [value for value in keys if not isinstance(value, str)]:
        raise ValueError(f"{named[0]!r} is no name of a column of obs: give one, in quotes")
    if keys or "where" in options:
        check_columns(entry["data"], annotated(entry["data"]), [*keys, *options.get("where", ())])


def files_of(entry: Mapping[str, Any]) -> list[Path]:
    """Return the files that a task reads."""
    others = [entry[name] for name in ("drugs", "expression") if name in entry]
    return [Path(file) for file in (entry["data"], *others, *entry.get("relations", ()))]


def run_plan(
    tasks: Sequence[Mapping[str, Any]],
    checkpoints: Mapping[str, str],
    output: Path,
    *,
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    title: str = "Evaluation",
    command: str = "",
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Run tasks, write a report after each, and return what `metrics.json` holds.

    Args:
        tasks: Each `task`, `data` and options of the task; `seeds` of its own if it has any.
        checkpoints: Name -> folder or Hub name; the first is the model that the report is about.
        output: Folder of the report.
        seeds: Seeds of tasks that name none; their own default unless given.
        device: See `pick_device`.
        title: Title of the report.
        command: What was typed.
        say: Told what is going on.

    Raises:
        ValueError: Before anything runs, if there are no tasks, one cannot run (`check_task`), or two are the same.
    """
    taken = [name for name in checkpoints if name in RESERVED or "," in name]
    if taken:
        raise ValueError(
            f"a checkpoint is called {taken[0]!r}, as a baseline or control may be: name it as name=folder"
        )
    for own in (seeds, *(entry.get("seeds") for entry in tasks if isinstance(entry, Mapping))):
        is_list = isinstance(own, Sequence) and all(isinstance(seed, int) and seed >= 0 for seed in own)
        if own is not None and not (is_list and own and len(set(own)) == len(own)):
            raise ValueError(f"seeds are {own!r}: give different whole numbers, as 0,1,2")
    if len({repr(entry) for entry in tasks}) < len(tasks):
        raise ValueError("two tasks of the plan are the same: leave one out")
    if not tasks:
        raise ValueError("the plan has no tasks: give --task and --data, or a plan with tasks")
    for entry in tasks:
        check_task(entry)
    check_output(output)
    began = time.perf_counter()
    results: list[TaskResult] = []
    data: dict[str, str] = {}
    metrics: dict[str, Any] = {}
    for number, entry in enumerate(tasks, 1):
        path = Path(entry["data"])
        say(f"{number} of {len(tasks)}: {entry['task']} on {path.name}")
        options = {name: value for name, value in entry.items() if name not in ("task", "data")}
        if seeds is not None:
            options.setdefault("seeds", seeds)
        run = TASKS[entry["task"]]
        if "device" in inspect.signature(run).parameters:  # some look at weights only
            options["device"] = device
        results.append(run(path, path.name, checkpoints, say=say, **options))
        for file in files_of(entry):
            data.setdefault(str(file), file_hash(file))
        metrics = write_report(
            output, results, title=title, command=command, data=data, seconds=time.perf_counter() - began
        )
    return metrics
