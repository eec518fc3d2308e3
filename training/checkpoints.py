"""Checkpoints of a training that runs: each is whole or not there, and none holds a pickle.

weights, tokenizer                 save_pretrained
optimizer, scheduler, random, ema  *.safetensors, tensors; everything else as JSON in its header
trainer_state.json                 step and log
    |  written beside under another name; hashed, on disk, then renamed
    v
checkpoint-STEP/                   with checkpoint.json: size and hash of each file, and of which run they are

What FSDP and DeepSpeed write of their own is their affair; it too is whole or not there.
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


# -- a checkpoint, whole or not there ---------------------------------------------------------------------------------


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return Path(output_dir) / f"checkpoint-{step}"


def begin(checkpoint: Path) -> Path:
    """Return an empty folder beside `checkpoint` to write its files into."""
    unfinished = checkpoint.with_name(UNFINISHED + checkpoint.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def finish(unfinished: Path, run: Mapping[str, Any]) -> None:
    """Give the files their place, all at once: what has the name of a checkpoint is on disk, with all its files.

    Args:
        unfinished: From `begin`.
        run: What a run has to agree in that goes on from here.
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
    shutil.rmtree(checkpoint, ignore_errors=True)  # a damaged one, which was passed over
    unfinished.rename(checkpoint)
    flush(checkpoint.parent)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints in a folder, whole or not, the newest first."""
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def newest_whole(output_dir: str | Path) -> Path | None:
    """Return the newest checkpoint that is whole, None if there is none; say which are passed over and why."""
    for checkpoint in checkpoints(output_dir):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning(f"{checkpoint} is passed over: {wrong}")
    return None


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if it is whole."""
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
    """Check that a run can go on from a whole checkpoint and give what it would have given without a stop.

    Args:
        checkpoint: From `newest_whole`.
        run: Of the run that is to go on, see `finish`.

    Raises:
        ValueError: If they differ.
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
    """Delete checkpoints but the newest ones, `limit` of them with the best one; None and 0 keep all.

    Later ones than `newest` are damaged; they stay until the run comes to their step.
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
    """Write dicts, lists and tuples of tensors, numbers and text, nested as they are.

    Raises:
        TypeError: If something else is in it.
    """
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(as_json(state, path.stem, tensors))
    save_file(tensors, path, metadata={HEADER: header})


def load_state(path: Path) -> Any:
    """Read what `save_state` wrote; tensors are on the CPU."""
    with safe_open(path, framework="pt") as file:
        return from_json(json.loads(file.metadata()[HEADER]), file)


def as_json(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON, with the names of its tensors in their place; the tensors go into `tensors`."""
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
    """Return what `as_json` was given."""
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return file.get_tensor(content).clone()  # else it stays tied to the file, which is deleted some day
    if kind == "dict":
        return {key: from_json(item, file) for key, item in content}
    items = [from_json(item, file) for item in content]
    return tuple(items) if kind == "tuple" else items


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all generators of random numbers of this process."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the one that libraries use
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Continue the generators of random numbers from `random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])
