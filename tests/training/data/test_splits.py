"""Splits keep groups together and refuse what leaves a side empty."""

import numpy as np
import pytest

from xtrimogene.training.data.splits import encode_labels, split_corpus, stratified_split


@pytest.mark.parametrize(("by", "num_held_out"), [(None, 112), ("donor", 80), ("source", 60)])
def test_split(corpus, by, num_held_out):
    train, held_out = split_corpus(corpus, 0.2, by, seed=0)
    assert sorted([*train, *held_out]) == list(range(560))
    assert np.array_equal(held_out, split_corpus(corpus, 0.2, by, seed=0)[1])
    if by != "source":
        assert len(held_out) == num_held_out
        assert not np.array_equal(held_out, split_corpus(corpus, 0.2, by, seed=1)[1])
    if by is not None:
        assert not set(corpus.select(train)[by]) & set(corpus.select(held_out)[by])


def test_split_refuses_what_leaves_a_side_empty(corpus):
    with pytest.raises(ValueError, match=r"1 sources and a validation_share of 0.2 leave nothing to train on"):
        split_corpus(corpus.select(np.arange(100)), 0.2, "source")
    with pytest.raises(ValueError, match="by is 'study', and the corpus has the columns input_ids"):
        split_corpus(corpus, 0.2, "study")


def test_splits_keep_groups_together_and_classes_in_proportion(labelled):
    _, ids, _ = labelled
    train, test = stratified_split(ids, 0.25, seed=0)
    assert sorted([*train, *test]) == list(range(len(ids)))
    shares = np.bincount(ids[test]) / np.bincount(ids)
    assert shares.min() > 0.15
    assert shares.max() < 0.35
    groups = np.arange(len(ids)) % 7
    train, test = stratified_split(ids, 0.25, seed=0, groups=groups)
    assert not set(groups[train]) & set(groups[test])


@pytest.mark.parametrize(("labels", "message"), [
    (["B", None, "T", np.nan], "labels has no label for 2 of 4 cells"),
    (["B", "B"], r"labels has 1 class in 2 cells \(B\)"),
])  # fmt: skip
def test_labels_that_cannot_be_learnt_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        encode_labels(labels)


def test_a_class_of_one_cell_cannot_be_split():
    with pytest.raises(ValueError, match="Mast has 1 cell of 5"):
        stratified_split(["B", "B", "B", "B", "Mast"], 0.5, seed=0)
