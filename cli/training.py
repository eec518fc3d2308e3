"""`demo`, `pretrain` and `finetune`: cells in, checkpoints out."""

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..recipes.options import EVENTS, Demonstration, Finetuning, Pretraining
from ..tokenization.files_xtrimogene import about
from ..tokenization.reading import TrainingInput
from ..training.options import CHECKPOINTS, Batched, Seeded
from .command import PrintConfig, command, config_text, read_config
from .options import AnyModel, Cells, Model, OutputFolder, Resume, Writing, check_cells, existing_checkpoint
from .output import Screen, command_line, facts, new_folder, scores_table
from .process import is_first_process, prepare_process


@command
def demo(recipe: Demonstration, writing: Writing, output: OutputFolder = Path("demo")) -> None:
    """Pre-train, fine-tune and compare with baselines on 700 real blood cells: no network, a few minutes on a laptop.

    Example: `xtrimogene demo -o demo`

    It writes two checkpoints with their cards, pictures, metrics and the embedded cells. A former demo is replaced.
    """
    screen = Screen(writing)
    is_former_demo = (output / "metrics.json").is_file() and (output / "annotator").is_dir()
    new_folder(output, writing.force or is_former_demo)

    from ..inference.devices import pick_device
    from ..recipes.demo import run_demo
    from ..training.progress import RichProgress

    prepare_process()
    pick_device(recipe.run.device)
    with RichProgress(screen.notes, disable=screen.quiet) as progress:
        metrics = run_demo(output, recipe, say=screen.say, callbacks=[progress])
    scores = label_scores(metrics)
    for name, row in metrics["masked values of held-out cells"].items():
        scores.setdefault(name, {})["masked values: Pearson"] = row["pearson"]
    files = {
        "annotator/": "fine-tuned model with its card: give it to `xtrimogene annotate`",
        "checkpoint/": "pre-trained model with its card: give it to `embed` and `finetune`",
        "cells.h5ad": "the cells with embedding and labels",
        "*.png": "pictures",
        "metrics.json": "all figures",
    }
    screen.show(
        scores_table("700 blood cells, a quarter held out", scores),
        facts(f"In {output}", files),
        f"Next: [bold]xtrimogene annotate my.h5ad --model {output / 'annotator'} -o my_annotated.h5ad[/bold]",
    )
    screen.result({"output": output, "metrics": metrics})


