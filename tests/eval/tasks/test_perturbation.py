"""Metrics of perturbation prediction against independent computations, baselines, controls, and the whole protocol."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, mean_squared_error

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
from xtrimogene.eval.measures.perturbation import METRICS, additive, perturbation_metrics
from xtrimogene.eval.tasks import perturbation as tasks_perturbation
from xtrimogene.eval.tasks.perturbation import (
    ADDITIVE,
    LEARNED,
    LINEAR,
    MEAN,
    NO_CHANGE,
    NOT_ANCHORED,
    RIDGE,
    SHUFFLED,
    PerturbationOptions,
    cell_eval_metrics,
    perturbation_scores,
    predict_screen,
    predict_split,
)
from xtrimogene.eval.tasks.run import Run
from xtrimogene.training.perturbation.gene_graphs import gene_graphs
from xtrimogene.training.perturbation.screens import CONTROL, doubles_split, gene_split

ONE_SEED = Run(seeds=(0,), device="cpu")
EPOCHS = 5  # enough for heads that begin as a simple method


@pytest.fixture(scope="module")
def predictions(screen):
    """Return the predictions of all methods, with random features, for three splits."""
    graphs = gene_graphs(screen)
    features = np.random.default_rng(0).normal(size=(len(graphs.gene_ids), 8)).astype(np.float32)
    splits = [gene_split(screen.sets, seed) for seed in (0, 1)]
    return [
        predict_split(screen, split, graphs, {"random": features}, seed, num_train_epochs=EPOCHS)
        for seed, split in enumerate(splits)
    ]


@pytest.fixture(scope="module")
def doubles(screen):
    return predict_split(screen, doubles_split(screen.sets), gene_graphs(screen), {}, num_train_epochs=EPOCHS)


# -- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ADDITIVE, LINEAR, "random", LEARNED])
def test_metrics_agree_with_independent_computations(predictions, screen, method):
    own = predictions[0]
    found = own.metrics(method)
    assert list(found) == list(METRICS)
    everything = screen.profiles([*screen.sets])
    for row, name in enumerate(own.split.test):
        true, predicted = (profiles[row].astype(np.float64) for profiles in (own.truth, own.predicted[method]))
        control = screen.profiles([CONTROL])[0].astype(np.float64)
        reference = screen.profiles(own.split.train).mean(axis=0)
        top = screen.top_genes(name)
        distances = [np.linalg.norm(predicted - profile) for profile in everything]
        to_own = distances[[*screen.sets].index(name)]
        signs = [np.sign(predicted[gene] - control[gene]) == np.sign(true[gene] - control[gene]) for gene in top]
        expected = {
            "mse_top20": mean_squared_error(true[top], predicted[top]),
            "mae": mean_absolute_error(true, predicted),
            "pearson_change": pearsonr(true - control, predicted - control).statistic,
            "pearson_change_top20": pearsonr((true - control)[top], (predicted - control)[top]).statistic,
            "pearson_beyond_mean": pearsonr(true - reference, predicted - reference).statistic,
            "direction_top20": np.mean(signs),
            "centroid_accuracy": sum(other > to_own for other in distances) / (len(distances) - 1),
        }
        if method == LINEAR and np.allclose(predicted, np.maximum(reference, 0), atol=1e-5):
            expected["pearson_beyond_mean"] = 0.0  # unseen genes get the mean, which says nothing beyond it
        assert {metric: found[metric][row] for metric in METRICS} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_truth_scores_best_and_no_change_scores_as_nothing(predictions):
    own = predictions[0]
    best = perturbation_metrics(own.truth, own.truth, own.control, own.reference, own.centroids, own.top_genes)
    for metric, is_better in METRICS.items():
        np.testing.assert_allclose(best[metric], 1.0 if is_better else 0.0, atol=1e-6)
    nothing = own.metrics(NO_CHANGE)
    assert (nothing["pearson_change"] == 0).all()
    assert (nothing["direction_top20"] == 0).all()
    assert (own.metrics(MEAN)["pearson_beyond_mean"] == 0).all()


def test_impossible_predictions_are_refused(predictions):
    own = predictions[0]
    rest = (own.control, own.reference, own.centroids, own.top_genes)
    with pytest.raises(ValueError, match="profiles differ in shape"):
        perturbation_metrics(own.truth, own.truth[:, 1:], *rest)
    broken = own.truth.copy()
    broken[2, 5] = np.nan
    with pytest.raises(ValueError, match="1 of 15 predicted profiles have values that are not finite"):
        perturbation_metrics(own.truth, broken, *rest)


# -- protocol ---------------------------------------------------------------------------------------------------------


def test_every_method_predicts_and_shuffled_labels_score_at_chance(predictions):
    assert list(predictions[0].predicted) == [
        NO_CHANGE, MEAN, ADDITIVE, LINEAR, RIDGE, "linear, random", f"{RIDGE}, random", "random",
        f"random, {NOT_ANCHORED}", LEARNED, SHUFFLED,
    ]  # fmt: skip
    for own in predictions:
        assert own.truth.shape == (len(own.split.test), len(own.genes))
        assert all(np.isfinite(profiles).all() and (profiles >= 0).all() for profiles in own.predicted.values())
    beyond = {
        method: np.mean(np.concatenate([own.metrics(method)["pearson_beyond_mean"] for own in predictions]))
        for method in (SHUFFLED, LEARNED)
    }
    assert abs(beyond[SHUFFLED]) < 0.15
    assert beyond[LEARNED] > beyond[SHUFFLED]


def test_an_anchored_head_that_training_does_not_help_scores_as_the_simple_method_that_it_begins_as(predictions):
    for own in predictions:
        for head, simple in (("random", f"{RIDGE}, random"), (LEARNED, RIDGE)):
            np.testing.assert_allclose(own.predicted[head], own.predicted[simple], atol=1e-5)
        assert not np.allclose(own.predicted[f"random, {NOT_ANCHORED}"], own.predicted["random"], atol=1e-2)


def test_doubles_of_known_genes_are_predicted_far_beyond_chance(doubles):
    is_known = np.array([kind == "seen2" for kind in doubles.split.test.values()])
    assert is_known.sum() == 5
    for method in (ADDITIVE, LINEAR, LEARNED):
        assert doubles.metrics(method)["pearson_beyond_mean"][is_known].mean() > 0.6
    assert abs(doubles.metrics(SHUFFLED)["pearson_beyond_mean"][is_known].mean()) < 0.4


def test_scores_are_means_over_perturbations_whatever_the_seeds_share(predictions):
    predictions = [dataclasses.replace(own, predicted={ADDITIVE: own.predicted[ADDITIVE]}) for own in predictions]
    scores = perturbation_scores(predictions, "norman")
    found = next(s for s in scores if (s.data, s.method, s.metric) == ("norman", ADDITIVE, "mae"))
    by_name = {}
    for own in predictions:
        for name, value in zip(own.split.test, own.metrics(ADDITIVE)["mae"], strict=True):
            by_name.setdefault(name, []).append(value)
    assert found.units == len(by_name)
    assert found.value == pytest.approx(np.mean([np.mean(values) for values in by_name.values()]))
    assert found.spread == pytest.approx(np.std([own.metrics(ADDITIVE)["mae"].mean() for own in predictions], ddof=1))
    assert found.low < found.value < found.high
    assert not found.higher_is_better
    assert {score.data for score in scores} == {"norman", "norman, single", "norman, seen0", "norman, seen1"}
    # A second look at the same perturbations makes no interval narrower.
    twice = perturbation_scores([predictions[0], predictions[0]], "norman")
    once = perturbation_scores([predictions[0]], "norman")
    assert [(score.low, score.high) for score in twice] == [(score.low, score.high) for score in once]


def test_a_single_kind_has_one_table_and_unseen_single_genes_get_the_mean(screen):
    singles = [name for name in screen.sets if "+" not in name]
    split = gene_split(singles, 0)
    control = screen.profiles([CONTROL])[0]
    changes = dict(zip(split.train, screen.profiles(split.train) - control, strict=True))
    mean = np.mean([*changes.values()], axis=0)
    np.testing.assert_allclose(additive(changes, list(split.test)), np.tile(mean, (len(split.test), 1)), atol=1e-6)
    truth = screen.profiles(split.test)
    top_genes = np.array([screen.top_genes(name) for name in split.test])
    predicted = {MEAN: np.tile(control + mean, (len(truth), 1))}
    own = tasks_perturbation.PerturbationPredictions(
        0, split, screen.genes, control, control + mean, truth, truth, top_genes, predicted
    )
    assert {score.data for score in perturbation_scores([own], "norman")} == {"norman"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    config = XTrimoGeneConfig.preset("tiny", hidden_size=16, decoder_hidden_size=12)
    XTrimoGeneForPreTraining(config).save_pretrained(folder)
    XTrimoGeneTokenizer.default().save_pretrained(folder)
    return folder


@pytest.mark.slow  # several heads are trained
def test_one_call_scores_checkpoints_beside_the_baselines(screen_cells, checkpoint, tmp_path):
    kept = ["control", "KLF1", "MAPK1", "MAP2K6", "TGFBR2", "KLF1+MAP2K6", "KLF1+TGFBR2", "CNN1+MAPK1"]
    few = screen_cells[screen_cells.obs["perturbation"].isin(kept)].copy()
    (tmp_path / "pairs.csv").write_text("KLF1,GATA1\nMAPK1,MAP2K6\n")
    options = PerturbationOptions(split="doubles", relations=[tmp_path / "pairs.csv"])
    fields = {"hidden_size": 8}
    predictions = predict_screen(few, {"mine": checkpoint}, options, ONE_SEED, fields, num_train_epochs=1)
    scores = perturbation_scores(predictions, "few")
    methods = [NO_CHANGE, MEAN, ADDITIVE, LINEAR, RIDGE, "linear, mine", f"{RIDGE}, mine", "mine"]
    methods += [f"mine, {NOT_ANCHORED}", LEARNED, SHUFFLED]
    assert list(predictions[0].predicted) == methods
    assert len(scores) == len(methods) * len(METRICS) * 3  # all, seen1, seen2
    assert {score.task for score in scores} == {"perturbation"}


def test_bad_requests_are_refused(screen_cells, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="checkpoints are called additive, as baselines are"):
        predict_screen(screen_cells, {"additive": checkpoint}, PerturbationOptions())
    with pytest.raises(ValueError, match="split is 'random': give 'genes'"):
        PerturbationOptions(split="random")
    XTrimoGeneTokenizer.from_genes(["KLF1", "MAPK1"], tmp_path).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"other has another panel \(2 genes\) than mine \(19,264\)"):
        predict_screen(screen_cells, {"mine": checkpoint, "other": tmp_path}, PerturbationOptions())
    singles = screen_cells[screen_cells.obs["perturbation"].isin(["control", "KLF1"])].copy()
    with pytest.raises(ValueError, match="1 training and 0 test"):
        predict_screen(singles, {}, PerturbationOptions(split="doubles"), ONE_SEED)


# -- judge ------------------------------------------------------------------------------------------------------------


def test_cell_eval_agrees(predictions):
    pytest.importorskip("cell_eval", reason="needs the judge: pip install cell-eval")
    own = predictions[0]
    for method in (ADDITIVE, "random"):
        judged, found = cell_eval_metrics(own, method), own.metrics(method)
        np.testing.assert_allclose(judged["mae"], found["mae"], rtol=1e-5)
        np.testing.assert_allclose(judged["pearson_delta"], found["pearson_change"], rtol=1e-5)


def test_without_cell_eval_the_remedy_is_named(predictions, monkeypatch):
    monkeypatch.setitem(sys.modules, "cell_eval", None)
    with pytest.raises(ImportError, match="pip install cell-eval"):
        cell_eval_metrics(predictions[0], ADDITIVE)
