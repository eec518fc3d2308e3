"""Time to quality: the clock counts training alone, and the first score that is good enough decides."""

from functools import partial

import numpy as np
import pytest
import torch

from xtrimogene.eval.cost import time_to_quality
from xtrimogene.eval.cost.time_to_quality import Point, Quality, neighbor_score, quality_of, times_to_quality


class Clock:
    """A clock that training, embedding and scoring put forward."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_the_clock_stands_still_while_cells_are_embedded_and_scored():
    clock = Clock()

    def embed(value):
        clock.now += 1000
        return np.array([value])

    def score(embedding):
        clock.now += 500
        return float(embedding[0])

    def train(look):
        look(partial(embed, 0.2))  # before the first step
        for value in (0.5, 0.8):
            clock.now += 3
            look(partial(embed, value))

    found = quality_of(train, score, clock)
    assert found.points == [Point(0.0, 0.2), Point(3.0, 0.5), Point(6.0, 0.8)]


@pytest.mark.parametrize(
    ("scores", "seconds"),
    [
        ([0.5, 0.7, 0.8], 2),
        ([0.5, 0.795, 0.8], 1),
        ([0.5, 0.785, 0.8], 2),
        ([0.8, 0.5, 0.6], 0),  # it became worse: it need not have gone on
        ([0.8], 0),
    ],
)
def test_the_first_score_near_the_best_decides(scores, seconds):
    found = Quality([Point(float(number), score) for number, score in enumerate(scores)])
    assert (found.best, found.seconds) == (0.8, seconds)


def test_to_be_looked_at_does_not_change_the_training():
    def train(look, drawn):
        torch.manual_seed(0)
        for _ in range(3):
            drawn.append(float(torch.rand(1)))
            look(lambda: torch.rand(4, 2).numpy())

    drawn = []
    quality_of(partial(train, drawn=drawn), lambda embedding: 0.0)
    torch.manual_seed(0)
    assert drawn == [float(torch.rand(1)) for _ in range(3)]


def test_a_method_that_shows_nothing_is_refused():
    with pytest.raises(ValueError, match="train has shown 0 embeddings"):
        quality_of(lambda look: None, lambda embedding: 0.0)


def test_labels_that_an_embedding_holds_are_found():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 30)
    noise = rng.normal(size=(60, 4))
    assert neighbor_score(labels)(noise) < 0.75
    assert neighbor_score(labels)(noise + 9 * (labels == "b")[:, None]) == 1
    assert neighbor_score(labels, np.tile(["one", "two"], 30))(noise + 9 * (labels == "b")[:, None]) == 1


def test_scvi_is_left_out_with_a_reason_where_it_is_not_installed(monkeypatch):
    said = []
    monkeypatch.setattr(time_to_quality, "scvi_version", lambda: None)
    rng = np.random.default_rng(0)
    trainings = {"ours": lambda look: look(lambda: rng.normal(size=(40, 2)))}
    found = times_to_quality(trainings, None, np.repeat(["a", "b"], 20), say=said.append)
    assert list(found) == ["ours"]
    assert "scVI is left out, because scvi-tools is not installed" in said[0]
    assert said[1].startswith("ours: k-NN macro-F1 ")


def test_scvi_is_looked_at_while_it_trains(monkeypatch):
    pytest.importorskip("scvi", reason="needs this baseline: pip install scvi-tools")
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 60)
    counts = csr_matrix(rng.poisson(rng.gamma(1.0, size=(2, 300))[(labels == "b").astype(int)]).astype(np.float32))
    shapes = []

    def look(embed):
        shapes.append(embed().shape)

    monkeypatch.setattr(time_to_quality, "EPOCHS_BETWEEN", 2)
    time_to_quality.train_scvi(look, counts, max_epochs=5)
    assert shapes == [(120, 10)] * 3  # after 2, 4 and 5 epochs
    train = partial(time_to_quality.train_scvi, max_epochs=60)
    monkeypatch.setattr(time_to_quality, "train_scvi", train)
    monkeypatch.setattr(time_to_quality, "EPOCHS_BETWEEN", 20)
    found = times_to_quality({}, counts, labels, say=len)["scVI"]
    assert len(found.points) == 4
    assert found.best > 0.9
    assert [point.seconds for point in found.points] == sorted(point.seconds for point in found.points)
