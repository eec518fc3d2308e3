"""Read what lies beside the weights of a checkpoint in a safetensors file: a calibration, components, keys of cells."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from .saved import Saved

Content = TypeVar("Content")


def read_beside(
    checkpoint: str | os.PathLike, name: str, content: str, read: Callable[[Any, dict[str, str]], Content]
) -> Content | None:
    """Return what a safetensors file beside a checkpoint holds; None if there is no such file.

    Args:
        checkpoint: Folder or Hub name.
        name: Name of the file.
        content: What it holds, for the message.
        read: Function from the open file and its metadata to what is returned.

    Raises:
        ValueError: If the file is damaged, or is something else.

    Example:
        >>> read_beside("checkpoint", "calibration.safetensors", "calibration", lambda file, about: about) is None
        True
    """
    from safetensors import SafetensorError, safe_open

    path = Saved.of(checkpoint).file(name)
    if path is None:
        return None
    try:
        with safe_open(path, "numpy") as file:
            return read(file, file.metadata())
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no {content} ({error}): delete it, or copy the checkpoint again") from error
