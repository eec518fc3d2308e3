"""`evaluate` and `compare`: checkpoints in, reports out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import app
from .options import AsJson, Device, Force, OutputFolder, Quiet, existing_checkpoint
from .output import Screen, command_line, facts, new_folder
from .process import prepare_process


class Task(StrEnum):
    """Protocols of evaluation."""

    EMBEDDING = "embedding"
    ANNOTATION = "annotation"
    RECOVERY = "recovery"
    RELATIONS = "relations"
    PERTURBATION = "perturbation"
    SYNERGY = "synergy"
    ABLATION = "ablation"


@app.command()
def evaluate(
    ctx: typer.Context,
    output: OutputFolder,
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Checkpoint folders or Hub names, also as name=folder.")
    ] = None,
    task: Annotated[Task | None, typer.Option(help="What to evaluate; protocols: eval/README.md.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Cells with labels (.h5ad); of synergy the table of scores.")
    ] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with cell types or conditions.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with donors, batches or studies.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option of the task, as name=value; may be repeated.")
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option("--plan", help="YAML file with checkpoints and tasks, instead of --task and --data.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas.", show_default="those of the task")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the results into the cards of the checkpoints.")] = False,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate checkpoints beside simple baselines and controls: a report with tables, intervals and pictures.

    Example: `xtrimogene evaluate checkpoint --task embedding --data labelled.h5ad --label-key cell_type -o report`

    Several tasks and data sets at once: `xtrimogene evaluate --plan evaluation.yaml -o report`. It writes report.html,
    one file that needs no network, metrics.json and table.md. `xtrimogene compare` sets reports side by side.
    """
    screen = Screen(as_json, quiet)
    new_folder(output, force)
    found: dict[str, str] = {}
    entries: list[dict[str, Any]] = []
    if tasks is not None:
        if task or data or label_key or batch_key or options:
            raise typer.BadParameter("--plan names tasks and data: leave out --task, --data and their options")
        found, entries = read_plan(tasks)
    elif task is None or data is None:
        raise typer.BadParameter("give --task and --data, or a --plan with several")
    else:
        named = {"label_key": label_key, "batch_key": batch_key}
        entry = {"task": task.value, "data": str(data), **{key: value for key, value in named.items() if value}}
        entries = [entry | dict(map(option_of, options or []))]
    if seeds is not None and not all(seed.strip().isdigit() for seed in seeds.split(",")):
        raise typer.BadParameter(f"--seeds is {seeds!r}: give whole numbers with commas, such as 0,1,2")
    for text in checkpoints or []:
        name, _, folder = text.rpartition("=")
        found[name or Path(folder).name] = str(existing_checkpoint(folder))
    if len(found) < len(checkpoints or []):
        raise typer.BadParameter("two checkpoints have the same name: tell them apart, as name=folder")
    if not found and any(entry.get("task") != "ablation" for entry in entries):
        raise typer.BadParameter("there is no checkpoint to evaluate: give at least one")

    from ..eval.evaluate import run_plan
    from ..eval.measures.results import Score
    from ..hub_cards.card import add_results

    prepare_process()
    metrics = run_plan(
        entries,
        found,
        output,
        seeds=None if seeds is None else [int(seed) for seed in seeds.split(",")],
        device=device,
        title=f"Evaluation of {', '.join(found) or 'variants'}",
        command=command_line(ctx),
        say=screen.say,
    )
    if card:
        scores = [Score(**each) for result in metrics["results"] for each in result["scores"]]
        for name, folder in found.items():
            screen.say(f"results written into {add_results(folder, scores, name)}")
    screen.show((output / "table.md").read_text(encoding="utf-8"))
    screen.show(facts(f"In {output}", {"report.html": "tables and pictures", "metrics.json": "all figures"}))
    screen.result({"output": output, "metrics": metrics})


def read_plan(path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return checkpoints and tasks of a YAML file.

    Raises:
        ValueError: If it is no YAML, or holds something else.
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
    """Return name and value of `name=value`; the value as YAML reads it, so that 3 is a number and [a, b] a list."""
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


@app.command()
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Folders that `evaluate` wrote, two or more.")],
    as_json: AsJson = False,
) -> None:
    """Set reports of several checkpoints on the same data side by side.

    Example: `xtrimogene compare report_a report_b`

    Reports on data that differ are refused.
    """
    from ..eval.report.report import compare as compare_reports

    screen = Screen(as_json)
    table = compare_reports(reports)
    screen.show(table)
    screen.result({"table": table})
