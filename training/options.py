"""Options of a training.

The command line imports this file even for `--help`, so it imports nothing heavy.
"""

from typing import Annotated, Literal

from ..inference.options import Placed
from ..options import Option, Options, group
from ..tokenization.reading import CellInput, TrainingInput

CHECKPOINTS = "checkpoints"  # folder in the output of a run that has not ended


@group
class Descent(Options):
    """How the optimizer changes weights.

    >>> Descent(schedule="linear").schedule
    'linear'
    """

    learning_rate: Annotated[
        float | None,
        Option(
            "Largest learning rate.",
            least=0,
            default="2e-3 for micro and tiny, 3e-3 for txfm-micro and txfm-tiny, 1e-3 for larger TxFMs, else 1e-4",
        ),
    ] = None
    schedule: Annotated[Literal["cosine", "linear", "constant_with_warmup"], Option("How the learning rate falls.")] = (
        "cosine"
    )
    warmup: Annotated[float, Option("Share of the steps in which it rises.", least=0, most=0.99)] = 0.05
    weight_decay: Annotated[float, Option("Of AdamW.", least=0)] = 0.0
    max_grad_norm: Annotated[float, Option("Clip gradients at this norm; 0 does not.", least=0)] = 1.0


@group
class Optimization(Descent):
    """How weights move, and whether their average is kept.

    >>> Optimization(ema=0.999).ema
    0.999
    """

    ema: Annotated[
        float | None,
        Option("Decay of an average of the weights, such as 0.999: it becomes the model.", least=0, most=1),
    ] = None


@group
class BatchSize(Options):
    """How many cells a step has.

    Example:
        >>> BatchSize(batch_size=64).batch_size
        64
    """

    batch_size: Annotated[int | Literal["auto"], Option("Cells of a training step; auto is 16.", least=1)] = "auto"


@group
class Batching(BatchSize):
    """Size of a training step, and the precision it is computed in.

    Example:
        >>> Batching(max_tokens=20_000).batch_size
        'auto'
    """

    max_tokens: Annotated[
        int | None, Option("Genes of a batch, at most: bounds memory; --batch-size is then the most cells.", least=1)
    ] = None
    accumulate: Annotated[int, Option("Batches of one step.", least=1)] = 1
    bf16: Annotated[bool, Option("Compute in bfloat16, keep weights in float32.")] = False
    gradient_checkpointing: Annotated[bool, Option("Less memory for more time.")] = False
    compile_model: Annotated[bool, Option("Use torch.compile.", flags=("--compile",))] = False


@group
class HeldOut(Options):
    """Which cells a pre-training holds out.

    Example:
        >>> HeldOut(validation_by="donor").validation_share
        0.05
    """

    validation_share: Annotated[float, Option("Share of cells held out.", least=0.001, most=0.9)] = 0.05
    validation_by: Annotated[
        str | None, Option("Column of the corpus, such as a donor: none of them on both sides.")
    ] = None


@group
class Seeded(Placed):
    """Seed of random draws, and the device a training computes on.

    Example:
        >>> Seeded(seed=1).device
        'auto'
    """

    seed: Annotated[int, Option("Seed of everything random.", least=0, most=2**32 - 1)] = 0


@group
class NewModel(Options):
    """What a new model is like.

    >>> NewModel(config="tiny").config
    'tiny'
    """

    config: Annotated[
        str | None,
        Option(
            "Size of a new model: micro, tiny, 3M, 10M or 100M; of a TxFM txfm-micro, txfm-tiny, txfm-S, txfm-B or "
            "txfm-L.",
            default="tiny on a CPU, else 3M",
            is_python_only=True,
        ),
    ] = None
    decoder_context: Annotated[
        Literal["all", "nonzero"] | None,
        Option("What genes attend to in the decoder.", default="nonzero for tiny, else all"),
    ] = None
    dropout: Annotated[
        float | None, Option("Of the encoder; slow on a CPU.", least=0, most=0.9, default="0 for tiny, else 0.1")
    ] = None
    depth_tokens: Annotated[bool, Option("Add tokens of sequencing depth.")] = False
    num_latents: Annotated[
        int,
        Option(
            "Latents of an Xpressor, for a --checkpoint too: cells are reconstructed from them, and they become the "
            "embedding; 0: none.",
            least=0,
        ),
    ] = 0
    mixing_weight: Annotated[
        float,
        Option(
            "Weight of the energy distance between batches in the loss, such as 3, for a --checkpoint too; 0: that of "
            "the checkpoint.",
            least=0,
        ),
    ] = 0.0


