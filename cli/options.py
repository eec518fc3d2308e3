"""Options that several commands share, and checks of their values."""

import os
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from ..atomic import check_checkpoint
from ..options import Option, Options, group
from ..released import located, names
from ..tokenization.reading import CellInput


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


def check_cells(*files: Path, where: CellInput | None = None, **columns: str | None) -> None:
    """Check that files of cells exist and hold what was typed, before anything is imported that takes long.

    What they hold is looked up in .h5ad files only. Others, and damaged ones, are told of when they are read.

    Args:
        *files: The files.
        where: Layer and column of var with the counts and names of genes.
        **columns: Option -> a column of obs.

    Raises:
        FileNotFoundError: If a file does not exist; the message gives similar names.
        ValueError: If none of the files holds a name; the message gives those that they hold.

    Example:
        >>> check_cells(Path("cels.h5ad"))
        Traceback (most recent call last):
        FileNotFoundError: cels.h5ad does not exist
        >>> adata.write_h5ad("cells.h5ad")
        >>> check_cells(Path("cells.h5ad"), label_key="labels")
        Traceback (most recent call last):
        ValueError: label_key is 'labels', and obs of cells.h5ad has the columns bulk_labels, ...
    """
    from ..tokenization.files_xtrimogene import check_there

    for file in files:
        check_there(file)
    typed = {name: ("obs", column) for name, column in columns.items()}
    if where is not None:
        typed |= {"layer": ("slots", where.layer), "gene_column": ("var", where.gene_column)}
    typed = {name: (part, wanted) for name, (part, wanted) in typed.items() if wanted is not None}
    held = [names_held(file) for file in files] if typed else []
    for name, (part, wanted) in typed.items():
        there = [names[part] for names in held if names]
        if len(there) < max(len(files), 1) or any(wanted in names for names in there):
            continue
        of_files = files[0].name if len(files) == 1 else f"{len(files)} files"
        has = f"the slots of {of_files} are" if part == "slots" else f"{part} of {of_files} has the columns"
        raise ValueError(f"{name} is {wanted!r}, and {has} {', '.join(dict.fromkeys(chain(*there))) or '(none)'}")


def names_held(file: Path) -> dict[str, list[str]]:
    """Return the names of the slots of an .h5ad, and of the columns of its obs and var; nothing if it tells none.

    Example:
        >>> adata.write_h5ad("cells.h5ad")
        >>> "X" in names_held(Path("cells.h5ad"))["slots"]
        True
        >>> names_held(Path("cells.csv"))
        {}
    """
    import h5py

    tables = {"obs": ("obs",), "var": ("var", "raw/var")}
    if file.suffix.lower() != ".h5ad":
        return {}
    try:
        with h5py.File(file) as opened:
            usual = [name for name, path in (("raw.X", "raw/X"), ("X", "X")) if path in opened]
            return {"slots": [*opened.get("layers", ()), *usual]} | {
                part: [str(name) for path in paths if path in opened for name in opened[path].attrs["column-order"]]
                for part, paths in tables.items()
            }
    except Exception:  # damaged files give errors of any kind, and older ones have tables of another kind
        return {}


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
