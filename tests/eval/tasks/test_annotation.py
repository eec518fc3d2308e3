"""The annotation protocol on real blood cells: fair splits, right numbers, and refusals."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

import xtrimogene
from xtrimogene.eval.measures import baselines
from xtrimogene.eval.measures.certainty import auroc_of, share_of
from xtrimogene.eval.tasks.annotation import (
    COVERAGE,
    LOWER_IS_BETTER,
    AnnotationOptions,
    Features,
    check_splits,
    components,
    evaluate_annotation,
    label_statistics,
    predict,
    split,
    types_to_hold_out,
)
from xtrimogene.eval.tasks.run import Run

LABEL_KEY = "bulk_labels"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 1,
    "decoder_head_dim": 8,
}


@pytest.fixture(scope="module")
def cells(pbmc):
    """700 blood cells, with a donor, one label missing, and one cell that is alone of its type."""
    obs = pbmc.obs[[LABEL_KEY]].astype(object)
    obs["donor"] = [f"donor{number % 5}" for number in range(len(obs))]
    obs.iloc[3, 0] = np.nan
    obs.iloc[4, 0] = "rare"
    return anndata.AnnData(pbmc.raw.X.copy(), obs=obs, var=pbmc.raw.var[[]])


@pytest.fixture(scope="module")
def checkpoint(pbmc, tmp_path_factory, measured_genes):
    """A new model of the measured genes only, so that it is quick."""
    folder = tmp_path_factory.mktemp("checkpoint")
    genes = measured_genes(pbmc.raw.var_names)
    xtrimogene.XTrimoGeneModel(xtrimogene.XTrimoGeneConfig(num_genes=len(genes), **SIZES)).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def evaluated(cells, checkpoint):
    said = []
    run = Run(seeds=(0, 1), device="cpu", say=said.append)
    result = evaluate_annotation(cells, "pbmc", {"new": checkpoint}, AnnotationOptions(label_key=LABEL_KEY), run)
    return result, said


@pytest.fixture(scope="module")
def task(pbmc):
    """Values, types, and a split."""
    values = baselines.log_normalise(pbmc.raw.X)
    names, ids = np.unique(pbmc.obs[LABEL_KEY].astype(str), return_inverse=True)
    return values, ids, split(ids, None, 0), len(names)


# -- the whole ------------------------------------------------------------------------------------------------


def test_every_method_has_its_scores_with_seeds_and_units(evaluated):
    result, _ = evaluated
    table = {(score.data, score.method, score.metric): score for score in result.scores}
    known = ["accuracy", "macro-F1", "calibration error", COVERAGE, "labels in a set"]
    methods = ["new, k-NN", "new, linear probe", "logistic regression", "k-NN on PCA"]
    for method in methods:
        assert {
            ("pbmc", method, metric) for metric in [*known, "unknown AUROC", "unknown AUROC, probability alone"]
        } <= set(table)
    assert result.scores[0].method == "new, k-NN"  # what the report takes for the model
    assert [metric for data, method, metric in table if method == "new, k-NN, shuffled labels"] == known[:2]
    for score in result.scores:
        assert (score.task, score.seeds, score.units) == ("annotation", 2, 138)
        assert score.low <= score.value <= score.high or score.metric == "calibration error"  # resampling adds to it
        expected = None if score.metric == COVERAGE else not score.metric.startswith(LOWER_IS_BETTER)
        assert score.higher_is_better is expected
    held_out = result.settings["types held out"]
    assert len(held_out) == 6
    of_types = {f"pbmc, {name} held out" for name in held_out}
    assert {score.data for score in result.scores} == {"pbmc", "pbmc, less logistic regression", *of_types}
    for method in ("new, k-NN", "new, linear probe"):
        for metric in ("accuracy", "macro-F1"):
            ours, theirs = (table["pbmc", name, metric].value for name in (method, "logistic regression"))
            assert table["pbmc, less logistic regression", method, metric].value == pytest.approx(ours - theirs)
    for method in methods:
        of_types = [table[f"pbmc, {name} held out", method, "unknown AUROC"].value for name in held_out]
        assert table["pbmc", method, "unknown AUROC"].value == pytest.approx(np.mean(of_types))
    assert result.settings["cells"] == 690
    assert result.settings["left out"] == 10  # 8 of them are all of their type
    assert len(result.pictures) == 2
    assert "The 6 most frequent types" in result.protocol


def test_methods_beat_shuffled_labels_sets_cover_and_unknown_types_show(evaluated):
    values = {(score.method, score.metric): score for score in evaluated[0].scores if score.data == "pbmc"}
    shuffled = values["new, k-NN, shuffled labels", "accuracy"].value
    assert shuffled < 0.4
    for method in ("new, k-NN", "logistic regression", "k-NN on PCA"):
        assert values[method, "accuracy"].value > shuffled + 0.1
        coverage = values[method, COVERAGE].value
        assert abs(coverage - 0.95) < 4 * np.sqrt(0.05 * 0.95 * 2 / 138 / 2)
        assert 1 <= values[method, "labels in a set"].value <= 10
        assert values[method, "calibration error"].value < 0.2
    assert values["k-NN on PCA", "unknown AUROC"].value > 0.6
    for method in ("new, k-NN", "new, linear probe", "logistic regression", "k-NN on PCA"):
        assert values[method, "known called unknown"].value < 0.12


@pytest.mark.slow  # two trainings
def test_checkpoints_are_fine_tuned_if_asked_for(cells, checkpoint):
    options = AnnotationOptions(label_key=LABEL_KEY, hold_out_types=False, fine_tuning_epochs=3)
    result = evaluate_annotation(cells, "pbmc", {"new": checkpoint}, options, Run(device="cpu", say=len))
    values = {(score.method, score.metric): score.value for score in result.scores if score.data == "pbmc"}
    assert values["new, fine-tuned", "accuracy"] > values["new, k-NN, shuffled labels", "accuracy"] + 0.15
    assert values["new, fine-tuned", "labels in a set"] >= 1
    assert "saw the cells that are learned from 3 times" in result.protocol
    for epochs in (-1, "5"):
        with pytest.raises(ValueError, match=f"fine_tuning_epochs is {epochs!r}: give a whole number"):
            evaluate_annotation(cells, "pbmc", {"new": checkpoint}, replace(options, fine_tuning_epochs=epochs))
    assert result.scores[0].method == "new, k-NN"


def test_embeddings_are_computed_once(evaluated):
    assert sum("embedding 690 cells by new" in line for line in evaluated[1]) == 1


def test_without_types_held_out_nothing_of_them_is_scored(cells, checkpoint):
    options = AnnotationOptions(label_key=LABEL_KEY, batch_key="donor", hold_out_types=False)
    result = evaluate_annotation(cells, "pbmc", {"new": checkpoint}, options, Run(device="cpu", say=len))
    assert not any("unknown" in score.metric for score in result.scores)
    assert result.settings["types held out"] == []
    assert "of values of donor that nothing else has seen" in result.protocol
    assert "held out" not in result.protocol


# -- parts ----------------------------------------------------------------------------------------------------


def test_splits_share_no_cell_and_no_batch(task):
    _, ids, parts, _ = task
    together = np.concatenate(parts)
    assert np.sort(together).tolist() == list(range(len(ids)))
    assert [len(part) for part in parts] == [420, 140, 140]
    batches = np.arange(len(ids)) % 7
    other = split(ids, batches, 0)
    assert not set(batches[other.test]) & set(batches[np.concatenate(other[:2])])


def test_types_of_cells_that_are_not_learned_from_change_no_prediction(task):
    values, ids, parts, number = task
    spaces = {"PCA": components(values, parts.known, 0)}
    leaky = ids.copy()
    for part in (parts.calibrating, parts.test):
        leaky[part] = np.random.default_rng(0).permutation(leaky[part])
    for method, found in predict(Features(spaces, values, frozenset()), ids, parts, number).items():
        same = predict(Features(spaces, values, frozenset()), leaky, parts, number)[method]
        np.testing.assert_array_equal(found.probabilities, same.probabilities)
        assert (found.probabilities[parts.known] == 0).all()
    keep = np.ones(len(ids))
    keep[parts.test] = 0
    poor = values.multiply(keep[:, None]).tocsr()
    same = components(poor, parts.known, 0)[parts.known]
    np.testing.assert_allclose(same, spaces["PCA"][parts.known], atol=0.01)  # rounding of a solver with float32


def test_baselines_are_those_of_the_other_protocols(task):
    values, ids, parts, number = task
    counts = values.expm1()  # normalised once more they stay the same
    found = predict(Features({"PCA": components(values, parts.known, 0)}, values, frozenset()), ids, parts, number)
    labels = [str(name) for name in ids]
    known = counts[parts.known], [labels[cell] for cell in parts.known], counts[parts.test]
    for method, expected in {
        "logistic regression": baselines.logistic_regression(*known),
        "k-NN on PCA": baselines.knn_on_pca(*known),
    }.items():
        best = found[method].probabilities[parts.test].argmax(1)
        assert (best.astype(str) == expected).mean() > 0.98  # ties and rounding


def test_scores_agree_with_scikit_learn(task):
    values, ids, parts, number = task
    found = predict(Features({"PCA": components(values, parts.known, 0)}, values, frozenset()), ids, parts, number)[
        "k-NN on PCA"
    ]
    statistics = label_statistics(found.probabilities, ids, parts.test)
    best = found.probabilities[parts.test].argmax(1)
    rng = np.random.default_rng(0)
    strangeness, is_held = rng.integers(10, size=140) + 2 * (ids[parts.test] == 0), ids[parts.test] == 0
    for rows in (np.arange(140), rng.integers(140, size=140)):
        true = ids[parts.test][rows]
        assert statistics["accuracy"](rows) == pytest.approx(accuracy_score(true, best[rows]))
        assert statistics["macro-F1"](rows) == pytest.approx(f1_score(true, best[rows], average="macro"))
        expected = roc_auc_score(is_held[rows], strangeness[rows])
        assert auroc_of(strangeness, is_held)(rows) == pytest.approx(expected)
        assert share_of(strangeness > 5, is_held)(rows) == pytest.approx((strangeness[rows] > 5)[is_held[rows]].mean())
    assert np.isnan(auroc_of(strangeness, is_held)(np.flatnonzero(is_held)))


def test_types_held_out_are_frequent_and_in_every_test():
    ids = np.repeat(np.arange(9), [60, 50, 40, 30, 28, 26, 24, 22, 10])
    parts = split(ids, None, 0)
    assert types_to_hold_out(ids, [parts]) == [0, 1, 2, 3, 4, 5]
    without = parts._replace(test=parts.test[ids[parts.test] != 1])
    assert types_to_hold_out(ids, [parts, without]) == [0, 2, 3, 4, 5, 6]
    two = ids[:110]
    assert types_to_hold_out(two, [split(two, None, 0)]) == []  # one type would be left: nothing to tell apart


def test_types_that_are_in_the_test_alone_are_said():
    said = []
    ids = np.array([0, 1] * 20 + [2] * 2)
    parts = split(ids[:40], None, 0)
    parts = parts._replace(test=np.append(parts.test, [40, 41]))
    check_splits([parts], ids, np.array(["a", "b", "c"]), "donor", said.append)
    assert said == ["2 test cells are of types that are not learned (c): they count as wrong"]


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"checkpoints": {}}, "0 checkpoints and 3 seeds: at least one of each is needed"),
    ({"seeds": ()}, "1 checkpoints and 0 seeds"),
    ({"label_key": "cell_type"}, "'cell_type' is not in obs; its columns are bulk_labels, donor"),
    ({"batch_key": "study"}, "'study' is not in obs"),
    ({"label_key": "one"}, r"obs\['one'\] has 1 value"),
    ({"batch_key": "one"}, r"obs\['one'\] has 1 value"),
    ({"label_key": "nothing"}, r"obs\['nothing'\] has 0 value"),
    ({"batch_key": LABEL_KEY}, "label_key and batch_key are both 'bulk_labels'"),
    ({"batch_key": "same"}, r"is in a single batch of obs\['same'\]"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_refused(cells, checkpoint, changes, message):
    adata = cells.copy()
    adata.obs["one"], adata.obs["nothing"] = "x", np.nan
    adata.obs["same"] = adata.obs[LABEL_KEY].map(lambda name: f"sorted {name}")
    call = {"checkpoints": {"new": checkpoint}, "label_key": LABEL_KEY, "seeds": (0, 1, 2)} | changes
    checkpoints, run = call.pop("checkpoints"), Run(call.pop("seeds"), "cpu", len)
    with pytest.raises(ValueError, match=message):
        evaluate_annotation(adata, "pbmc", checkpoints, AnnotationOptions(**call), run)


def test_cells_without_counts_are_refused(cells, checkpoint):
    adata = cells.copy()
    counts = adata.X.tolil()
    counts[11] = 0
    adata.X = counts.tocsr()
    options = AnnotationOptions(label_key=LABEL_KEY)
    with pytest.raises(ValueError, match="1 of 690 cells have no counts on the panel of new: leave them out"):
        evaluate_annotation(adata, "pbmc", {"new": checkpoint}, options, Run((0, 1, 2), "cpu", len))
