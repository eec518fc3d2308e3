"""Calibration on real and on made-up cells: promises that have to hold, and unknown types that have to show."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.covariance import LedoitWolf

from xtrimogene.eval.measures.certainty import auroc_of, calibration_error
from xtrimogene.eval.tasks.annotation import Classified, Split, calibrate_classifier
from xtrimogene.inference.calibration import (
    FILE,
    Calibration,
    TypeSpace,
    check_share,
    familiarity,
    stratified_groups,
    tempered,
)
from xtrimogene.inference.neighbors import label_probabilities

TYPES = 4


def made_up(rng, number, sureness=1.0, shift=0.0):
    """Cells of four Gaussian types, and the true probability of each type, made more sure."""
    centers = np.eye(TYPES, 6) * 2
    ids = rng.integers(TYPES, size=number)
    embeddings = centers[ids] + rng.normal(size=(number, 6)) + shift
    logits = -((embeddings[:, None] - centers) ** 2).sum(-1) / 2 * sureness
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True), ids, embeddings


def fitted(rng, number=300, sureness=1.0):
    _, known_ids, known = made_up(rng, 1_000)
    return Calibration.fit(*made_up(rng, number, sureness), known, known_ids, list("abcd"), "made-up cells")


@pytest.fixture(scope="module")
def real(pbmc):
    """Components of 700 blood cells, and their types."""
    return pbmc.obsm["X_pca"].astype(np.float64), pbmc.obs["bulk_labels"].astype(str).to_numpy()


# -- promises -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-1e-8, 1e-8])
def test_cells_that_calibrated_have_the_same_p_values_whatever_the_rounding(shift):
    _, known_ids, known = made_up(np.random.default_rng(1), 1_000)
    probabilities, ids, embeddings = made_up(np.random.default_rng(2), 300)
    calibration = Calibration.fit(probabilities, ids, embeddings, known, known_ids, list("abcd"), "made-up cells")
    exact = calibration.p_values(probabilities, embeddings)
    rounded = calibration.p_values(probabilities + shift, embeddings * (1 + shift))
    for one, other in zip(exact, rounded, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.3])
def test_sets_hold_the_true_label_and_known_cells_are_rarely_unknown(alpha):
    rng = np.random.default_rng(0)
    draws, number = 30, 199
    covered, unknown = [], []
    for _ in range(draws):
        calibration = fitted(rng, number, sureness=3.0)
        probabilities, ids, embeddings = made_up(rng, 1_000, sureness=3.0)
        applied = calibration.apply(probabilities, embeddings, alpha)
        covered.append(applied.is_in_set[np.arange(len(ids)), ids].mean())
        unknown.append(applied.is_unknown.mean())
    # Of calibration cells and of test cells, both drawn anew each time.
    error = np.sqrt(alpha * (1 - alpha) * (1 / number + 1 / 1_000) / draws)
    assert 1 - alpha - 4 * error < np.mean(covered) < 1 - alpha + 1 / (number + 1) + 4 * error
    assert alpha - 1 / (number + 1) - 4 * error < np.mean(unknown) < alpha + 4 * error


def test_cross_fitted_sets_hold_on_real_cells_that_were_not_in_the_reference(real):
    embeddings, labels = real
    covered, unknown = [], []
    for seed in range(4):
        is_reference = stratified_groups(np.unique(labels, return_inverse=True)[1], 2, seed) == 0
        reference, query = embeddings[is_reference], embeddings[~is_reference]
        calibration = Calibration.cross_fit(reference, labels[is_reference])
        votes, names = label_probabilities(reference, labels[is_reference], query)
        assert names == calibration.names
        applied = calibration.apply(votes, query, 0.1)
        true = np.searchsorted(names, labels[~is_reference])
        covered.append(applied.is_in_set[np.arange(len(true)), true].mean())
        unknown.append(applied.is_unknown.mean())
    assert np.mean(covered) > 0.9 - 4 * np.sqrt(0.1 * 0.9 * 2 / 350 / 4)
    assert np.mean(unknown) < 0.1 + 4 * np.sqrt(0.1 * 0.9 * 2 / 350 / 4)


@pytest.mark.parametrize(("held", "least"), [("CD56+ NK", 0.85), ("CD19+ B", 0.7)])
def test_a_type_that_nothing_has_seen_is_told_from_those_known(real, held, least):
    embeddings, labels = real
    is_reference = (stratified_groups(np.unique(labels, return_inverse=True)[1], 2, 0) == 0) & (labels != held)
    calibration = Calibration.cross_fit(embeddings[is_reference], labels[is_reference])
    query = embeddings[~is_reference]
    is_held = labels[~is_reference] == held
    votes, _ = label_probabilities(embeddings[is_reference], labels[is_reference], query)
    fits = familiarity(*calibration.p_values(votes, query))
    every = np.arange(len(query))
    assert auroc_of(-fits, is_held)(every) > least
    rng = np.random.default_rng(0)
    assert abs(auroc_of(-rng.permutation(fits), is_held)(every) - 0.5) < 0.15
    is_unknown = calibration.apply(votes, query, 0.2).is_unknown
    assert is_unknown[is_held].mean() > 2 * is_unknown[~is_held].mean()


def test_cells_far_from_all_types_are_unknown_whatever_their_label():
    rng = np.random.default_rng(1)
    calibration = fitted(rng)
    probabilities, _, embeddings = made_up(rng, 50, shift=10.0)
    probabilities[:] = np.eye(TYPES)[0]
    applied = calibration.apply(probabilities, embeddings)
    assert applied.is_unknown.all()
    assert (applied.ood_percentile == 1).all()


def test_a_cell_between_all_types_has_an_empty_set():
    rng = np.random.default_rng(2)
    known_ids = np.arange(400) % TYPES
    known = np.eye(TYPES)[known_ids] + 0.01 * rng.normal(size=(400, TYPES))
    sure = 0.99 * np.eye(TYPES)[known_ids[:200]] + 0.0025
    calibration = Calibration.fit(sure, known_ids[:200], known[:200], known[200:], known_ids[200:], list("abcd"))
    applied = calibration.apply(np.full((1, TYPES), 0.25), known[:1])
    assert not applied.is_in_set.any()
    assert applied.is_unknown.all()


def test_no_cell_is_unknown_at_zero_or_where_calibration_cells_are_too_few_to_tell():
    rng = np.random.default_rng(3)
    strange, _, far = made_up(rng, 20, shift=50.0)
    applied = fitted(rng).apply(strange, far, 0.0)
    assert not applied.is_unknown.any()
    assert applied.is_in_set.all()
    with pytest.warns(UserWarning, match="18 cells calibrate .* no cell to be unknown at a threshold below 0.053"):
        assert not fitted(rng, 18).apply(strange, far, 0.05).is_unknown.any()
    assert fitted(rng, 19).apply(strange, far, 0.05).is_unknown.all()


# -- parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sureness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_how_much_too_sure_probabilities_are(sureness):
    rng = np.random.default_rng(4)
    calibration = fitted(rng, 4_000, sureness)
    assert calibration.temperature == pytest.approx(sureness, rel=0.15)
    probabilities, ids, embeddings = made_up(rng, 4_000, sureness)
    applied = calibration.apply(probabilities, embeddings)
    best = probabilities.argmax(1)
    np.testing.assert_array_equal(applied.probabilities.argmax(1), best)
    np.testing.assert_allclose(applied.probabilities.sum(1), 1)
    after = calibration_error(applied.probabilities.max(1), best == ids)
    assert after < 0.03
    if sureness != 1:
        assert after < calibration_error(probabilities.max(1), best == ids) / 2


def test_tempered_probabilities_agree_with_a_softmax_where_no_probability_is_below_the_floor():
    logits = np.array([[1.0, -0.5, 0.2], [0.0, 0.0, 2.0]])
    plain = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
    np.testing.assert_allclose(tempered(plain, 2.0, 0.01), expected)
    np.testing.assert_allclose(tempered(np.array([[1.0, 0.0]]), 1.0, 0.01), [[1 / 1.005, 0.005 / 1.005]])


def test_distances_agree_with_their_definition_and_do_not_depend_on_scale(real):
    embeddings, labels = real
    found = TypeSpace.fit(embeddings, labels).distances(embeddings)
    scaled = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    means = {name: scaled[labels == name].mean(0) for name in set(labels)}
    centred = np.stack([cell - means[name] for cell, name in zip(scaled, labels, strict=True)])
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(centred).covariance_)
    expected = [min((cell - mean) @ precision @ (cell - mean) for mean in means.values()) for cell in scaled]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    other = embeddings * np.geomspace(1e-3, 1e3, embeddings.shape[1])
    np.testing.assert_allclose(TypeSpace.fit(other, labels).distances(other), found, rtol=1e-3)


def test_types_of_one_cell_and_features_that_do_not_vary_are_no_problem():
    rng = np.random.default_rng(6)
    embeddings = np.column_stack([rng.normal(size=12), np.ones(12), np.zeros(12)])
    assert np.isfinite(TypeSpace.fit(embeddings, np.arange(12)).distances(embeddings + 1)).all()
    rare = Calibration.cross_fit(embeddings, np.array(["a"] * 11 + ["b"]))
    assert rare.names == ["a", "b"]


def test_cells_are_dealt_evenly_type_by_type():
    ids = np.repeat([0, 1, 2], [10, 5, 1])
    groups = stratified_groups(ids, 5, 0)
    for name, each in ((0, 2), (1, 1)):
        assert np.bincount(groups[ids == name], minlength=5).tolist() == [each] * 5
    assert (stratified_groups(ids, 5, 0) == groups).all()
    assert (stratified_groups(ids, 5, 1) != groups).any()


def test_cells_without_counts_stay_missing():
    rng = np.random.default_rng(7)
    calibration = fitted(rng)
    probabilities, _, embeddings = made_up(rng, 5)
    whole = calibration.apply(probabilities, embeddings, 0.9)
    probabilities[2], embeddings[2] = np.nan, np.nan
    applied = calibration.apply(probabilities, embeddings, 0.9)
    others = [0, 1, 3, 4]
    for part, before in zip(applied, whole, strict=True):
        np.testing.assert_array_equal(part[others], before[others])
    assert np.isnan(applied.probabilities[2]).all()
    assert np.isnan(applied.ood_percentile[2])
    assert not applied.is_unknown[2]
    assert not applied.is_in_set[2].any()
    nothing = calibration.apply(np.full((2, TYPES), np.nan), np.full((2, 6), np.nan))
    assert not nothing.is_unknown.any()


@pytest.mark.parametrize("shift", [0.0, 3.0, 30.0])
def test_cells_far_from_what_was_learned_are_less_sure(shift):
    """Too sure of cells elsewhere: their probability falls with the distance, and theirs alone."""
    rng = np.random.default_rng(4)
    calibration = fitted(rng, 500, sureness=2.0)
    probabilities, _, embeddings = made_up(rng, 400, sureness=2.0, shift=shift)
    found = calibration.apply(probabilities, embeddings).probabilities
    plain = tempered(probabilities, calibration.temperature, calibration.floor)
    assert (found.argmax(1) == probabilities.argmax(1)).all()
    is_usual = calibration.space.distances(embeddings) <= np.quantile(calibration.distances, 0.95)
    np.testing.assert_allclose(found[is_usual], plain[is_usual])
    assert (found.max(1) < plain.max(1))[~is_usual].all()
    assert is_usual.mean() == pytest.approx({0.0: 0.95, 3.0: 0.0, 30.0: 0.0}[shift], abs=0.05)
    if shift == 30.0:
        assert found.max() < 0.5  # hundreds of times as far as any known cell: little more than a guess among four


def test_what_speaks_against_labels_is_said():
    rng = np.random.default_rng(5)
    calibration = fitted(rng, 300)
    unknown = np.zeros(1_000, bool)
    unknown[:50] = True
    assert calibration.doubts(unknown, 0.05) == []
    unknown[:150] = True
    (doubt,) = calibration.doubts(unknown, 0.05)
    assert doubt.startswith("15.0% of the cells are called unknown, and of cells like those that calibrate 5% would be")
    assert calibration.doubts(unknown[:10], 0.05) != []
    assert calibration.doubts(np.zeros(10, bool), 0.05) == []  # none of so few may well be by chance
    (doubt,) = calibration.doubts(np.zeros(10_000, bool), 0.05)
    assert doubt.endswith("unknown types among them may be missed.")
    assert calibration.doubts(np.zeros(10_000, bool), 0) == []  # none was asked for
    assert "Only 60 cells calibrate" in fitted(rng, 60).doubts(unknown[:0], 0.05)[0]
    assert 0.7 < calibration.accuracy < 0.9
    probabilities, ids, embeddings = made_up(rng, 300)
    wrong = Calibration.fit(probabilities, (ids + 1) % TYPES, embeddings, embeddings, ids, list("abcd"), "shuffled")
    assert "are named right: do not trust" in wrong.doubts(unknown[:0], 0.05)[0]


# -- file -----------------------------------------------------------------------------------------------------


def test_what_is_loaded_says_what_was_saved(tmp_path):
    rng = np.random.default_rng(8)
    calibration = fitted(rng)
    calibration.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    loaded = Calibration.load(tmp_path)
    assert (loaded.names, loaded.temperature, loaded.source) == (list("abcd"), calibration.temperature, "made-up cells")
    probabilities, _, embeddings = made_up(rng, 100)
    for alpha in (0.05, 0.5):
        for part, same in zip(
            loaded.apply(probabilities, embeddings, alpha), calibration.apply(probabilities, embeddings, alpha),
            strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(part, same)
    with safe_open(tmp_path / FILE, "numpy") as file:
        assert json.loads(file.metadata()["names"]) == list("abcd")


def test_unlabelled_cells_say_what_is_usual_and_leave_temperature_and_sets_as_they_are():
    rng = np.random.default_rng(11)
    probabilities, ids, embeddings = made_up(rng, 200)
    _, known_ids, known_embeddings = made_up(rng, 200)
    of_labelled = probabilities, ids, embeddings, known_embeddings, known_ids, list("abcd")
    others, _, places = made_up(rng, 200)
    far = places + 3  # another laboratory shifts all of its cells
    alone = Calibration.fit(*of_labelled)
    both = Calibration.fit(*of_labelled, unlabelled=(others[:100], far[:100]))
    assert both.temperature == alone.temperature
    np.testing.assert_array_equal(both.label_scores, alone.label_scores)
    assert len(both.distances) == len(both.fits) == 300
    shares = [each.apply(others[100:], far[100:]).is_unknown.mean() for each in (alone, both)]
    assert shares[0] > 0.9
    assert shares[1] < 0.2
    assert both.apply(others[:9], far[:9] + 90).is_unknown.all()


def test_a_folder_without_calibration_has_none_and_a_damaged_one_is_refused(tmp_path):
    assert Calibration.load(tmp_path) is None
    fitted(np.random.default_rng(9)).save(tmp_path)
    arrays = load_file(tmp_path / FILE)
    save_file(arrays, tmp_path / FILE)  # without the names
    with pytest.raises(ValueError, match="holds no calibration"):
        Calibration.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"calibration\.safetensors holds no calibration .*: delete it"):
        Calibration.load(tmp_path)


def test_too_few_held_out_cells_write_nothing_and_say_so(tmp_path):
    probabilities, ids, embeddings = made_up(np.random.default_rng(10), 60)
    said = []
    rows = np.arange(60)
    classified = Classified(probabilities, embeddings, ids, list("abcd"))
    parts = Split(rows[:40], rows[40:49], rows[49:])
    found = calibrate_classifier(classified, parts, tmp_path, said.append)
    assert "half of the held-out cells are 9, and at least 10 are needed" in found["note"]
    assert "`annotate` will not tell unknown cells" in said[0]
    assert not any(tmp_path.iterdir())


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    ({"label_ids": np.arange(9) % 4}, "9 labelled cells with counts to calibrate with: at least 10 are needed"),
    ({"label_ids": np.zeros(19, int)}, "19 label_ids of 4 names, probabilities"),
    ({"label_ids": np.full(20, 4)}, r"20 label_ids are outside 0 \.\.\. 3"),
    ({"label_ids": np.full(20, -1)}, "20 label_ids are outside"),
    ({"names": ["a", "b"]}, "20 label_ids of 2 names, probabilities"),
    ({"probabilities": np.zeros((20, 4))}, "sum to 1"),
    ({"probabilities": np.full((20, 4), np.nan)}, "not finite: leave out cells without counts"),
    ({"embeddings": np.full((20, 6), np.inf)}, "not finite"),
    ({"known_embeddings": np.zeros((30, 5))}, "known_embeddings"),
    ({"known_ids": np.zeros(29, int)}, "a row for each of the 29 known_ids"),
])  # fmt: skip
def test_cells_that_cannot_calibrate_are_refused(change, message):
    rng = np.random.default_rng(11)
    probabilities, ids, embeddings = made_up(rng, 20)
    _, known_ids, known = made_up(rng, 30)
    right = {
        "probabilities": probabilities, "label_ids": ids, "embeddings": embeddings, "known_embeddings": known,
        "known_ids": known_ids, "names": list("abcd"),
    }  # fmt: skip
    Calibration.fit(**right)
    with pytest.raises(ValueError, match=message):
        Calibration.fit(**right | change)


def test_other_cells_than_those_of_the_annotator_and_thresholds_that_are_no_share_are_refused():
    rng = np.random.default_rng(12)
    calibration = fitted(rng)
    probabilities, _, embeddings = made_up(rng, 5)
    with pytest.raises(ValueError, match=r"probabilities \(5, 3\) .* this calibration is of another annotator"):
        calibration.apply(probabilities[:, :3], embeddings)
    with pytest.raises(ValueError, match=r"embeddings \(5, 2\)"):
        calibration.apply(probabilities, embeddings[:, :2])
    for alpha in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match="share of known cells that may be called unknown"):
            check_share(alpha)
        with pytest.raises(ValueError, match="share of known cells"):
            calibration.apply(probabilities, embeddings, alpha)
    with pytest.raises(ValueError, match="4 labelled cells with counts"):
        Calibration.cross_fit(np.vstack([np.eye(4), np.full((9, 4), np.nan)]), np.array(["a"] * 13))
