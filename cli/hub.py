"""`push` shares checkpoints and corpora; `convert-checkpoint` converts checkpoints of other projects."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..options import Option, Options, group
from .command import command
from .options import OutputFolder, Printing, Writing
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


@group
class Sharing(Options):
    """Options of `push`: who may read the repository.

    Example:
        >>> Sharing(private=True).private
        True
    """

    private: Annotated[bool, Option("Make a new repository private.")] = False


@command
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint, or of a corpus.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub, user/name.", show_default=False)],
    sharing: Sharing,
    printing: Printing,
) -> None:
    """Push a checkpoint or a corpus to the Hugging Face Hub, in one commit.

    Example: `xtrimogene push blood-types me/blood-types --private`

    Weights, tokenizer, code, card, pictures and calibration go; so `AutoModel.from_pretrained("me/blood-types",
    trust_remote_code=True)` works without this package. What people wrote by hand into the card on the Hub stays. A
    folder with a pickle, with a missing file, or with a secret or a path of this machine in a file is refused.
    """
    screen = Screen(printing)
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise typer.BadParameter(f"the repository is {repo_id!r}: give user/name, as on the Hub")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder of a checkpoint or of a corpus")
    from huggingface_hub import get_token

    if get_token() is None:
        raise ValueError("this machine has no token of the Hub: log in with `hf auth login`, or set HF_TOKEN")

    from ..hub_cards.publish import push_checkpoint
    from ..modeling_xtrimogene.card_xtrimogene import CARD
    from ..modeling_xtrimogene.sharing_xtrimogene import CONFIG
    from ..training.data.corpus import push_corpus
    from ..training.data.manifest import MANIFEST

    prepare_process()
    is_corpus = (folder / MANIFEST).is_file()
    if not is_corpus and (folder / CONFIG).is_file() and not (folder / CARD).is_file():
        screen.say(f"{folder} has no {CARD}: one is written from what its other files say")
    pushed = (push_corpus if is_corpus else push_checkpoint)(folder, repo_id, private=sharing.private or None)
    rows = {"address": pushed.commit.repo_url, "revision": pushed.commit.oid, "files": pushed.files}
    screen.show(facts(f"Pushed {folder}", rows))
    if pushed.kept:
        screen.say(f"Kept as it is on the Hub, where it was changed by hand: {', '.join(pushed.kept)}")
    following = f"xtrimogene embed my.h5ad --model {pushed.repo_id} -o my_embedded.h5ad"
    if is_corpus:
        following = f"xtrimogene pretrain --corpus hf://datasets/{pushed.repo_id} -o checkpoint"
    screen.show(f"Next: {following}")
    screen.result({**rows, "repo_id": pushed.repo_id, "kept": pushed.kept})


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
