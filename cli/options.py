"""Options that several commands share, and what refuses wrong ones."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer


def existing_checkpoint(model: str | None) -> str | None:
    """Refuse what cannot be a checkpoint before anything is read."""
    if model is None:
        return None
    from ..inference.cell_model import check_checkpoint

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
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the same run, which was interrupted.")]
DropEmpty = Annotated[bool, typer.Option("--drop-empty", help="Leave out cells without counts instead of stopping.")]
Cells = Annotated[
    Path, typer.Argument(help="Cells: .h5ad, .zarr, 10x .h5 or mtx folder, .csv or .tsv.", show_default=False)
]


class Dtype(StrEnum):
    """In what a model computes."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="What to compute in; auto is float32, bfloat16 is faster.")]


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
