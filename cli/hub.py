"""`convert-checkpoint`: convert checkpoints of other projects."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..options import Option, Options, group
from .command import command
from .options import OutputFolder, Writing
from .output import Screen, command_line, facts, new_folder
from .process import prepare_process


@group
class Entries(Options):
    """Options of `convert-checkpoint`: which models of a scFoundation checkpoint are converted.

    Example:
        >>> Entries(entry="cell").trust_pickle
        False
    """

    entry: Annotated[
        Literal["cell", "gene", "rde", "all"],
        Option("cell: cell embeddings; gene: gene embeddings; rde: depth enhancement; all: all three."),
    ] = "all"
    genes: Annotated[
        Path | None,
        Option(
            "File with the gene names in the order of the ids, one a line.",
            default="the published panel for 19,264 genes, else numbers",
        ),
    ] = None
    trust_pickle: Annotated[bool, Option("Read a file with objects other than tensors: that runs code from it.")] = (
        False
    )


@command
def convert_checkpoint(
    ctx: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="The authors' models.ckpt of scFoundation.")],
    output: OutputFolder,
    what: Entries,
    writing: Writing,
) -> None:
    """Convert a scFoundation checkpoint that you hold into checkpoint folders: OUTPUT/cell, OUTPUT/gene, OUTPUT/rde.

    Example: `xtrimogene convert-checkpoint models.ckpt -o scfoundation`

    The licence of the weights is that of their authors (non-commercial), and nothing is downloaded. Memory is bounded
    by one of the three models.
    """
    screen = Screen(writing)
    new_folder(output, writing.force)

    from ..hub_cards.card import CardContent, Conversion, write_model_card
    from ..recipes.convert_scfoundation import CITATION, ENTRIES, LICENCE_LINK, LICENCE_NAME, LICENCE_NOTE, USES
    from ..recipes.convert_scfoundation import convert_checkpoint as convert_entries

    prepare_process()
    screen.say(LICENCE_NOTE)
    entries = ENTRIES if what.entry == "all" else (what.entry,)
    rows: dict[str, dict[str, Any]] = {}

    def finish(folder: Path, name: str, model: Any) -> None:
        shown = ("num_genes", "hidden_size", "num_hidden_layers", "decoder_hidden_size", "decoder_num_hidden_layers")
        sizes = {key: getattr(model.config, key) for key in shown}
        rows[name] = {"folder": output / name, "parameters": model.num_parameters(), **sizes}
        origin = f"entry {name} of {checkpoint.name} (scFoundation)"
        content = CardContent(
            model_name=f"{output.name}/{name}",
            summary=f"The model `{name}` of a scFoundation checkpoint, {USES[name]}, converted from {checkpoint.name}.",
            config={**sizes, "parameters": f"{model.num_parameters():,}", "pooling": model.config.pooling},
            command=command_line(ctx),
            conversion=Conversion(origin, LICENCE_NAME, LICENCE_LINK, LICENCE_NOTE, CITATION),
        )
        write_model_card(folder, content)
        screen.say(f"{name}: {model.num_parameters():,} parameters, {model.config.num_genes:,} genes")

    convert_entries(checkpoint, output, entries, genes=what.genes, trust_pickle=what.trust_pickle, finish=finish)
    following = f"xtrimogene embed my.h5ad --model {shlex.quote(str(output / entries[0]))} -o my_embedded.h5ad"
    screen.show(
        facts("Converted", {name: str(row["folder"]) for name, row in rows.items()}),
        f"Next: {following}",
    )
    screen.result({"output": output, "entries": rows, "licence": LICENCE_NOTE})
