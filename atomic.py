"""Write files and folders so that they are complete or absent; hash files."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield the path of a folder to write, which replaces `output` when all is written.

    >>> with whole_folder(Path("result")) as folder:
    ...     folder.mkdir()
    >>> Path("result").is_dir()
    True
    """
    unfinished, earlier = (output.with_name(f"{output.name}.{kind}") for kind in ("unfinished", "earlier"))
    if earlier.exists() and not output.exists():  # a run was killed between the two renames
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
    """Yield a folder to write a model into; its files move to `output` when all are written.

    A folder without `config.json` is no model for any reader. So the `config.json` of an earlier model is removed
    first, and the new one is moved last. Other files in `output`, such as checkpoints of the run, stay.

    Example:
        >>> with final_model(Path("model")) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> [file.name for file in Path("model").iterdir()]
        ['config.json']
    """
    unfinished, config = output / "unfinished", "config.json"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        (output / config).unlink(missing_ok=True)
        for earlier in output.glob("*.safetensors*"):  # shards of its weights, or its calibration
            earlier.unlink()
        mode = stat.S_IMODE((unfinished / config).stat().st_mode)
        for weights in unfinished.rglob("*.safetensors"):
            weights.chmod(mode)  # safetensors writes files that their owner alone can read
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == config):
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


UNFINISHED = ".unfinished"


class WriteError(OSError):
    """The corpus cannot be written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a WriteError that says what was written and how to go on."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written ({error.strerror or error}); the shards before it are whole: make room, and "
            f"repeat the command to go on behind them"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it always holds all of the old text or all of the new text.

    >>> write_whole(Path("notes.txt"), "done")
    >>> Path("notes.txt").read_text()
    'done'
    """
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    with writing(path):
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)


def size_text(size: float) -> str:
    """Return a number of bytes for people.

    >>> size_text(700), size_text(3 << 20), size_text(5 << 30)
    ('700 bytes', '3.0 MiB', '5.0 GiB')
    """
    units = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
    return next((f"{size / unit:,.1f} {name}" for name, unit in units.items() if size >= unit), f"{size:.0f} bytes")


def check_room(output: Path, size: float, what: str, advice: str) -> None:
    """Refuse to write what the disk has no room for, before it is computed.

    Args:
        output: The file or folder to write.
        size: Bytes that it will have at least.
        what: What they are, for the message.
        advice: What to do instead.

    Raises:
        ValueError: If fewer bytes are free.

    Example:
        >>> check_room(Path("out.h5ad"), 1e18, "all of cells.h5ad", "choose another --output")
        Traceback (most recent call last):
        ValueError: out.h5ad will hold all of cells.h5ad, 931,322,574.6 GiB, and its disk has ... free: choose ...
    """
    place = output.absolute()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    if size > free:
        raise ValueError(
            f"{output} will hold {what}, {size_text(size)}, and its disk has {size_text(free)} free: {advice}"
        )


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on disk."""
    with suppress(OSError):  # not every system lets a folder be opened
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(file: Path) -> str:
    """Return the sha256 of a file.

    >>> _ = Path("notes.txt").write_text("done")
    >>> file_hash(Path("notes.txt"))[:8]
    'a4c3ed04'
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_checkpoint(path: str) -> None:
    """Refuse a folder that is no checkpoint and no adapter of PEFT; a path that does not exist may be a Hub name.

    Raises:
        ValueError: If it has neither `config.json` nor `adapter_config.json`.
    """
    names = ("config.json", "adapter_config.json")
    if os.path.isdir(path) and not any(os.path.isfile(os.path.join(path, name)) for name in names):
        raise ValueError(
            f"{path} has no config.json, it holds {', '.join(sorted(os.listdir(path))[:5]) or 'nothing'}: a checkpoint "
            f"is a folder written by save_pretrained, `xtrimogene pretrain` or `xtrimogene finetune`"
        )
