"""Options of whole runs.

The command line imports this file even for `--help`, so it imports nothing heavy.
"""

from typing import Annotated, Literal

from ..options import Option, Options, group
from ..tokenization.masking import Masking
from ..tokenization.reading import TrainingInput
from ..training.options import Batching, BatchSize, HeldOut, Optimization, Seeded


@group
class NewModel(Options):
    """Options of a new model.

    >>> NewModel(config="tiny").config
    'tiny'
    """

    config: Annotated[
        str | None,
        Option("Size of a new model: tiny, 3M, 10M or 100M.", default="tiny on a CPU, else 3M", is_python_only=True),
    ] = None
    decoder_context: Annotated[
        Literal["all", "nonzero"] | None,
        Option("What genes attend to in the decoder.", default="nonzero for tiny, else all"),
    ] = None
    dropout: Annotated[
        float | None, Option("Of the encoder; slow on a CPU.", least=0, most=0.9, default="0 for tiny, else 0.1")
    ] = None
    depth_tokens: Annotated[bool, Option("Add tokens of sequencing depth.")] = False


@group
class Pretraining(Options):
    """Options of a pre-training, in which a model learns to predict masked genes.

    >>> recipe = Pretraining(epochs=3, masking=Masking(zero_ratio=0.05))
    >>> recipe.masking.zero_ratio
    0.05
    """

    corpus: Annotated[str | None, Option("Corpus from `xtrimogene convert`, for more cells than fit in memory.")] = None
    checkpoint: Annotated[str | None, Option("Continue from these weights, not from new ones.")] = None
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
    run: Seeded = Seeded()


@group
class Finetuning(Options):
    """Options of a fine-tuning, in which a model learns to name cell types.

    >>> Finetuning(label_key="cell_type").epochs
    3
    """

    label_key: Annotated[str, Option("Column of obs with the cell types.")]
    test_share: Annotated[float, Option("Share of cells held out to test on.", least=0.01, most=0.9)] = 0.2
    group_key: Annotated[
        str | None, Option("Column of obs with donor or study: none of them on both sides of the split.")
    ] = None
    epochs: Annotated[int, Option("Passes over the cells.", least=1)] = 3
    learning_rate: Annotated[
        float | None, Option("Largest learning rate.", least=0, default="1e-3 for tiny, else 5e-4")
    ] = None
    batching: BatchSize = BatchSize()
    trainable_layers: Annotated[
        int | None, Option("Train so many of the last layers, and the head.", least=0, default="all")
    ] = None
    pooling: Annotated[
        Literal["all", "max", "mean", "S", "T"] | None, Option("Pooling.", default="that of the checkpoint")
    ] = None
    class_weights: Annotated[Literal["none", "balanced"], Option("balanced gives rare cell types more weight.")] = (
        "none"
    )
    cells: TrainingInput = TrainingInput()
    run: Seeded = Seeded()


@group
class Demonstration(Options):
    """Options of the demo on 700 blood cells.

    Example:
        >>> Demonstration(pretrain_epochs=1).finetune_epochs
        3
    """

    pretrain_epochs: Annotated[int, Option("Epochs of pre-training.", least=1)] = 30
    finetune_epochs: Annotated[int, Option("Epochs of fine-tuning.", least=1)] = 3
    run: Seeded = Seeded()
