"""Command line: files in, files out. A thin door: what is done lies in the package, what is said lies here.

    xtrimogene COMMAND FILES -o OUTPUT
        stdout   tables for people; with --json one JSON object and nothing else
        stderr   progress, notes, and errors in one line

Heavy imports stay inside the commands, so that `--help` does not wait for them.
"""

import importlib.util
import json
import os
import shlex
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
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
    # ImportError: of an extra that is not installed; the message says what to type.
    is_users = isinstance(error, (ValueError, TypeError, OSError, ImportError)) and not isinstance(
        error, BrokenPipeError
    )
    is_strict = type(error).__name__.startswith("StrictDataclass")  # of the configuration, not a ValueError
    is_memory = type(error).__name__ == "OutOfMemoryError"  # torch's
    is_disk = type(error).__name__ == "SafetensorError"  # where it is full
    if not (is_usage or is_users or is_strict or is_memory or is_disk):
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
Cells = Annotated[
    Path, typer.Argument(help="Cells: .h5ad, .zarr, 10x .h5 or mtx folder, .csv or .tsv.", show_default=False)
]


class Dtype(StrEnum):
    """In what a model computes."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="What to compute in; auto is bfloat16 where a GPU has it.")]


class InputType(StrEnum):
    """What the numbers of a file mean."""

    COUNTS = "counts"
    LOG = "log"
    LOG_TOTAL = "log-total"
    BULK = "bulk"
    BULK_LOG = "bulk-log"


class OutputType(StrEnum):
    """What is computed of a cell."""

    CELL = "cell"
    GENE = "gene"
    EXPRESSION = "expression"


TargetDepth = Annotated[
    str | None,
    typer.Option(
        help="With depth tokens: log10 of the total to embed for, as 4 or t4; f2 for twice that of each cell, a1 for "
        "its log10 plus 1.",
        show_default="that of the cell",
    ),
]


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
    """Where output goes: tables to stdout, notes and progress to stderr, JSON instead of tables where asked for.

    Of several processes only the first one speaks.
    """

    def __init__(self, as_json: bool, quiet: bool = False):
        self.as_json = as_json and is_first_process()
        self.quiet = quiet or not is_first_process()
        self.notes = Console(stderr=True, highlight=False, quiet=self.quiet)
        self.tables = Console(highlight=False, quiet=self.quiet or self.as_json)

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
    """Write cells as .h5ad; an interrupted run leaves what was there before.

    Cells that are still in their file are not read for it: the file is copied, and the copy gets what is new.
    """
    unfinished = output.with_name(f"{output.name}.unfinished")
    try:
        if adata.isbacked:
            import h5py
            from anndata.io import write_elem

            shutil.copyfile(adata.filename, unfinished)
            unfinished.chmod(0o644)  # the original may be read-only
            with h5py.File(unfinished, "r+") as file:
                for name, value in {"obs": adata.obs, "obsm": dict(adata.obsm), "uns": dict(adata.uns)}.items():
                    write_elem(file, name, value)
        else:
            adata.write_h5ad(unfinished)
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)


def is_first_process() -> bool:
    """Return whether this process writes and speaks, of those that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


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
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(help="Cells: .h5ad, .zarr, 10x .h5 or mtx folders, .csv, .tsv, Parquet, datasets folders."),
    ],
    output: OutputFolder,
    obs: Annotated[
        list[str] | None, typer.Option(help="Column of obs to keep, such as batch; may be repeated.")
    ] = None,
    min_genes: Annotated[int, typer.Option(min=0, help="Leave out cells with fewer expressed genes.")] = 200,
    max_mt_percent: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Leave out cells with more mitochondrial counts, in %.", show_default="off"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            callback=existing_checkpoint,
            help="Checkpoint whose genes to use.",
            show_default="19,264 genes",
        ),
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that cannot be converted.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare the hashes of shards that are there.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert files of any size to a corpus to train on: Parquet shards, and a manifest that says what they are.

    Example: `xtrimogene convert a.h5ad b.h5 -o corpus --obs batch`

    Memory stays the same however large a file is. An interrupted conversion goes on when the command is repeated, and
    further files may be given later. A file that cannot be read is named and the rest is converted; the exit code is
    then 1.
    """
    screen = Screen(as_json, quiet)

    from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from .training.convert import convert_files
    from .training.progress import cell_progress

    prepare_process()
    tokenizer = XTrimoGeneTokenizer.from_pretrained(model) if model else XTrimoGeneTokenizer.default()
    with cell_progress(screen.notes, disable=quiet) as progress:
        bars: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            """Move the bar of a file, which takes the place of the last one."""
            if name not in bars:
                while bars:
                    progress.remove_task(bars.popitem()[1])
                bars[name] = progress.add_task(name, total=total, unit="cells", note="", cells=0, first=done)
            first = progress.tasks[-1].fields["first"]
            progress.update(bars[name], completed=done, cells=done - first)

        done = convert_files(
            files,
            output,
            tokenizer=tokenizer,
            obs=obs or (),
            min_genes=min_genes,
            max_mt_percent=max_mt_percent,
            layer=layer,
            gene_column=gene_column,
            strict=strict,
            verify=verify,
            say=screen.say,
            progress=show,
        )
    manifest = done.manifest
    table = Table(title=f"{manifest.num_cells:,} cells in {len(manifest.shards):,} shards", title_justify="left")
    for column in ("file", "cells", "kept", "left out", "genes of the panel"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for source in manifest.sources:
        is_there = source.state == "complete"
        figures = (source.cells, source.cells_kept, source.cells - source.cells_kept, source.genes.get("n_matched", 0))
        table.add_row(source.name, *(f"{figure:,}" if is_there else "-" for figure in figures))
    screen.show(table, f"In {output}: {done.num_new:,} new cells")
    screen.result({"output": output, "new_cells": done.num_new, "cells": manifest.num_cells, **asdict(manifest)})
    if done.failed:
        if as_json:  # the result says why
            raise typer.Exit(1)
        reasons = "; ".join(str(source.error) for source in done.failed)
        raise ValueError(f"{len(done.failed)} of {len(files)} files could not be converted: {reasons}")


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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the same run, which was interrupted.")] = False,
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

    from .runs import CHECKPOINTS, EVENTS, pretrain_files

    if is_first and resume and not (output / CHECKPOINTS).exists() and (output / "metrics.json").exists():
        raise ValueError(f"the run in {output} has ended, so there is nothing to resume: begin another elsewhere")
    if is_first and not (resume and (output / CHECKPOINTS).exists()):
        new_folder(output, force)

    from .training.progress import RichProgress

    prepare_process()
    if is_first and force and not resume:
        for earlier in (CHECKPOINTS, EVENTS):
            shutil.rmtree(output / earlier, ignore_errors=True)
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
            command=typed(ctx),
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


NOT_IN_A_RECIPE = ("output", "force", "as_json", "quiet", "print_config", "resume")


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
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Largest learning rate.", show_default="2e-3 for tiny, else 5e-4")
    ] = None,
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
    file: Annotated[
        Path,
        typer.Argument(
            help="Cells: .h5ad, .zarr, 10x .h5 or mtx folder, .csv, .tsv, .npz or .npy.", show_default=False
        ),
    ],
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .h5ad file to write; of genes and expression a .zarr folder.")
    ],
    output_type: Annotated[
        OutputType,
        typer.Option(help="cell: embeddings of cells; gene: of genes in each cell; expression: predicted values."),
    ] = OutputType.CELL,
    pooling: Annotated[Pooling | None, typer.Option(help="Pooling.", show_default="that of the checkpoint")] = None,
    genes: Annotated[
        str | None,
        typer.Option(
            help="Genes of gene and expression, separated by commas, or a file with one a line.",
            show_default="all of the panel",
        ),
    ] = None,
    input_type: Annotated[
        InputType,
        typer.Option(help="What the numbers mean: counts (or log1p of them, which is undone), or see docs/inputs.md."),
    ] = InputType.COUNTS,
    total_key: Annotated[
        str | None,
        typer.Option(help="Column of obs with the total counts, for log-total.", show_default="a table's last column"),
    ] = None,
    target_depth: TargetDepth = None,
    parity: Annotated[bool, typer.Option("--parity", help="Compute what the scFoundation script computes.")] = False,
    gene_names: Annotated[
        str | None,
        typer.Option(help="Names of the columns of .npz and .npy: a file with one a line, or 'panel', the model's."),
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    key_added: Annotated[str, typer.Option(help="Name of the result in obsm.")] = "X_xtrimogene",
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

    Cells of an .h5ad stay in the file until their turn. On several devices:
    `accelerate launch --module xtrimogene.cli embed ...`

    Genes and expression go to a zarr folder cell by cell, since they do not fit in memory:
    `xtrimogene embed my.h5ad --model checkpoint --output-type gene --genes TP53,GATA1 -o genes.zarr`
    """
    is_first = is_first_process()
    screen = Screen(as_json, quiet)
    size = batch_size_of(batch_size)
    is_of_cells = output_type is OutputType.CELL
    if is_of_cells and genes is not None:
        raise typer.BadParameter("--genes chooses genes of --output-type gene and expression: name one of them")
    if not is_of_cells and (pooling is not None or not is_first or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise typer.BadParameter(
            f"--output-type {output_type.value} is made gene by gene by one process: leave out --pooling and run it "
            f"without accelerate launch"
        )
    if is_first:
        (new_file if is_of_cells else new_zarr)(output, force)

    from .eval.inference import join_processes
    from .runs import open_cells

    if input_type is InputType.LOG_TOTAL and total_key is None and file.name.endswith(TABLES):
        total_key, last_is_total = "total", True
    else:
        last_is_total = False
    adata = open_cells(file, column_names(gene_names, model), total_key if last_is_total else None)

    from . import tl
    from .training.progress import cell_progress

    prepare_process()
    began = time.perf_counter()
    options: dict[str, Any] = {
        "layer": layer,
        "gene_column": gene_column,
        "input_type": input_type.value,
        "total_key": total_key,
        "target_depth": target_depth,
        "parity": parity,
        "batch_size": size,
        "device": device,
        "dtype": dtype.value,
    }
    with cell_progress(screen.notes, disable=screen.quiet) as progress, join_processes(device) as together:
        bar = progress.add_task("Embedding", total=adata.n_obs, unit="cells", note="", visible=False)
        options["progress"] = lambda cells: progress.update(bar, advance=cells, visible=True)
        if is_of_cells:
            options |= {"pooling": None if pooling is None else pooling.value, "key_added": key_added}
            tl.embed(adata, model, together=together, **options)
        else:
            options |= {"what": output_type.value, "genes": gene_list(genes)}
            made_by = tl.embed_genes(adata, model, output, **options)
        seconds = progress.tasks[0].elapsed or time.perf_counter() - began
    if not is_first:
        return
    speed = f"{adata.n_obs / seconds:,.0f} cells/s, with loading the model"
    if not is_of_cells:
        name = "embedding" if output_type is OutputType.GENE else "expression"
        shape = made_by.pop("shape")
        rows = {
            "cells": f"{adata.n_obs:,}, in their order",
            "counts": made_by["counts"],
            "genes": genes_line(made_by["genes"]),
            "array": f'zarr.open("{output}")["{name}"], {" x ".join(f"{size:,}" for size in shape)}',
            "not in the file": ", ".join(made_by.get("genes_without_column", ())) or "none of the genes asked for",
            "speed": speed,
        }
        screen.show(facts(f"Written: {output}", rows))
        screen.result(
            {
                "output": output,
                "cells": adata.n_obs,
                "array": name,
                "shape": shape,
                "cells_per_second": adata.n_obs / seconds,
                "provenance": made_by,
            }
        )
        return
    write_cells(adata, output)
    made_by = adata.uns[key_added]
    num_empty = int(adata.obs[f"{key_added}_empty"].sum())
    rows = {
        "cells": f"{adata.n_obs:,}, in their order",
        "counts": made_by["counts"],
        "genes": genes_line(made_by["genes"]),
        "empty cells": f"{num_empty:,}{f' with NaN, see obs[{key_added}_empty]' if num_empty else ''}",
        "embedding": f'obsm["{key_added}"], {adata.obsm[key_added].shape[1]} wide, pooling {made_by["pooling"]}',
        "speed": speed,
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


TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".npz", ".npy")


def new_zarr(output: Path, force: bool) -> None:
    """Refuse an output that is no new zarr folder.

    Raises:
        ValueError: If it is there already and `force` is not set, or is something else.
    """
    if output.suffix != ".zarr":
        raise typer.BadParameter(f"--output is {output}: embeddings of genes are a .zarr folder, name it so")
    from .tl import check_genes_folder

    new_folder(output, force)
    check_genes_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)


