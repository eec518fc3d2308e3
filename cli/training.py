"""`demo`, `convert`, `pretrain`, `finetune`, `plan`: cells in, checkpoints out."""

import importlib.util
import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .options import (
    AsJson,
    Cells,
    ClassWeights,
    Device,
    DropEmpty,
    Force,
    GeneColumn,
    Layer,
    Model,
    OutputFolder,
    Pooling,
    Quiet,
    Resume,
    Seed,
    TrainingBatchSize,
    batch_size_of,
    existing_checkpoint,
)
from .output import Screen, command_line, facts, new_folder, scores_table
from .process import is_first_process, prepare_process

NOT_IN_A_RECIPE = ("output", "force", "as_json", "quiet", "print_config", "resume")


@app.command()
def demo(
    output: OutputFolder = Path("demo"),
    pretrain_epochs: Annotated[int, typer.Option(min=1, help="Epochs of pre-training.")] = 30,
    finetune_epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 3,
    seed: Seed = 0,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds other files.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train, fine-tune and compare with baselines on 700 real blood cells: no network, a few minutes on a laptop.

    Example: `xtrimogene demo -o demo`

    It writes two checkpoints with their cards, pictures, metrics and the embedded cells. A former demo is replaced.
    """
    screen = Screen(as_json, quiet)
    is_former_demo = (output / "metrics.json").is_file() and (output / "annotator").is_dir()
    new_folder(output, force or is_former_demo)

    from ..inference.devices import pick_device
    from ..recipes.demo import run_demo
    from ..training.progress import RichProgress

    prepare_process()
    pick_device(device)
    with RichProgress(screen.notes, disable=quiet) as progress:
        metrics = run_demo(
            output,
            seed=seed,
            pretrain_epochs=pretrain_epochs,
            finetune_epochs=finetune_epochs,
            device=device,
            say=screen.say,
            callbacks=[progress],
        )
    scores: dict[str, dict[str, float]] = {
        name: {"accuracy": row["accuracy"], "macro-F1": row["macro_f1"]}
        for name, row in metrics["annotation of held-out cells"].items()
    }
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


def read_recipe(ctx: typer.Context, value: str | None) -> str | None:
    """Take the options of a YAML file for those that are not typed; the value of --config is then the file's."""
    if value is None or not value.endswith((".yaml", ".yml")):
        return value
    import yaml

    if not Path(value).is_file():
        raise typer.BadParameter(f"{value} does not exist: --print-config writes one to begin with")
    try:
        options = yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"{value} is no YAML: {' '.join(str(error).split())}") from error
    known = {option.name for option in ctx.command.params} - {"output"}
    if not isinstance(options, dict) or (unknown := sorted(set(options) - known)):
        what = f"the unknown option {unknown[0]!r}" if isinstance(options, dict) else "no list of options"
        raise typer.BadParameter(f"{value} holds {what}; options are {', '.join(sorted(known))}")
    ctx.default_map = {**(ctx.default_map or {}), **options}
    return options.get("config")


def begin_run(output: Path, force: bool, resume: bool) -> None:
    """Make sure that a folder is free for a run, or holds the checkpoints that it resumes from.

    With `force` what an earlier run left to resume from is deleted.

    Raises:
        ValueError: If the folder holds other files, or a run that has ended is to be resumed.
    """
    from ..recipes.pretrain import EVENTS
    from ..training.arguments import CHECKPOINTS

    is_begun = (output / CHECKPOINTS).exists()
    if resume and not is_begun and (output / "metrics.json").exists():
        raise ValueError(f"the run in {output} has ended, so there is nothing to resume: begin another elsewhere")
    if resume and is_begun:
        return
    if is_begun and not force:
        raise ValueError(
            f"{output} holds checkpoints of a run that was interrupted: go on with --resume, or begin anew with --force"
        )
    new_folder(output, force)
    for earlier in (CHECKPOINTS, EVENTS):
        shutil.rmtree(output / earlier, ignore_errors=True)


