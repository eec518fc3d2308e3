"""Checkpoints of a running training: each is complete or does not exist, and none holds a pickle.

weights, tokenizer                 save_pretrained
optimizer, scheduler, random, ema  *.safetensors, tensors; everything else as JSON in its header
trainer_state.json                 step and log
    |  written into a folder with another name, hashed, flushed to disk, then renamed
    v
checkpoint-STEP/                   with checkpoint.json: size and hash of each file, and the settings of the run

FSDP and DeepSpeed write the optimizer in their own formats; such a checkpoint, too, is complete or does not exist.
"""

import json
import logging
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..atomic import file_hash, flush

logger = logging.getLogger(__name__)

CONTENT = "checkpoint.json"
UNFINISHED = "unfinished-"
HEADER = "state"


# -- a checkpoint is complete or not there -----------------------------------------------------------------------------


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step.

    Example:
        >>> checkpoint_folder("run", 50).name
        'checkpoint-50'
    """
    return Path(output_dir) / f"checkpoint-{step}"


def begin(checkpoint: Path) -> Path:
    """Return an empty folder beside `checkpoint` to write its files into."""
    unfinished = checkpoint.with_name(UNFINISHED + checkpoint.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def finish(unfinished: Path, run: Mapping[str, Any]) -> None:
    """Rename an unfinished folder to the checkpoint's name, once all its files are on disk.

    Args:
        unfinished: The folder that `begin` returned, with all files written.
        run: Settings that a run must share to resume from this checkpoint, name -> value.

    Example:
        >>> unfinished = begin(checkpoint_folder("run", 50))
        >>> save_state({"step": 50}, unfinished / "state.safetensors")
        >>> finish(unfinished, {"seed": 0})
        >>> newest_whole("run").name
        'checkpoint-50'
    """
    files = {file.relative_to(unfinished).as_posix(): file for file in unfinished.rglob("*") if file.is_file()}
    content = {
        "run": dict(run),
        "files": {name: {"bytes": file.stat().st_size, "sha256": file_hash(file)} for name, file in files.items()},
    }
    (unfinished / CONTENT).write_text(json.dumps(content, indent=1), encoding="utf-8")
    for path in [*unfinished.rglob("*"), unfinished]:
        flush(path)
    checkpoint = unfinished.with_name(unfinished.name.removeprefix(UNFINISHED))
    shutil.rmtree(checkpoint, ignore_errors=True)  # a damaged checkpoint of this step, from which nothing resumed
    unfinished.rename(checkpoint)
    flush(checkpoint.parent)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints in a folder, complete or damaged, the newest first."""
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def newest_whole(output_dir: str | Path) -> Path | None:
    """Return the newest complete checkpoint, None if there is none; warn of each damaged one and say what is wrong."""
    for checkpoint in checkpoints(output_dir):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning(f"{checkpoint} is passed over: {wrong}")
    return None


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if it is complete.

    Example:
        >>> damage(Path("checkpoint-7"))
        'it has no checkpoint.json'
    """
    try:
        content = json.loads((checkpoint / CONTENT).read_text(encoding="utf-8"))
        expected = {name: (facts["bytes"], facts["sha256"]) for name, facts in content["files"].items()}
    except FileNotFoundError:
        return f"it has no {CONTENT}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CONTENT} cannot be read ({error})"
    for name, (size, sha256) in expected.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
        if file_hash(file) != sha256:
            return f"{name} was changed: its content does not give its hash"
    return None


def check_run(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Check that a run has the settings of a checkpoint, so that it resumes with the results of an unbroken run.

    Args:
        checkpoint: A complete checkpoint, from `newest_whole`.
        run: Settings of the run that is to resume, name -> value.

    Raises:
        ValueError: If a setting differs from that in the checkpoint.

    Example:
        >>> finish(begin(Path("checkpoint-9")), {"seed": 0})
        >>> check_run(Path("checkpoint-9"), {"seed": 1})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: checkpoint-9 is of a run with seed 0, now 1: resume with the same, ...
    """
    before = json.loads((checkpoint / CONTENT).read_text(encoding="utf-8"))["run"]
    now = json.loads(json.dumps(dict(run)))
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        shown = ", ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in different)
        raise ValueError(
            f"{checkpoint} is of a run with {shown}: resume with the same, or begin a new run in another output_dir"
        )


def remove_old(output_dir: str | Path, newest: Path, limit: int | None, best: str | None) -> None:
    """Delete old checkpoints.

    Checkpoints later than `newest` are damaged ones; they stay until the run reaches their step and replaces them.

    Args:
        output_dir: Folder of the checkpoints.
        newest: The checkpoint that was just written.
        limit: Number of checkpoints to keep, the newest and the best included; None and 0 keep all.
        best: Folder of the best checkpoint, which is kept; None if there is none.
    """
    found = checkpoints(output_dir)
    mine = found[found.index(newest) :]
    kept = {newest} | ({Path(best)} if best else set())
    for checkpoint in mine[1:]:
        if limit and checkpoint not in kept:
            if len(kept) < limit:
                kept.add(checkpoint)
            else:
                shutil.rmtree(checkpoint, ignore_errors=True)


# -- states without pickle --------------------------------------------------------------------------------------------


def save_state(state: Any, path: Path) -> None:
    """Write a nested structure of dicts, lists and tuples that hold tensors, numbers and text.

    Args:
        state: The structure, such as the `state_dict` of an optimizer.
        path: The `.safetensors` file to write.

    Raises:
        TypeError: If the structure holds an object of another kind.

    Example:
        >>> save_state({"step": 3, "mean": torch.ones(2)}, Path("state.safetensors"))
        >>> load_state(Path("state.safetensors"))
        {'step': 3, 'mean': tensor([1., 1.])}
    """
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(as_json(state, path.stem, tensors))
    save_file(tensors, path, metadata={HEADER: header})


def load_state(path: Path) -> Any:
    """Return the structure that `save_state` wrote, with its tensors on the CPU.

    Example:
        >>> save_state([1, "two", (3.0,)], Path("few.safetensors"))
        >>> load_state(Path("few.safetensors"))
        [1, 'two', (3.0,)]
    """
    with safe_open(path, framework="pt") as file:
        return from_json(json.loads(file.metadata()[HEADER]), file)


def as_json(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON in which each tensor is replaced by its name; put the tensors into `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs: keys may be numbers
        return {"dict": [[key, as_json(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [as_json(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}: a checkpoint holds tensors, numbers and text only")


def from_json(value: Any, file: Any) -> Any:
    """Return the value that `as_json` turned into JSON; `file` holds its tensors."""
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return file.get_tensor(content).clone()  # a copy: the tensor would keep using the file, which may be deleted
    if kind == "dict":
        return {key: from_json(item, file) for key, item in content}
    items = [from_json(item, file) for item in content]
    return tuple(items) if kind == "tuple" else items


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the random generators of Python, numpy, torch and `device`."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the generator that libraries use
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the random generators to the states that `random_state` returned.

    Example:
        >>> state = random_state(torch.device("cpu"))
        >>> first = torch.rand(1)
        >>> set_random_state(state, torch.device("cpu"))
        >>> torch.equal(torch.rand(1), first)
        True
    """
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])