def column_names(gene_names: str | None, model: str) -> list[str] | None:
    """Return the names of the columns of an array: of a file, or those of the model's panel.

    Raises:
        ValueError: If the file does not exist.
    """
    if gene_names is None:
        return None
    if gene_names == "panel":
        from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

        return list(XTrimoGeneTokenizer.from_pretrained(model).genes)
    if not Path(gene_names).is_file():
        raise ValueError(f"--gene-names is {gene_names}, which is no file: give one with one name a line, or 'panel'")
    return Path(gene_names).read_text(encoding="utf-8").splitlines()


def gene_list(genes: str | None) -> list[str] | None:
    """Return the genes of a file with one a line, or of a list with commas."""
    if genes is None:
        return None
    is_list = "," in genes
    if not is_list and ("/" in genes or genes.endswith((".txt", ".csv", ".tsv"))) and not Path(genes).is_file():
        raise ValueError(f"--genes is {genes}, which is no file: give one with one gene a line, or genes with commas")
    text = (
        Path(genes).read_text(encoding="utf-8").replace("\n", ",") if not is_list and Path(genes).is_file() else genes
    )
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
def enhance(
    file: Cells,
    model: Model,
    output: OutputFile,
    target_depth: TargetDepth = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    input_type: Annotated[
        InputType, typer.Option(help="What the numbers mean, see docs/inputs.md.")
    ] = InputType.COUNTS,
    total_key: Annotated[str | None, typer.Option(help="Column of obs with the total counts, for log-total.")] = None,
    key_added: Annotated[str, typer.Option(help="Name of the layer.")] = "enhanced",
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: DtypeOption = Dtype.AUTO,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Denoise: your cells come back with the expression that the model predicts, as a layer, and an embedding in obsm.

    Example: `xtrimogene enhance my.h5ad --model checkpoint -o my_enhanced.h5ad`

    With a model that has depth tokens, `--target-depth f4` predicts each cell as if it had been read four times as
    deeply. Predictions are smoothed: do not test differential expression on them.
    """
    screen = Screen(as_json, quiet)
    size = batch_size_of(batch_size)
    new_file(output, force)

    from . import tl
    from .runs import read_cells
    from .training.progress import cell_progress

    adata = read_cells(file)
    prepare_process()
    with cell_progress(screen.notes, disable=screen.quiet) as progress:
        bar = progress.add_task("Enhancing", total=adata.n_obs, unit="cells", note="", visible=False)
        tl.enhance(
            adata,
            model,
            target_depth=target_depth,
            layer=layer,
            gene_column=gene_column,
            input_type=input_type.value,
            total_key=total_key,
            batch_size=size,
            device=device,
            dtype=dtype.value,
            key_added=key_added,
            progress=lambda cells: progress.update(bar, advance=cells, visible=True),
        )
    write_cells(adata, output)
    made_by = adata.uns[f"X_{key_added}"]
    num_empty = int(adata.obs[f"X_{key_added}_empty"].sum())
    rows = {
        "cells": f"{adata.n_obs:,}, in their order, {num_empty:,} of them empty",
        "counts": made_by["counts"],
        "genes": genes_line(made_by["genes"]),
        "expression": f'layers["{key_added}"], log1p of counts per 10,000, target depth {made_by["target_depth"]}',
        "embedding": f'obsm["X_{key_added}"], {adata.obsm[f"X_{key_added}"].shape[1]} wide',
    }
    screen.show(facts(f"Written: {output}", rows))
    screen.result({"output": output, "cells": adata.n_obs, "empty_cells": num_empty, "provenance": made_by})


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
    unknown_threshold: Annotated[
        float,
        typer.Option(min=0, max=0.99, help="Share of cells of known types that may be called unknown; 0: none is."),
    ] = 0.05,
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

    Your cells need no labels. Label, probability, the second label, and whether the cell is of no known type are
    written into obs. A cell without counts gets no label; one of no known type keeps the label that is nearest.
    """
    is_first = is_first_process()
    screen = Screen(as_json, quiet)
    if label_key and not reference:
        raise typer.BadParameter("--label-key names a column of the --reference: give both, or neither")
    size = batch_size_of(batch_size)
    if is_first:
        new_file(output, force)

    from .eval.inference import join_processes
    from .runs import open_cells

    adata = open_cells(query)
    known = None if reference is None else open_cells(reference)

    from . import tl
    from .training.progress import cell_progress

    prepare_process()
    with cell_progress(screen.notes, disable=screen.quiet) as progress, join_processes(device) as together:
        total = adata.n_obs + (0 if known is None else known.n_obs)
        bar = progress.add_task("Annotating", total=total, unit="cells", note="", visible=False)
        tl.annotate(
            adata,
            model,
            reference=known,
            label_key=label_key,
            n_neighbors=n_neighbors,
            unknown_threshold=unknown_threshold,
            layer=layer,
            gene_column=gene_column,
            batch_size=size,
            device=device,
            dtype=dtype.value,
            key_added=key_added,
            together=together,
            progress=lambda cells: progress.update(bar, advance=cells, visible=True),
        )
    if not is_first:
        return
    write_cells(adata, output)
    names, certainty = adata.obs[f"{key_added}_label"], adata.obs[f"{key_added}_probability"]
    counts = names.value_counts()
    unknown = adata.obs.get(f"{key_added}_unknown")  # none without calibration
    labels = {
        str(name): {
            "cells": int(count),
            "median_probability": float(certainty[names == name].median()),
            "unknown": None if unknown is None else int(unknown[names == name].sum()),
        }
        for name, count in counts[counts > 0].items()
    }
    num_unlabelled = int(names.isna().sum())
    table = Table(title=f"Cell types of {adata.n_obs:,} cells", title_justify="left")
    table.add_column("label")
    table.add_column("cells", justify="right")
    table.add_column("median probability", justify="right")
    table.add_column("unknown", justify="right")
    for name, row in labels.items():
        num_unknown = "-" if unknown is None else f"{row['unknown']:,}"
        table.add_row(name, f"{row['cells']:,}", f"{row['median_probability']:.2f}", num_unknown)
    if num_unlabelled:
        table.add_row("none: no counts", f"{num_unlabelled:,}", "-", "-")
    made_by = adata.uns[key_added]
    endings = ["label", "probability", "second_label"] + ["unknown"] * (unknown is not None)
    if unknown is None:
        of_unknown = f"Unknown cells are not told: {made_by['unknown']['note']}"
    else:
        of_unknown = f"{unknown.sum():,} cells unknown, threshold {unknown_threshold}, told by "
        of_unknown += made_by["unknown"]["calibrated on"]
    screen.show(
        table,
        f"{made_by['counts']}; {genes_line(made_by['genes'])}",
        of_unknown,
        f"Written: {output}, obs: {', '.join(f'{key_added}_{ending}' for ending in endings)}",
    )
    screen.result(
        {
            "output": output,
            "cells": adata.n_obs,
            "labels": labels,
            "unlabelled": num_unlabelled,
            "unknown": None if unknown is None else int(unknown.sum()),
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
    from .tokenization.panel_xtrimogene import PanelCounts
    from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

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

    from .eval.evaluate import run_plan
    from .eval.results import Score
    from .hub_cards.card import add_results

    prepare_process()
    metrics = run_plan(
        entries,
        found,
        output,
        seeds=None if seeds is None else [int(seed) for seed in seeds.split(",")],
        device=device,
        title=f"Evaluation of {', '.join(found) or 'variants'}",
        command=typed(ctx),
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
    from .eval.report import compare as compare_reports

    screen = Screen(as_json)
    table = compare_reports(reports)
    screen.show(table)
    screen.result({"table": table})


@app.command()
def plan(
    cells: Annotated[float, typer.Option(min=1, help="Cells to show to the model, times epochs.")] = 50e6,
    expressed: Annotated[int, typer.Option(min=1, max=19_264, help="Expressed genes of a cell.")] = 2000,
    teraflops: Annotated[float, typer.Option(min=0.001, help="Peak of an accelerator in bfloat16.")] = 989.0,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the peak that training reaches.")] = 0.3,
    memory: Annotated[float, typer.Option(min=1, help="GiB of an accelerator.")] = 80.0,
    price: Annotated[float, typer.Option(min=0, help="Of an hour of an accelerator.")] = 2.5,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time steps of 3M and 10M on this CPU: do FLOPs tell the time?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Plan pre-training: memory of a cell, cells a second, days and cost, for 3M, 10M and 100M on 1, 8 and 64 devices.

    Example: `xtrimogene plan --cells 50e6 --teraflops 312 --memory 40 --price 1.5`

    FLOPs and memory are those of this package. The share of the peak is an assumption, and so is the price;
    communication between devices is not counted.
    """
    screen = Screen(as_json, quiet=False)

    from .eval.plan import Accelerator
    from .eval.plan import measure as measure_steps
    from .eval.plan import plan as make_plan

    prepare_process()
    numbers = (1, 8, 64)
    plans = make_plan(("3M", "10M", "100M"), cells, Accelerator(teraflops, share, memory, price), numbers, expressed)
    measured = measure_steps(("3M", "10M"), expressed) if measure else {}
    title = f"{cells:,.0f} cells of {expressed:,} genes, {share:.0%} of {teraflops:,g} TFLOP/s, {price:g} an hour"
    table = Table(title=title, title_justify="left")
    for column in ("", "GFLOP a cell", "GiB of weights", "MiB a cell", "fit", "devices", "cells/s", "days", "cost"):
        table.add_column(column, justify="right")
    for found in plans:
        memory_row = (
            found.preset,
            f"{found.gigaflops:,.0f}",
            f"{found.weights:.2f}",
            f"{found.cell:,.0f}",
            f"{found.batch:,}" if found.batch else "none",
        )
        for number in numbers:
            table.add_row(
                *(memory_row if number == numbers[0] else [""] * len(memory_row)),
                f"{number}",
                *(
                    [
                        f"{found.cells_per_second[number]:,.0f}",
                        f"{found.hours[number] / 24:,.2g}",
                        f"{found.cost:,.0f}",
                    ]
                    if found.batch
                    else "---"
                ),
            )
    lines = [
        f"A step of {name} on this CPU, float32: {row['seconds']:.2f} s, {row['gigaflops per second']:.0f} GFLOP/s, "
        f"{row['share of peak']:.0%} of a plain matrix product"
        for name, row in measured.items()
    ]
    screen.show(table, "fit: cells beside the weights in the memory of one device", *lines)
    screen.result({"plans": [asdict(found) for found in plans], "measured": measured})


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


class Entry(StrEnum):
    """Models in a scFoundation checkpoint."""

    CELL = "cell"
    GENE = "gene"
    RDE = "rde"
    ALL = "all"


@app.command()
def convert_checkpoint(
    ctx: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="The authors' models.ckpt of scFoundation.")],
    output: OutputFolder,
    entry: Annotated[
        Entry,
        typer.Option(help="cell: cell embeddings; gene: gene embeddings; rde: depth enhancement; all: all three."),
    ] = Entry.ALL,
    genes: Annotated[
        Path | None,
        typer.Option(
            help="File with the gene names in the order of the ids, one a line.",
            show_default="the published panel for 19,264 genes, else numbers",
        ),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option("--trust-pickle", help="Read a file with objects other than tensors: that runs code from it."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folders of a former conversion.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert a scFoundation checkpoint that you hold into checkpoint folders: OUTPUT/cell, OUTPUT/gene, OUTPUT/rde.

    Example: `xtrimogene convert-checkpoint models.ckpt -o scfoundation`

    The licence of the weights is that of their authors (non-commercial), and nothing is downloaded. Memory is bounded
    by one of the three models.
    """
    screen = Screen(as_json, quiet)
    new_folder(output, force)

    from .hub_cards.card import Conversion, write_model_card
    from .training.scfoundation import CITATION, ENTRIES, LICENCE_LINK, LICENCE_NAME, LICENCE_NOTE, USES
    from .training.scfoundation import convert_checkpoint as convert_entries

    prepare_process()
    screen.say(LICENCE_NOTE)
    entries = ENTRIES if entry == Entry.ALL else (entry.value,)
    rows: dict[str, dict[str, Any]] = {}

    def finish(folder: Path, name: str, model: Any) -> None:
        shown = ("num_genes", "hidden_size", "num_hidden_layers", "decoder_hidden_size", "decoder_num_hidden_layers")
        sizes = {key: getattr(model.config, key) for key in shown}
        rows[name] = {"folder": output / name, "parameters": model.num_parameters(), **sizes}
        write_model_card(
            folder,
            model_name=f"{output.name}/{name}",
            summary=f"The model `{name}` of a scFoundation checkpoint, {USES[name]}, converted from {checkpoint.name}.",
            config={**sizes, "parameters": f"{model.num_parameters():,}", "pooling": model.config.pooling},
            metrics=[],
            training={},
            data=[],
            command=typed(ctx),
            conversion=Conversion(
                f"entry {name} of {checkpoint.name} (scFoundation)", LICENCE_NAME, LICENCE_LINK, LICENCE_NOTE, CITATION
            ),
        )
        screen.say(f"{name}: {model.num_parameters():,} parameters, {model.config.num_genes:,} genes")

    convert_entries(checkpoint, output, entries, genes=genes, trust_pickle=trust_pickle, finish=finish)
    following = f"xtrimogene embed my.h5ad --model {shlex.quote(str(output / entries[0]))} -o my_embedded.h5ad"
    screen.show(
        facts("Converted", {name: str(row["folder"]) for name, row in rows.items()}),
        f"Next: {following}",
    )
    screen.result({"output": output, "entries": rows, "licence": LICENCE_NOTE})


if __name__ == "__main__":
    app()
