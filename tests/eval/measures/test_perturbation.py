"""Baselines of perturbation: sums of single changes, and a regression on gene features."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut

from xtrimogene.eval.measures import perturbation as measures_perturbation
from xtrimogene.eval.measures.perturbation import additive, linear, set_features


def test_additive_sums_single_changes_and_fills_in_their_mean():
    changes = {"A": np.array([1.0, 0.0]), "B": np.array([0.0, 2.0]), "A+C": np.array([9.0, 9.0])}
    found = additive(changes, ["A+B", "B+D", "D", "D+E"])
    assert found.tolist() == [[1, 2], [0.5, 3], [0.5, 1], [1, 2]]


def test_linear_is_scikit_learns_ridge_on_its_principal_components():
    rng = np.random.default_rng(0)
    changes, sets, asked = rng.normal(size=(14, 30)), rng.normal(size=(14, 20)), rng.normal(size=(3, 20))

    def fit(rows, wanted, penalty):
        pca = PCA(10, svd_solver="full").fit(changes[rows])
        ridge = Ridge(penalty, fit_intercept=False).fit(sets[rows], pca.transform(changes[rows]))
        return pca.inverse_transform(ridge.predict(wanted))

    errors = {
        penalty: np.mean(
            [np.mean((fit(rest, sets[held], penalty) - changes[held]) ** 2) for rest, held in LeaveOneOut().split(sets)]
        )
        for penalty in measures_perturbation.PENALTIES
    }
    expected = fit(np.arange(14), asked, min(errors, key=errors.get))
    np.testing.assert_allclose(linear(changes, sets, asked), expected, atol=1e-8)


def test_linear_on_unknown_genes_is_the_mean():
    features = {"A": np.array([1.0, 0.0]), "B": np.array([0.0, 1.0])}
    sets = set_features(["A", "B", "A+B", "C"], features)
    assert sets.tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    changes = np.random.default_rng(0).normal(size=(3, 5))
    np.testing.assert_allclose(linear(changes, sets[:3], sets[3:])[0], changes.mean(axis=0))
