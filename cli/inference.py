"""`embed`, `enhance`, `annotate`: cells and a checkpoint in, cells out."""

import math
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .app import app
from .options import (
    AsJson,
    BatchSize,
    Cells,
    Device,
    Dtype,
    DtypeOption,
    Force,
    GeneColumn,
    InputType,
    Layer,
    Model,
    OutputFile,
    OutputType,
    Pooling,
    Quiet,
    TargetDepth,
    batch_size_of,
)
from .output import Screen, facts, genes_line, new_file, new_folder, write_cells
from .process import is_first_process, prepare_process

TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".npz", ".npy")


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
        if is_of_cells:
            new_file(output, force, file)
        else:
            new_zarr(output, force)

    from ..inference.devices import join_processes
    from ..tokenization.reading import open_cells

    if input_type is InputType.LOG_TOTAL and total_key is None and file.name.endswith(TABLES):
        total_key, last_is_total = "total", True
    else:
        last_is_total = False
    adata = open_cells(file, column_names(gene_names, model), total_key if last_is_total else None)

    from .. import tl
    from ..training.progress import cell_progress

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


def new_zarr(output: Path, force: bool) -> None:
    """Refuse an output that is no new zarr folder.

    Raises:
        ValueError: If it is there already and `force` is not set, or is something else.
    """
    if output.suffix != ".zarr":
        raise typer.BadParameter(f"--output is {output}: embeddings of genes are a .zarr folder, name it so")
    from ..inference.genes import check_genes_folder

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
        from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

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
    new_file(output, force, file)

    from .. import tl
    from ..tokenization.reading import read_cells
    from ..training.progress import cell_progress

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
        new_file(output, force, query)

    from ..inference.devices import join_processes
    from ..tokenization.reading import open_cells

    adata = open_cells(query)
    known = None if reference is None else open_cells(reference)

    from .. import tl
    from ..training.progress import cell_progress

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
    is_known = names.notna() if unknown is None else ~unknown
    labels: dict[str, dict[str, Any]] = {
        str(name): {
            "cells": int(count),
            "median_probability": float(certainty[is_known & (names == name)].median()),  # NaN if all are unknown
            "unknown": None if unknown is None else int(unknown[names == name].sum()),
        }
        for name, count in counts[counts > 0].items()
    }
    num_unlabelled = int(names.isna().sum())
    table = Table(title=f"Cell types of {adata.n_obs:,} cells", title_justify="left")
    table.add_column("label")
    table.add_column("cells", justify="right")
    table.add_column("unknown", justify="right")
    table.add_column("median probability" + (", known cells" if unknown is not None else ""), justify="right")
    for name, row in labels.items():
        num_unknown = "-" if unknown is None else f"{row['unknown']:,}"
        median = row["median_probability"]
        table.add_row(name, f"{row['cells']:,}", num_unknown, "-" if math.isnan(median) else f"{median:.2f}")
    if num_unlabelled:
        table.add_row("none: no counts", f"{num_unlabelled:,}", "-", "-")
    made_by = adata.uns[key_added]
    endings = ["label", "probability", "second_label"] + ["unknown"] * (unknown is not None)
    if unknown is None:
        of_unknown = f"Unknown cells are not told: {made_by['unknown']['note']}"
    else:
        of_unknown = f"{unknown.sum():,} cells unknown, threshold {unknown_threshold}, told by "
        of_unknown += made_by["unknown"]["calibrated on"]
        of_unknown += f", of which {made_by['unknown']['accuracy on these cells']:.1%} are named right"
    screen.show(
        table,
        f"{made_by['counts']}; {genes_line(made_by['genes'])}",
        of_unknown,
        *(f"Beware: {doubt}" for doubt in made_by["unknown"].get("doubts", ())),
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
