"""The gallery: all checkpoints of a folder in one table, from their cards.

checkpoints/*/README.md, config.json, *.safetensors  ->  one row each  ->  gallery.md

    python -m xtrimogene.hub_cards.gallery checkpoints hub_cards/gallery.md
"""

import os
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoConfig

from .. import families
from ..atomic import write_whole
from ..modeling_xtrimogene.card_xtrimogene import CARD
from ..modeling_xtrimogene.sharing_xtrimogene import CONFIG
from .card import count_parameters

PAGE = """# Checkpoints

{number} in this table. It is written from their cards, which say on what each was trained and where a simple
baseline is better.

| checkpoint | what it is | family | parameters | MB | results | licence |
|---|---|---|---:|---:|---|---|
{rows}
"""


def gallery(folder: str | os.PathLike, links: str = "") -> str:
    """Return a page with one table of the checkpoints in a folder, by name.

    Args:
        folder: Folder whose folders are checkpoints, each with a card; others are left out.
        links: What stands before the name of a checkpoint in the link to its card, such as `../checkpoints/`.

    Raises:
        ValueError: If there is no checkpoint, or one has no card.

    Example:
        >>> from xtrimogene.hub_cards import CardContent, write_model_card
        >>> _ = write_model_card("checkpoint", CardContent(model_name="blood", summary="A small model."))
        >>> gallery(".").splitlines()[-1].split(" | ")[:3]
        ['| [checkpoint](checkpoint/README.md)', 'A small model.', 'xTrimoGene']
    """
    found = sorted(path.parent for path in Path(folder).glob(f"*/{CONFIG}"))
    if not found:
        raise ValueError(f"{folder} has no folder with {CONFIG}: give the folder in which checkpoints lie")
    number = f"{len(found)} checkpoint{'s' if len(found) > 1 else ''}"
    return PAGE.format(number=number, rows="\n".join(row(checkpoint, links) for checkpoint in found))


def row(checkpoint: Path, links: str) -> str:
    """Return the row of a checkpoint.

    Raises:
        ValueError: If it has no card.
    """
    if not (checkpoint / CARD).is_file():
        raise ValueError(f"{checkpoint} has no {CARD}: the gallery is written from the cards")
    card = ModelCard.load(checkpoint / CARD)
    files = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    cells = (
        f"[{checkpoint.name}]({links}{checkpoint.name}/{CARD})",
        summary_of(card.text),
        families.family_of(AutoConfig.from_pretrained(checkpoint)).about.name,
        f"{count_parameters(checkpoint):,}",
        f"{files / 1e6:.1f}",
        "<br>".join(result_text(result) for result in card.data.eval_results or []) or "not evaluated",
        str(card.data.license_name or card.data.license or "not stated"),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def summary_of(text: str) -> str:
    r"""Return the first paragraph of a card, in one line.

    >>> summary_of("# Blood\n\nA small\nmodel.\n\nMore.")
    'A small model.'
    """
    paragraphs = (part.strip() for part in text.split("\n\n"))
    return " ".join(next((part for part in paragraphs if part and not part.startswith("#")), "").split())


def result_text(result: Any) -> str:
    """Return a result as it stands in the table."""
    return f"{result.metric_name} {result.metric_value:.3g} ({result.task_name}, {result.dataset_name})"


if __name__ == "__main__":
    checkpoints, page = map(Path, sys.argv[1:3])
    link = os.path.relpath(checkpoints.absolute(), page.absolute().parent)
    write_whole(page, gallery(checkpoints, f"{Path(link).as_posix()}/"))
