"""Metrics and baselines of predicted perturbation profiles."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...training.scores import pearson

# Metric -> whether larger is better.
METRICS = {
    "mse_top20": False,
    "mae": False,
    "pearson_change": True,
    "pearson_change_top20": True,
    "pearson_beyond_mean": True,
    "direction_top20": True,
    "centroid_accuracy": True,
}
# Ahlmann-Eltze and Huber: 10 principal components and a penalty of 0.1. Features in other units need other penalties.
NUM_COMPONENTS = 10
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)


# -- metrics ----------------------------------------------------------------------------------------------------------


def perturbation_metrics(
    truth: np.ndarray,
    predicted: np.ndarray,
    control: np.ndarray,
    reference: np.ndarray,
    centroids: np.ndarray,
    top_genes: np.ndarray,
) -> dict[str, np.ndarray]:
    """Score the predicted profile of each perturbation.

    Args:
        truth: Measured profiles, `(T, R)`.
        predicted: Predicted profiles, `(T, R)`.
        control: Profile of control cells, `(R,)`.
        reference: Mean profile of the training perturbations, `(R,)`.
        centroids: Measured profiles of all perturbations, those of `truth` first, in their order. `(P, R)`.
        top_genes: Columns of the genes that differ most from control, `(T, 20)`.

    Returns:
        Arrays `(T,)`. `mse_top20`: squared error of the top genes. `mae`: absolute error of all genes.
        `pearson_change`, `pearson_change_top20`: correlation of predicted and true change from control over all and
        over the top genes. `pearson_beyond_mean`: the same for the change from `reference`, which removes what all
        perturbations have in common. `direction_top20`: share of the top genes whose change has the right sign; a
        predicted change of 0 is wrong. `centroid_accuracy`: share of the other perturbations whose measured profile is
        farther from the prediction than the right profile; 0.5 is chance.

        A correlation with a constant is 0, so that a constant prediction is not left out of a mean.

    Raises:
        ValueError: If shapes do not fit, or values are not finite.

    Source: GEARS for the top genes and directions; Systema (doi:10.1038/s41587-025-02777-8) for the reference and
    the centroid accuracy.

    Example:
        >>> control, truth = np.zeros(3), np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 0.0]])
        >>> top_genes = np.array([[0, 1], [1, 0]])
        >>> scores = perturbation_metrics(truth, truth, control, truth.mean(axis=0), truth, top_genes)
        >>> scores["mae"].tolist(), scores["centroid_accuracy"].tolist()
        ([0.0, 0.0], [1.0, 1.0])
    """
    if truth.shape != predicted.shape or centroids.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"profiles differ in shape: measured {truth.shape}, predicted {predicted.shape}, centroids "
            f"{centroids.shape}: a row for each perturbation, a column for each measured gene"
        )
    if not np.isfinite(predicted).all():
        rows = np.flatnonzero(~np.isfinite(predicted).all(axis=1))
        raise ValueError(f"{len(rows)} of {len(predicted)} predicted profiles have values that are not finite")
    from scipy.spatial.distance import cdist

    change, true_change = predicted - control, truth - control
    top_change, top_true = (np.take_along_axis(part, top_genes, axis=1) for part in (change, true_change))
    distances = cdist(predicted.astype(np.float64), centroids.astype(np.float64))
    to_truth = distances[np.arange(len(truth)), np.arange(len(truth))]
    return {
        "mse_top20": np.mean((top_change - top_true) ** 2, axis=1),
        "mae": np.mean(np.abs(change - true_change), axis=1),
        "pearson_change": _correlations(true_change, change),
        "pearson_change_top20": _correlations(top_true, top_change),
        "pearson_beyond_mean": _correlations(truth - reference, predicted - reference),
        "direction_top20": np.mean((np.sign(top_change) == np.sign(top_true)) & (top_true != 0), axis=1),
        "centroid_accuracy": (distances > to_truth[:, None]).sum(axis=1) / max(len(centroids) - 1, 1),
    }


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.array([pearson(*pair) for pair in zip(first, second, strict=True)]))


# -- what a model has to beat -----------------------------------------------------------------------------------------


def additive(changes: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Predict changes `(T, R)` as sums of the changes of single perturbations.

    If a gene was not perturbed alone in training, the mean change of the genes perturbed alone is used.

    Args:
        changes: Training perturbation -> its change from control, `(R,)`.
        names: Perturbations to predict.

    Source: Ahlmann-Eltze et al. 2025, doi:10.1038/s41592-025-02772-6, where all genes were perturbed alone.

    Example:
        >>> additive({"A": np.array([1.0, 0.0]), "B": np.array([0.0, 2.0])}, ["A+B"]).tolist()
        [[1.0, 2.0]]
    """
    singles = {name: change for name, change in changes.items() if "+" not in name}
    mean: np.ndarray = np.mean([*(singles or changes).values()], axis=0)
    return np.array([np.sum([singles.get(gene, mean) for gene in name.split("+")], axis=0) for name in names])


def linear(train_changes: np.ndarray, train_sets: np.ndarray, test_sets: np.ndarray) -> np.ndarray:
    """Predict changes `(T, R)` by the linear model `G W P + mean`, fitted by least squares with a penalty on W.

    G `(R, 10)` are principal components of the training changes, and P features of the perturbed sets. The penalty is
    the one of `PENALTIES` with the lowest squared error when each training perturbation in turn is left out.

    Args:
        train_changes: Changes of the training perturbations, `(D, R)`.
        train_sets: Their features, `(D, F)`.
        test_sets: Features of those to predict, `(T, F)`.

    Source: Ahlmann-Eltze et al. 2025, doi:10.1038/s41592-025-02772-6, methods; the penalty there is 0.1.

    Example:
        >>> changes = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> linear(changes, train_sets=np.eye(4)[:3], test_sets=np.eye(4)[3:]).round(2).tolist()  # the mean
        [[0.67, 0.67]]
    """

    def fit(changes: np.ndarray, sets: np.ndarray, asked: np.ndarray, penalty: float) -> np.ndarray:
        mean = changes.mean(axis=0)
        components = np.linalg.svd(changes - mean, full_matrices=False)[2][:NUM_COMPONENTS]
        latent = (changes - mean) @ components.T
        # The dual form is smaller, since there are fewer perturbations than features.
        kernel = sets @ sets.T + penalty * np.eye(len(sets))
        return mean + asked @ sets.T @ np.linalg.solve(kernel, latent) @ components

    every = np.arange(len(train_changes))

    def left_out_error(penalty: float) -> float:
        errors = []
        for held in every:
            rest = every != held
            guess = fit(train_changes[rest], train_sets[rest], train_sets[~rest], penalty)
            errors.append(np.mean((guess - train_changes[~rest]) ** 2))
        return float(np.mean(errors))

    best = min(PENALTIES, key=left_out_error) if len(every) > 2 else PENALTIES[-1]
    return fit(train_changes, train_sets, test_sets, best)


def set_features(names: Sequence[str], features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return for each perturbation the sum of the features of its genes, `(T, F)`; genes without features add 0.

    Example:
        >>> set_features(["A+B", "C"], {"A": np.array([1.0, 0.0]), "B": np.array([0.0, 2.0])}).tolist()
        [[1.0, 2.0], [0.0, 0.0]]
    """
    zero = np.zeros_like(next(iter(features.values())))
    return np.array([np.sum([features.get(gene, zero) for gene in name.split("+")], axis=0) for name in names])
