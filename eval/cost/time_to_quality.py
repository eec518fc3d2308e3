"""Time to quality: how many seconds must a method train until its embedding is as good as it gets?

    train  ->  look: embedding after s seconds  ->  k-NN macro-F1      the clock stands still while cells are embedded
    curve  ->  first s whose score is within .01 of the best           and scored

A method is a function `train(look)`. It trains, and calls `look` with a function that embeds the cells as often as it
wants to be judged: the seconds are as fine as these calls. All methods run on the same cells and the same cores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ..measures.baselines import SCVI_NAME, scvi_model, scvi_version
from ..measures.probes import neighbor_statistic

Embed = Callable[[], np.ndarray]
Look = Callable[[Embed], None]
Train = Callable[[Look], None]

WITHIN = 0.01  # of the best k-NN macro-F1
EPOCHS_BETWEEN = 10  # of scVI, from one look to the next


@dataclass(frozen=True)
class Point:
    """The score of an embedding after some seconds of training."""

    seconds: float
    score: float


@dataclass(frozen=True)
class Quality:
    """How a method's score grew with the seconds of training.

    Attributes:
        points: Its scores, in the order of time.

    Example:
        >>> found = Quality([Point(1.0, 0.5), Point(2.0, 0.795), Point(9.0, 0.8)])
        >>> found.best, found.seconds
        (0.8, 2.0)
    """

    points: Sequence[Point]

    @property
    def best(self) -> float:
        """The best score."""
        return max(point.score for point in self.points)

    @property
    def seconds(self) -> float:
        """Seconds of training until the score is first within .01 of the best."""
        return next(point.seconds for point in self.points if point.score >= self.best - WITHIN)


def quality_of(
    train: Train, score: Callable[[np.ndarray], float], clock: Callable[[], float] = perf_counter
) -> Quality:
    """Train a method, and return how its score grew.

    Args:
        train: Trains, and calls its argument with a function that returns embeddings `(cells, D)`.
        score: Returns the score of embeddings, such as `neighbor_score(labels)`.
        clock: Returns the seconds that have passed since any fixed moment.

    Raises:
        ValueError: If `train` never calls its argument.

    Example:
        >>> times = iter([0.0, 2.0, 50.0, 53.0, 90.0])  # 2 seconds of training, 48 of scoring, 3 of training
        >>> def train(look):
        ...     look(lambda: np.array([[0.5]]))
        ...     look(lambda: np.array([[0.9]]))
        >>> found = quality_of(train, lambda embedding: float(embedding[0, 0]), lambda: next(times))
        >>> [(point.seconds, point.score) for point in found.points]
        [(2.0, 0.5), (5.0, 0.9)]
    """
    points: list[Point] = []
    spent, resumed = 0.0, clock()

    def look(embed: Embed) -> None:
        nonlocal spent, resumed
        spent += clock() - resumed
        with torch.random.fork_rng(devices=[]):  # to be looked at must not change the training
            embedding = embed()
        points.append(Point(spent, score(embedding)))
        resumed = clock()

    train(look)
    if not points:
        raise ValueError("train has shown 0 embeddings: it has to call its argument at least once, when it ends")
    return Quality(points)


def neighbor_score(
    labels: np.ndarray, batches: np.ndarray | None = None, seed: int = 0
) -> Callable[[np.ndarray], float]:
    """Return a function from embeddings `(cells, D)` to the k-NN macro-F1 that `evaluate --task embedding` reports.

    Distances are taken between embeddings as they are, as of anchored models, principal components and scVI.

    Args:
        labels: Label of each cell, `(cells,)`.
        batches: Batch of each cell, for probes that are tested on batches that they have not seen.
        seed: Seed of the folds.

    Example:
        >>> embedding = np.random.default_rng(0).normal(size=(40, 3)) + 9 * np.repeat([[0.0], [1.0]], 20, axis=0)
        >>> neighbor_score(np.repeat(["B", "T"], 20))(embedding)
        1.0
    """

    def score(embedding: np.ndarray) -> float:
        return neighbor_statistic(embedding, labels, batches, seed, standardize=False)(np.arange(len(labels)))

    return score


def train_scvi(
    look: Look,
    counts: Any,
    batches: np.ndarray | None = None,
    seed: int = 0,
    device: str = "cpu",
    max_epochs: int | None = None,
) -> None:
    """Train scVI with its defaults on cells, looking at its latent means every 10 epochs and when it ends.

    Args:
        look: Called with a function that returns the latent means `(cells, 10)`.
        counts: Raw counts, CSR `(cells, G)`.
        batches: Batch of each cell, `(cells,)`, which scVI is told; None for none.
        seed: Seed of the training.
        device: `cpu`, `cuda` or `mps`.
        max_epochs: Epochs of the training; scVI's default, 400 for small data, unless given.

    Example:
        >>> found = quality_of(partial(train_scvi, counts=counts), neighbor_score(labels))  # doctest: +SKIP
    """
    from lightning.pytorch.callbacks import Callback

    with scvi_model(counts, batches, seed) as model:

        def latent() -> np.ndarray:
            model.module.eval()
            embedding = model.get_latent_representation()
            model.module.train()
            return embedding

        class Looking(Callback):
            def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                if (trainer.current_epoch + 1) % EPOCHS_BETWEEN == 0:
                    look(latent)

        model.is_trained = True  # it refuses to embed before
        model.train(max_epochs, accelerator=device, devices=1, enable_progress_bar=False, callbacks=[Looking()])
        look(model.get_latent_representation)


def times_to_quality(
    trainings: Mapping[str, Train],
    counts: Any,
    labels: np.ndarray,
    batches: np.ndarray | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    clock: Callable[[], float] = perf_counter,
    say: Callable[[str], object] = print,
) -> dict[str, Quality]:
    """Train methods one after the other, and scVI on the same cells where scvi-tools is installed.

    Args:
        trainings: Name of a method -> function that trains it, as in `quality_of`.
        counts: Raw counts of the cells, CSR `(cells, G)`, for scVI.
        labels: Label of each cell, `(cells,)`; no method is told.
        batches: Batch of each cell, `(cells,)`, which scVI is told; None for none.
        seed: Seed of the folds and of scVI.
        device: Device of scVI.
        clock: Returns seconds; on a CPU that others use too, `time.process_time` is fairer.
        say: Called with one line of text for each method.

    Returns:
        Name of the method -> how its score grew, scVI last.

    Example:
        >>> found = times_to_quality({"ours": train}, counts, labels)  # doctest: +SKIP
        >>> found["ours"].seconds, found["scVI"].seconds               # doctest: +SKIP
        (31.0, 402.0)
    """
    found = {}
    trainings = dict(trainings)
    if scvi_version() is None:
        say(f"{SCVI_NAME} is left out, because scvi-tools is not installed: pip install scvi-tools")
    else:
        trainings[SCVI_NAME] = partial(train_scvi, counts=counts, batches=batches, seed=seed, device=device)
    for name, train in trainings.items():
        found[name] = quality_of(train, neighbor_score(labels, batches, seed), clock)
        say(
            f"{name}: k-NN macro-F1 {found[name].best:.3f} at best, {found[name].best - WITHIN:.3f} after "
            f"{found[name].seconds:.0f} s of {found[name].points[-1].seconds:.0f} s"
        )
    return found
