# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""What the host may ask of a device, and how it sends numbers there, without waiting.

A GPU computes behind the host. Whoever asks it for a number waits until all is done that came before, and the GPU has
nothing to do while the host goes on. So a batch is checked where it lies: at once on a CPU, by the GPU itself else.
"""

from collections.abc import Sequence

import torch

AT_HAND = ("cpu",)  # devices whose numbers the host reads at no cost


def is_at_hand(device: torch.device) -> bool:
    """Return whether the host reads tensors of a device without waiting.

    >>> is_at_hand(torch.device("cpu")), is_at_hand(torch.device("cuda"))
    (True, False)
    """
    return device.type in AT_HAND


def sent(numbers: Sequence[float], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return numbers of the host on a device; the host does not wait for the copy.

    >>> sent([1, 2], torch.device("cpu"), torch.float32)
    tensor([1., 2.])
    """
    pins = device.type == "cuda" and not torch.compiler.is_compiling()
    return torch.tensor(numbers, dtype=dtype, pin_memory=pins).to(device, non_blocking=True)


def found_wrong(is_right: torch.Tensor) -> bool:
    """Return whether the host sees that something is wrong, to raise an error that says what.

    A GPU checks it itself, and is not waited for: if it is wrong there, a later operation raises the GPU's error.

    Args:
        is_right: A boolean, shape `()`.

    Example:
        >>> found_wrong(torch.tensor(False)), found_wrong(torch.tensor(True))
        (True, False)
    """
    if is_at_hand(is_right.device):
        return not is_right
    torch._assert_async(is_right)
    return False
