"""The additive model of perturbations against plain ridge regression, and what it makes of known and unknown genes."""

import numpy as np
import pytest

from xtrimogene.eval.measures.perturbation import additive
from xtrimogene.training.perturbation import anchoring
from xtrimogene.training.perturbation.anchoring import PENALTY, SHARED, additive_weights, set_members
from xtrimogene.training.perturbation.screens import CONTROL, doubles_split

GENES = np.array([11, 3, 7, 20, 5])
SETS = [(11,), (3,), (3, 7), (11, 20), (20,), (7, 11)]


@pytest.fixture
def changes():
    """Changes (6, 31) that are sums of effects."""
    return set_members(SETS, GENES) @ np.random.default_rng(1).normal(size=(len(GENES), 31))


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(len(GENES), 4))


def primal(sets, changes, shared, features=None):
    """Effects of genes (N, R) by ridge regression on columns of a design matrix, one gene at a time."""
    own = 1.0 if features is None else 0.5
    rows = [[np.sqrt(shared), *(np.sqrt(own) * (GENES == gene))] for gene in GENES]
    if features is not None:
        rows = [[*row, *(np.sqrt(0.5) * part / np.linalg.norm(part))] for row, part in zip(rows, features, strict=True)]
    of_gene = dict(zip(GENES.tolist(), np.array(rows), strict=True))
    design = np.array([np.sum([of_gene[gene] for gene in genes], axis=0) for genes in sets])
    penalised = design.T @ design + PENALTY * np.eye(design.shape[1])
    return np.array(rows) @ np.linalg.solve(penalised, design.T @ changes)


@pytest.mark.parametrize("shared", [0.3, 10.0])
@pytest.mark.parametrize("with_features", [False, True])
def test_effects_are_those_of_ridge_regression_on_the_perturbed_genes(
    changes, features, shared, with_features, monkeypatch
):
    monkeypatch.setattr(anchoring, "SHARED", (shared,))
    given = features if with_features else None
    found = additive_weights(set_members(SETS, GENES), changes, given) @ changes
    np.testing.assert_allclose(found, primal(SETS, changes, shared, given), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mixed", "chosen"), [(False, SHARED[-1]), (True, SHARED[0])])
def test_the_shared_part_is_the_one_that_predicts_left_out_perturbations_best(changes, features, mixed, chosen):
    if mixed:  # each gene measured has the changes in another order, so that perturbations have nothing in common
        changes = np.random.default_rng(0).permuted(changes - changes.mean(), axis=0)

    def left_out_error(shared):
        errors = []
        for held, genes in enumerate(SETS):
            rest = [row for row in range(len(SETS)) if row != held]
            effects = primal([SETS[row] for row in rest], changes[rest], shared, features)
            top = np.argsort(-np.abs(changes[held]))[:20]
            errors.append(np.mean((effects[np.isin(GENES, genes)].sum(axis=0) - changes[held])[top] ** 2))
        return np.mean(errors)

    best = min(SHARED, key=left_out_error)
    assert best == chosen
    found = additive_weights(set_members(SETS, GENES), changes, features) @ changes
    np.testing.assert_allclose(found, primal(SETS, changes, best, features), rtol=1e-9, atol=1e-9)


def test_a_response_that_all_have_is_that_of_unknown_genes_and_one_of_their_own_is_not():
    rng = np.random.default_rng(0)
    sets, common = [(gene,) for gene in range(30)], rng.normal(size=40)
    members, own = set_members(sets, np.arange(31)), rng.normal(size=(30, 40))
    unknown = (additive_weights(members, common + 0.1 * own) @ (common + 0.1 * own))[30]
    np.testing.assert_allclose(unknown, (common + 0.1 * own).mean(axis=0), atol=0.05)
    assert np.abs((additive_weights(members, own) @ own)[30]).max() < 0.5 * np.abs(own.mean(axis=0)).max()


def test_an_unknown_gene_has_half_the_effect_of_one_with_its_features(monkeypatch):
    monkeypatch.setattr(anchoring, "SHARED", (1e-9,))
    monkeypatch.setattr(anchoring, "PENALTY", 1e-9)
    changes = np.array([[2.0, 0.0], [0.0, 4.0]])
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])  # the length of the last does not count
    found = additive_weights(set_members([(0,), (1,)], np.arange(3)), changes, features) @ changes
    np.testing.assert_allclose(found, [[2.0, 0.0], [0.0, 4.0], [0.0, 2.0]], atol=1e-6)


def test_on_real_cells_pairs_of_known_genes_are_as_in_the_additive_model(screen):
    split = doubles_split(screen.sets)
    changes = screen.profiles(split.train) - screen.profiles([CONTROL])
    known = [name for name, kind in split.test.items() if kind == "seen2"]
    genes = np.unique(np.concatenate([*screen.sets.values()]))
    weights = additive_weights(set_members([screen.sets[name] for name in split.train], genes), changes)
    found = set_members([screen.sets[name] for name in known], genes) @ weights @ changes
    sums = additive(dict(zip(split.train, changes, strict=True)), known)
    for own, their in zip(found, sums, strict=True):
        assert np.corrcoef(own, their)[0, 1] > 0.99
        assert 0.85 < np.linalg.norm(own) / np.linalg.norm(their) < 1
