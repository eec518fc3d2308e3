"""Groups of options for running a model over cells (`options.py` says what a group is).

Every command of the command line imports this file, so it imports nothing heavy.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from ..options import Option, Options, group


@group
class Placed(Options):
    """Where a model computes.

    >>> Placed().device
    'auto'
    """

    device: Annotated[str, Option("auto, cpu, cuda or mps.")] = "auto"


@group
class Running(Placed):
    """How a model runs over cells. Only `dtype` changes the results.

    bfloat16 is faster where the processor has it. It moves an embedding by some tenths of the spread of the cells.

    >>> Running(batch_size=0)
    Traceback (most recent call last):
    ValueError: batch_size is 0: give at least 1, or 'auto'
    """

    batch_size: Annotated[int | Literal["auto"], Option("Cells at a time; auto fits them to the device.", least=1)] = (
        "auto"
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], Option("What to compute in; auto is float32, bfloat16 is faster.")
    ] = "auto"
    together: Annotated[
        bool,
        Option(
            "Whether all processes of `join_processes` share the work on the same cells; each gets all results.",
            is_python_only=True,
        ),
    ] = False
    progress: Annotated[
        Callable[[int], Any] | None,
        Option("Called with the number of cells after each batch.", is_python_only=True),
    ] = None


@group
class Depth(Options):
    """The sequencing depth for which a model with depth tokens predicts.

    >>> Depth(target_depth="f2").target_depth
    'f2'
    """

    target_depth: Annotated[
        float | str | None,
        Option(
            "With depth tokens: log10 of the total to embed for, as 4 or t4; f2 for twice that of each cell, a1 for "
            "its log10 plus 1.",
            default="that of the cell",
        ),
    ] = None


@group
class Decoding(Depth):
    """How genes are decoded.

    >>> Decoding(target_depth=4).parity
    False
    """

    parity: Annotated[bool, Option("Compute what the scFoundation script computes.")] = False


@group
class Embedding(Decoding):
    """How the embedding of a cell is computed.

    >>> Embedding(pooling="max").pooling
    'max'
    """

    pooling: Annotated[
        Literal["all", "max", "mean", "S", "T", "xpressor"] | None, Option("Pooling.", default="that of the checkpoint")
    ] = None


@group
class Labelling(Options):
    """How cells get the labels of a reference, and when they are called unknown.

    >>> Labelling(label_key="cell_type").n_neighbors
    15
    """

    label_key: Annotated[str | None, Option("Column of the reference's obs with the cell types.")] = None
    n_neighbors: Annotated[int, Option("Reference cells that vote.", least=1)] = 15
    unknown_threshold: Annotated[
        float, Option("Share of cells of known types that may be called unknown; 0: none is.", least=0, most=0.99)
    ] = 0.05


@group
class Explaining(Options):
    """Which genes of how many cells explain the types that a classifier names.

    >>> Explaining(num_genes=5).cells_per_type
    100
    """

    num_genes: Annotated[int, Option("Genes to name for each type, the first ones; 0: all.", least=0)] = 20
    cells_per_type: Annotated[int, Option("Cells of each type to look at, if there are more.", least=1)] = 100


@group
class Attending(Options):
    """Which attention weights of how many cells are told.

    >>> Attending(genes=["CD3D"]).num_keys
    5
    """

    num_keys: Annotated[int, Option("Genes that a gene attends to most, to tell of each.", least=1)] = 5
    num_cells: Annotated[int, Option("Cells to look at, the first ones.", least=1)] = 10
    genes: Annotated[
        Sequence[str] | None, Option("Genes whose attention to tell.", default="all that a cell expresses")
    ] = None
    per_head: Annotated[bool, Option("Tell the weights of each head, not their mean over the heads.")] = False