class Schedule(StrEnum):
    """How the learning rate falls."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant_with_warmup"


class ReportTo(StrEnum):
    """Where else training is logged."""

    NONE = "none"
    TENSORBOARD = "tensorboard"
    TRACKIO = "trackio"


class Unmeasured(StrEnum):
    """What becomes of genes that a file does not name."""

    IGNORE = "ignore"
    ZERO = "zero"


class DecoderContext(StrEnum):
    """What genes attend to in the decoder."""

    ALL = "all"
    NONZERO = "nonzero"


@app.command()
def pretrain(
    ctx: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Cells: .h5ad, 10x .h5 or mtx folders, .csv or .tsv.")
    ] = None,
    output: OutputFolder = Path("checkpoint"),
    corpus: Annotated[
        str | None, typer.Option(help="Corpus from `xtrimogene convert`, for more cells than fit in memory.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            is_eager=True,
            callback=read_recipe,
            help="Size of a new model: tiny, 3M, 10M or 100M; or a YAML file with options, see --print-config.",
            show_default="tiny on a CPU, else 3M",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(callback=existing_checkpoint, help="Continue from these weights, not from new ones.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the cells.", show_default="10")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps; instead of --epochs.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Largest learning rate.", show_default="2e-3 for tiny, else 1e-4")
    ] = None,
    schedule: Annotated[Schedule, typer.Option(help="How the learning rate falls.")] = Schedule.COSINE,
    warmup: Annotated[float, typer.Option(min=0, max=0.99, help="Share of the steps in which it rises.")] = 0.05,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = 0.0,
    max_grad_norm: Annotated[float, typer.Option(min=0, help="Clip gradients at this norm; 0 does not.")] = 1.0,
    ema: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Decay of an average of the weights, such as 0.999: it becomes the model."),
    ] = None,
    batch_size: TrainingBatchSize = "auto",
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Genes of a batch, at most: bounds memory; --batch-size is then the most cells."),
    ] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of one step.")] = 1,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16, keep weights in float32.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for more time.")
    ] = False,
    compile_model: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    expressed_ratio: Annotated[float, typer.Option(min=0, max=1, help="Share of expressed genes to mask.")] = 0.3,
    zero_ratio: Annotated[float, typer.Option(min=0, max=1, help="Share of zero genes to mask.")] = 0.03,
    unmeasured: Annotated[
        Unmeasured, typer.Option(help="Genes that a file does not name: learn nothing of them, or that they are zero.")
    ] = Unmeasured.IGNORE,
    decoder_context: Annotated[
        DecoderContext | None,
        typer.Option(help="What genes attend to in the decoder.", show_default="nonzero for tiny, else all"),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Of the encoder; slow on a CPU.", show_default="0 for tiny, else 0.1"),
    ] = None,
    depth_tokens: Annotated[bool, typer.Option("--depth-tokens", help="Add tokens of sequencing depth.")] = False,
    read_depth_aware: Annotated[
        bool, typer.Option("--read-depth-aware", help="Learn to predict a cell from fewer reads; adds depth tokens.")
    ] = False,
    validation_share: Annotated[float, typer.Option(min=0.001, max=0.9, help="Share of cells held out.")] = 0.05,
    validation_by: Annotated[
        str | None, typer.Option(help="Column of the corpus, such as a donor: none of them on both sides.")
    ] = None,
    balance_by: Annotated[
        str | None, typer.Option(help="Column of the corpus, such as a study: draw from each equally often.")
    ] = None,
    report_to: Annotated[ReportTo, typer.Option(help="Where else to log, if it is installed.")] = ReportTo.NONE,
    resume: Resume = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all options as YAML, and do nothing.")
    ] = False,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    drop_empty: DropEmpty = False,
    seed: Seed = 0,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train a model on your cells: it learns to fill in genes that were masked.

    Example: `xtrimogene pretrain a.h5ad b.h5ad -o checkpoint --config tiny --epochs 10`

    It writes a checkpoint with its card, the loss curve, and the recovery of masked values of held-out cells beside
    what the mean of each gene achieves. A run that was interrupted goes on with the same command and --resume.
    On several devices: `accelerate launch --module xtrimogene.cli pretrain ...`
    """
    if print_config:
        import yaml

        shown = {name: value for name, value in ctx.params.items() if name not in NOT_IN_A_RECIPE}
        typer.echo(yaml.safe_dump(json.loads(json.dumps(shown, default=str)), sort_keys=False), nl=False)
        return
    is_first = is_first_process()
    screen = Screen(as_json, quiet)
    if epochs and max_steps:
        sources = {name: str(ctx.get_parameter_source(name)) for name in ("epochs", "max_steps")}
        from_file = [name for name, source in sources.items() if source.endswith("DEFAULT_MAP")]
        if len(from_file) != 1:
            raise typer.BadParameter("--epochs and --max-steps exclude each other: give one")
        epochs, max_steps = (None, max_steps) if from_file == ["epochs"] else (epochs, None)
    if report_to is not ReportTo.NONE and importlib.util.find_spec(report_to.value) is None:
        raise typer.BadParameter(f"--report-to {report_to.value} needs it: pip install {report_to.value}")
    if checkpoint and (config or depth_tokens or decoder_context or dropout is not None):
        raise typer.BadParameter(
            "--config, --depth-tokens, --decoder-context and --dropout are those of the --checkpoint: leave them out"
        )
    size = batch_size_of(batch_size)

    from ..recipes.pretrain import pretrain_files

    if is_first:
        begin_run(output, force, resume)

    from ..training.progress import RichProgress

    prepare_process()
    with RichProgress(screen.notes, disable=screen.quiet) as progress:
        metrics = pretrain_files(
            files or [],
            output,
            corpus=corpus,
            config=config,
            checkpoint=checkpoint,
            epochs=epochs or 10,
            max_steps=max_steps,
            learning_rate=learning_rate,
            batch_size=size,
            max_tokens=max_tokens,
            ema=ema,
            expressed_ratio=expressed_ratio,
            zero_ratio=zero_ratio,
            unmeasured=unmeasured.value,
            depth_tokens=depth_tokens or (read_depth_aware and not checkpoint),
            read_depth_aware=read_depth_aware,
            decoder_context=None if decoder_context is None else decoder_context.value,
            dropout=dropout,
            validation_share=validation_share,
            validation_by=validation_by,
            balance_by=balance_by,
            resume=resume,
            layer=layer,
            gene_column=gene_column,
            drop_empty=drop_empty,
            seed=seed,
            device=device,
            command=command_line(ctx),
            say=screen.say,
            callbacks=[progress],
            lr_scheduler_type=schedule.value,
            warmup_steps=warmup,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            gradient_accumulation_steps=accumulate,
            bf16=bf16,
            activation_checkpointing=gradient_checkpointing,
            torch_compile=compile_model,
            report_to=report_to.value,
        )
    if not metrics:
        return
    source = corpus or f"{files[0]}"  # type: ignore[index]
    screen.show(
        scores_table(
            f"Masked values of {metrics['cells']['held out']:,} held-out cells",
            {
                name: {"Pearson": row["pearson"], "Pearson of expressed": row["pearson_expressed"]}
                for name, row in metrics["masked values of held-out cells"].items()
            },
        ),
        f"Written: {output}, with card, loss.png and metrics.json",
        f"Next: [bold]xtrimogene embed {'CELLS.h5ad' if corpus else source} --model {output} "
        f"-o {'CELLS' if corpus else Path(source).stem}_xtrimogene.h5ad[/bold]",
    )
    screen.result({"output": output, "metrics": metrics})


