"""Output of commands: tables to stdout, notes to stderr, JSON if asked for, and new files and folders."""

import json
import math
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..atomic import check_room, size_text
from ..tokenization.files_xtrimogene import LONGEST_SAID, about, readable
from ..tokenization.sparse_xtrimogene import BLOCK, DAMAGED, CellsError
from .process import is_first_process

if TYPE_CHECKING:
    from anndata import AnnData

    from .options import Printing


class Screen:
    """Print tables to stdout and notes to stderr; or, with `--json`, a result to stdout instead of tables.

    Of several processes only the first one prints.

    Example:
        >>> from xtrimogene.cli.options import Printing
        >>> Screen(Printing(as_json=True)).result({"cells": 700})
        {"cells": 700}
    """

    def __init__(self, printing: "Printing"):
        self.as_json = printing.as_json and is_first_process()
        self.quiet = printing.quiet or not is_first_process()
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
            from ..records import plain

            typer.echo(json.dumps(plain(values), allow_nan=False))


def facts(title: str, rows: Mapping[str, Any]) -> Table:
    """Return a table of names and values.

    Example:
        >>> facts("In demo", {"metrics.json": "all figures"}).row_count
        1
    """
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def scores_table(title: str, scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table of scores with the best of each column marked; the first row is the model, others are baselines.

    Args:
        title: Title.
        scores: Row -> column -> score, higher is better; a row may lack a column.

    Example:
        >>> table = scores_table("Types", {"xTrimoGene": {"accuracy": 0.8}, "k-NN": {"accuracy": 0.7}})
        >>> table.caption
        '★ best on held-out cells. xTrimoGene wins all columns.'
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


def of_markdown(text: str, width: int) -> list[Table | str]:
    """Return Markdown as lines and tables that are no wider than a screen: wide ones in parts, one below the other.

    Args:
        text: Lines and tables. The first column of a table, which names its rows, is repeated in each part.
        width: Columns of the screen.

    Example:
        >>> table = ["| method | F1 | ARI |", "|---|---:|---:|", "| PCA | **0.812** | 0.7 |"]
        >>> [len(part.columns) for part in of_markdown(chr(10).join(table), width=15)]
        [2, 2]
    """
    parts: list[Table | str] = []
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            header, _, *rows = map(cells_of, lines)
            parts += tables_of(header, rows, width)
        else:
            parts += [escape(unescaped(line.removeprefix("### "))) for line in lines]
    return parts


def cells_of(line: str) -> list[Text]:
    """Return the cells of a line of a Markdown table; the interval of a score goes into a second line."""
    texts = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    in_lines = [re.sub(r"^(\S+) (\[.*?\])(.*)$", r"\1\3\n\2", text.replace("**", "")) for text in texts]
    return [
        Text(unescaped(shown), style="bold" if text.startswith("**") else "")
        for text, shown in zip(texts, in_lines, strict=True)
    ]


def unescaped(text: str) -> str:
    """Return Markdown without its escapes.

    >>> unescaped("a &lt; b")
    'a < b'
    """
    return re.sub(r"\\(.)", r"\1", text).replace("&lt;", "<").replace("&amp;", "&")


def tables_of(header: list[Text], rows: list[list[Text]], width: int) -> list[Table]:
    """Return the columns of a table in parts of at most `width`, each behind the first column."""
    widths = [
        2 + max(len(line) for row in [header, *rows] for line in row[place].split()) for place in range(len(header))
    ]
    of_names = min(widths[0], width // 3)
    groups: list[list[int]] = []
    for place in range(1, len(header)):
        if not groups or of_names + sum(widths[each] for each in [*groups[-1], place]) > width:
            groups.append([])
        groups[-1].append(place)
    tables = []
    for group in groups:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="cyan")
        table.add_column(header[0], max_width=of_names, overflow="fold")
        for place in group:
            table.add_column(header[place], justify="right", overflow="fold")
        for row in rows:
            table.add_row(row[0], *(row[place] for place in group))
        tables.append(table)
    return tables


def new_file(output: Path, force: bool, cells: Path) -> None:
    """Check that an output file can be written, and replaces no other unless `force` is set.

    Raises:
        ValueError: If it exists and `force` is not set, is a folder, or the disk has no room for a copy of the cells.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder, and --output a file to write: name one, such as {output / 'out.h5ad'}")
    if output.suffix != ".h5ad":
        raise typer.BadParameter(f"--output is {output}: the result is an .h5ad file, name it so")
    if output.exists() and not force:
        raise ValueError(f"{output} exists: choose another --output, or write over it with --force")
    check_parents(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    needed = cells.stat().st_size if cells.is_file() and cells.suffix == ".h5ad" else 0
    check_room(output, needed, f"all of {cells}", "choose another --output")


def new_text(output: Path, force: bool, flag: str, endings: tuple[str, ...]) -> None:
    """Check that a page or table can be written, and replaces no other unless `force` is set; make its folder.

    Args:
        output: The file.
        force: Whether it may replace one.
        flag: The option that names it.
        endings: Endings that it may have.

    Raises:
        ValueError: If it exists and `force` is not set, or is a folder.

    Example:
        >>> new_text(Path("genes.csv"), force=False, flag="--output", endings=(".csv", ".tsv"))
    """
    if not output.name.endswith(endings):
        raise typer.BadParameter(f"{flag} is {output}: name it so that it ends in {' or '.join(endings)}")
    if output.is_dir():
        raise ValueError(f"{output} is a folder, and {flag} a file to write: choose another name")
    if output.exists() and not force:
        raise ValueError(f"{output} exists: choose another {flag}, or write over it with --force")
    check_parents(output)
    output.parent.mkdir(parents=True, exist_ok=True)


def new_folder(output: Path, force: bool) -> None:
    """Check that an output folder is new or empty, unless `force` is set.

    Raises:
        ValueError: If it holds files and `force` is not set, or is a file.

    Example:
        >>> Path("full").mkdir()
        >>> _ = Path("full/file").write_text("")
        >>> new_folder(Path("full"), force=False)
        Traceback (most recent call last):
        ValueError: full holds files already: choose another --output, or write over them with --force
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, and --output a folder to write: choose another name")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise ValueError(f"{output} holds files already: choose another --output, or write over them with --force")
    check_parents(output)


def check_parents(output: Path) -> None:
    """Check that no parent of an output is a file, and that files can be written into the nearest that is there.

    Raises:
        ValueError: If one is, or if none can.
    """
    nearest = next(parent for parent in output.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"--output is {output}, and {nearest} is a file: choose another folder")
    for folder in [nearest, *([output] if output.is_dir() else [])]:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(
                f"--output is {output}, and nothing can be written into {folder} ({error.strerror}): choose another"
            ) from error


def check_writable(adata: "AnnData", output: Path) -> None:
    """Check that cells can be written as .h5ad, before anything is computed: all but their matrices, into memory.

    Args:
        adata: Cells, as they were read. Of those backed by a file, what is written anew is checked, and the matrices,
            which are copied with the file, are read once: a damaged one would make an output that nothing can read.
        output: The file that will be written, for the message.

    Raises:
        ValueError: If a table or entry cannot be written, or a matrix not be read; the message names it.

    Example:
        >>> adata.obs["_index"] = 1
        >>> check_writable(adata, Path("out.h5ad"))
        Traceback (most recent call last):
        ValueError: obs cannot be written into out.h5ad (...'_index' is a reserved name...): rename or remove it
    """
    import anndata
    import h5py
    from anndata.io import write_elem

    parts: dict[str, Any] = {"obs": adata.obs, "uns": dict(adata.uns)}
    if adata.isbacked:
        check_matrices(Path(adata.filename))
    else:
        parts |= {"var": adata.var, "raw.var": None if adata.raw is None else adata.raw.var}
    with (
        anndata.settings.override(allow_write_nullable_strings=True),
        h5py.File("trial", "w", driver="core", backing_store=False) as file,
    ):
        for number, (name, part) in enumerate(parts.items()):
            try:
                write_elem(file, str(number), part)
            except Exception as error:  # h5py and anndata raise errors of any kind
                entries = re.findall(r"key '(.*?)' of", "\n".join(getattr(error, "__notes__", [])))
                at = f", entry {entries[0]!r}," if entries and entries[0] != str(number) else ""
                said = " ".join(str(error).split())[:LONGEST_SAID]
                raise ValueError(f"{name}{at} cannot be written into {output} ({said}): rename or remove it") from error


def check_matrices(file: Path) -> None:
    """Read X and raw/X of an .h5ad in blocks, which anndata leaves on disk, and see that it knows how they are stored.

    Raises:
        ValueError: If one cannot be read; the message names the file and the matrix.

    Example:
        >>> adata.write_h5ad("cells.h5ad")
        >>> check_matrices(Path("cells.h5ad"))
    """
    import h5py
    from anndata.io import read_elem

    with h5py.File(file) as opened, h5py.File("trial", "w", driver="core", backing_store=False) as trial:
        for name in (name for name in ("X", "raw/X") if name in opened):
            with about(file.name), readable(name):
                stored = opened[name]
                if isinstance(stored, h5py.Dataset):  # anndata reads a dense matrix whole, or one number stored alike
                    trial[name] = np.zeros((1, 1), stored.dtype)
                    trial[name].attrs.update(stored.attrs)
                    read_elem(trial[name])
                elif not {"encoding-type", "h5sparse_format"} & {*stored.attrs}:
                    raise CellsError(f"{name} does not state how it is stored (encoding-type): {DAMAGED}")
                for array in [stored] if isinstance(stored, h5py.Dataset) else stored.values():
                    step = max(BLOCK // math.prod(array.shape[1:]), 1)
                    for start in range(0, array.shape[0], step):
                        array[start : start + step]


def write_cells(adata: "AnnData", output: Path) -> None:
    """Write cells as .h5ad. If it is interrupted, an earlier file stays as it was.

    If the cells are backed by a file, that file is copied, and obs, obsm and uns are replaced in the copy.
    """
    import anndata

    unfinished = output.with_name(f"{output.name}.unfinished")
    try:
        # anndata reads text with missing values and the strings of pandas 3, and writes them only if it is asked to.
        with anndata.settings.override(allow_write_nullable_strings=True):
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
    except (OSError, RuntimeError) as error:  # RuntimeError is h5py's where the disk is full
        free = shutil.disk_usage(output.absolute().parent).free
        raise OSError(
            f"{output} could not be written: {' '.join(str(error).split())}; its disk has {size_text(free)} "
            f"free, and what was there before is as it was: choose another --output, or free some space"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def command_line(ctx: typer.Context) -> str:
    """Return the command as it was typed, with absolute paths shortened to their last part."""
    words = [word if word.startswith("-") or not os.path.isabs(word) else Path(word).name for word in ctx.meta["typed"]]
    return shlex.join(["xtrimogene", *words])


def genes_line(genes: Mapping[str, Any]) -> str:
    """Return a line on how genes were matched, from the provenance of a result.

    Example:
        >>> genes_line({"n_matched": 9632, "n_panel": 19264, "source": "var_names"})
        'matched 9,632/19,264 genes (50.0%), by var_names'
    """
    share = genes["n_matched"] / genes["n_panel"]
    return f"matched {genes['n_matched']:,}/{genes['n_panel']:,} genes ({share:.1%}), by {genes['source']}"
