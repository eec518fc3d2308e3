import itertools

import numpy as np
import pytest
from PIL import Image

from xtrimogene.eval.report import colours, maps


@pytest.fixture
def groups():
    """Groups of different sizes, and places of their cells."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["B cells", "T cells that have a long name", "NK", "rare"], [60, 50, 30, 5])
    places = rng.normal(size=(len(labels), 2)) + np.repeat(
        [[0, 0], [1, 0.1], [9, 9], [0.5, 0]], [60, 50, 30, 5], axis=0
    )
    return labels, places


@pytest.mark.slow  # UMAP is compiled
def test_umap_draws_panels_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.choice([f"type {index:02}" for index in range(12)], 60)
    embedding = rng.normal(size=(60, 5)) + 3 * (labels == "type 03")[:, None]
    maps.umap({"first": embedding, "second": embedding[:, :2]}, labels, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.width > 2 * image.height > 800
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50


@pytest.mark.usefixtures("quick_umap")
def test_umap_tells_every_type_apart():
    """On the picture and in the legend."""
    most = 40
    labels = [f"type {index:03}" for index in range(most)] * 2
    embedding = np.random.default_rng(0).normal(size=(2 * most, 2))
    figure = maps.umap({"all": embedding}, labels)
    for handles in (figure.axes[0].collections, figure.legends[0].legend_handles):
        looks = {(handle.get_facecolor().tobytes(), handle.get_paths()[0].vertices.tobytes()) for handle in handles}
        assert len(looks) == most
    too_many = [str(index) for index in range(len(colours.COLOURS) * len(colours.MARKERS) + 1)]
    with pytest.raises(ValueError, match="categories, and the picture tells"):
        maps.umap({"all": np.zeros((len(too_many), 2))}, too_many)


@pytest.mark.usefixtures("quick_umap")
def test_distances_of_a_umap_mean_the_same_in_every_direction():
    embedding = np.random.default_rng(0).normal(size=(40, 2)) * [1, 20]
    assert [axis.get_aspect() for axis in maps.umap({"a": embedding, "b": embedding}, ["x"] * 40).axes] == [1, 1]


def test_dots_are_smaller_where_there_are_more_and_small_groups_lie_on_top(groups):
    labels, places = groups
    few = maps.annotation_map(places, labels.tolist(), np.ones(len(labels)))
    many = maps.annotation_map(np.tile(places, (40, 1)), np.tile(labels, 40).tolist(), np.ones(40 * len(labels)))
    assert few.axes[0].collections[0].get_sizes()[0] > 2 * many.axes[0].collections[0].get_sizes()[0]
    order = sorted(few.axes[0].collections, key=lambda dots: dots.get_zorder())
    sizes = [len(dots.get_offsets()) for dots in order]
    assert sizes == sorted(sizes, reverse=True)


def test_names_on_the_map_overlap_neither_each_other_nor_the_axes_and_the_legend_no_cells(groups):
    labels, places = groups
    figure = maps.annotation_map(places, labels.tolist(), np.linspace(0.1, 1, len(labels)), labels == "rare")
    figure.draw_without_rendering()
    left, right, *_ = figure.axes
    boxes = [text.get_window_extent() for text in left.texts]
    assert sorted(text.get_text().replace("\n", " ") for text in left.texts) == sorted(set(labels))
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(-2).overlaps(other.padded(-2))
    assert min(box.x0 for box in boxes) >= left.get_window_extent().x0 - 2
    legend = figure.legends[0].get_window_extent()
    assert all(not legend.overlaps(axis.get_window_extent()) for axis in (left, right))
    crosses = right.collections[-1]
    assert len(crosses.get_offsets()) == 5
    assert right.get_legend().texts[0].get_text() == "called unknown"


def test_unsure_cells_lie_on_top_of_sure_ones(groups):
    labels, places = groups
    sure = np.random.default_rng(1).random(len(labels))
    figure = maps.annotation_map(places, labels.tolist(), sure)
    np.testing.assert_array_equal(figure.axes[1].collections[0].get_array(), np.sort(sure)[::-1])


def test_groups_of_few_cells_are_named_in_the_legend_alone():
    labels = np.repeat(["B", "T", "platelet"], [150, 145, 2])
    places = np.random.default_rng(0).normal(size=(len(labels), 2))
    figure = maps.annotation_map(places, labels.tolist(), np.ones(len(labels)))
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["B", "T"]
    assert "platelet (2)" in {text.get_text() for text in figure.legends[0].texts}
