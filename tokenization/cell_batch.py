"""A batch that tells a GPU how many tokens each cell has, so that the host need not wait for the GPU to count them."""

import sys
from typing import Any

import torch


class CellBatch(dict[str, Any]):
    """A batch of tensors, to which moving it to a GPU adds `lengths`, the tokens of each cell.

    The encoder computes no padding, and it needs to know the size of what is left. On a CPU the mask tells. Of a mask
    on a GPU it would have to be asked, in every batch, while the GPU has nothing else to do.

    Example:
        >>> batch = CellBatch(attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]))
        >>> sorted(batch.to("cpu")), batch.to("meta")["lengths"]
        (['attention_mask'], [2, 3])
    """

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "CellBatch":
        """Return the batch on a device, with `lengths` unless that is a CPU.

        Args:
            device: Where to move the tensors.
            non_blocking: Whether the host goes on while pinned memory is copied.
        """
        moved = CellBatch(
            {
                name: part.to(device, non_blocking=non_blocking) if isinstance(part, torch.Tensor) else part
                for name, part in self.items()
            }
        )
        name = "attention_mask"
        if name in self and self[name].device.type == "cpu" != moved[name].device.type and not is_divided():
            moved["lengths"] = self[name].sum(1).tolist()
        return moved

    def pin_memory(self) -> "CellBatch":
        """Return the batch in pinned memory, which a GPU reads while the host goes on."""
        return CellBatch(
            {name: part.pin_memory() if isinstance(part, torch.Tensor) else part for name, part in self.items()}
        )


def is_divided() -> bool:
    """Return whether accelerate's running loader divides each batch among processes, which it does to tensors only."""
    state, loaders = (sys.modules.get(f"accelerate.{name}") for name in ("state", "data_loader"))
    if state is None or loaders is None:
        return False
    return isinstance(state.GradientState().active_dataloader, loaders.DataLoaderDispatcher)
