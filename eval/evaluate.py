"""Run evaluation tasks on files, one or a plan of many, and write a report.

plan.yaml                                    TASKS[task].run(file, checkpoints, options, run)
  checkpoints: {name: folder}        ---->   TaskResult, TaskResult, ...   ---->   report.html, metrics.json, table.md
  tasks: [{task, data, ...}, ...]
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any

from ..inference.saved import Saved
from ..options import Options, build, leaves
from ..tokenization.files_xtrimogene import about
from ..tokenization.reading import annotated, cells_of, check_columns
from ..training.data.manifest import MANIFEST
from .measures.corpus_pca import CORPUS_PCA_NAME
from .measures.results import TaskResult
from .report.report import check_output, data_hash, write_report
from .tasks import (
    ablation,
    annotation,
    embedding,
    few_labels,
    perturbation,
    recovery,
    relations,
    representation,
    synergy,
)
from .tasks.relations import file_name
from .tasks.run import DrawnCells, Run


@dataclass(frozen=True)
class Task:
    """An evaluation task.

    Attributes:
        evaluate: A function `(cells or file, data, checkpoints, options, run) -> TaskResult`.
        options: Group of options of the task. If it is a `DrawnCells`, `evaluate` gets cells, else a file.
        seeds: Default seeds.
    """

    evaluate: Callable[..., TaskResult]
    options: type[Options]
    seeds: Sequence[int]

    def run(self, path: Path, checkpoints: Mapping[str, str], options: Options, run: Run) -> TaskResult:
        """Return the result of the task on a file."""
        if not isinstance(options, DrawnCells):
            return self.evaluate(path, path.name, checkpoints, options, run)
        where, max_cells = options.where or {}, options.max_cells
        data = ", ".join([path.name, *(f"{key} {value}" for key, value in where.items())])
        result = self.evaluate(cells_of(path, where, max_cells), data, checkpoints, options, run)
        result.settings |= {} if max_cells is None else {"cells drawn, at most": max_cells}
        return result


# Names of baselines and controls, which no checkpoint may have.
RESERVED = {
    "PCA", "PCA of variable genes", "PCA loadings", "gene mean", "random numbers", "random vectors", "k-NN on PCA",
    "log-normalised counts", "logistic regression", "scVI",
}  # fmt: skip
TASKS = {
    "embedding": Task(embedding.evaluate_embedding, embedding.EmbeddingOptions, embedding.RUN.seeds),
    "annotation": Task(annotation.evaluate_annotation, annotation.AnnotationOptions, annotation.RUN.seeds),
    "few-labels": Task(few_labels.evaluate_few_labels, few_labels.FewLabelsOptions, few_labels.RUN.seeds),
    "recovery": Task(recovery.evaluate_recovery, recovery.RecoveryOptions, recovery.RUN.seeds),
    "relations": Task(relations.evaluate_relations, relations.RelationsOptions, relations.RUN.seeds),
    "representation": Task(
        representation.evaluate_representation, representation.RepresentationOptions, representation.RUN.seeds
    ),
    "perturbation": Task(perturbation.evaluate_perturbation, perturbation.PerturbationOptions, perturbation.RUN.seeds),
    "synergy": Task(synergy.evaluate_synergy, synergy.SynergyOptions, synergy.RUN.seeds),
    "ablation": Task(ablation.evaluate_ablation, ablation.AblationOptions, ablation.RUN.seeds),
}


def check_task(entry: Mapping[str, Any]) -> None:
    """Check that an entry of a plan can run.

    Args:
        entry: `task`, `data`, and options of the task, name -> value.

    Raises:
        ValueError: If the task is unknown, a file does not exist or lacks a column, or an option is unknown, missing or
            wrong.

    Example:
        >>> check_task({"task": "embeding", "data": "cells.h5ad"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: an entry of the plan is {'task': 'embeding', 'data': 'cells.h5ad'}: it needs data, a file, ...
    """
    if not isinstance(entry, Mapping) or entry.get("task") not in TASKS or "data" not in entry:
        raise ValueError(
            f"an entry of the plan is {dict(entry) if isinstance(entry, Mapping) else entry!r}: it needs data, a file, "
            f"and a task, one of {', '.join(TASKS)}"
        )
    known = {leaf.name: leaf for leaf in leaves(TASKS[entry["task"]].options)}
    options = options_of(entry)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"task {entry['task']} has no option {unknown[0]!r}: there are {', '.join(sorted(known))}")
    if missing := [name for name, each in known.items() if each.default is Parameter.empty and name not in options]:
        raise ValueError(f"task {entry['task']} needs {', '.join(missing)}")
    if "where" in options and not isinstance(options["where"], Mapping):
        raise ValueError(f"where is {options['where']!r}: give columns of obs and values, as {{batch: donor1}}")
    for name in ("relations", "tables"):
        given = options.get(name, ["a file"])
        if not isinstance(given, list) or not given:
            raise ValueError(f"{name} is {given!r}: give a list of files, as [pairs.csv]")
        if len({file_name(file) for file in given}) < len(given):
            raise ValueError(f"two files of {name} have the same name: rename one, since scores are called after them")
    if "sparsities" in options and not (
        isinstance(options["sparsities"], list)
        and options["sparsities"]
        and all(isinstance(each, float) and 0 < each < 1 for each in options["sparsities"])
    ):
        raise ValueError(f"sparsities is {options['sparsities']!r}: give a list of shares of zeros, as [0.95, 0.98]")
    build(TASKS[entry["task"]].options, options)
    files = files_of(entry)
    if absent := [str(file) for file in files if not file.exists()]:
        raise ValueError(
            f"{len(absent)} of {len(files)} files of task {entry['task']} do not exist: {', '.join(absent)}"
        )
    keys = [value for name, value in options.items() if name.endswith("_key") and value is not None]
    if named := [value for value in keys if not isinstance(value, str)]:
        raise ValueError(f"{named[0]!r} is no name of a column of obs: give one, in quotes")
    if options.get("obsm"):
        held = annotated(entry["data"]).obsm
        if absent := [key for key in options["obsm"] if key not in held]:
            raise ValueError(f"{entry['data']} has no {absent[0]!r} in obsm, only {', '.join(held) or 'nothing'}")
    if keys or "where" in options:
        check_columns(entry["data"], annotated(entry["data"]), [*keys, *options.get("where", ())])


def options_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task's options in an entry of a plan, name -> value."""
    return {name: value for name, value in entry.items() if name not in ("task", "data", "seeds")}


def files_of(entry: Mapping[str, Any]) -> list[Path]:
    """Return the files that an entry of a plan reads."""
    others = [entry[name] for name in ("drugs", "expression") if name in entry]
    others += [Path(entry["corpus"]) / MANIFEST] if entry.get("corpus") else []  # it holds the hashes of its shards
    return [Path(file) for file in (entry["data"], *others, *entry.get("relations", ()), *entry.get("tables", ()))]


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
    tell: Callable[[float], object] = lambda share: None,
) -> dict[str, Any]:
    """Run tasks, write a report after each, and return what `metrics.json` holds.

    Args:
        tasks: Entries of the plan: each has `task`, `data`, options of the task and, if wanted, its own `seeds`.
        checkpoints: Name -> folder or Hub name; the first is the model that the report is about.
        output: Folder of the report.
        seeds: Seeds of tasks without their own `seeds`; the default seeds of the task unless given.
        device: Device on which models compute: `auto`, `cpu`, `cuda` or `mps`.
        title: Title of the report.
        command: The command that repeats the evaluation, for the report.
        say: Called with one line of text for each step.
        tell: Called with the share that is done, if all tasks take the same time.

    Raises:
        ValueError: Before anything runs, if there are no tasks, a task cannot run (`check_task`), two tasks are the
            same, a checkpoint has the name of a baseline, or `output` holds something other than a report.

    Example:
        >>> tasks = [{"task": "embedding", "data": "labelled.h5ad", "label_key": "cell_type"}]
        >>> metrics = run_plan(tasks, {"small": "checkpoint"}, Path("report"))  # doctest: +SKIP
    """
    taken = [name for name in checkpoints if name in RESERVED or "," in name or name.startswith(CORPUS_PCA_NAME)]
    if taken:
        raise ValueError(
            f"a checkpoint is called {taken[0]!r}, as a baseline or control may be: name it as name=folder"
        )
    for given in (seeds, *(entry.get("seeds") for entry in tasks if isinstance(entry, Mapping))):
        is_list = isinstance(given, Sequence) and all(isinstance(seed, int) and seed >= 0 for seed in given)
        if given is not None and not (is_list and given and len(set(given)) == len(given)):
            raise ValueError(f"seeds are {given!r}: give different whole numbers, as 0,1,2")
    if len({repr(entry) for entry in tasks}) < len(tasks):
        raise ValueError("two tasks of the plan are the same: leave one out")
    if not tasks:
        raise ValueError("the plan has no tasks: give --task and --data, or a plan with tasks")
    for entry in tasks:
        check_task(entry)
    check_output(output)
    checkpoints = {name: str(Saved.of(path)) for name, path in checkpoints.items()}  # one commit each for all tasks
    began = time.perf_counter()
    results: list[TaskResult] = []
    data: dict[str, str] = {}
    metrics: dict[str, Any] = {}

    def tell_of_task(share: float) -> None:
        tell((len(results) + share) / len(tasks))

    for number, entry in enumerate(tasks, 1):
        path = Path(entry["data"])
        say(f"{number} of {len(tasks)}: {entry['task']} on {path.name}")
        task = TASKS[entry["task"]]
        task_seeds = entry.get("seeds", task.seeds if seeds is None else seeds)
        options = build(task.options, options_of(entry))
        with about(path.name):
            results.append(task.run(path, checkpoints, options, Run(task_seeds, device, say, tell_of_task)))
        for file in files_of(entry):
            data.setdefault(str(file), data_hash(file))
        metrics = write_report(
            output, results, title=title, command=command, data=data, seconds=time.perf_counter() - began
        )
    return metrics
