"""Folders that are whole, or not there; models that have their names when they are final."""

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


@contextmanager
def final_model(output: Path) -> Iterator[Path]:
    """Yield a folder to write a model into, whose files come to `output` when all of them are there.

    A folder without `config.json` is no model for any reader. So that file goes first of what an earlier model left,
    and comes last of the new one. Other files in `output`, such as checkpoints of the run, stay.
    """
    unfinished, config = output / "unfinished", "config.json"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        (output / config).unlink(missing_ok=True)
        for earlier in output.glob("*.safetensors*"):  # parts of its weights, or its calibration
            earlier.unlink()
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == config):
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
