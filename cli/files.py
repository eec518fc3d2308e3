"""`inspect`, `convert-checkpoint`, `doctor`: what is there, and whether it can be used."""

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import app
from .options import AsJson, Cells, GeneColumn, Layer, OutputFolder, Quiet
from .output import Screen, facts, new_folder, prepare_process, typed


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

    from ..tokenization.counts_xtrimogene import find_counts, load
    from ..tokenization.panel_xtrimogene import PanelCounts
    from ..tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

    data = load(file)
    found: dict[str, Any] = {"file": file, "slots": slots(data)}
    columns = label_columns(data)
    problem = None
    try:
        tokenizer = XTrimoGeneTokenizer.default()
        source = find_counts(data, layer=layer, gene_column=gene_column, is_gene=tokenizer.matcher.knows)
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
    from ..tokenization.counts_xtrimogene import examine, layer_names, readable_by_row

    if not hasattr(data, "layers"):
        values = {"values": data.to_numpy() if hasattr(data, "to_numpy") else data}
        bases: tuple[float, ...] = ()
    else:
        values = {f'layers["{name}"]': data.layers[name] for name in layer_names(data)}
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

    from ..hub_cards.card import Conversion, write_model_card
    from ..training.scfoundation import CITATION, ENTRIES, LICENCE_LINK, LICENCE_NAME, LICENCE_NOTE, USES
    from ..training.scfoundation import convert_checkpoint as convert_entries

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
