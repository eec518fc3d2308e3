"""`inspect` and `convert`: what a file of cells holds, and files as a corpus."""

import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..tokenization.reading import CellInput
from ..training.options import Converting
from .command import command
from .options import Cells, OutputFolder, Printing, check_cells, existing_checkpoint
from .output import Screen, check_parents, facts
from .process import prepare_process


@command
def inspect(file: Cells, where: CellInput, printing: Printing) -> None:
    """Show what is seen in a file: where the counts are, how the genes match, which columns may hold labels.

    Example: `xtrimogene inspect my.h5ad`

    Nothing is changed and no model is needed. The exit code is 1 if the file cannot be embedded as it is.
    """
    screen = Screen(printing)
    check_cells(file, where=where)

    import numpy as np

    from .. import families
    from ..tokenization.files_xtrimogene import load
    from ..tokenization.panel_xtrimogene import PanelCounts

    data = load(file)
    found: dict[str, Any] = {"file": file, "slots": slots(data)}
    columns = label_columns(data)
    problem = None
    try:
        tokenizer = families.DEFAULT.tokenizer.default()
        source = tokenizer.find_columns(data, where.layer, gene_column=where.gene_column)
        found |= {"cells": source.n_cells, "columns": source.n_columns, "counts": source.description}
        found |= {"slot": source.slot, "state": source.state}
        match = tokenizer.matcher.best_match(source.name_candidates, row_names=source.cell_names)
        cells = PanelCounts(source, match, tokenizer.num_genes)
        found["counts"] = cells.description
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
    following = [f"xtrimogene embed {name} -o {shlex.quote(f'{file.stem}_embedded.h5ad')}"]
    if columns:
        likely = shlex.quote(next(iter(columns)))
        following.append(f"xtrimogene finetune {name} --label-key {likely} --model small -o annotator")
    found |= {"obs": columns, "problem": problem, "next": [] if problem else following}

    shape = f"{data.shape[0]:,} cells x {data.shape[1]:,} columns" if len(data.shape) == 2 else str(data.shape)
    rows: dict[str, Any] = {"shape": shape, **found["slots"]}
    if "slot" in found:
        rows["counts"] = found["counts"]
    if "genes" in found:
        rows |= {
            "genes": "\n".join([*found["genes"]["summary"].split(" · "), f"names from {found['genes']['source']}"]),
            "total counts": f"median {found['median_total']:,.0f} a cell",
            "expressed genes": f"median {found['median_expressed_genes']:,.0f} a cell on the panel",
            "empty cells": f"{found['empty_cells']:,}",
        }
    for key, values in columns.items():
        more = ", ..." if values["values"] > len(values["examples"]) else ""
        rows[f'obs["{key}"]'] = f"{values['values']} values: {', '.join(values['examples'])}{more}"
    if problem:
        rows["problem"] = problem
    screen.show(facts(file.name, rows), *[f"Next: {command}" for command in found["next"]])
    screen.result(found)
    if problem:
        raise typer.Exit(1)


def slots(data: Any) -> dict[str, str]:
    """Return slot of a data set -> a line that describes its values."""
    from ..tokenization.files_xtrimogene import layer_names, log_base, matrix_of, readable
    from ..tokenization.normalization_xtrimogene import examine
    from ..tokenization.rows_xtrimogene import readable_by_row

    if not hasattr(data, "layers"):
        values = {"values": data.to_numpy() if hasattr(data, "to_numpy") else data}
        bases: tuple[float, ...] = ()
    else:
        values = {f'layers["{name}"]': data.layers[name] for name in layer_names(data)}
        values |= {"raw.X": data.raw.X} if data.raw is not None else {}
        values |= {} if (matrix := matrix_of(data)) is None else {"X": matrix}
        base = log_base(data)
        bases = () if base is None else (base,)
    lines = {}
    for name, matrix in values.items():
        try:
            with readable(name):
                text = examine(readable_by_row(matrix, name), bases).text
            lines[name] = "counts" if text == "counts from {slot}" else text.format(slot="values")
        except ValueError as error:
            lines[name] = str(error)
    return lines


def label_columns(data: Any) -> dict[str, dict[str, Any]]:
    """Return the columns of obs that may hold labels or batches: text or categories with 2 to 100 different values."""
    import pandas as pd

    found = {}
    for name, column in (data.obs if hasattr(data, "obs") else pd.DataFrame()).items():
        is_category = isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column)
        num_values = column.nunique() if is_category else 0
        if 2 <= num_values <= min(100, len(column) // 2):
            examples = [str(value) for value in column.value_counts().index[:3]]
            found[str(name)] = {"values": int(num_values), "examples": examples}
    return found


@command
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(help="Cells: .h5ad, .zarr, 10x .h5 or mtx folders, .csv, .tsv, Parquet, datasets folders."),
    ],
    output: OutputFolder,
    recipe: Converting,
    printing: Printing,
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
) -> None:
    """Convert files of any size to a corpus to train on: Parquet shards, and a manifest that says what they are.

    Example: `xtrimogene convert a.h5ad b.h5 -o corpus --obs batch`

    Memory stays the same however large a file is. An interrupted conversion goes on when the command is repeated, and
    further files may be given later. A file that cannot be read is named and the rest is converted; the exit code is
    then 1.
    """
    screen = Screen(printing)
    check_parents(output)
    check_cells(*files, where=recipe)
    for column in recipe.obs or ():
        check_cells(*files, obs=column)

    from .. import families
    from ..inference.saved import Saved
    from ..training.data.convert import convert_files
    from ..training.progress import cell_progress

    prepare_process()
    tokenizer = Saved.of(model).tokenizer() if model else families.DEFAULT.tokenizer.default()
    with cell_progress(screen.notes, disable=screen.quiet) as progress:
        show = partial(move_bar, progress, {})
        done = convert_files(files, output, recipe, tokenizer=tokenizer, say=screen.say, progress=show)
    manifest = done.manifest
    screen.show(corpus_table(manifest), f"In {output}: {done.num_new:,} new cells")
    screen.result({"output": output, "new_cells": done.num_new, "cells": manifest.num_cells, **asdict(manifest)})
    if done.failed:
        if printing.as_json:  # the JSON result already has the reasons
            raise typer.Exit(1)
        reasons = "; ".join(str(source.error) for source in done.failed)
        raise ValueError(f"{len(done.failed)} of {len(files)} files could not be converted: {reasons}")


def move_bar(progress: Any, bars: dict[str, Any], name: str, done: int, total: int) -> None:
    """Move the bar of a file; the bar of a new file replaces that of the last one."""
    if name not in bars:
        while bars:
            progress.remove_task(bars.popitem()[1])
        bars[name] = progress.add_task(name, total=total, unit="cells", note="", cells=0, first=done)
    first = progress.tasks[-1].fields["first"]
    progress.update(bars[name], completed=done, cells=done - first)


def corpus_table(manifest: Any) -> Table:
    """Return a table of the files of a corpus."""
    table = Table(title=f"{manifest.num_cells:,} cells in {len(manifest.shards):,} shards", title_justify="left")
    for column in ("file", "cells", "kept", "left out", "genes of the panel"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for source in manifest.sources:
        is_there = source.state == "complete"
        figures = (source.cells, source.cells_kept, source.cells - source.cells_kept, source.genes.get("n_matched", 0))
        table.add_row(source.name, *(f"{figure:,}" if is_there else "-" for figure in figures))
    return table
