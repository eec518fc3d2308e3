"""`embed`, `enhance` and `annotate`: cells and a checkpoint in, cells with results out."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ..inference.options import Depth, Embedding, Labelling, Running
from ..options import Option, Options, group
from ..released import chosen
from ..tokenization.files_xtrimogene import about
from ..tokenization.reading import CellInput, ModelInput, open_cells, read_cells
from .command import command
from .options import AnyModel, Cells, Model, OutputFile, Writing, check_cells
from .output import (
    Screen,
    check_writable,
    command_line,
    facts,
    genes_line,
    new_file,
    new_folder,
    new_text,
    write_cells,
)
from .process import is_first_process, prepare_process

if TYPE_CHECKING:
    from anndata import AnnData

TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".npz", ".npy")


@group
class Computed(Options):
    """Options of `embed`: what it computes, and the name of the result.

    Example:
        >>> Computed(output_type="gene", genes="CD3E,MS4A1").key_added
        'X_xtrimogene'
    """

    output_type: Annotated[
        Literal["cell", "gene", "expression"],
        Option("cell: embeddings of cells; gene: of genes in each cell; expression: predicted values."),
    ] = "cell"
    genes: Annotated[
        str | None,
        Option(
            "Genes of gene and expression, separated by commas, or a file with one a line.", default="all of the panel"
        ),
    ] = None
    gene_names: Annotated[
        str | None, Option("Names of the columns of .npz and .npy: a file with one a line, or 'panel', the model's.")
    ] = None
    key_added: Annotated[str, Option("Name of the result in obsm.")] = "X_xtrimogene"


@command
def embed(
    file: Annotated[
        Path,
        typer.Argument(
            help="Cells: .h5ad, .zarr, 10x .h5 or mtx folder, .csv, .tsv, .npz or .npy.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .h5ad file to write; of genes and expression a .zarr folder.")
    ],
    what: Computed,
    how: Embedding,
    cells: ModelInput,
    running: Running,
    writing: Writing,
    model: AnyModel = None,
) -> None:
    """Embed every cell: your cells come back, in their order, with an embedding in obsm.

    Example: `xtrimogene embed my.h5ad -o my_embedded.h5ad`

    With a checkpoint of your own: `xtrimogene embed my.h5ad --model checkpoint -o my_embedded.h5ad`

    Counts are looked for in layers, raw and X, and log1p is undone where that is possible. Genes may be symbols,
    Ensembl ids or a mixture. Cells without counts stay, with NaN; obs says which.

    Then, in Python: `scanpy.pp.neighbors(adata, use_rep="X_xtrimogene")`

    Cells of an .h5ad stay in the file until their turn. On several devices:
    `accelerate launch --module xtrimogene.cli embed ...`

    Genes and expression go to a zarr folder cell by cell, since they do not fit in memory:
    `xtrimogene embed my.h5ad --model checkpoint --output-type gene --genes TP53,GATA1 -o genes.zarr`
    """
    screen = Screen(writing)
    check_computed(what, how)
    check_cells(file, where=cells, total_key=cells.total_key)
    model = chosen(model, "embed", screen.say)
    is_of_cells = what.output_type == "cell"
    if is_first_process():
        if is_of_cells:
            new_file(output, writing.force, file)
        else:
            new_zarr(output, writing.force)

    last_is_total = cells.input_type == "log-total" and cells.total_key is None and file.name.endswith(TABLES)
    if last_is_total:
        cells = replace(cells, total_key="total")
    adata = open_cells(file, column_names(what.gene_names, model), cells.total_key if last_is_total else None)

    if is_of_cells:
        check_writable(adata, output)

    from ..inference import embedding, genes

    prepare_process()
    began = time.perf_counter()
    with running_over(adata.n_obs, "Embedding", screen, running) as (running, elapsed), about(file.name):
        if what.output_type == "cell":
            embedding.embed(adata, model, cells, how, running, key_added=what.key_added)
        else:
            asked = gene_list(what.genes)
            made_by = genes.embed_genes(adata, model, output, cells, how, running, what=what.output_type, genes=asked)
        seconds = elapsed() or time.perf_counter() - began
    if not is_first_process():
        return
    speed = adata.n_obs / seconds
    if is_of_cells:
        write_cells(adata, output)
        show_cells(screen, adata, output, what.key_added, speed)
    else:
        show_genes(screen, adata.n_obs, output, what.output_type, made_by, speed)


def check_computed(what: Computed, how: Embedding) -> None:
    """Check that the options fit the type of output.

    Raises:
        BadParameter: If an option is for another type of output, or several processes are to compute genes.
    """
    if what.output_type == "cell":
        if what.genes is not None:
            raise typer.BadParameter("--genes chooses genes of --output-type gene and expression: name one of them")
        return
    if how.pooling is not None or not is_first_process() or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise typer.BadParameter(
            f"--output-type {what.output_type} is made gene by gene by one process: leave out --pooling and run it "
            f"without accelerate launch"
        )


@contextmanager
def running_over(
    num_cells: int, title: str, screen: Screen, running: Running
) -> Iterator[tuple[Running, Callable[[], float | None]]]:
    """Yield `running` with a progress bar and other processes, and a function that returns the seconds of the bar."""
    from ..inference.devices import join_processes
    from ..training.progress import cell_progress

    with cell_progress(screen.notes, disable=screen.quiet) as progress, join_processes(running.device) as together:
        bar = progress.add_task(title, total=num_cells, unit="cells", note="", visible=False)

        def advance(cells: int) -> None:
            progress.update(bar, advance=cells, visible=True)

        yield replace(running, together=together, progress=advance), lambda: progress.tasks[0].elapsed


def show_cells(screen: Screen, adata: "AnnData", output: Path, key: str, speed: float) -> None:
    """Print what was written for embeddings of cells."""
    made_by, shape = adata.uns[key], list(adata.obsm[key].shape)
    num_empty = int(adata.obs[f"{key}_empty"].sum())
    rows = {
        "cells": f"{adata.n_obs:,}, in their order",
        "counts": made_by["counts"],
        "genes": genes_line(made_by["genes"]),
        "empty cells": f"{num_empty:,}{f' with NaN, see obs[{key}_empty]' if num_empty else ''}",
        "embedding": f'obsm["{key}"], {shape[1]} wide, pooling {made_by["pooling"]}',
        **unfamiliar_row(made_by.get("unfamiliar"), key),
        "speed": f"{speed:,.0f} cells/s, with loading the model",
    }
    doubt = made_by.get("unfamiliar", {}).get("doubt")
    screen.show(facts(f"Written: {output}", rows), *([f"Beware: {doubt}"] if doubt else []))
    screen.result(
        {
            "output": output,
            "cells": adata.n_obs,
            "empty_cells": num_empty,
            "shape": shape,
            "key_added": key,
            "cells_per_second": speed,
            "provenance": made_by,
        }
    )


def unfamiliar_row(found: dict[str, Any] | None, key: str) -> dict[str, str]:
    """Return the row on cells that are unlike those that the model was trained on; none if it does not tell them."""
    if found is None:
        return {}
    told = f"{found['share']:.1%} lie far from the cells that the model was trained on, see obs[{key}_unfamiliar]"
    usual = f"of cells like these {found['usual']:.0%} would ({found['trained on']})"
    return {"unfamiliar cells": f"{told}; {usual}"}


def show_genes(
    screen: Screen, num_cells: int, output: Path, output_type: str, made_by: dict[str, Any], speed: float
) -> None:
    """Print what was written for genes."""
    name = "embedding" if output_type == "gene" else "expression"
    shape = made_by.pop("shape")
    rows = {
        "cells": f"{num_cells:,}, in their order",
        "counts": made_by["counts"],
        "genes": genes_line(made_by["genes"]),
        "array": f'zarr.open("{output}")["{name}"], {" x ".join(f"{size:,}" for size in shape)}',
        "not in the file": ", ".join(made_by.get("genes_without_column", ())) or "none of the genes asked for",
        "speed": f"{speed:,.0f} cells/s, with loading the model",
    }
    screen.show(facts(f"Written: {output}", rows))
    screen.result(
        {
            "output": output,
            "cells": num_cells,
            "array": name,
            "shape": shape,
            "cells_per_second": speed,
            "provenance": made_by,
        }
    )


def new_zarr(output: Path, force: bool) -> None:
    """Check that a zarr folder can be written.

    Raises:
        ValueError: If it exists and `force` is not set, or holds something else.
    """
    if output.suffix != ".zarr":
        raise typer.BadParameter(f"--output is {output}: embeddings of genes are a .zarr folder, name it so")
    from ..inference.genes import check_genes_folder

    new_folder(output, force)
    check_genes_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)


def column_names(gene_names: str | None, model: str) -> list[str] | None:
    """Return the names of the columns of an array, from a file or from the panel of the model.

    Raises:
        ValueError: If the file does not exist.
    """
    if gene_names is None:
        return None
    if gene_names == "panel":
        from ..inference.adapters import AdapterFolder
        from ..inference.saved import Saved

        prepare_process()
        place = Saved.of(model)
        return list((AdapterFolder.find(place) or place).tokenizer().genes)
    if not Path(gene_names).is_file():
        raise ValueError(f"--gene-names is {gene_names}, which is no file: give one with one name a line, or 'panel'")
    return Path(gene_names).read_text(encoding="utf-8").splitlines()


def gene_list(genes: str | None) -> list[str] | None:
    """Return the genes of a file with one a line, or of a list with commas; None for None.

    Example:
        >>> gene_list("CD3E, MS4A1")
        ['CD3E', 'MS4A1']
    """
    if genes is None:
        return None
    is_list = "," in genes
    if not is_list and ("/" in genes or genes.endswith((".txt", ".csv", ".tsv"))) and not Path(genes).is_file():
        raise ValueError(f"--genes is {genes}, which is no file: give one with one gene a line, or genes with commas")
    text = (
        Path(genes).read_text(encoding="utf-8").replace("\n", ",") if not is_list and Path(genes).is_file() else genes
    )
    return [name.strip() for name in text.split(",") if name.strip()]


@command
def enhance(
    file: Cells,
    model: Model,
    output: OutputFile,
    how: Depth,
    cells: ModelInput,
    running: Running,
    writing: Writing,
    key_added: Annotated[str, typer.Option(help="Name of the layer.")] = "enhanced",
) -> None:
    """Denoise: your cells come back with the expression that the model predicts, as a layer, and an embedding in obsm.

    Example: `xtrimogene enhance my.h5ad --model checkpoint -o my_enhanced.h5ad`

    With a model that has depth tokens, `--target-depth f4` predicts each cell as if it had been read four times as
    deeply. Predictions are smoothed: do not test differential expression on them.
    """
    screen = Screen(writing)
    check_cells(file, where=cells, total_key=cells.total_key)
    new_file(output, writing.force, file)

    adata = read_cells(file)
    check_writable(adata, output)

    from ..inference import genes

    prepare_process()
    with running_over(adata.n_obs, "Enhancing", screen, running) as (running, _), about(file.name):
        genes.enhance(adata, model, cells, how, running, key_added=key_added)
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


@group
class Columns(Labelling):
    """Options of `annotate`: how cells get their labels, the names of the columns, and a page about them.

    Example:
        >>> Columns(label_key="cell_type").key_added
        'xtrimogene'
    """

    key_added: Annotated[str, Option("Beginning of the names of the columns in obs.")] = "xtrimogene"
    reference: Annotated[
        Path | None, Option("Labelled cells, for a model that was not fine-tuned; with --label-key.")
    ] = None
    report: Annotated[
        Path | None, Option("A page to write, .html, for people to read: types, map, genes, how sure.")
    ] = None


@command
def annotate(
    ctx: typer.Context,
    query: Cells,
    output: OutputFile,
    how: Columns,
    cells: CellInput,
    running: Running,
    writing: Writing,
    model: AnyModel = None,
) -> None:
    """Name the type of every cell: by a fine-tuned model, or by labelled reference cells without training.

    Example: `xtrimogene annotate blood.h5ad -o blood_annotated.h5ad`

    That is by an annotator of blood, which comes with the package. By one of your own:
    `xtrimogene annotate my.h5ad --model annotator -o my_annotated.h5ad`

    With labelled cells instead of training:
    `xtrimogene annotate my.h5ad --reference labelled.h5ad --label-key cell_type -o out.h5ad`

    Your cells need no labels. Label, probability, the second label, and whether the cell is of no known type are
    written into obs. A cell without counts gets no label; one of no known type keeps the most probable label.

    With `--report report.html` you also get a page to send to a colleague: how many cells of which type, a UMAP, which
    genes decide, how sure the labels are, and what to do if many cells are unknown.
    """
    screen = Screen(writing)
    if (how.label_key is None) != (how.reference is None):
        raise typer.BadParameter(
            "--label-key names a column of the --reference, that of its types: give both, or neither"
        )
    check_cells(query, where=cells)
    if how.reference is not None:
        check_cells(how.reference, where=cells, label_key=how.label_key)
    model = chosen(model, "classify" if how.reference is None else "embed", screen.say)
    if is_first_process():
        new_file(output, writing.force, query)
        if how.report:
            new_text(how.report, writing.force, "--report", (".html",))

    adata = open_cells(query)
    check_writable(adata, output)
    known = None if how.reference is None else open_cells(how.reference)

    from ..inference import annotation

    prepare_process()
    total = adata.n_obs + (0 if known is None else known.n_obs)
    with running_over(total, "Annotating", screen, running) as (running, _), about(query.name):
        judged = annotation.judge(adata, model, cells, how, running, known)
        annotation.write_labels(adata, judged, how.unknown_threshold, how.key_added)
    if not is_first_process():
        return
    write_cells(adata, output)
    if how.report:
        from ..eval.report.annotation import annotation_report

        screen.say("Drawing the report; its UMAP takes up to a minute.")
        told: dict[str, Any] = {"title": f"Cell types of {query.name}", "command": command_line(ctx)}
        alone = replace(running, together=False, progress=None)
        annotation_report(adata, how.report, cells, alone, judged=judged, key_added=how.key_added, **told)
    show_labels(screen, adata, output, how)


def show_labels(screen: Screen, adata: "AnnData", output: Path, how: Columns) -> None:
    """Print the number of cells with each label, and of cells of no known type."""
    key, made_by = how.key_added, adata.uns[how.key_added]
    unknown = adata.obs.get(f"{key}_unknown")  # none without calibration
    labels = counted_labels(adata, key)
    num_unlabelled = int(adata.obs[f"{key}_label"].isna().sum())
    if unknown is None:
        of_unknown = f"Unknown cells are not told: {made_by['unknown']['note']}"
    else:
        of_unknown = f"{unknown.sum():,} cells unknown, threshold {how.unknown_threshold}, told by "
        of_unknown += made_by["unknown"]["calibrated on"]
        of_unknown += f"; of those with labels {made_by['unknown']['accuracy on these cells']:.1%} are named right"
    endings = ["label", "probability", "second_label"] + ["unknown"] * (unknown is not None)
    screen.show(
        label_table(labels, num_unlabelled, adata.n_obs),
        f"{made_by['counts']}; {genes_line(made_by['genes'])}",
        of_unknown,
        *(f"Beware: {doubt}" for doubt in made_by["unknown"].get("doubts", ())),
        f"Written: {output}, obs: {', '.join(f'{key}_{ending}' for ending in endings)}",
        *([f"Report: {how.report}"] if how.report else []),
    )
    screen.result(
        {
            "output": output,
            "cells": adata.n_obs,
            "labels": labels,
            "unlabelled": num_unlabelled,
            "unknown": None if unknown is None else int(unknown.sum()),
            "report": how.report,
            "provenance": made_by,
        }
    )


def counted_labels(adata: "AnnData", key: str) -> dict[str, dict[str, Any]]:
    """Return label -> number of its cells, number of unknown ones among them, and median probability of the others."""
    names, certainty = adata.obs[f"{key}_label"], adata.obs[f"{key}_probability"]
    unknown = adata.obs.get(f"{key}_unknown")
    is_known = names.notna() if unknown is None else ~unknown
    counts = names.value_counts()
    return {
        str(name): {
            "cells": int(count),
            "median_probability": float(certainty[is_known & (names == name)].median()),  # NaN if all are unknown
            "unknown": None if unknown is None else int(unknown[names == name].sum()),
        }
        for name, count in counts[counts > 0].items()
    }


def label_table(labels: dict[str, dict[str, Any]], num_unlabelled: int, num_cells: int) -> Table:
    """Return a table of labels and their cells."""
    is_calibrated = any(row["unknown"] is not None for row in labels.values())
    title = f"Cell types of {num_cells:,} cells"
    title += "; the probability is the median of those that are not unknown" if is_calibrated else ""
    table = Table(title=title, title_justify="left")
    table.add_column("label")
    table.add_column("cells", justify="right")
    table.add_column("unknown", justify="right")
    table.add_column("probability" if is_calibrated else "median probability", justify="right")
    for name, row in labels.items():
        num_unknown = "-" if row["unknown"] is None else f"{row['unknown']:,}"
        median = row["median_probability"]
        table.add_row(name, f"{row['cells']:,}", num_unknown, "-" if math.isnan(median) else f"{median:.2f}")
    if num_unlabelled:
        table.add_row("none: no counts", f"{num_unlabelled:,}", "-", "-")
    return table
