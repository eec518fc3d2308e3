# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""The card of a repository that is pushed to more than once: what people wrote by hand stays.

    card of the folder + card on the Hub  ->  merged: each part that is on the Hub as it was pushed is replaced

A part is a field of the metadata, or a section, from one heading to the next. A comment at the end of a pushed card
holds the hash of each part. A part with another hash was changed by hand. It also holds the weights that were pushed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, RepoCard
from huggingface_hub.utils import yaml_dump

CARD = "README.md"
TITLE = "title"  # stands for the heading of the first level, which people may change
METADATA: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "feature-extraction"}
LINE = "\n<!-- parts that xtrimogene wrote; it changes those that still are the same: {} -->\n"
RECORD = re.compile(LINE.strip().format(r"(\{.*\})"))
NEW = """---
{metadata}---

# {name}

A {model}, saved with the package `xtrimogene`. It embeds human cells from their raw counts.

## How to use

```python
import anndata
from transformers import pipeline

embed = pipeline("cell-embedding", model="{name}", trust_remote_code=True)
embed(anndata.read_h5ad("cells.h5ad"))  # a list of numbers for each cell
```
"""


def new_card(name: str, model: str) -> str:
    """Return a short card for a model of which no run is known.

    Args:
        name: The repository.
        model: Class of the model.

    Example:
        >>> "pipeline_tag: feature-extraction" in new_card("me/blood", "TxFMModel")
        True
    """
    tags = ["single-cell", "biology", "gene-expression", "scRNA-seq"]
    return NEW.format(metadata=yaml_dump({**METADATA, "tags": tags}), name=name, model=model)


def in_repository(card: str, repo_id: str) -> str:
    r"""Return a card whose examples load from a repository, not from the folder of its title or from the package.

    >>> in_repository('# blood\n\nAutoModel.from_pretrained("blood")', "me/blood")
    '# blood\n\nAutoModel.from_pretrained("me/blood")'
    >>> in_repository('AutoModel.from_pretrained(xtrimogene.checkpoint("small"))', "me/blood")
    'AutoModel.from_pretrained("me/blood")'
    """
    card = re.sub(r'xtrimogene\.checkpoint\("[^"]+"\)', lambda _: f'"{repo_id}"', card)
    title = re.search(r"^# (.+)$", card, flags=re.MULTILINE)
    return card if title is None else card.replace(f'"{title.group(1).strip()}"', f'"{repo_id}"')


def pushed_files(card: str) -> dict[str, str]:
    """Return name -> hash of the weights and shards that were pushed with a card, as its comment tells."""
    pushed = RECORD.search(card)
    return json.loads(pushed.group(1)).get("files", {}) if pushed else {}


def merged(
    new: str, on_hub: str | None, defaults: Mapping[str, Any] = {}, files: Mapping[str, str] = {}
) -> tuple[str, list[str]]:
    r"""Return a new card in which all stays that people wrote by hand into the card on the Hub.

    What was pushed and is unchanged on the Hub is replaced; what was changed, added or removed there stays so. A card
    that this package did not push stays as a whole, and only gets fields of metadata that it lacks.

    Args:
        new: Card of the folder.
        on_hub: Card on the Hub; None if there is none.
        defaults: Fields of metadata for a card that lacks them.
        files: Name -> hash of the weights and shards that are pushed with it.

    Returns:
        The card, and the parts of it that were changed or added on the Hub: headings, and `metadata: <field>`.

    Example:
        >>> first, _ = merged("# Blood\n\n## Data\n\n700 cells", None)
        >>> by_hand = first.replace("700 cells", "700 cells of one donor")
        >>> card, kept = merged("# Blood\n\n## Data\n\n700 cells\n\n## Evaluation\n\nAccuracy 0.8", by_hand)
        >>> "of one donor" in card, "Accuracy 0.8" in card, kept
        (True, True, ['## Data'])
    """
    fields, sections = parts_of(new)
    fields = {**defaults, **fields}
    record = {"metadata": hashes(fields), "sections": hashes(sections), "files": dict(files)}
    if on_hub is None or is_template(on_hub):
        return written(fields, sections, record), []
    pushed = RECORD.search(on_hub)
    known = json.loads(pushed.group(1)) if pushed else {}
    there, there_sections = parts_of(RECORD.sub("", on_hub))
    if "metadata" not in known:
        added = {name: value for name, value in fields.items() if name not in there}
        told = "all of the card, which xtrimogene did not write"
        return written({**there, **added}, there_sections, {"files": dict(files)}), [told]
    fields, kept_fields = combined(fields, there, known["metadata"])
    sections, kept = combined(sections, there_sections, known["sections"])
    return written(fields, sections, record), [*(f"metadata: {name}" for name in kept_fields), *kept]


