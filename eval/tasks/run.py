"""What all tasks share: seeds, device and messages, and the selection of cells.

A task is a function `(adata, data, checkpoints, options, run) -> TaskResult`. Each task has its own group of options.
Groups of tasks on cells derive from `DrawnCells`, whose options select cells before the task begins.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from ...options import Option, Options, group

Part = TypeVar("Part")


@dataclass(frozen=True)
class Run:
    """Seeds, device and messages of a task.

    Attributes:
        seeds: Seeds of splits, folds, controls and new weights.
        device: Device on which models compute: `auto`, `cpu`, `cuda` or `mps`.
        say: Called with one line of text for each step.
        tell: Called with the share of the task that is done.

    >>> Run(seeds=(0, 1)).device
    'auto'
    """

    seeds: Sequence[int] = (0,)
    device: str = "auto"
    say: Callable[[str], object] = print
    tell: Callable[[float], object] = lambda share: None

    def parts(self, things: Collection[Part]) -> Iterator[Part]:
        """Yield things that take about the same time, and tell which share of them is done.

        >>> list(Run(tell=print).parts(("a", "b")))
        0.0
        0.5
        1.0
        ['a', 'b']
        """
        self.tell(0.0)
        for number, thing in enumerate(things, 1):
            yield thing
            self.tell(number / len(things))


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
