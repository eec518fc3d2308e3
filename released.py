"""Checkpoints that come with the package, by name; which one does a task if the user names none.

    checkpoint("small")  ->  .../xtrimogene/checkpoints/small, a folder for `from_pretrained`

`make checkpoints` trains them (`recipes/checkpoints.py`). Their cards say on which cells, and how good they are.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "checkpoints"
KNOWS = "knows"  # key of metrics.json: what a released checkpoint knows, in a sentence
DEFAULTS = {"embed": "small", "classify": "blood-annotator"}  # task -> name


def names() -> list[str]:
    """Return the names of the checkpoints that come with the package.

    >>> "small" in names()
    True
    """
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint that comes with the package.

    Args:
        name: One of `names()`, such as `small`, an xTrimoGene.

    Raises:
        ValueError: If there is none of this name.

    Example:
        >>> import xtrimogene
        >>> from transformers import AutoModel
        >>> AutoModel.from_pretrained(xtrimogene.checkpoint("small")).config.anchored
        True
    """
    if name not in names():
        raise ValueError(
            f"no checkpoint called {name!r} comes with the package, only {', '.join(names()) or 'none'}: give one of "
            f"these names, or load a folder or a Hub name with from_pretrained"
        )
    return FOLDER / name


def knows(name: str) -> str:
    """Return a sentence on what a checkpoint that comes with the package knows.

    >>> knows("small").startswith("It was trained on")
    True
    """
    return json.loads((checkpoint(name) / "metrics.json").read_text(encoding="utf-8"))[KNOWS]


def located(model: Any) -> Any:
    """Return the folder of a checkpoint that comes with the package for its name; anything else as it is.

    A folder of the same name in the working directory is taken before it.

    >>> located("small").name, located("owner/model")
    ('small', 'owner/model')
    """
    return checkpoint(model) if isinstance(model, str) and model in names() and not os.path.exists(model) else model


def chosen(model: Any, task: Literal["embed", "classify"], say: Callable[[str], object]) -> Any:
    """Return the model that does a task: the one given, or the default; then say which it is, and what it knows.

    Args:
        model: A checkpoint or a loaded model; None for the default.
        task: What the model is for.
        say: Called with one line of text if the model is the default.

    >>> chosen(None, "embed", print).name
    Model: small, which comes with xtrimogene. It was trained on ...
    'small'
    """
    if model is not None:
        return model
    name = DEFAULTS[task]
    say(f"Model: {name}, which comes with xtrimogene. {knows(name)}")
    return checkpoint(name)
