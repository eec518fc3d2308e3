"""Command line: files in, files out. A thin door: what is done lies in the package, what is said lies here.

    xtrimogene COMMAND FILES -o OUTPUT
        stdout   tables for people; with --json one JSON object and nothing else
        stderr   progress, notes, and errors in one line

Heavy imports stay inside the commands, so that `--help` does not wait for them.
"""

import json
import os
import shlex
import time
import warnings
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from anndata import AnnData


class Commands(TyperGroup):
    """The commands, with errors as one line (or one JSON object) instead of a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember what was typed, for cards and for errors in JSON."""
        ctx.meta["typed"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = None if ctx.params.get("debug") else error_message(error)
            if message is None:
                raise
            if "--json" in ctx.meta["typed"]:
                typer.echo(json.dumps({"error": message}))
            else:
                screen = Console(stderr=True, highlight=False)
                screen.print("[bold red]Error:[/bold red]", end=" ")
                screen.print(message, style="red", markup=False, soft_wrap=True)
            raise typer.Exit(getattr(error, "exit_code", 1)) from error


def error_message(error: Exception) -> str | None:
    """Return one line for an error that the user can mend, or None for one that is ours."""
    is_usage = hasattr(error, "format_message")  # from typer: missing or unknown options
    is_users = isinstance(error, (ValueError, TypeError, OSError)) and not isinstance(error, BrokenPipeError)
    is_strict = type(error).__name__.startswith("StrictDataclass")  # of the configuration, not a ValueError
    is_memory = type(error).__name__ == "OutOfMemoryError"  # torch's
    if not (is_usage or is_users or is_strict or is_memory):
        return None
    if is_strict and error.__cause__ is not None:
        error = cast(Exception, error.__cause__)
    text = cast(Any, error).format_message() if is_usage else str(error)
    advice = ": give a smaller --batch-size" if is_memory else ""
    return " ".join(text.split()) + advice or type(error).__name__


app = typer.Typer(
    name="xtrimogene",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(is_asked: bool) -> None:
    """Print the version and stop."""
    if is_asked:
        from . import __version__

        typer.echo(f"xtrimogene {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Use xTrimoGene on your single-cell RNA-seq data: embed cells, name their types, pre-train, fine-tune.

    Start here: `xtrimogene demo`, which runs the whole road on real cells in minutes, without network; then
    `xtrimogene inspect my.h5ad` on a file of your own.
    """
    if not debug:
        warnings.simplefilter("ignore")


def existing_checkpoint(model: str | None) -> str | None:
    """Refuse what cannot be a checkpoint before anything is read."""
    if model is None:
        return None
    from .tl import check_checkpoint

    try:
        check_checkpoint(model)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    folder = Path(model)
    is_beside = folder.parent != Path() and folder.parent.is_dir()
    is_hub_name = model.count("/") == 1 and not model.startswith((".", "/", "~")) and not model.endswith("/")
    if not folder.exists() and (is_beside or not is_hub_name):
        raise typer.BadParameter(f"{model} does not exist; give a checkpoint folder, or a Hub name such as owner/model")
    return model


def batch_size_of(text: str) -> int | Literal["auto"]:
    """Return `auto` or a number of cells."""
    if text == "auto":
        return "auto"
    if not text.isdigit() or int(text) == 0:
        raise typer.BadParameter(f"--batch-size is {text!r}: give 'auto' or a number of cells, such as 64")
    return int(text)


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, the rest on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors, and JSON if asked for.")]
Force = Annotated[bool, typer.Option("--force", help="Write over an output that exists.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
BatchSize = Annotated[str, typer.Option("--batch-size", help="Cells at a time; auto fits them to the device.")]
TrainingBatchSize = Annotated[str, typer.Option("--batch-size", help="Cells of a training step; auto is 16.")]
Model = Annotated[
    str, typer.Option("--model", "-m", callback=existing_checkpoint, help="Checkpoint: a folder or a Hub name.")
]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="The .h5ad file to write.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")]
Layer = Annotated[str | None, typer.Option("--layer", help="Layer with the counts, if they are not found.")]
GeneColumn = Annotated[str | None, typer.Option("--gene-column", help="Column of var with the gene names.")]
DropEmpty = Annotated[bool, typer.Option("--drop-empty", help="Leave out cells without counts instead of stopping.")]
Cells = Annotated[Path, typer.Argument(help="Cells: .h5ad, 10x .h5 or mtx folder, .csv or .tsv.", show_default=False)]


class Dtype(StrEnum):
    """In what a model computes."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="What to compute in; auto is bfloat16 where a GPU has it.")]


class Pooling(StrEnum):
    """Ways from the tokens of a cell to its embedding."""

    ALL = "all"
    MAX = "max"
    MEAN = "mean"
    S = "S"
    T = "T"


class ClassWeights(StrEnum):
    """Weights of the classes in the loss."""

    NONE = "none"
    BALANCED = "balanced"


class Screen:
    """Where output goes: tables to stdout, notes and progress to stderr, JSON instead of tables where asked for."""

    def __init__(self, as_json: bool, quiet: bool = False):
        self.as_json = as_json
        self.quiet = quiet
        self.notes = Console(stderr=True, highlight=False, quiet=quiet)
        self.tables = Console(highlight=False, quiet=quiet or as_json)

    def say(self, text: str) -> None:
        """Print a line for people."""
        self.notes.print(text, markup=False, soft_wrap=True)

    def show(self, *tables: Table | str) -> None:
        """Print tables, and lines that belong to them."""
        for table in tables:
            self.tables.print(table, soft_wrap=isinstance(table, str))

    def result(self, values: Mapping[str, Any]) -> None:
        """Print the result for machines, if it was asked for."""
        if self.as_json:
            from .runs import plain

            typer.echo(json.dumps(plain(values), allow_nan=False))


def prepare_process() -> None:
    """Turn off bars and notes of libraries, since those of this program are on stderr; keep freed memory."""
    import datasets
    import huggingface_hub
    import transformers

    from .training.allocator import keep_freed_memory

    keep_freed_memory()
    huggingface_hub.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def facts(title: str, rows: Mapping[str, Any]) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def scores_table(title: str, scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Return scores with the best of each column marked; the first row is the model, the others what it has to beat.

    Args:
        title: Title.
        scores: Row -> column -> score, higher is better; a row may lack a column.
    """
    columns = list(dict.fromkeys(column for row in scores.values() for column in row))
    scores = {name: {key: value for key, value in row.items() if value == value} for name, row in scores.items()}  # NaN
    best = {column: max((row[column] for row in scores.values() if column in row), default=0) for column in columns}
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in scores.items():
        texts = [f"{row[column]:.3f}" if column in row else "-" for column in columns]
        is_best = [row.get(column) == best[column] for column in columns]
        marked = [f"[bold green]★ {text}[/]" if won else text for text, won in zip(texts, is_best, strict=True)]
        table.add_row(name, *marked)
    model = next(iter(scores))
    lost = [column for column in columns if scores[model].get(column) != best[column]]
    table.caption = "★ best on held-out cells. " + (
        f"{model} does not win: {', '.join(lost)}." if lost else f"{model} wins all columns."
    )
    return table


def new_file(output: Path, force: bool) -> None:
    """Refuse an output file that cannot be written, or that would replace another.

    Raises:
        ValueError: If it is there already and `force` is not set, or is a folder.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder, and --output a file to write: name one, such as {output / 'out.h5ad'}")
    if output.suffix != ".h5ad":
        raise typer.BadParameter(f"--output is {output}: the result is an .h5ad file, name it so")
    if output.exists() and not force:
        raise ValueError(f"{output} exists: choose another --output, or write over it with --force")
    check_parents(output)
    output.parent.mkdir(parents=True, exist_ok=True)


def new_folder(output: Path, force: bool) -> None:
    """Refuse an output folder that holds files already.

    Raises:
        ValueError: If it does and `force` is not set, or is a file.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, and --output a folder to write: choose another name")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise ValueError(f"{output} holds files already: choose another --output, or write over them with --force")
    check_parents(output)


def check_parents(output: Path) -> None:
    """Refuse an output inside of what is no folder."""
    nearest = next(parent for parent in output.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"--output is {output}, and {nearest} is a file: choose another folder")


def write_cells(adata: "AnnData", output: Path) -> None:
    """Write cells as .h5ad; an interrupted run leaves what was there before."""
    unfinished = output.with_name(f"{output.name}.unfinished")
    try:
        adata.write_h5ad(unfinished)
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)


def typed(ctx: typer.Context) -> str:
    """Return the command as it was typed, to be repeated; of paths the last part, folders are everybody's own."""
    words = [word if word.startswith("-") or not os.path.isabs(word) else Path(word).name for word in ctx.meta["typed"]]
    return shlex.join(["xtrimogene", *words])


def genes_line(genes: Mapping[str, Any]) -> str:
    """Return a line on how genes were matched, from the provenance of a result."""
    share = genes["n_matched"] / genes["n_panel"]
    return f"matched {genes['n_matched']:,}/{genes['n_panel']:,} genes ({share:.1%}), by {genes['source']}"


@app.command()
def demo(
    output: OutputFolder = Path("demo"),
    pretrain_epochs: Annotated[int, typer.Option(min=1, help="Epochs of pre-training.")] = 30,
    finetune_epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 10,
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

    from .demo import run_demo
    from .eval.inference import pick_device
    from .training.progress import RichProgress

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


@app.command()
def pretrain(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Cells: .h5ad, 10x .h5 or mtx folders, .csv or .tsv.")],
    output: OutputFolder,
    config: Annotated[
        str | None,
        typer.Option(help="Size of a new model: tiny, 3M, 10M or 100M.", show_default="tiny on a CPU, else 3M"),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(callback=existing_checkpoint, help="Continue from these weights, not from new ones.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the cells.", show_default="10")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps; instead of --epochs.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Largest learning rate.", show_default="2e-3 for tiny, else 1e-4")
    ] = None,
    batch_size: TrainingBatchSize = "auto",
    expressed_ratio: Annotated[float, typer.Option(min=0, max=1, help="Share of expressed genes to mask.")] = 0.3,
    zero_ratio: Annotated[float, typer.Option(min=0, max=1, help="Share of zero genes to mask.")] = 0.03,
    depth_tokens: Annotated[bool, typer.Option("--depth-tokens", help="Add tokens of sequencing depth.")] = False,
    validation_share: Annotated[float, typer.Option(min=0.001, max=0.9, help="Share of cells held out.")] = 0.05,
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
    what the mean of each gene achieves.
    """
    screen = Screen(as_json, quiet)
    if epochs and max_steps:
        raise typer.BadParameter("--epochs and --max-steps exclude each other: give one")
    if checkpoint and (config or depth_tokens):
        raise typer.BadParameter("--config and --depth-tokens are those of the --checkpoint: leave them out")
    size = batch_size_of(batch_size)
    new_folder(output, force)

    from .runs import pretrain_files
    from .training.progress import RichProgress

    prepare_process()
    with RichProgress(screen.notes, disable=quiet) as progress:
        metrics = pretrain_files(
            files,
            output,
            config=config,
            checkpoint=checkpoint,
            epochs=epochs or 10,
            max_steps=max_steps,
            learning_rate=learning_rate,
            batch_size=size,
            expressed_ratio=expressed_ratio,
            zero_ratio=zero_ratio,
            depth_tokens=depth_tokens,
            validation_share=validation_share,
            layer=layer,
            gene_column=gene_column,
            drop_empty=drop_empty,
            seed=seed,
            device=device,
            command=typed(ctx),
            say=screen.say,
            callbacks=[progress],
        )
    screen.show(
        scores_table(
            f"Masked values of {metrics['cells']['held out']:,} held-out cells",
            {
                name: {"Pearson": row["pearson"], "Pearson of expressed": row["pearson_expressed"]}
                for name, row in metrics["masked values of held-out cells"].items()
            },
        ),
        f"Written: {output}, with card, loss.png and metrics.json",
        f"Next: [bold]xtrimogene embed {files[0]} --model {output} -o {files[0].stem}_xtrimogene.h5ad[/bold]",
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
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the cells.")] = 15,
    learning_rate: Annotated[float, typer.Option(min=0, help="Largest learning rate.")] = 5e-4,
    batch_size: TrainingBatchSize = "auto",
    trainable_layers: Annotated[
        int | None, typer.Option(min=0, help="Train so many of the last layers, and the head.", show_default="all")
    ] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Pooling.", show_default="that of the checkpoint")] = None,
    class_weights: Annotated[
        ClassWeights, typer.Option(help="balanced gives rare cell types more weight.")
    ] = ClassWeights.NONE,
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
    new_folder(output, force)

    from .runs import finetune_file
    from .training.progress import RichProgress

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
            seed=seed,
            device=device,
            command=typed(ctx),
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


@app.command()
def embed(
    file: Cells,
    model: Model,
    output: OutputFile,
    pooling: Annotated[Pooling | None, typer.Option(help="Pooling.", show_default="that of the checkpoint")] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    key_added: Annotated[str, typer.Option(help="Name of the result in obsm.")] = "X_xtrimogene",
    target_depth: Annotated[
        float | None,
        typer.Option(help="log10 of the total to embed for, with depth tokens.", show_default="that of the cell"),
    ] = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: DtypeOption = Dtype.AUTO,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Embed every cell: your cells come back, in their order, with an embedding in obsm.

    Example: `xtrimogene embed my.h5ad --model checkpoint -o my_embedded.h5ad`

    Counts are looked for in layers, raw and X, and log1p is undone where that is possible. Genes may be symbols,
    Ensembl ids or a mixture. Cells without counts stay, with NaN; obs says which.

    Then, in Python: `scanpy.pp.neighbors(adata, use_rep="X_xtrimogene")`
    """
    screen = Screen(as_json, quiet)
    size = batch_size_of(batch_size)
    new_file(output, force)

    from .runs import read_cells

    adata = read_cells(file)

    from . import tl
    from .training.progress import cell_progress

    prepare_process()
    began = time.perf_counter()
    with cell_progress(screen.notes, disable=quiet) as progress:
        bar = progress.add_task("Embedding", total=adata.n_obs, unit="cells", note="", visible=False)
        tl.embed(
            adata,
            model,
            layer=layer,
            gene_column=gene_column,
            pooling=None if pooling is None else pooling.value,
            target_depth=target_depth,
            batch_size=size,
            device=device,
            dtype=dtype.value,
            key_added=key_added,
            progress=lambda cells: progress.update(bar, advance=cells, visible=True),
        )
        seconds = progress.tasks[0].elapsed or time.perf_counter() - began
    write_cells(adata, output)
    made_by = adata.uns[key_added]
    num_empty = int(adata.obs[f"{key_added}_empty"].sum())
    rows = {
        "cells": f"{adata.n_obs:,}, in their order",
        "counts": made_by["counts"],
        "genes": genes_line(made_by["genes"]),
        "empty cells": f"{num_empty:,}{f' with NaN, see obs[{key_added}_empty]' if num_empty else ''}",
        "embedding": f'obsm["{key_added}"], {adata.obsm[key_added].shape[1]} wide, pooling {made_by["pooling"]}',
        "speed": f"{adata.n_obs / seconds:,.0f} cells/s, with loading the model",
    }
    screen.show(facts(f"Written: {output}", rows))
    screen.result(
        {
            "output": output,
            "cells": adata.n_obs,
            "empty_cells": num_empty,
            "shape": list(adata.obsm[key_added].shape),
            "key_added": key_added,
            "cells_per_second": adata.n_obs / seconds,
            "provenance": made_by,
        }
    )


@app.command()
def annotate(
    query: Cells,
    model: Model,
    output: OutputFile,
    reference: Annotated[
        Path | None, typer.Option(help="Labelled cells, for a model that was not fine-tuned; with --label-key.")
    ] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of the reference's obs with the cell types.")] = None,
    n_neighbors: Annotated[int, typer.Option(min=1, help="Reference cells that vote.")] = 15,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    key_added: Annotated[str, typer.Option(help="Beginning of the names of the columns in obs.")] = "xtrimogene",
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: DtypeOption = Dtype.AUTO,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Name the type of every cell: by a fine-tuned model, or by labelled reference cells without training.

    Example: `xtrimogene annotate my.h5ad --model annotator -o my_annotated.h5ad`

    With labelled cells instead of training:
    `xtrimogene annotate my.h5ad --model checkpoint --reference labelled.h5ad --label-key cell_type -o out.h5ad`

    Your cells need no labels. Label and probability are written into obs; a cell without counts gets none.
    """
    screen = Screen(as_json, quiet)
    if label_key and not reference:
        raise typer.BadParameter("--label-key names a column of the --reference: give both, or neither")
    size = batch_size_of(batch_size)
    new_file(output, force)

    from .runs import read_cells

    adata = read_cells(query)
    known = None if reference is None else read_cells(reference)

    from . import tl
    from .training.progress import cell_progress

    prepare_process()
    with cell_progress(screen.notes, disable=quiet) as progress:
        total = adata.n_obs + (0 if known is None else known.n_obs)
        bar = progress.add_task("Annotating", total=total, unit="cells", note="", visible=False)
        tl.annotate(
            adata,
            model,
            reference=known,
            label_key=label_key,
            n_neighbors=n_neighbors,
            layer=layer,
            gene_column=gene_column,
            batch_size=size,
            device=device,
            dtype=dtype.value,
            key_added=key_added,
            progress=lambda cells: progress.update(bar, advance=cells, visible=True),
        )
    write_cells(adata, output)
    names, certainty = adata.obs[f"{key_added}_label"], adata.obs[f"{key_added}_probability"]
    counts = names.value_counts()
    labels = {
        str(name): {"cells": int(count), "median_probability": float(certainty[names == name].median())}
        for name, count in counts[counts > 0].items()
    }
    num_unlabelled = int(names.isna().sum())
    table = Table(title=f"Cell types of {adata.n_obs:,} cells", title_justify="left")
    table.add_column("label")
    table.add_column("cells", justify="right")
    table.add_column("median probability", justify="right")
    for name, row in labels.items():
        table.add_row(name, f"{row['cells']:,}", f"{row['median_probability']:.2f}")
    if num_unlabelled:
        table.add_row("none: no counts", f"{num_unlabelled:,}", "-")
    made_by = adata.uns[key_added]
    screen.show(
        table,
        f"{made_by['counts']}; {genes_line(made_by['genes'])}",
        f"Written: {output}, obs: {key_added}_label and {key_added}_probability",
    )
    screen.result(
        {
            "output": output,
            "cells": adata.n_obs,
            "labels": labels,
            "unlabelled": num_unlabelled,
            "provenance": made_by,
        }
    )


@app.command()
def inspect(
    file: Cells,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    as_json: AsJson = False,
) -> None:
    """Show what is seen in a file: where the counts are, how the genes match, which columns may hold labels.

    Example: `xtrimogene inspect my.h5ad`

    Nothing is changed and no model is needed. The exit code is 1 if the file cannot be embedded as it is.
    """
    screen = Screen(as_json)

    import numpy as np

    from .tokenization.counts_xtrimogene import find_counts, load
    from .tokenization.tokenization_xtrimogene import PanelCounts, XTrimoGeneTokenizer

    data = load(file)
    found: dict[str, Any] = {"file": file, "slots": slots(data)}
    columns = label_columns(data)
    problem = None
    try:
        source = find_counts(data, layer=layer, gene_column=gene_column)
        found |= {"cells": source.n_cells, "columns": source.n_columns, "counts": source.description}
        found |= {"slot": source.slot, "state": source.state}
        tokenizer = XTrimoGeneTokenizer.default()
        match = tokenizer.matcher.best_match(source.name_candidates, row_names=source.cell_names)
        cells = PanelCounts(source, match, tokenizer.num_genes)
        totals, lengths = [], []
        for start in range(0, cells.n_cells, 4096):
            counts, total = cells.read(start, start + 4096)
            totals.append(total)
            lengths.append(np.diff(counts.indptr))
        found |= {
            "genes": {**cells.match.to_dict(), "summary": cells.match.summary()},
            "median_total": float(np.median(np.concatenate(totals))),
            "median_expressed_genes": float(np.median(np.concatenate(lengths))),
            "empty_cells": int((np.concatenate(lengths) == 0).sum()),
        }
    except (ValueError, TypeError) as error:
        problem = " ".join(str(error).split())
    name = shlex.quote(str(file))
    following = [f"xtrimogene embed {name} --model CHECKPOINT -o {shlex.quote(f'{file.stem}_embedded.h5ad')}"]
    if columns:
        likely = shlex.quote(next(iter(columns)))
        following.append(f"xtrimogene finetune {name} --label-key {likely} --model CHECKPOINT -o annotator")
    found |= {"obs": columns, "problem": problem, "next": [] if problem else following}

    shape = f"{data.shape[0]:,} cells x {data.shape[1]:,} columns" if len(data.shape) == 2 else str(data.shape)
    rows: dict[str, Any] = {"shape": shape, **found["slots"]}
    if "slot" in found:
        rows["counts"] = found["counts"]
    if "genes" in found:
        rows |= {
            "genes": f"{found['genes']['summary']}; names from {found['genes']['source']}",
            "total counts": f"median {found['median_total']:,.0f} a cell",
            "expressed genes": f"median {found['median_expressed_genes']:,.0f} a cell on the panel",
            "empty cells": f"{found['empty_cells']:,}",
        }
    for key, values in columns.items():
        rows[f'obs["{key}"]'] = f"{values['values']} values: {', '.join(values['examples'])}, ..."
    if problem:
        rows["problem"] = problem
    screen.show(facts(file.name, rows), *[f"Next: {command}" for command in found["next"]])
    screen.result(found)
    if problem:
        raise typer.Exit(1)


def slots(data: Any) -> dict[str, str]:
    """Return what each slot of a data set holds, one line each."""
    from .tokenization.counts_xtrimogene import examine, readable_by_row

    if not hasattr(data, "layers"):
        values = {"values": data.to_numpy() if hasattr(data, "to_numpy") else data}
        bases: tuple[float, ...] = ()
    else:
        values = {f'layers["{name}"]': data.layers[name] for name in data.layers}
        values |= {"raw.X": data.raw.X} if data.raw is not None else {}
        values |= {"X": data.X} if data.X is not None else {}
        base = data.uns.get("log1p", {}).get("base")
        bases = () if base is None else (float(base),)
    lines = {}
    for name, matrix in values.items():
        try:
            text = examine(readable_by_row(matrix, name), bases).text
            lines[name] = "counts" if text == "counts from {slot}" else text.format(slot="values")
        except ValueError as error:
            lines[name] = str(error)
    return lines


def label_columns(data: Any) -> dict[str, dict[str, Any]]:
    """Return the columns of obs that may hold labels or batches: text or categories, 2 to 100 of them."""
    import pandas as pd

    found = {}
    for name, column in (data.obs if hasattr(data, "obs") else pd.DataFrame()).items():
        is_category = isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column)
        num_values = column.nunique() if is_category else 0
        if 2 <= num_values <= min(100, len(column) // 2):
            examples = [str(value) for value in column.value_counts().index[:3]]
            found[str(name)] = {"values": int(num_values), "examples": examples}
    return found


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this installation: versions, devices, memory, and what would make it faster.

    Example: `xtrimogene doctor`

    The exit code is 1 if a package is missing or older than what is needed.
    """
    screen = Screen(as_json)

    import platform
    from importlib import metadata

    import psutil
    import torch
    from packaging.requirements import Requirement
    from transformers.utils import is_flash_attn_2_available

    versions, problems = {"python": platform.python_version()}, []
    for line in metadata.requires("xtrimogene") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[needed.name] = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{needed.name} is not installed, {needed.specifier} is needed: pip install '{needed}'")
            continue
        if not needed.specifier.contains(versions[needed.name], prereleases=True):
            problems.append(
                f"{needed.name} is {versions[needed.name]}, {needed.specifier} is needed: pip install -U '{needed}'"
            )
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    has_mps = torch.backends.mps.is_available()
    threads, cores = (
        torch.get_num_threads(),
        len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)),
    )
    attention = ["sdpa", "eager", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]
    has_bfloat16 = torch.cuda.is_bf16_supported() if gpus else has_mps or torch.backends.cpu.get_cpu_capability() in (
        "AVX512", "AMX"
    )  # fmt: skip
    memory = psutil.virtual_memory()
    advice = []
    if not gpus and not has_mps:
        advice.append("no GPU: embedding and small models are fine on a CPU; for 10M and 100M models use a GPU")
    if gpus and "flash_attention_2" not in attention:
        advice.append("flash-attn is not installed: sdpa is used, which is fast as well")
    if threads < cores:
        advice.append(f"torch uses {threads} of {cores} cores: set OMP_NUM_THREADS={cores}")
    found = {
        "platform": platform.platform(),
        "versions": versions,
        "devices": [*gpus, *(["mps"] if has_mps else []), "cpu"],
        "attention": attention,
        "dtypes": ["float32", *(["bfloat16"] if has_bfloat16 else [])],
        "threads": threads,
        "cores": cores,
        "memory_gb": round(memory.total / 1e9, 1),
        "memory_available_gb": round(memory.available / 1e9, 1),
        "problems": problems,
        "advice": advice,
    }
    rows = {
        "platform": found["platform"],
        "devices": ", ".join([*gpus, *(["mps"] if has_mps else []), "cpu"]),
        "attention": ", ".join(attention),
        "fast dtypes": ", ".join(["float32", *(["bfloat16"] if has_bfloat16 else [])]),
        "threads": f"{threads} of {cores} cores",
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "faster": "; ".join(advice) or "nothing to do",
    }
    screen.show(facts("xtrimogene doctor", rows))
    screen.show("[bold green]All is well.[/]" if not problems else "[bold red]To mend:[/]", *problems)
    screen.result(found)
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
