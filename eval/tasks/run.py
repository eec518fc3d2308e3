"""What all tasks have in common: how they run, and which cells of a file they take.

A task is a function `(adata, data, checkpoints, options, run) -> TaskResult`. Its options are a group of its own; those
of tasks on cells hold the ones of `DrawnCells`, which are read before the task begins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ...options import Option, Options, group


@dataclass(frozen=True)
class Run:
    """How a task runs.

    Attributes:
        seeds: Of splits, folds, controls and new weights.
        device: Where models compute, see `pick_device`.
        say: Told what is going on.

    >>> Run(seeds=(0, 1)).device
    'auto'
    """

    seeds: Sequence[int] = (0,)
    device: str = "auto"
    say: Callable[[str], object] = print


@group
class DrawnCells(Options):
    """Which cells of a file a task takes.

    >>> DrawnCells(where={"batch": "donor1"}, max_cells=1000).max_cells
    1000
    """

    where: Annotated[
        Mapping[str, Any] | None, Option("Columns of obs and the values that cells must have.", default="all cells")
    ] = None
    max_cells: Annotated[int | None, Option("Cells drawn, at most.", least=1, default="all cells")] = None
