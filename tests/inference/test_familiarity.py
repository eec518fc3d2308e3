"""Cells far from the training cells are told, and what is stored gives what was fitted."""

import numpy as np
import pytest

from xtrimogene.inference.familiarity import FILE, Familiarity, distances_to


@pytest.fixture
def space():
    """Embeddings of training cells, of cells like them, and of others."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(number, 5)).astype(np.float32) + shift for number, shift in ((400, 0), (300, 0), (50, 4))]


def test_cells_like_the_training_cells_are_told_as_rarely_as_promised(space):
    known, held_out, others = space
    found = Familiarity.fit(known, held_out[:200], "400 cells")
    assert found.is_unfamiliar(held_out[200:]).mean() < 0.12
    assert found.is_unfamiliar(others).all()


def test_distances_are_those_of_a_plain_search(space):
    known, held_out, _ = space
    every = np.linalg.norm(held_out[:20, None] - known[None], axis=2)
    np.testing.assert_allclose(distances_to(known, held_out[:20]), np.sort(every, axis=1)[:, :5].mean(1), rtol=1e-4)


def test_what_is_saved_tells_the_same(space, tmp_path):
    known, held_out, others = space
    found = Familiarity.fit(known, held_out, "400 cells of blood")
    found.save(tmp_path)
    again = Familiarity.load(tmp_path)
    assert again.source == "400 cells of blood"
    for cells in (held_out, others):
        assert np.array_equal(found.is_unfamiliar(cells), again.is_unfamiliar(cells))
    assert Familiarity.load(tmp_path.parent) is None
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="holds no places of familiar cells"):
        Familiarity.load(tmp_path)


def test_empty_cells_are_not_told_and_other_widths_are_refused(space):
    known, held_out, others = space
    found = Familiarity.fit(known, held_out, "400 cells")
    others[3] = np.nan
    assert np.flatnonzero(~found.is_unfamiliar(others)).tolist() == [3]
    with pytest.raises(ValueError, match="embeddings are 4 wide and those of"):
        found.is_unfamiliar(others[:, :4])


def test_few_held_out_cells_tell_nothing(space):
    known, held_out, _ = space
    assert Familiarity.fit(known, held_out[:99], "400 cells") is None


def test_a_doubt_is_said_where_far_more_cells_are_told_than_usual(space):
    known, held_out, _ = space
    found = Familiarity.fit(known, held_out, "400 cells of blood")
    usual = found.described(np.arange(200) < 10)
    assert (usual["share"], usual["usual"], usual["trained on"]) == (0.05, 0.05, "400 cells of blood")
    assert "doubt" not in usual
    assert "xtrimogene adapt" in found.described(np.arange(200) < 100)["doubt"]
    assert found.described(np.zeros(0, bool))["share"] == 0
