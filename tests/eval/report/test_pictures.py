import numpy as np
import pytest
from PIL import Image

from xtrimogene.eval.report import pictures


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture.png"


def assert_is_a_picture(path, min_colours=20):
    with Image.open(path) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > min_colours


@pytest.mark.parametrize("logged", [("loss",), ("loss", "eval_loss", "eval_pearson")])
def test_loss_curve_draws_what_was_logged(path, logged):
    history = [{"step": step, name: 1 / (1 + step)} for name in logged for step in range(0, 100, 10)]
    pictures.loss_curve([*history, {"step": 100, "train_loss": 0.1}], path)
    assert_is_a_picture(path)


def test_confusion_matrix_takes_labels_without_cells(path):
    rng = np.random.default_rng(0)
    labels = [f"type {index}" for index in range(11)]
    true = rng.choice(labels, 500)
    predicted = np.where(rng.random(500) < 0.8, true, rng.choice(labels, 500))
    pictures.confusion_matrix(true, predicted, [*labels, "never seen"], path)
    assert_is_a_picture(path)


def test_recovery_scatter_ignores_padding(path, tmp_path):
    rng = np.random.default_rng(0)
    true = rng.gamma(2, 1, (20, 30)).astype(np.float32)
    true[:, 20:] = -100
    predicted = true + rng.normal(0, 0.3, true.shape).astype(np.float32)
    pictures.recovery_scatter(true, predicted, path)
    assert_is_a_picture(path)
    pictures.recovery_scatter(true, np.where(true == -100, 1e3, predicted), tmp_path / "other.png")
    assert path.read_bytes() == (tmp_path / "other.png").read_bytes()


def test_pictures_leave_the_backend_alone(path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    pictures.loss_curve([{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}], path)
    assert matplotlib.get_backend() == "svg"


def drawn_axes(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


def test_small_differences_are_not_drawn_as_a_climb_and_baselines_stand_beside():
    history = [
        {"step": step, "eval_loss": 0.345 - step / 1e5, "eval_pearson": 0.8165 + step / 1e5} for step in (0, 300)
    ]
    baselines = {"gene mean": {"pearson": 0.820, "mse": 0.372}, "PCA": {"pearson": 0.832}}
    loss, correlation = drawn_axes(pictures.loss_curve(history, baselines=baselines))
    for axis, heights in ((loss, {"gene mean": 0.372}), (correlation, {"gene mean": 0.820, "PCA": 0.832})):
        low, high = axis.get_ylim()
        assert high - low >= 0.0999
        drawn = {line.get_label(): line.get_ydata()[0] for line in axis.lines if line.get_label() in baselines}
        assert drawn == heights
        assert all(low < height < high for height in heights.values())
    (axis,) = drawn_axes(pictures.lines({"a": ([95, 98], [0.801, 0.803])}, "zeros, %", "Pearson"))
    assert np.diff(axis.get_ylim())[0] >= 0.0999
    (axis,) = drawn_axes(pictures.lines({"a": ([95, 98], [0.8, 0.1])}, "zeros, %", "Pearson"))
    assert np.diff(axis.get_ylim())[0] < 0.8  # what differs keeps its range


def test_a_diagonal_is_one():
    """Predictions are often much smaller than the truth: on scales of their own the diagonal looks upright."""
    true = np.linspace(-1.5, 0.5, 30)
    figures = [
        pictures.scatter_panels(dict.fromkeys("ABCDE", (true, 0.02 * true)), "true", "predicted"),
        pictures.lines({"a": ([0.4, 0.6], [0.1, 0.9])}, "probability", "share", diagonal=True),
    ]
    for figure in figures:
        for axis in drawn_axes(figure):
            assert axis.get_xlim() == axis.get_ylim()
            assert axis.get_aspect() == 1
            points = [line.get_xydata() for line in axis.lines[:-1]]  # the last one is the diagonal
            shown = np.concatenate([*points, *(dots.get_offsets() for dots in axis.collections)])
            assert axis.get_xlim()[0] <= shown.min() <= shown.max() <= axis.get_xlim()[1]
    assert len(drawn_axes(figures[0])) == 5


def test_significant_values_are_full_circles_beside_their_null(path):
    null = np.random.default_rng(0).normal(size=500)
    panel = (null, np.array([0.0, 5.0, -1.0]), np.array([False, True, False]))
    figure = pictures.null_panels({"PCA": panel, "ours": panel}, path)
    assert_is_a_picture(path)
    for axis in drawn_axes(figure):
        (circles,) = axis.collections
        assert circles.get_offsets()[:, 0].tolist() == [0, 5, -1]
        assert [face[:3].min() < 1 for face in circles.get_facecolors()] == [False, True, False]


def test_genes_of_each_type_are_bars_in_its_colour_on_one_scale(path):
    types = {"B": (["CD79A", "MS4A1"], [0.6, 0.2]), "T": (["CD3D"], [0.1])}
    figure = pictures.gene_bars(types, "adds", {"B": "#332288", "T": "#117733"}, path)
    assert path.stat().st_size > 5_000
    first, second = drawn_axes(figure)
    assert first.get_xlim() == second.get_xlim()
    assert [label.get_text() for label in first.get_yticklabels()] == ["CD79A", "MS4A1"]
    assert first.yaxis_inverted()  # the first gene is on top
    assert [bar.get_width() for bar in first.patches] == [0.6, 0.2]
    assert first.patches[0].get_facecolor() != second.patches[0].get_facecolor()


def test_legends_cover_no_curve():
    history = [{"step": step, "loss": 1 / (1 + step), "eval_pearson": step / 50} for step in range(40)]
    curves = {f"a method with a long name, {index}": ([1, 2], [0.1 * index, 0.9]) for index in range(5)}
    for figure in (pictures.loss_curve(history), pictures.lines(curves, "cells", "accuracy")):
        figure.draw_without_rendering()
        for axis in drawn_axes(figure):
            assert axis.get_legend().get_window_extent().y1 < axis.get_window_extent().y0
