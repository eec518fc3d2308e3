"""Options of whole runs.

The command line imports this file even for `--help`, so it imports nothing heavy.
"""

from typing import Annotated, Literal

from ..options import Option, Options, group
from ..tokenization.masking import Masking
from ..tokenization.reading import TrainingInput
from ..training.options import (
    Batched,
    Batching,
    BatchSize,
    FromCheckpoint,
    FromCorpus,
    HeldOut,
    LabelledSplit,
    NewHead,
    NewModel,
    Optimization,
    Seeded,
)

EVENTS = "tensorboard"  # folder in the output of a run that reports there


@group
class Pretraining(FromCheckpoint, FromCorpus):
    """Options of a pre-training, in which a model learns to predict masked genes.

    >>> recipe = Pretraining(epochs=3, masking=Masking(zero_ratio=0.05))
    >>> recipe.masking.zero_ratio
    0.05
    """

    epochs: Annotated[int | None, Option("Passes over the cells.", least=1, default="10")] = None
    max_steps: Annotated[int | None, Option("Stop after so many steps; instead of --epochs.", least=1)] = None
    optimization: Optimization = Optimization()
    batching: Batching = Batching()
    masking: Masking = Masking()
    new: NewModel = NewModel()
    held_out: HeldOut = HeldOut()
    balance_by: Annotated[
        str | None, Option("Column of the corpus, such as a study: draw from each equally often.")
    ] = None
    report_to: Annotated[
        Literal["none", "tensorboard", "trackio"], Option("Where else to log, if it is installed.")
    ] = "none"
    cells: TrainingInput = TrainingInput()
    batches: Batched = Batched()
    run: Seeded = Seeded()


@group
class Finetuning(NewHead, LabelledSplit):
    """Options of a fine-tuning, in which a model learns to name cell types.

    >>> Finetuning(label_key="cell_type").epochs
    3
    """

    epochs: Annotated[
        int, Option("Passes over the cells; 0: the head stays the regression that it begins with.", least=0)
    ] = 3
    learning_rate: Annotated[
        float | None, Option("Largest learning rate.", least=0, default="1e-3 for tiny, else 5e-4")
    ] = None
    unlabelled: Annotated[
        list[str] | None,
        Option(
            "File with unlabelled cells of such types, of another laboratory or chemistry; may be repeated. The "
            "annotator learns those that it is sure of, and calls fewer cells like them unknown."
        ),
    ] = None
    batching: BatchSize = BatchSize()
    cells: TrainingInput = TrainingInput()
    run: Seeded = Seeded()


@group
class Demonstration(Options):
    """Options of the demo on 700 blood cells.

    Example:
        >>> Demonstration(pretrain_epochs=1).finetune_epochs
        3
    """

    pretrain_epochs: Annotated[int, Option("Epochs of pre-training.", least=1)] = 8
    finetune_epochs: Annotated[int, Option("Epochs of fine-tuning.", least=1)] = 3
    run: Seeded = Seeded()
