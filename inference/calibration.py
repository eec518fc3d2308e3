"""Calibrate the probabilities of an annotator, and find cells of a type that it does not know.

    probabilities (cells, C) --temperature--> calibrated probabilities
                             --conformal----> set of labels of each cell, empty where none fits
    embeddings (cells, D)    --Mahalanobis--> distance to the nearest type; far cells get lower probabilities

All three are computed from calibration cells: labelled cells that the annotator was not trained on. The guarantees hold
for cells like these, which cells of new donors, tissues and types are not. If a cell lies farther from all types than
95 % of the calibration cells, the calibration says little about it. Its logits are divided by the ratio of its squared
distance to that limit, so its probabilities approach those of a guess. The best label stays the best.

`C` labels, `D` width of the embedding, `K` calibration cells.

Sources: Guo et al. 2017 (temperature, expected calibration error); Vovk et al. 2005, Angelopoulos and Bates 2021 (split
conformal prediction); Vovk 2015 (cross-conformal prediction); Lee et al. 2018 (Mahalanobis distance of features).
"""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .beside import read_beside
from .neighbors import label_probabilities

FILE = "calibration.safetensors"
ARRAYS = (
    "temperature", "floor", "accuracy", "label_scores", "distances", "fits", "center", "whitening", "means",
)  # in the file  # fmt: skip
LEAST_CELLS = 10  # calibration cells; a temperature fitted to fewer is meaningless
FEW_CELLS = 100  # calibration cells; with fewer, a share of 5 % has a standard error above 2 points
LOW_ACCURACY = 0.7  # on calibration cells; with less, labels should be checked one by one
USUAL = 0.95  # share of calibration cells within the distance beyond which probabilities are lowered
FOLDS = 5
MOST_CELLS = 5_000  # calibration cells from a reference; more do not change the thresholds
FLOORS = (1e-2, 1e-4, 1e-6, 1e-8)  # candidate probabilities of labels without votes; calibration cells choose one
TEMPERATURES = (0.1, 10.0)  # limits; beyond them, too few calibration cells were wrong or right for a fit
ROUNDING = 1e-6  # by which float32 differs between computers, of numbers from 0 to 1 or of the number itself
CHUNK = 10_000  # cells at a time