def label_scores(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return method -> accuracy and macro-F1 of cell types.

    Example:
        >>> label_scores({"annotation of held-out cells": {"k-NN": {"accuracy": 0.8, "macro_f1": 0.7}}})
        {'k-NN': {'accuracy': 0.8, 'macro-F1': 0.7}}
    """
    return {
        name: {"accuracy": row["accuracy"], "macro-F1": row["macro_f1"]}
        for name, row in metrics["annotation of held-out cells"].items()
    }


def begin_run(output: Path, force: bool, resume: bool, screen: Screen) -> None:
    """Check that a folder is free for a run, or has checkpoints to resume from; with `force`, delete old checkpoints.

    Raises:
        ValueError: If the folder holds other files, or a run that has ended is to be resumed.
    """
    is_begun = (output / CHECKPOINTS).exists()
    if resume and not is_begun and (output / "metrics.json").exists():
        raise ValueError(f"the run in {output} has ended, so there is nothing to resume: begin another elsewhere")
    if resume and is_begun:
        return
    if resume:
        screen.say(f"There is nothing to resume in {output}: the run begins anew")
    if is_begun and not force:
        raise ValueError(
            f"{output} holds checkpoints of a run that was interrupted: go on with --resume, or begin anew with --force"
        )
    new_folder(output, force)
    for earlier in (CHECKPOINTS, EVENTS):
        shutil.rmtree(output / earlier, ignore_errors=True)


Config = Annotated[
    str | None,
    typer.Option(
        is_eager=True,
        callback=read_config,
        help="Size of a new model: micro, tiny, 3M, 10M or 100M, of a TxFM txfm-micro, txfm-tiny, txfm-S, txfm-B or "
        "txfm-L; or a YAML file with options, see --print-config.",
        show_default="tiny on a CPU, else 3M",
    ),
]
Files = Annotated[list[Path] | None, typer.Argument(help="Cells: .h5ad, 10x .h5 or mtx folders, .csv or .tsv.")]


@command
def pretrain(
    ctx: typer.Context,
    recipe: Pretraining,
    writing: Writing,
    files: Files = None,
    output: OutputFolder = Path("checkpoint"),
    config: Config = None,
    print_config: PrintConfig = False,
    resume: Resume = False,
) -> None:
    """Pre-train a model on your cells: it learns to fill in genes that were masked.

    Example: `xtrimogene pretrain a.h5ad b.h5ad -o checkpoint --config tiny --epochs 10`

    It writes a checkpoint with its card, the loss curve, and the recovery of masked values of held-out cells beside
    what the mean of each gene achieves. A run that was interrupted goes on with the same command and --resume.
    On several devices: `accelerate launch --module xtrimogene.cli pretrain ...`
    """
    if print_config:
        typer.echo(config_text(ctx), nl=False)
        return
    is_first = is_first_process()
    screen = Screen(writing)
    recipe = checked(ctx, replace(recipe, new=replace(recipe.new, config=config)))

    check_cells(*files or (), where=recipe.cells, batch_key=recipe.batches.batch_key)
    if is_first:
        begin_run(output, writing.force, resume, screen)

    from ..recipes.pretrain import pretrain_files
    from ..training.progress import RichProgress

    prepare_process()
    with RichProgress(screen.notes, disable=screen.quiet) as progress:
        metrics = pretrain_files(
            files or [], output, recipe,
            resume=resume, command=command_line(ctx), say=screen.say, callbacks=[progress],
        )  # fmt: skip
    if not metrics:
        return
    cells = "CELLS.h5ad" if recipe.corpus else f"{files[0]}"  # type: ignore[index]
    screen.show(
        scores_table(
            f"Masked values of {metrics['cells']['held out']:,} held-out cells",
            {
                name: {"Pearson": row["pearson"], "Pearson of expressed": row["pearson_expressed"]}
                for name, row in metrics["masked values of held-out cells"].items()
            },
        ),
        f"Written: {output}, with card, loss.png and metrics.json",
        f"Next: [bold]xtrimogene embed {cells} --model {output} -o {Path(cells).stem}_xtrimogene.h5ad[/bold]",
    )
    screen.result({"output": output, "metrics": metrics})


def checked(ctx: typer.Context, recipe: Pretraining) -> Pretraining:
    """Check that the options of a recipe fit together, and return the recipe.

    If --epochs or --max-steps is typed, it replaces the other one in a file.

    Raises:
        BadParameter: If options exclude each other, or need a package that is not installed.
    """
    if recipe.epochs and recipe.max_steps:
        sources = {name: str(ctx.get_parameter_source(name)) for name in ("epochs", "max_steps")}
        from_file = [name for name, source in sources.items() if source.endswith("DEFAULT_MAP")]
        if len(from_file) != 1:
            raise typer.BadParameter("--epochs and --max-steps exclude each other: give one")
        chosen = "max_steps" if from_file == ["epochs"] else "epochs"
        recipe = replace(
            recipe,
            epochs=recipe.epochs if chosen == "epochs" else None,
            max_steps=recipe.max_steps if chosen == "max_steps" else None,
        )
    if recipe.report_to != "none" and importlib.util.find_spec(recipe.report_to) is None:
        raise typer.BadParameter(f"--report-to {recipe.report_to} needs it: pip install {recipe.report_to}")
    existing_checkpoint(recipe.checkpoint)
    new = recipe.new
    if recipe.checkpoint and (new.config or new.depth_tokens or new.decoder_context or new.dropout is not None):
        raise typer.BadParameter(
            "--config, --depth-tokens, --decoder-context and --dropout are those of the --checkpoint: leave them out"
        )
    if recipe.masking.read_depth_aware and not recipe.checkpoint:
        recipe = replace(recipe, new=replace(new, depth_tokens=True))
    return recipe


@command
def finetune(
    ctx: typer.Context,
    file: Cells,
    model: Model,
    output: OutputFolder,
    recipe: Finetuning,
    writing: Writing,
    resume: Resume = False,
) -> None:
    """Fine-tune a checkpoint into a model that names cell types, and test it beside simple baselines.

    Example: `xtrimogene finetune labelled.h5ad --label-key cell_type --model checkpoint -o annotator`

    It writes the model with its card, the confusion of held-out cells, and accuracy and macro-F1 beside those of
    logistic regression and of k-NN on PCA on the same cells. With several donors give --group-key: cells of a donor
    resemble each other, and a split that ignores this promises too much.
    """
    screen = Screen(writing)
    check_cells(file, where=recipe.cells, label_key=recipe.label_key, group_key=recipe.group_key)
    check_cells(*map(Path, recipe.unlabelled or ()), where=recipe.cells)
    begin_run(output, writing.force, resume, screen)

    from ..recipes.finetune import finetune_file
    from ..training.progress import RichProgress

    prepare_process()
    with RichProgress(screen.notes, disable=screen.quiet) as progress:
        metrics = finetune_file(
            file, model, output, recipe,
            resume=resume, command=command_line(ctx), say=screen.say, callbacks=[progress],
        )  # fmt: skip
    screen.show(
        scores_table(f"Cell types of {metrics['cells']['test']:,} held-out cells", label_scores(metrics)),
        f"Written: {output}, with card, confusion.png and metrics.json",
        f"Next: [bold]xtrimogene annotate other.h5ad --model {output} -o other_annotated.h5ad[/bold]",
    )
    screen.result({"output": output, "metrics": metrics})


@command
def adapt(
    file: Cells,
    cells: TrainingInput,
    batches: Batched,
    run: Seeded,
    writing: Writing,
    model: AnyModel = None,
    output: OutputFolder = Path("adapted"),
) -> None:
    """Adapt a checkpoint to your own unlabelled cells, in half a minute for 2,000 of them.

    Example: `xtrimogene adapt my.h5ad -o adapted --batch-key donor`

    It writes the adapted checkpoint. FILE may also be a corpus from `xtrimogene convert`. At most 20,000 cells are
    used, drawn at random. What was gained is the likelihood of cells that were held out and, with several batches, how
    well they mix.
    """
    screen = Screen(writing)
    check_cells(file, where=cells, batch_key=batches.batch_key)
    new_folder(output, writing.force)

    from ..recipes.adapt import adapt as adapt_cells
    from ..tokenization.reading import open_cells
    from ..training.data.corpus import read_corpus
    from ..training.data.manifest import MANIFEST
    from ..training.progress import heartbeat

    prepare_process()
    adata = read_corpus(file) if (file / MANIFEST).exists() else open_cells(file)
    with about(file.name), heartbeat(screen.notes, "Adapting") as beat:
        gained = adapt_cells(adata, model, output, cells, batches, run, name=file.name, say=screen.say, tell=beat.tell)
    shown = {"cells": f"{gained['cells']['train']:,} learned from, {gained['cells']['held out']:,} held out"}
    if not gained["new components"]:
        shown["embedding"] = "as before, since held-out cells were likeliest with it; only mean profiles were learned"
    for key in ("nats of a count", "mixing of batches"):
        if f"{key} after" in gained:
            shown[key] = f"{gained[f'{key} before']:.3f} before, {gained[f'{key} after']:.3f} after"
    screen.show(
        facts(f"Adapted in {gained['seconds']:.0f} s", shown),
        f"Written: {output}, with card and metrics.json",
        f"Next: [bold]xtrimogene embed {file} --model {output} -o {file.stem}_xtrimogene.h5ad[/bold]",
    )
    screen.result({"output": output, "gained": gained})
