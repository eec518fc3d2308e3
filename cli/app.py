"""The program with its general options. It prints errors as one line."""

import json
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from ..records import VERSION

STOPPED = 128 + signal.SIGTERM


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
        except (SystemExit, KeyboardInterrupt) as stopped:
            if isinstance(stopped, KeyboardInterrupt) or stopped.code == STOPPED:
                typer.echo(way_on(self.typed_command(ctx)), err=True)
            raise
        except (BrokenPipeError, typer.Exit, typer.Abort):
            raise  # no errors: what reads the output has ended, or the command has
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            message = error_message(error, shlex.join(ctx.meta["typed"]))
            if not hasattr(error, "format_message"):
                message = with_flags(message, flags_of(self.typed_command(ctx)))
            if "--json" in ctx.meta["typed"]:
                typer.echo(json.dumps({"error": message}))
            else:
                screen = Console(stderr=True, highlight=False)
                screen.print("[bold red]Error:[/bold red]", end=" ")
                screen.print(message, style="red", markup=False, soft_wrap=True)
            raise typer.Exit(getattr(error, "exit_code", 1)) from error

    def typed_command(self, ctx: Any) -> Any:
        """Return the command that was typed; None if none of this name is there."""
        return next((self.commands[word] for word in ctx.meta["typed"] if word in self.commands), None)


def flags_of(command: Any) -> dict[str, str]:
    """Return name in Python -> flag of the options of a command, such as `label_key` -> `--label-key`."""
    options = [] if command is None else command.params
    return {each.name: max(each.opts, key=len) for each in options if each.opts[0].startswith("-")}


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return a message with options named as they are typed, and not as arguments of Python.

    A name of one word is an option only before `is` or an equals sign, since it may be a word of the sentence.

    Args:
        text: The message.
        flags: Name in Python -> flag.

    Example:
        >>> flags = {"label_key": "--label-key", "reference": "--reference"}
        >>> with_flags("label_key is 'x': give a labelled reference (reference=...)", flags)
        "--label-key is 'x': give a labelled reference (--reference ...)"
    """
    for name, flag in flags.items():
        ending = r"(=| is (?=['\d]))" if "_" not in name else r"(=|\b(?![\w'\"\]]))"
        text = re.sub(rf"(?<![\w'\"\[./-]){name}{ending}", lambda found: flag + found[1].replace("=", " "), text)  # noqa: B023
    return text


def way_on(command: Any) -> str:
    """Return a line on how to go on after a command was stopped."""
    names = set() if command is None else {each.name for each in command.params}
    if "resume" in names:
        return "Stopped. The same command with --resume goes on from the last checkpoint, if one was written."
    if command is not None and command.name == "convert":
        return "Stopped. The same command goes on where this one was stopped."
    return "Stopped. The same command begins anew."


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
    if "No space left on device" in text:
        written = getattr(error, "filename2", None) or getattr(error, "filename", None)
        text = f"{written} cannot be written" if written else text
        advice = ": the disk is full; free some space, or choose another --output"
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
