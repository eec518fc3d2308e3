"""Few labels: what is drawn, that all learn from it alone, and that labels that say something are learned."""

import anndata
import numpy as np
import pytest
import torch

import xtrimogene
from xtrimogene.eval.evaluate import TASKS
from xtrimogene.eval.measures.corpus_pca import CorpusPCA
from xtrimogene.eval.measures.trained_on import save_trained_on
from xtrimogene.eval.tasks import few_labels
from xtrimogene.eval.tasks.embedding import Embedded
from xtrimogene.eval.tasks.few_labels import FewLabelsOptions, drawn, evaluate_few_labels
from xtrimogene.eval.tasks.run import Run
from xtrimogene.training.data.dataset import cells_dataset

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1, "decoder_head_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def cells():
    """240 real blood cells with raw values."""
    import scanpy as sc

    adata = sc.datasets.pbmc68k_reduced()
    return anndata.AnnData(adata.raw.X.copy(), obs=adata.obs[["bulk_labels"]], var=adata.raw.var[[]])[:240].copy()


@pytest.fixture(scope="module")
def checkpoint(cells, tmp_path_factory, measured_genes):
    """A new model of the measured genes, which says that it was trained on the first 60 of the cells."""
    folder = tmp_path_factory.mktemp("checkpoint")
    genes = measured_genes(cells.var_names)
    torch.manual_seed(0)
    xtrimogene.XTrimoGeneModel(xtrimogene.XTrimoGeneConfig(num_genes=len(genes), **SIZES)).save_pretrained(folder)
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder)
    tokenizer.save_pretrained(folder)
    trained = cells_dataset(tokenizer.read_counts(cells)).select(range(60))
    save_trained_on(folder, trained, tokenizer)
    CorpusPCA.fit(trained, tokenizer).save(folder)
    return str(folder)


@pytest.mark.slow  # trainings
def test_methods_are_scored_at_each_number_of_labels_and_say_what_they_have_seen(cells, checkpoint):
    assert TASKS["few-labels"].evaluate is evaluate_few_labels
    said = []
    options = FewLabelsOptions(label_key="bulk_labels", labels_per_type=[9, 3], fine_tuning_epochs=1)
    run = Run(seeds=(1,), device="cpu", say=said.append)
    result = evaluate_few_labels(cells, "blood", {"small": checkpoint}, options, run)
    values = {(score.method, score.metric): score for score in result.scores if score.data == "blood"}
    assert list(dict.fromkeys(metric for _, metric in values)) == [
        "macro-F1, 3 labels", "macro-F1, 9 labels", "accuracy, 3 labels", "accuracy, 9 labels",
    ]  # fmt: skip
    on_components = "logistic regression on PCA of the corpus of small"
    seen = {score.method: score.seen for score in result.scores}
    assert seen == {
        "small, k-NN": "56 of 218", "small, linear probe": "56 of 218", "logistic regression": "none",
        on_components: "56 of 218", "logistic regression, shuffled labels": "none", "small, fine-tuned": "56 of 218",
    }  # fmt: skip
    assert values["logistic regression", "accuracy, 9 labels"].value > 0.5
    assert values[on_components, "accuracy, 9 labels"].value > 0.4
    assert values["logistic regression, shuffled labels", "accuracy, 9 labels"].value < 0.35
    less = {
        (each.method, each.metric): each for each in result.scores if each.data == "blood, less logistic regression"
    }
    assert len(values) + len(less) == len(result.scores)
    assert {method for method, _ in less} == {"small, k-NN", "small, linear probe", "small, fine-tuned"}
    for (method, metric), found in less.items():
        apart = values[method, metric].value - values["logistic regression", metric].value
        assert found.value == pytest.approx(apart)
        assert (found.low <= apart <= found.high, found.seen) == (True, "56 of 218")
    assert sum(line.startswith("seed ") for line in said) == 2
    assert result.settings["labels a type"] == [3, 9]


def test_a_larger_draw_holds_the_smaller_one_and_no_test_cell():
    ids = np.repeat([0, 1, 2], [50, 20, 4])
    rest = np.setdiff1d(np.arange(74), [0, 50, 70])
    few, more = (drawn(ids, rest, number, seed=0) for number in (3, 10))
    assert np.bincount(ids[few]).tolist() == [3, 3, 3]
    assert np.bincount(ids[more]).tolist() == [10, 10, 3]  # all that are left of the last
    assert set(few) < set(more) <= set(rest)
    assert set(few) != set(drawn(ids, rest, 3, seed=1))
    assert set(drawn(ids, rest, None, seed=0)) == set(rest)


def test_methods_learn_from_the_labelled_cells_alone():
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    ids = np.repeat([0, 1], 30)
    values = rng.normal(size=(60, 5)) + 6 * ids[:, None]
    known, test = np.array([0, 1, 30, 31]), np.arange(40, 60)
    found = few_labels.FewFeatures({"a": Embedded(values, "")}, {"b": Embedded(values, "")}, csr_matrix(values))
    predicted = few_labels.predict_from(known, test, ids, found, seed=0)
    shuffled = predicted.pop("logistic regression, shuffled labels")
    assert len(shuffled) == 20
    assert len(predicted) == 4
    for guess in predicted.values():
        np.testing.assert_array_equal(guess, ids[test])
    # Other labels of all cells but the known ones, the test among them, change nothing.
    others = np.where(np.isin(np.arange(60), known), ids, 1 - ids)
    for method, guess in few_labels.predict_from(known, test, others, found, seed=0).items():
        np.testing.assert_array_equal(guess, predicted.get(method, shuffled))


def test_the_first_step_of_an_anchored_checkpoint_is_a_regression_on_genes_and_embedding():
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    ids = np.repeat([0, 1], 30)
    genes, known, test = rng.normal(size=(60, 5)), np.arange(0, 60, 3), np.arange(1, 60, 3)

    def predicted(embedded):
        anchored = {"a": Embedded(embedded, "", is_scaled=False)}
        found = few_labels.FewFeatures(anchored, {}, csr_matrix(genes))
        return few_labels.predict_from(known, test, ids, found, seed=0)

    np.testing.assert_array_equal(predicted(6 * ids[:, None] + rng.normal(size=(60, 2)))["a, first step"], ids[test])
    of_noise = predicted(rng.normal(size=(60, 2)))  # which does not help, and has no part
    np.testing.assert_array_equal(of_noise["a, first step"], of_noise["logistic regression"])


@pytest.mark.parametrize("numbers", [[], [0, 5], [5, 5]])
def test_numbers_of_labels_that_make_no_sense_are_refused(numbers):
    with pytest.raises(ValueError, match="give different positive numbers"):
        few_labels.checked_numbers(numbers)


def test_no_checkpoint_is_refused(cells):
    with pytest.raises(ValueError, match="0 checkpoints are given"):
        evaluate_few_labels(cells, "blood", {}, FewLabelsOptions(label_key="bulk_labels"))