@dataclass(frozen=True)
class TypeSpace:
    """Where the known types lie in the embedding: one Gaussian for each type, with a covariance that all share.

    Attributes:
        center: Mean embedding of the known cells, `(D,)`.
        whitening: Makes the covariance within types the identity, `(D, D)`.
        means: Mean of each type after that, `(types, D)`.
    """

    center: np.ndarray
    whitening: np.ndarray
    means: np.ndarray

    @classmethod
    def fit(cls, embeddings: np.ndarray, label_ids: np.ndarray) -> "TypeSpace":
        """Fit the space to known cells; the covariance is shrunk (Ledoit and Wolf), so that few cells suffice."""
        from sklearn.covariance import LedoitWolf

        center = embeddings.mean(axis=0, dtype=np.float64)
        scale = embeddings.std(axis=0, dtype=np.float64)
        scale[scale == 0] = 1
        # Features are standardised, because shrinkage assumes the same variance of all features.
        scaled = (embeddings - center) / scale
        types, rows = np.unique(label_ids, return_inverse=True)
        means = np.stack([scaled[rows == row].mean(axis=0) for row in range(len(types))])
        shrunk = LedoitWolf(assume_centered=True, store_precision=False).fit(scaled - means[rows]).covariance_
        # If every type has a single cell, the covariance is zero.
        shrunk += 1e-6 * np.eye(len(shrunk))
        turned = np.linalg.cholesky(np.linalg.inv(shrunk))
        return cls(*(part.astype(np.float32) for part in (center, turned / scale[:, None], means @ turned)))

    def distances(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the squared Mahalanobis distance of each cell to the nearest type, `(cells,)`."""
        return self.type_distances(embeddings).min(axis=1)

    def type_distances(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the squared Mahalanobis distance of each cell to each type, `(cells, types)`."""
        means = self.means.astype(np.float64)
        squares = np.empty((len(embeddings), len(means)))
        for start in range(0, len(embeddings), CHUNK):
            rows = slice(start, start + CHUNK)
            places = (embeddings[rows] - self.center.astype(np.float64)) @ self.whitening
            squares[rows] = (places**2).sum(1)[:, None] + (means**2).sum(1) - 2 * places @ means.T
        return np.maximum(squares, 0)


class Applied(NamedTuple):
    """Calibrated predictions; NaN and False for cells without counts.

    Attributes:
        probabilities: Calibrated, and lowered for cells that lie unusually far from all types, `(cells, C)`. The best
            label stays the best.
        is_in_set: Labels in the conformal set of each cell, `(cells, C)`.
        is_unknown: Cells that are of no known type, `(cells,)`.
        ood_percentile: Share of calibration cells that are nearer to a known type, `(cells,)`.
    """

    probabilities: np.ndarray
    is_in_set: np.ndarray
    is_unknown: np.ndarray
    ood_percentile: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Calibration of an annotator, fitted to calibration cells.

    Attributes:
        names: Labels, in the order of the probabilities.
        temperature: Logits are divided by it: above 1 the annotator was too sure.
        floor: Probability that all labels share before that, because labels without votes have probability 0.
        accuracy: Share of the calibration cells whose best label is right.
        label_scores: 1 - calibrated probability of the true label of each calibration cell, ascending, `(K,)`. All are
            kept, so that a set can be asked for at any level.
        distances: Distance to the nearest type of each calibration cell, and of unlabelled cells that say with them
            what is usual, ascending, `(K + unlabelled,)`.
        fits: How well each of these cells fits the known types (`familiarity`), ascending, `(K + unlabelled,)`.
        space: Where the types lie.
        source: Which cells these are, in words.
    """

    names: list[str]
    temperature: float
    floor: float
    accuracy: float
    label_scores: np.ndarray
    distances: np.ndarray
    fits: np.ndarray
    space: TypeSpace
    source: str

    @classmethod
    def fit(
        cls,
        probabilities: np.ndarray,
        label_ids: np.ndarray,
        embeddings: np.ndarray,
        known_embeddings: np.ndarray,
        known_ids: np.ndarray,
        names: Sequence[str],
        source: str = "",
        unlabelled: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> "Calibration":
        """Calibrate an annotator on labelled cells that it was not trained on.

        Args:
            probabilities: Probabilities of the calibration cells, `(K, C)`.
            label_ids: True labels of the calibration cells, `(K,)`.
            embeddings: Embeddings of the calibration cells, `(K, D)`.
            known_embeddings: Embeddings of the cells that the annotator was trained on, `(cells, D)`. The means of the
                types come from them, because calibration cells would lie too near to their own means.
            known_ids: Labels of these cells, `(cells,)`.
            names: The labels.
            source: Which calibration cells these are, in words.
            unlabelled: Probabilities `(cells, C)` and embeddings `(cells, D)` of further cells of these types, whose
                labels are not known. They take part in what is usual for a cell that is not unknown.

        Raises:
            ValueError: If there are fewer than 10 calibration cells, shapes differ, or values are not finite.
        """
        label_ids, known_ids = np.asarray(label_ids), np.asarray(known_ids)
        check_cells(probabilities, label_ids, embeddings, names)
        if known_embeddings.shape != (len(known_ids), embeddings.shape[1]) or not np.isfinite(known_embeddings).all():
            raise ValueError(
                f"known_embeddings {known_embeddings.shape} have to be finite, with a row for each of the "
                f"{len(known_ids):,} known_ids and the width of embeddings {embeddings.shape}"
            )
        space = TypeSpace.fit(known_embeddings, known_ids)
        others = None if unlabelled is None else (unlabelled[0], space.distances(unlabelled[1]))
        return cls.of(probabilities, label_ids, space.distances(embeddings), space, names, source, others)

    @classmethod
    def cross_fit(
        cls,
        embeddings: np.ndarray,
        labels: np.ndarray,
        n_neighbors: int = 15,
        standardize: bool = True,
        seed: int = 0,
    ) -> "Calibration":
        """Calibrate labels of the nearest reference cells by predicting each fifth of the reference from the others.

        Such conformal sets hold the right label nearly as often as sets from separate calibration cells, although
        theory guarantees less (Vovk 2015). A query cell is compared with a quarter more cells than calibration cells
        were.

        Args:
            embeddings: Embeddings of the reference, `(cells, D)`; NaN rows are left out.
            labels: Labels of the reference.
            n_neighbors: Number of cells that vote.
            standardize: Whether features are standardised before neighbours are searched.
            seed: Seed of the folds.

        Raises:
            ValueError: If there are fewer than 10 cells.

        Example:
            >>> embeddings = np.random.default_rng(0).normal(size=(40, 2)) + np.repeat([[0.0], [9.0]], 20, axis=0)
            >>> calibration = Calibration.cross_fit(embeddings, np.repeat(["B", "T"], 20), n_neighbors=3)
            >>> calibration.names, calibration.accuracy
            (['B', 'T'], 1.0)
        """
        is_there = ~np.isnan(embeddings).any(axis=1)
        embeddings, labels = embeddings[is_there], labels[is_there]
        check_number(len(labels))
        names, ids = np.unique(labels, return_inverse=True)
        folds = stratified_groups(ids, FOLDS, seed)
        asked = np.random.default_rng(seed).permutation(len(ids))[:MOST_CELLS]
        probabilities, distances = np.zeros((len(asked), len(names))), np.zeros(len(asked))
        for fold in range(FOLDS):
            others, rows = folds != fold, np.flatnonzero(folds[asked] == fold)
            known, judged = embeddings[others], embeddings[asked[rows]]
            votes, voters = label_probabilities(known, ids[others], judged, n_neighbors, standardize)
            probabilities[np.ix_(rows, np.array(voters, int))] = votes
            distances[rows] = TypeSpace.fit(known, ids[others]).distances(judged)
        source = f"{len(asked):,} reference cells, cross-fitted in {FOLDS} folds"
        space = TypeSpace.fit(embeddings, ids)
        return cls.of(probabilities, ids[asked], distances, space, [str(name) for name in names], source)

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        label_ids: np.ndarray,
        distances: np.ndarray,
        space: TypeSpace,
        names: Sequence[str],
        source: str,
        unlabelled: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> "Calibration":
        """Return the calibration for probabilities and distances of calibration cells; `fit` makes them."""
        from scipy.optimize import minimize_scalar

        true = np.arange(len(label_ids)), label_ids

        def fit(floor: float) -> tuple[float, float, float]:
            def loss(log_temperature: float) -> float:
                return -float(np.log(tempered(probabilities, np.exp(log_temperature), floor)[true]).mean())

            found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
            return float(found.fun), float(np.exp(found.x)), floor

        _, temperature, floor = min(fit(floor) for floor in FLOORS)
        scores = 1 - tempered(probabilities, temperature, floor)
        of_true = np.sort(scores[true])
        if unlabelled is not None:
            scores = np.concatenate([scores, 1 - tempered(unlabelled[0], temperature, floor)])
            distances = np.concatenate([distances, unlabelled[1]])
        ascending = of_true, np.sort(distances)
        fits = familiarity(upper_share(ascending[0], scores), upper_share(ascending[1], distances))
        accuracy = float((probabilities.argmax(axis=1) == label_ids).mean())
        return cls(list(names), temperature, floor, accuracy, *ascending, np.sort(fits), space, source)

    def p_values(self, probabilities: np.ndarray, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the conformal p-values of each label `(cells, C)`, and of each cell's distance `(cells,)`.

        A p-value is the share of cells that are at least as unusual, among the calibration cells and the cell itself.
        For cells like the calibration cells it is at most `alpha` in at most a share `alpha` of cells.

        Args:
            probabilities: Uncalibrated, `(cells, C)`; NaN rows stay NaN.
            embeddings: Embeddings of the same cells, `(cells, D)`.

        Raises:
            ValueError: If the shapes are not those of the calibration.
        """
        expected = (len(probabilities), len(self.names)), (len(probabilities), len(self.space.center))
        if (probabilities.shape, embeddings.shape) != expected:
            raise ValueError(
                f"probabilities {probabilities.shape} and embeddings {embeddings.shape} have to be {expected[0]} and "
                f"{expected[1]}: this calibration is of another annotator; fine-tune again"
            )
        is_there = np.isfinite(probabilities).all(axis=1) & np.isfinite(embeddings).all(axis=1)
        of_labels = np.full(probabilities.shape, np.nan)
        of_labels[is_there] = upper_share(
            self.label_scores, 1 - tempered(probabilities[is_there], self.temperature, self.floor)
        )
        of_distance = np.full(len(probabilities), np.nan)
        of_distance[is_there] = upper_share(self.distances, self.space.distances(embeddings[is_there]))
        return of_labels, of_distance

    def apply(self, probabilities: np.ndarray, embeddings: np.ndarray, alpha: float = 0.05) -> Applied:
        """Calibrate probabilities, and say which labels are possible and which cells are unknown.

        The set of labels misses the right one in at most a share `alpha` of cells like the calibration cells. A cell is
        unknown if no label fits, or if it lies too far from all types: the worse of these two tests decides, with a
        threshold that calls a share `alpha` of the calibration cells unknown. Either test at the level `alpha` alone
        would call up to twice as many.

        Args:
            probabilities: Uncalibrated, `(cells, C)`; NaN rows stay NaN.
            embeddings: Embeddings of the same cells, `(cells, D)`.
            alpha: Share of known cells whose set may miss the label, and that may be called unknown. With 0, no cell is
                unknown and each set holds all labels. With fewer than `1 / alpha - 1` calibration cells none is
                unknown.

        Raises:
            ValueError: If `alpha` is no share, or the shapes are not those of the calibration.
        """
        check_share(alpha)
        if alpha and 1 / (len(self.fits) + 1) > alpha:
            warnings.warn(
                f"{len(self.fits)} cells calibrate ({self.source}): they can tell no cell to be unknown at a threshold "
                f"below {1 / (len(self.fits) + 1):.2g}, and it is {alpha:g}; give more labelled cells, or a higher one",
                stacklevel=2,
            )
        of_labels, of_distance = self.p_values(probabilities, embeddings)
        is_there = ~np.isnan(of_distance)
        calibrated = np.full(probabilities.shape, np.nan)
        is_unknown = self.is_unknown(of_labels, of_distance, alpha)
        percentile = np.full(len(probabilities), np.nan)
        distances = self.space.distances(embeddings[is_there])
        times_as_far = np.maximum(distances / np.quantile(self.distances, USUAL), 1)
        calibrated[is_there] = tempered(probabilities[is_there], self.temperature * times_as_far[:, None], self.floor)
        percentile[is_there] = np.searchsorted(self.distances, distances) / len(self.distances)
        return Applied(calibrated, of_labels > alpha, is_unknown, percentile)

    def is_unknown(self, of_labels: np.ndarray, of_distance: np.ndarray, alpha: float) -> np.ndarray:
        """Return which cells are unknown at the level `alpha`, `(cells,)`, from their `p_values`."""
        fits = familiarity(of_labels, of_distance)
        as_strange = (np.searchsorted(self.fits, fits, side="right") + 1) / (len(self.fits) + 1)
        return (as_strange <= alpha) & ~np.isnan(fits)

    def doubts(self, is_unknown: np.ndarray, alpha: float) -> list[str]:
        """Return reasons not to trust the labels of a data set, one text for each.

        Args:
            is_unknown: Which cells with counts are called unknown, `(cells,)`.
            alpha: Share of known cells that may be called unknown.
        """
        doubts = []
        if len(self.fits) < FEW_CELLS:
            doubts.append(
                f"Only {len(self.fits)} cells calibrate ({self.source}): probabilities, and which cells are unknown, "
                f"are rough below {FEW_CELLS}. Give more labelled cells."
            )
        if self.accuracy < LOW_ACCURACY:
            doubts.append(
                f"Only {self.accuracy:.0%} of the calibration cells with labels ({self.source}) are named right: do "
                f"not trust these labels. Fine-tune on the labelled cells with `xtrimogene finetune`, or take a "
                f"checkpoint that was pre-trained on cells like these."
            )
        share = is_unknown.mean() if len(is_unknown) else alpha
        spread = np.sqrt(alpha / max(len(is_unknown), 1))  # standard error of the share, at most
        usual = (
            f"{share:.1%} of the cells are called unknown, and of cells like those that calibrate {alpha:.0%} would be"
        )
        if alpha and share > 2 * alpha + 3 * spread:
            doubts.append(
                f"{usual}: these are of other types, or of another tissue, chemistry or laboratory. Check their labels "
                f"by marker genes, or fine-tune with labelled cells of their kind."
            )
        if alpha and share < alpha / 4 - 3 * spread:
            doubts.append(f"{usual}: these cells differ from those, and unknown types among them may be missed.")
        return doubts

    def save(self, folder: str | os.PathLike) -> None:
        """Write `calibration.safetensors` into a folder."""
        from safetensors.numpy import save_file

        space = self.space
        numbers = [self.temperature], [self.floor], [self.accuracy]
        values = *numbers, self.label_scores, self.distances, self.fits, space.center, space.whitening, space.means
        arrays = {name: np.ascontiguousarray(value) for name, value in zip(ARRAYS, values, strict=True)}
        about = {"names": json.dumps(self.names), "source": self.source}
        save_file(arrays, os.path.join(folder, FILE), metadata=about)

    @classmethod
    def load(cls, checkpoint: str | os.PathLike | Any) -> "Calibration | None":
        """Return the calibration of a checkpoint, a folder, Hub name or loaded model; None if it has none.

        Raises:
            ValueError: If the file is damaged, or is something else.
        """

        def read(file: Any, about: dict[str, str]) -> Calibration:
            parts = {name: file.get_tensor(name) for name in ARRAYS}
            *numbers, label_scores, distances, fits, center, whitening, means = parts.values()
            temperature, floor, accuracy = (float(number[0]) for number in numbers)
            return cls(
                json.loads(about["names"]), temperature, floor, accuracy, label_scores, distances, fits,
                TypeSpace(center, whitening, means), about["source"],
            )  # fmt: skip

        return read_beside(checkpoint, FILE, "calibration", read)


def tempered(probabilities: np.ndarray, temperature: float | np.ndarray, floor: float) -> np.ndarray:
    """Return the softmax of log-probabilities divided by a temperature, `(cells, C)`.

    All labels first get an equal part of the probability `floor`. The temperature may be one for each cell, `(cells,
    1)`.
    """
    logits = np.log(np.maximum(probabilities, floor / probabilities.shape[1]).astype(np.float64)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def upper_share(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the share of numbers that are at least as high as each value, among `ascending` and the value itself.

    Numbers within rounding of each other are equal: a cell that is among those that calibrate is then as unusual as
    itself, whatever computer it is judged on.

    >>> upper_share(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.2 + 1e-8, 0.21]))
    array([0.75, 0.75, 0.5 ])
    """
    least = values - ROUNDING * np.maximum(values, 1)
    return (len(ascending) - np.searchsorted(ascending, least) + 1) / (len(ascending) + 1)


def familiarity(of_labels: np.ndarray, of_distance: np.ndarray) -> np.ndarray:
    """Return the lower of the p-values of each cell's best label and of its distance, `(cells,)`.

    >>> familiarity(np.array([[0.5, 0.1]]), np.array([0.3]))
    array([0.3])
    """
    return np.minimum(of_labels.max(axis=1), of_distance)


def stratified_groups(label_ids: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return a random group `0 ... number - 1` for each cell; each label is spread evenly over the groups.

    >>> np.bincount(stratified_groups(np.array([0, 0, 1, 1]), number=2, seed=0))
    array([2, 2])
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(label_ids)), label_ids))
    groups = np.empty(len(label_ids), int)
    groups[order] = np.arange(len(label_ids)) % number
    return groups


def check_share(alpha: float) -> None:
    """Refuse a number that is no share of cells.

    Raises:
        ValueError: If it is outside of 0 <= alpha < 1.
    """
    if not 0 <= alpha < 1:
        raise ValueError(
            f"the share of known cells that may be called unknown is {alpha}: give at least 0 (never) and less than 1"
        )


def check_number(cells: int) -> None:
    """Refuse too few calibration cells.

    Raises:
        ValueError: If there are fewer than 10.
    """
    if cells < LEAST_CELLS:
        raise ValueError(f"{cells} labelled cells with counts to calibrate with: at least {LEAST_CELLS} are needed")


def check_cells(probabilities: np.ndarray, label_ids: np.ndarray, embeddings: np.ndarray, names: Sequence[str]) -> None:
    """Refuse calibration cells that cannot calibrate.

    Raises:
        ValueError: If there are fewer than 10, shapes differ, or values are not finite.
    """
    check_number(len(label_ids))
    if probabilities.shape != (len(label_ids), len(names)) or len(embeddings) != len(label_ids):
        raise ValueError(
            f"{len(label_ids):,} label_ids of {len(names)} names, probabilities {probabilities.shape} and embeddings "
            f"{embeddings.shape} do not belong together: give a row for each cell and a column for each name"
        )
    if not (np.isfinite(probabilities).all() and np.isfinite(embeddings).all()):
        raise ValueError("calibration cells have values that are not finite: leave out cells without counts")
    outside = (np.asarray(label_ids) < 0) | (np.asarray(label_ids) >= len(names))
    if outside.any():
        raise ValueError(f"{outside.sum()} label_ids are outside 0 ... {len(names) - 1}, which the names stand for")
    if (np.abs(probabilities.sum(axis=1) - 1) > 0.01).any() or (probabilities < 0).any():
        raise ValueError("probabilities of a cell have to be at least 0 and sum to 1: give those of a softmax")
