"""Files and folders that are whole or not there; hashes of files."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


UNFINISHED = ".unfinished"


class WriteError(OSError):
    """The corpus cannot be written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of what goes wrong that the corpus was written, and what is left of it."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written ({error.strerror or error}); the shards before it are whole: make room, and "
            f"repeat the command to go on behind them"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write a file so that its name always stands for all of the old text or all of the new."""
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    with writing(path):
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on disk."""
    with suppress(OSError):  # not every system lets a folder be opened
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    if os.name == "nt" and path.is_dir():  # cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
