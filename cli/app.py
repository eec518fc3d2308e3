"""The program with its general options. It prints errors as one line."""

import json
import shlex
import signal
import sys
import threading
import warnings
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from ..records import VERSION


class Commands(TyperGroup):
    """The commands, with errors as one line (or one JSON object) instead of a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments as typed, for model cards and for errors in JSON."""
        ctx.meta["typed"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; print an expected error as one line and exit."""
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, typer.Exit, typer.Abort):
            raise  # no errors: what reads the output has ended, or the command has
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            message = error_message(error, shlex.join(ctx.meta["typed"]))
            if "--json" in ctx.meta["typed"]:
                typer.echo(json.dumps({"error": message}))
            else:
                screen = Console(stderr=True, highlight=False)
                screen.print("[bold red]Error:[/bold red]", end=" ")
                screen.print(message, style="red", markup=False, soft_wrap=True)
            raise typer.Exit(getattr(error, "exit_code", 1)) from error


def error_message(error: Exception, typed: str = "") -> str:
    """Return one line for an error.

    Args:
        error: The error.
        typed: What was typed after `xtrimogene`; it is told for errors that the program does not expect.

    Example:
        >>> error_message(ValueError("seed is -1:   give at least 0"))
        'seed is -1: give at least 0'
        >>> error_message(KeyError("condition"), "inspect cells.h5ad")
        "KeyError 'condition' in `xtrimogene inspect cells.h5ad`, which was not expected: a file may be ..."
    """
    is_usage = hasattr(error, "format_message")  # from typer: missing or unknown options
    # An ImportError is raised for an extra that is not installed; its message says what to install.
    is_users = isinstance(error, (ValueError, TypeError, OSError, ImportError))
    is_strict = type(error).__name__.startswith(
        "StrictDataclass"
    )  # errors of a configuration, which are no ValueErrors
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    is_disk = type(error).__name__ == "SafetensorError"  # raised if the disk is full
    if not (is_usage or is_users or is_strict or is_memory or is_disk):
        said = " ".join(f"{type(error).__name__} {error}".split())
        return (
            f"{said} in `xtrimogene {typed}`, which was not expected: a "
            f"file may be damaged, or this is a mistake of the program; `xtrimogene --debug {typed}` shows where"
        )
    if is_strict and error.__cause__ is not None:
        error = cast(Exception, error.__cause__)
    text = cast(Any, error).format_message() if is_usage else str(error)
    advice = ": give a smaller --batch-size, or fewer cells" if is_memory else ""
    return (" ".join(text.split()) or type(error).__name__) + advice


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
        typer.echo(f"xtrimogene {VERSION}")
        raise typer.Exit


def stop(number: int, _: Any) -> None:
    """Exit through an exception, so that unfinished files are removed if a scheduler stops the job."""
    signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt the removal
    sys.exit(128 + number)


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
    if threading.current_thread() is threading.main_thread():  # only the main thread may set signals
        signal.signal(signal.SIGTERM, stop)
    if not debug:
        warnings.simplefilter("ignore")