@app.command()
def finetune(
    ctx: typer.Context,
    file: Cells,
    label_key: Annotated[str, typer.Option(help="Column of obs with the cell types.")],
    model: Model,
    output: OutputFolder,
    test_share: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of cells held out to test on.")] = 0.2,
    group_key: Annotated[
        str | None, typer.Option(help="Column of obs with donor or study: none of them on both sides of the split.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the cells.")] = 3,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Largest learning rate.", show_default="1e-3 for tiny, else 5e-4")
    ] = None,
    batch_size: TrainingBatchSize = "auto",
    trainable_layers: Annotated[
        int | None, typer.Option(min=0, help="Train so many of the last layers, and the head.", show_default="all")
    ] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Pooling.", show_default="that of the checkpoint")] = None,
    class_weights: Annotated[
        ClassWeights, typer.Option(help="balanced gives rare cell types more weight.")
    ] = ClassWeights.NONE,
    resume: Resume = False,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    drop_empty: DropEmpty = False,
    seed: Seed = 0,
    device: Device = "auto",
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a checkpoint into a model that names cell types, and test it beside simple baselines.

    Example: `xtrimogene finetune labelled.h5ad --label-key cell_type --model checkpoint -o annotator`

    It writes the model with its card, the confusion of held-out cells, and accuracy and macro-F1 beside those of
    logistic regression and of k-NN on PCA on the same cells. With several donors give --group-key: cells of a donor
    resemble each other, and a split that ignores this promises too much.
    """
    screen = Screen(as_json, quiet)
    size = batch_size_of(batch_size)
    begin_run(output, force, resume)

    from ..recipes.finetune import finetune_file
    from ..training.progress import RichProgress

    prepare_process()
    with RichProgress(screen.notes, disable=quiet) as progress:
        metrics = finetune_file(
            file,
            label_key,
            model,
            output,
            test_share=test_share,
            group_key=group_key,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=size,
            trainable_layers=trainable_layers,
            pooling=None if pooling is None else pooling.value,
            class_weights=class_weights.value,
            layer=layer,
            gene_column=gene_column,
            drop_empty=drop_empty,
            resume=resume,
            seed=seed,
            device=device,
            command=command_line(ctx),
            say=screen.say,
            callbacks=[progress],
        )
    screen.show(
        scores_table(
            f"Cell types of {metrics['cells']['test']:,} held-out cells",
            {
                name: {"accuracy": row["accuracy"], "macro-F1": row["macro_f1"]}
                for name, row in metrics["annotation of held-out cells"].items()
            },
        ),
        f"Written: {output}, with card, confusion.png and metrics.json",
        f"Next: [bold]xtrimogene annotate other.h5ad --model {output} -o other_annotated.h5ad[/bold]",
    )
    screen.result({"output": output, "metrics": metrics})