def combined(
    new: Mapping[str, Any], there: Mapping[str, Any], known: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Combine parts of a new card with those on the Hub.

    Args:
        new: Parts of the new card.
        there: Parts of the card on the Hub.
        known: Hashes of the parts that were pushed last.

    Returns:
        The parts, with those that were added by hand after the part that they follow on the Hub; and the names of
        those that were changed or added by hand.
    """
    found = hashes(there)
    by_hand = [name for name in there if found[name] != known.get(name) and found[name] != hash_of(new.get(name))]
    is_removed = {name for name in known if name not in there}
    parts = {name: there[name] if name in by_hand else value for name, value in new.items() if name not in is_removed}
    order = list(parts)
    before: str | None = None
    for name in there:
        if name in by_hand and name not in parts:
            order.insert(0 if before is None else order.index(before) + 1, name)
        if name in order:
            before = name
    return {name: parts.get(name, there.get(name)) for name in order}, by_hand


def parts_of(card: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of metadata of a card, and heading -> text of each section with its heading.

    What stands before the first heading is of the heading ``; of several equal headings the later ones get a number.
    """
    card = card.replace("\r\n", "\n")
    has_metadata = re.match(r"\s*---\n", card) is not None
    parsed = RepoCard(card, ignore_metadata_errors=True) if has_metadata else None
    fields = {} if parsed is None else parsed.data.to_dict()
    sections: dict[str, str] = {}
    heading, is_code = "", False
    for line in (card if parsed is None else parsed.text).splitlines():
        is_code ^= line.startswith("```")
        if not is_code and re.match(r"#{1,2} ", line):
            heading = TITLE if line.startswith("# ") and TITLE not in sections else line.strip()
            while heading in sections:
                heading += " (again)"
        sections[heading] = f"{sections[heading]}\n{line}" if heading in sections else line
    return fields, {name: text.strip() for name, text in sections.items() if text.strip()}


def written(fields: Mapping[str, Any], sections: Mapping[str, str], record: Any) -> str:
    """Return the text of a card of these parts, with the record of what was written."""
    metadata = f"---\n{yaml_dump(dict(fields))}---\n\n" if fields else ""
    return metadata + "\n\n".join(sections.values()) + "\n" + LINE.format(json.dumps(record))


def is_template(card: str) -> bool:
    """Return whether a card is the template that transformers pushes with a tokenizer, with nothing filled in."""
    template = ModelCard.from_template(ModelCardData()).text
    own = {line.strip() for line in RepoCard(card, ignore_metadata_errors=True).text.splitlines()}
    by_hand = own - {line.strip() for line in template.splitlines()}
    return "[More Information Needed]" in card and all("has been automatically generated" in line for line in by_hand)


def hashes(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of each part."""
    return {name: hash_of(value) for name, value in parts.items()}


def hash_of(part: Any) -> str:
    """Return a short hash of a section, or of a field's value."""
    text = part if isinstance(part, str) else json.dumps(part, sort_keys=True, default=str)
    return hashlib.sha256("\n".join(line.rstrip() for line in text.strip().split("\n")).encode()).hexdigest()[:12]
