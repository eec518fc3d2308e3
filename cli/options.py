"""Options that several commands share, and checks of their values."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..atomic import check_checkpoint
from ..options import Option, Options, group
from ..released import located, names


def existing_checkpoint(model: str | None) -> str | None:
    """Return a checkpoint; raise an error if it cannot be one, before anything is read.

    The name of one that comes with the package becomes its folder.

    Example:
        >>> existing_checkpoint("owner/model")
        'owner/model'
    """
    if model is None:
        return None
    model = os.fspath(located(model))
    try:
        check_checkpoint(model)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    folder = Path(model)
    is_beside = folder.parent != Path() and folder.parent.is_dir()
    is_hub_name = model.count("/") == 1 and not model.startswith((".", "/", "~")) and not model.endswith("/")
    if not folder.exists() and (is_beside or not is_hub_name):
        raise typer.BadParameter(
            f"{model} does not exist; give a checkpoint folder, a Hub name such as owner/model, or "
            f"{', '.join(names())}, which come with the package"
        )
    return model


def check_cells(*files: Path) -> None:
    """Check that files of cells exist, before anything is imported that takes long.

    Raises:
        FileNotFoundError: If one does not; the message gives similar names.

    Example:
        >>> check_cells(Path("cels.h5ad"))
        Traceback (most recent call last):
        FileNotFoundError: cels.h5ad does not exist
    """
    from ..tokenization.files_xtrimogene import check_there

    for file in files:
        check_there(file)


@group
class Printing(Options):
    """Options of what a command prints.

    Example:
        >>> Printing(as_json=True).quiet
        False
    """

    as_json: Annotated[bool, Option("Print the result as JSON on stdout, the rest on stderr.", flags=("--json",))] = (
        False
    )
    quiet: Annotated[bool, Option("Print nothing but errors, and JSON if asked for.", flags=("--quiet", "-q"))] = False


@group
class Writing(Printing):
    """Options of what a command prints, and whether it may replace an output.

    Example:
        >>> Writing(force=True).as_json
        False
    """

    force: Annotated[bool, Option("Write over an output that exists.")] = False


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        callback=existing_checkpoint,
        help="Checkpoint: a folder, a Hub name, or one that comes with the package, such as small.",
    ),
]
AnyModel = Annotated[  # a checkpoint that comes with the package if none is named
    str | None,
    typer.Option(
        "--model",
        "-m",
        callback=existing_checkpoint,
        help="Checkpoint: a folder, a Hub name, or one that comes with the package.",
        show_default="one that comes with the package, and is named when it is used",
    ),
]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="The .h5ad file to write.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the same run, which was interrupted.")]
Cells = Annotated[
    Path, typer.Argument(help="Cells: .h5ad, .zarr, 10x .h5 or mtx folder, .csv or .tsv.", show_default=False)
]
