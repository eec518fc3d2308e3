"""Cells get the labels of a reference or of a classifier, or none."""

import numpy as np
import pytest
import torch

import xtrimogene
from xtrimogene import XTrimoGeneConfig, XTrimoGeneForSequenceClassification


def test_annotate_with_a_reference_needs_no_labels_in_the_query(checkpoint, real_cells):
    query = real_cells[::2].copy()
    del query.obs
    xtrimogene.tl.annotate(query, checkpoint, reference=real_cells, label_key="cell_type", n_neighbors=1, device="cpu")
    is_empty = np.arange(len(query)) * 2 == 11
    expected = real_cells.obs["cell_type"][::2].astype(str).to_numpy()
    assert (query.obs["xtrimogene_label"].astype(str)[~is_empty] == expected[~is_empty]).all()  # each finds itself
    # One neighbour gives the same certainty for all: how often it is right in the reference. The second label is that
    # of the next nearest type.
    second = query.obs["xtrimogene_second_label"].astype(str).to_numpy()
    assert (
        query.obs["xtrimogene_second_label"].isna().to_numpy().nonzero()[0].tolist() == is_empty.nonzero()[0].tolist()
    )
    assert (second != expected)[~is_empty].all()
    assert np.ptp(query.obs["xtrimogene_probability"][~is_empty]) < 1e-6
    about = query.uns["xtrimogene"]["unknown"]
    assert about["calibrated on"] == "38 reference cells, cross-fitted in 5 folds"
    assert query.obs["xtrimogene_unknown"].mean() < 0.3


def test_cells_of_a_type_that_the_reference_lacks_are_unknown_and_keep_a_label(checkpoint, pbmc):
    labels = pbmc.obs["bulk_labels"]
    is_held = (labels == "CD34+").to_numpy()
    is_reference = (np.arange(pbmc.n_obs) % 2 == 0) & ~is_held
    reference, query = pbmc[is_reference].copy(), pbmc[~is_reference].copy()
    options = {"reference": reference, "label_key": "bulk_labels", "device": "cpu"}
    xtrimogene.tl.annotate(query, checkpoint, **options, unknown_threshold=0.1)
    obs, is_held = query.obs, is_held[~is_reference]
    assert obs["xtrimogene_unknown"].dtype == bool
    assert obs["xtrimogene_unknown"][is_held].mean() > 2 * obs["xtrimogene_unknown"][~is_held].mean()
    assert obs["xtrimogene_unknown"][~is_held].mean() < 0.2
    assert obs["xtrimogene_label"].notna().all()
    assert (obs["xtrimogene_label"].astype(str) != obs["xtrimogene_second_label"].astype(str)).all()
    some = query[:20].copy()
    xtrimogene.tl.annotate(some, checkpoint, **options, unknown_threshold=0, key_added="never")
    assert not some.obs["never_unknown"].any()
    np.testing.assert_allclose(some.obs["never_probability"], some.obs["xtrimogene_probability"], atol=1e-3)
    few = options | {"reference": reference[:9].copy()}
    xtrimogene.tl.annotate(some, checkpoint, **few)
    assert "xtrimogene_unknown" not in some.obs  # nor that of the first call
    assert some.uns["xtrimogene"]["unknown"]["note"] == "no calibration: the reference has 9 cells with counts"


def test_annotate_with_a_classifier(sizes, tmp_path, real_cells):
    torch.manual_seed(0)
    config = XTrimoGeneConfig(**sizes, id2label={0: "B", 1: "T", 2: "NK"})
    XTrimoGeneForSequenceClassification(config).save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.default().save_pretrained(tmp_path)
    query = real_cells.copy()
    xtrimogene.tl.annotate(query, tmp_path, device="cpu")
    assert query.obs["xtrimogene_label"].isna().to_numpy().nonzero()[0].tolist() == [11]
    assert set(query.obs["xtrimogene_label"].cat.categories) == {"B", "T", "NK"}
    probability = query.obs["xtrimogene_probability"].drop(query.obs_names[11])
    assert probability.between(1 / 3, 1).all()
    second = query.obs["xtrimogene_second_label"].astype(str)
    assert (second != query.obs["xtrimogene_label"].astype(str)).drop(query.obs_names[11]).all()
    # A folder of an older version: no column rather than a wrong one.
    assert "xtrimogene_unknown" not in query.obs
    note = query.uns["xtrimogene"]["unknown"]["note"]
    assert "has no calibration.safetensors; `xtrimogene finetune` writes one" in note


def test_annotate_says_what_speaks_against_its_labels(checkpoint, real_cells):
    """Labels at random are learned by nobody; of a reference of 39 cells little can be said."""
    reference, query = real_cells.copy(), real_cells.copy()
    reference.obs["cell_type"] = np.random.default_rng(0).choice(["a", "b", "c"], reference.n_obs)
    with pytest.warns(UserWarning, match=r"Only \d+% of the calibration cells .* are named right: do not trust"):
        xtrimogene.tl.annotate(query, checkpoint, reference=reference, label_key="cell_type", device="cpu")
    about = query.uns["xtrimogene"]["unknown"]
    assert about["accuracy on these cells"] < 0.6
    assert about["doubts"][0].startswith("Only 38 cells calibrate")
    assert len(about["doubts"]) == 2


def test_a_calibration_of_other_labels_is_refused(sizes, tmp_path, real_cells):
    from xtrimogene.inference.calibration import Calibration

    torch.manual_seed(0)
    config = XTrimoGeneConfig(**sizes, id2label={0: "B", 1: "T", 2: "NK"})
    XTrimoGeneForSequenceClassification(config).save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.default().save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    known, ids = rng.normal(size=(30, config.pooled_size)), np.arange(30) % 3
    even = np.full((30, 3), 1 / 3)
    Calibration.fit(even, ids, known, known, ids, ["B", "T", "Mono"]).save(tmp_path)
    with pytest.raises(ValueError, match="is for the labels B, T, Mono, and the model has B, T, NK"):
        xtrimogene.tl.annotate(real_cells.copy(), tmp_path, device="cpu")
    Calibration.fit(even, ids, known[:, 1:], known[:, 1:], ids, ["B", "T", "NK"]).save(tmp_path)
    with pytest.raises(ValueError, match="this calibration is of another annotator; fine-tune again"):
        xtrimogene.tl.annotate(real_cells.copy(), tmp_path, device="cpu")


def test_reference_without_all_labels_is_refused(checkpoint, real_cells):
    reference = real_cells.copy()
    reference.obs.loc[reference.obs_names[:5], "cell_type"] = np.nan
    with pytest.raises(ValueError, match="has no label for 5 of"):
        xtrimogene.tl.annotate(real_cells.copy(), checkpoint, reference=reference, label_key="cell_type")