@group
class FromCheckpoint(Options):
    """Whether a pre-training goes on from earlier weights.

    >>> FromCheckpoint(checkpoint="checkpoint").checkpoint
    'checkpoint'
    """

    checkpoint: Annotated[str | None, Option("Continue from these weights, not from new ones.")] = None


@group
class FirstModel(NewModel, FromCheckpoint):
    """The model that a pre-training begins with.

    >>> FirstModel(config="tiny").checkpoint is None
    True
    """


@group
class FromCorpus(Options):
    """Whether the cells of a pre-training are those of a corpus.

    >>> FromCorpus(corpus="corpus").corpus
    'corpus'
    """

    corpus: Annotated[str | None, Option("Corpus from `xtrimogene convert`, for more cells than fit in memory.")] = None


@group
class Batched(Options):
    """Which cells were measured together. An anchored model does not put into an embedding what is alike in a batch.

    >>> Batched(batch_key="donor").batch_key
    'donor'
    """

    batch_key: Annotated[
        str | None,
        Option(
            "Column of obs with batches, such as donor or chemistry, or column of the corpus. A file without the "
            "column is one batch.",
            default="each file is one",
        ),
    ] = None


@group
class CellSource(TrainingInput, FromCorpus, Batched):
    """Where the cells of a pre-training are.

    >>> CellSource(files=["a.h5ad"], layer="counts").files
    ['a.h5ad']
    """

    files: Annotated[list[str] | None, Option("Files with cells, for as many as fit in memory.")] = None


@group
class LabelledSplit(Options):
    """Which labels are learned, and which cells are held out to test on.

    >>> LabelledSplit(label_key="cell_type").test_share
    0.2
    """

    label_key: Annotated[str, Option("Column of obs with the cell types.")]
    test_share: Annotated[float, Option("Share of cells held out to test on.", least=0.01, most=0.9)] = 0.2
    group_key: Annotated[
        str | None, Option("Column of obs with donor or study: none of them on both sides of the split.")
    ] = None


@group
class NewHead(Options):
    """What a new classifier is like, and how much of the model learns with it.

    >>> NewHead(trainable_layers=1).trainable_layers
    1

    Raises:
        ValueError: If options exclude each other.
    """

    trainable_layers: Annotated[
        int | None, Option("Train so many of the last layers, and the head.", least=0, default="all")
    ] = None
    pooling: Annotated[
        Literal["all", "max", "mean", "S", "T", "xpressor"] | None, Option("Pooling.", default="that of the checkpoint")
    ] = None
    class_weights: Annotated[Literal["none", "balanced"], Option("balanced gives rare cell types more weight.")] = (
        "none"
    )
    peft: Annotated[
        Literal["none", "xpressor", "lora"],
        Option("Train latents that read the model (xpressor), or low-rank updates of it (lora), and the head."),
    ] = "none"

    def __post_init__(self) -> None:
        """Check that at most one option says what learns, and that the latents that learn are what is classified."""
        super().__post_init__()
        if self.peft != "none" and self.trainable_layers is not None:
            raise ValueError(
                f"peft is {self.peft!r} and trainable_layers is {self.trainable_layers}: both say what learns; give one"
            )
        if self.peft == "xpressor" and self.pooling not in (None, "xpressor"):
            raise ValueError(
                f"peft is 'xpressor' and pooling is {self.pooling!r}, which does not look at the latents: leave it out"
            )


@group
class Converting(CellInput):
    """How files become a corpus.

    >>> Converting(obs=["batch"]).min_genes
    200
    """

    obs: Annotated[
        list[str] | None, Option("Column of obs to keep, such as batch; may be repeated. Null in files without it.")
    ] = None
    min_genes: Annotated[int, Option("Leave out cells with fewer expressed genes.", least=0)] = 200
    max_mt_percent: Annotated[
        float | None,
        Option("Leave out cells with more mitochondrial counts, in %.", least=0, most=100, default="off"),
    ] = None
    strict: Annotated[bool, Option("Stop at the first file that cannot be converted, or lacks a column of --obs.")] = (
        False
    )
    verify: Annotated[bool, Option("Compare the hashes of shards that are there.")] = False
    shard_cells: Annotated[
        int, Option("Cells that are read for a shard, about 20 MB of 1,000 genes each.", least=1, is_python_only=True)
    ] = 8192
