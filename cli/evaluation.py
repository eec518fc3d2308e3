"""`plan`, `evaluate` and `compare`: cost of a training, and evaluations of checkpoints."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from ..inference.options import Placed
from ..options import Option, Options, group
from .command import command
from .options import OutputFolder, Printing, Writing, check_cells, existing_checkpoint
from .output import Screen, command_line, facts, new_folder, of_markdown
from .process import prepare_process

NUM_DEVICES = (1, 8, 64)


@group
class Planned(Options):
    """Options of `plan`: size of a pre-training, and the devices it runs on.

    Example:
        >>> Planned(cells=1e6).teraflops
        989.0
    """

    cells: Annotated[float, Option("Cells to show to the model, times epochs.", least=1)] = 50e6
    expressed: Annotated[int, Option("Expressed genes of a cell.", least=1, most=19_264)] = 2000
    teraflops: Annotated[float, Option("Peak of an accelerator in bfloat16.", least=0.001)] = 989.0
    share: Annotated[float, Option("Share of the peak that training reaches.", least=0.001, most=1)] = 0.3
    memory: Annotated[float, Option("GiB of an accelerator.", least=1)] = 80.0
    price: Annotated[float, Option("Of an hour of an accelerator.", least=0)] = 2.5
    measure: Annotated[bool, Option("Also time steps of 3M and 10M on this CPU: do FLOPs tell the time?")] = False
    measured: Annotated[
        Path | None, Option("results.json of the benchmark of a GPU: its figures replace peak, share and memory.")
    ] = None


@command
def plan(planned: Planned, printing: Printing) -> None:
    """Plan pre-training: memory of a cell, cells a second, days and cost, for 3M, 10M and 100M on 1, 8 and 64 devices.

    Example: `xtrimogene plan --cells 50e6 --teraflops 312 --memory 40 --price 1.5`

    FLOPs and memory are those of this package. The share of the peak is an assumption unless --measured has it, and so
    is the price; communication between devices is not counted.
    """
    screen = Screen(printing)

    from ..eval.cost.plan import Accelerator, Measured
    from ..eval.cost.plan import measure as measure_steps
    from ..eval.cost.plan import plan as make_plan

    prepare_process()
    accelerator = Accelerator(planned.teraflops, planned.share, planned.memory, planned.price)
    of_gpu = None if planned.measured is None else Measured.read(planned.measured, accelerator)
    accelerator = accelerator if of_gpu is None else of_gpu.accelerator
    plans = make_plan(("3M", "10M", "100M"), planned.cells, accelerator, NUM_DEVICES, planned.expressed, of_gpu)
    measured = measure_steps(("3M", "10M"), planned.expressed) if planned.measure else {}
    lines = [
        f"A step of {name} on this CPU, float32: {row['seconds']:.2f} s, {row['gigaflops per second']:.0f} GFLOP/s, "
        f"{row['share of peak']:.0%} of a plain matrix product"
        for name, row in measured.items()
    ]
    rate = f"{planned.share:.0%} of {planned.teraflops:,g} TFLOP/s"
    if of_gpu is not None:
        assumed = [name for name in ("3M", "10M", "100M") if name not in of_gpu.rates]
        rate = f"as measured on {of_gpu.device}"
        rate += f" ({', '.join(assumed)}: {planned.share:.0%} of its peak)" if assumed else ""
    table = plan_table(planned, plans, rate)
    screen.show(table, "fit: cells beside the weights in the memory of one device", *lines)
    screen.result({"plans": [asdict(found) for found in plans], "measured": measured})


def plan_table(planned: Planned, plans: list[Any], rate: str) -> Table:
    """Return a table of plans, one row for each number of devices, under a title that says what `rate` is."""
    title = f"{planned.cells:,.0f} cells of {planned.expressed:,} genes, {rate}, {planned.price:g} an hour"
    table = Table(title=title, title_justify="left")
    for column in ("", "GFLOP a cell", "GiB of weights", "MiB a cell", "fit", "devices", "cells/s", "days", "cost"):
        table.add_column(column, justify="right")
    for found in plans:
        fit = f"{found.batch:,}" if found.batch else "none"
        sizes = (found.preset, f"{found.gigaflops:,.0f}", f"{found.weights:.2f}", f"{found.cell:,.0f}", fit)
        for number in NUM_DEVICES:
            costs = ["-", "-", "-"]
            if found.batch:
                days = found.hours[number] / 24
                costs = [f"{found.cells_per_second[number]:,.0f}", f"{days:,.2g}", f"{found.cost:,.0f}"]
            table.add_row(*(sizes if number == NUM_DEVICES[0] else [""] * len(sizes)), f"{number}", *costs)
    return table


@group
class Evaluated(Options):
    """Options of `evaluate`: a task on data, or a plan of several.

    Example:
        >>> Evaluated(task="embedding", data=Path("labelled.h5ad"), label_key="cell_type").seeds is None
        True
    """

    task: Annotated[
        Literal[
            "embedding",
            "annotation",
            "few-labels",
            "recovery",
            "relations",
            "representation",
            "perturbation",
            "synergy",
            "ablation",
        ]
        | None,
        Option("What to evaluate; protocols: eval/README.md."),
    ] = None
    data: Annotated[Path | None, Option("Cells with labels (.h5ad); of synergy the table of scores.")] = None
    label_key: Annotated[str | None, Option("Column of obs with cell types or conditions.")] = None
    batch_key: Annotated[str | None, Option("Column of obs with donors, batches or studies.")] = None
    corpus: Annotated[
        str | None,
        Option("Folder from `xtrimogene convert`: PCA of its cells is a baseline of tasks that judge embeddings."),
    ] = None
    options: Annotated[
        list[str] | None, Option("Any other option of the task, as name=value; may be repeated.", flags=("--set",))
    ] = None
    plan: Annotated[Path | None, Option("YAML file with checkpoints and tasks, instead of --task and --data.")] = None
    seeds: Annotated[str | None, Option("Seeds, separated by commas.", default="those of the task")] = None
    card: Annotated[bool, Option("Write the results into the cards of the checkpoints.")] = False


@command
def evaluate(
    ctx: typer.Context,
    output: OutputFolder,
    what: Evaluated,
    placed: Placed,
    writing: Writing,
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Checkpoint folders or Hub names, also as name=folder.")
    ] = None,
) -> None:
    """Evaluate checkpoints beside simple baselines and controls: a report with tables, intervals and pictures.

    Example: `xtrimogene evaluate checkpoint --task embedding --data labelled.h5ad --label-key cell_type -o report`

    Several tasks and data sets at once: `xtrimogene evaluate --plan evaluation.yaml -o report`. It writes report.html,
    one file that needs no network, metrics.json and table.md. `xtrimogene compare` sets reports side by side.
    """
    screen = Screen(writing)
    new_folder(output, writing.force)
    found, entries = asked(what)
    found |= named(checkpoints or [])
    if what.data is not None:
        check_cells(what.data, label_key=what.label_key, batch_key=what.batch_key)
    if not found and any(needs_checkpoint(entry) for entry in entries):
        raise typer.BadParameter(
            "there is no checkpoint to evaluate: give at least one, or what else to judge, as --set obsm=[X_pca] of "
            "embedding and representation or --set tables=[vectors.csv] of relations"
        )

    from ..eval.evaluate import run_plan
    from ..eval.measures.results import Score
    from ..hub_cards.card import add_results
    from ..training.progress import heartbeat

    prepare_process()
    with heartbeat(screen.notes, "Evaluation") as beat:
        metrics = run_plan(
            entries,
            found,
            output,
            seeds=None if what.seeds is None else [int(seed) for seed in what.seeds.split(",")],
            device=placed.device,
            title=f"Evaluation of {', '.join(found) or 'variants'}",
            command=command_line(ctx),
            say=screen.say,
            tell=beat.tell,
        )
    if what.card:
        scores = [Score(**each) for result in metrics["results"] for each in result["scores"]]
        for name, folder in found.items():
            screen.say(f"results written into {add_results(folder, scores, name)}")
    screen.show(*of_markdown((output / "table.md").read_text(encoding="utf-8"), screen.tables.width))
    screen.show(facts(f"In {output}", {"report.html": "tables and pictures", "metrics.json": "all figures"}))
    screen.result({"output": output, "metrics": metrics})


def asked(what: Evaluated) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the checkpoints and tasks that options ask for; checkpoints given as arguments are not among them.

    Raises:
        BadParameter: If there is no task, both a plan and a task, or a seed that is no number.
    """
    if what.seeds is not None and not all(seed.strip().isdigit() for seed in what.seeds.split(",")):
        raise typer.BadParameter(f"--seeds is {what.seeds!r}: give whole numbers with commas, such as 0,1,2")
    if what.plan is not None:
        if what.task or what.data or what.label_key or what.batch_key or what.corpus or what.options:
            raise typer.BadParameter("--plan names tasks and data: leave out --task, --data and their options")
        return read_plan(what.plan)
    if what.task is None or what.data is None:
        raise typer.BadParameter("give --task and --data, or a --plan with several")
    keys = {"label_key": what.label_key, "batch_key": what.batch_key, "corpus": what.corpus}
    entry = {"task": what.task, "data": str(what.data), **{name: key for name, key in keys.items() if key}}
    return {}, [entry | dict(map(option_of, what.options or []))]


