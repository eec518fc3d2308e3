"""Push the folder of a checkpoint to the Hub, with its tokenizer and its card."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from .. import families
from ..inference.cell_model import check_checkpoint
from ..modeling_xtrimogene.card_xtrimogene import CARD
from ..modeling_xtrimogene.sharing_xtrimogene import CONFIG, Pushed, push_folder
from .card import CardContent, count_parameters, write_model_card


def push_checkpoint(folder: str | os.PathLike, repo_id: str, **options: Any) -> Pushed:
    """Push a checkpoint to the Hub in one commit. A folder without a card gets one, from what its files say.

    Args:
        folder: Folder with a model and its tokenizer.
        repo_id: The repository, `user/name`.
        **options: Options of `push_folder`.

    Raises:
        ValueError: If it is no checkpoint, or is refused: a pickle, a missing file, a secret or a path of a machine.

    Example:
        >>> push_checkpoint("annotator", "me/blood-types", private=True).commit.oid  # doctest: +SKIP
        '8f3c...'
    """
    folder = Path(folder)
    check_checkpoint(str(folder))
    tokenizer = families.family_of(AutoConfig.from_pretrained(folder)).tokenizer
    if not (folder / CARD).is_file():
        write_plain_card(folder)
    needed = [CONFIG, "tokenizer_config.json", *tokenizer.vocab_files_names.values()]
    return push_folder(folder, repo_id, needed=needed, **options)


def write_plain_card(folder: Path) -> Path:
    """Write a card into a folder of which no run is known, and return its path.

    Example:
        >>> write_plain_card(Path("checkpoint")).name
        'README.md'
    """
    config = AutoConfig.from_pretrained(folder)
    about = families.family_of(config).about
    number = f"{count_parameters(folder):,}"
    content = CardContent(
        model_name=folder.absolute().name,
        summary=f"{about.a_model} of {number} weights.",
        config={"parameters": number, "genes": f"{config.num_genes:,}"} if hasattr(config, "num_genes") else {},
        is_classifier="classify" in families.abilities(config.architectures or ()),
        license="unknown",
        about=about,
    )
    return write_model_card(folder, content)
