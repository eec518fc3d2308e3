"""Device and precision in which a model computes."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def pick_device(device: str) -> torch.device:
    """Return the device for a name; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: If this machine has no such device.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, is_there in available.items() if is_there)
        return torch.device(device, int(os.environ.get("LOCAL_RANK", 0))) if device == "cuda" else torch.device(device)
    if not available.get(device.split(":")[0]):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ValueError(f"device {device!r} is not on this machine, which has {there}: leave it at 'auto'")
    return torch.device(device)


def hardware(device: str) -> str:
    """Return what a device is, for people: the name of the GPU, or the processor and its number of cores.

    >>> hardware("cpu").endswith("cores")
    True
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.upper()} with {os.cpu_count()} cores"


def pick_dtype(dtype: str) -> torch.dtype:
    """Return the dtype for a name; `auto` is float32, in which models are calibrated and evaluated.

    `auto` is never bfloat16. Embeddings of cells differ by about 1 %, and the rounding error of bfloat16 is some tenths
    of that difference (`eval/cost/benchmarks/precision.py`).

    Raises:
        ValueError: If there is no such name.
    """
    known = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise ValueError(f"dtype is {dtype!r}: give {', '.join(list(known)[:-1])} or {list(known)[-1]}")
    return known[dtype]


@contextmanager
def join_processes(device: str) -> Iterator[bool]:
    """Join the other processes that torchrun or `accelerate launch` started, and return whether there are any."""
    from accelerate import PartialState

    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield False
        return
    state = PartialState(cpu=pick_device(device).type == "cpu")
    try:
        yield True
    finally:
        state.destroy_process_group()
