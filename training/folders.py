"""Folders that are whole, or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield the path of a folder to write, which takes the place of `output` at the end; until then that stays."""
    unfinished, earlier = (output.with_name(f"{output.name}.{kind}") for kind in ("unfinished", "earlier"))
    if earlier.exists() and not output.exists():  # of a run that was killed
        os.replace(earlier, output)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        yield unfinished
        if output.exists():
            os.replace(output, earlier)
        os.replace(unfinished, output)
    finally:
        if earlier.exists() and not output.exists():
            os.replace(earlier, output)
        for rest in (unfinished, earlier):
            shutil.rmtree(rest, ignore_errors=True)