def needs_checkpoint(entry: dict[str, Any]) -> bool:
    """Return whether an entry of a plan has nothing to judge but checkpoints."""
    return not (entry.get("task") == "ablation" or entry.get("obsm") or entry.get("tables"))


def named(checkpoints: list[str]) -> dict[str, str]:
    """Return name -> folder of checkpoints that are given as `folder` or as `name=folder`.

    Raises:
        BadParameter: If a checkpoint does not exist, or two have the same name.

    Example:
        >>> named(["owner/small", "mine=owner/model"])
        {'small': 'owner/small', 'mine': 'owner/model'}
    """
    found = {}
    for text in checkpoints:
        name, _, folder = text.rpartition("=")
        found[name or Path(folder).name] = str(existing_checkpoint(folder))
    if len(found) < len(checkpoints):
        raise typer.BadParameter("two checkpoints have the same name: tell them apart, as name=folder")
    return found


def read_plan(path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the checkpoints and tasks of a plan in a YAML file.

    Raises:
        ValueError: If the file does not exist, is no YAML, or holds no plan.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{path} does not exist: a plan is a YAML file with checkpoints and tasks, see eval/README.md")
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    is_plan = isinstance(held, dict) and set(held) <= {"checkpoints", "tasks"} and isinstance(held.get("tasks"), list)
    if not is_plan or not isinstance(held.get("checkpoints", {}), dict):
        raise ValueError(
            f"{path} holds no plan: it needs `tasks`, a list, and may have `checkpoints`, names and folders"
        )
    for folder in held.get("checkpoints", {}).values():
        existing_checkpoint(str(folder))
    return {str(name): str(folder) for name, folder in held.get("checkpoints", {}).items()}, held["tasks"]


def option_of(text: str) -> tuple[str, Any]:
    """Return name and value of `name=value`. The value is read as YAML, so that 3 is a number and [a, b] a list.

    Example:
        >>> option_of("sparsities=[0.95, 0.98]")
        ('sparsities', [0.95, 0.98])
    """
    import yaml

    name, is_there, value = text.partition("=")
    if not is_there or not name:
        raise typer.BadParameter(f"--set {text} is no option: give name=value, such as --set max_cells=1000")
    if name in ("task", "data", "seeds"):
        raise typer.BadParameter(f"--set {text}: there is an option --{name} for that")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"--set {text}: {' '.join(str(error).split())}") from error


@command
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Folders that `evaluate` wrote, two or more.")],
    printing: Printing,
) -> None:
    """Set reports of several checkpoints on the same data side by side.

    Example: `xtrimogene compare report_a report_b`

    Reports on data that differ are refused.
    """
    from ..eval.report.report import compare as compare_reports

    screen = Screen(printing)
    table = compare_reports(reports)
    screen.show(*of_markdown(table, screen.tables.width))
    screen.result({"table": table})
