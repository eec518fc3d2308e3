"""Pictures of training and evaluation. Each function returns the figure, and writes a PNG if it gets a path.

    loss_curve   confusion_matrix   recovery_scatter   lines   scatter_panels   null_panels   gene_bars

Figures are made without pyplot, so they do not change the user's backend and open figures.
`maps.py` draws UMAPs.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...tokenization.collators import IGNORED
from ..measures.metrics import confusion, masked_value_metrics
from .colours import COLOURS, GREY, MARKERS, SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DPI = 200
LEAST_RANGE = 0.1  # smallest range of an axis of correlations, so that differences of a thousandth look small


def loss_curve(
    history: Sequence[Mapping[str, Any]],
    path: str | os.PathLike | None = None,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> "Figure":
    """Draw training and validation loss over steps, and the validation Pearson beside them if it was logged.

    Args:
        history: `trainer.state.log_history`: dicts with `step` and `loss`, `eval_loss` or `eval_pearson`.
        path: The PNG to write, if any.
        baselines: Name of a baseline -> its `pearson` and, where the loss is a squared error, its `mse` on the same
            validation cells; each is drawn as a horizontal line.

    Example:
        >>> history = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.5}, {"step": 20, "eval_loss": 1.6}]
        >>> figure = loss_curve(history, "loss.png")
    """
    validation = {"color": COLOURS[0], "marker": "o", "markersize": 4}
    has_pearson = any("eval_pearson" in entry for entry in history)
    figure = _figure(5.2 * (1 + has_pearson), 3.6)
    axes = figure.subplots(1, 1 + has_pearson, squeeze=False)[0]
    axes[0].plot(*_curve(history, "loss"), color=COLOURS[3], label="training")
    if any("eval_loss" in entry for entry in history):
        axes[0].plot(*_curve(history, "eval_loss"), **validation, label="validation")
    axes[0].set(xlabel="step", ylabel="loss", title="Loss")
    if has_pearson:
        axes[1].plot(*_curve(history, "eval_pearson"), **validation, label="validation")
        axes[1].set(xlabel="step", ylabel="Pearson correlation", title="Masked values, validation")
    for axis, metric in zip(axes, ("mse", "pearson"), strict=False):
        for index, (name, scores) in enumerate((baselines or {}).items()):
            if metric in scores:
                colour = COLOURS[1 + index % (len(COLOURS) - 1)]
                axis.axhline(scores[metric], color=colour, linewidth=1, linestyle="--", label=name)
        _widen(axis, LEAST_RANGE)
        _legend_below(axis)
    return _save(figure, path)


def confusion_matrix(
    true: Sequence[str], predicted: Sequence[str], labels: Sequence[str], path: str | os.PathLike | None = None
) -> "Figure":
    """Draw a confusion matrix: a row shows how the cells of a true label were predicted, in per cent.

    Args:
        true: True label of each cell.
        predicted: Predicted label of each cell.
        labels: Labels in the order of rows and columns.
        path: The PNG to write, if any.

    Example:
        >>> figure = confusion_matrix(["B", "B", "T"], ["B", "T", "T"], labels=["B", "T"], path="confusion.png")
    """
    counts = confusion(true, predicted, labels)
    totals = counts.sum(axis=1)
    percent = 100 * counts / np.maximum(totals, 1)[:, None]
    side = 2.6 + 0.42 * len(labels)
    figure = _figure(side + 0.8, side)
    axis = figure.subplots()
    image = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(percent >= 0.5):  # a smaller value would be shown as "0"
        value = percent[row, column]
        colour = "white" if value > 55 else "black"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(labels)), [f"{label} ({total:,})" for label, total in zip(labels, totals, strict=True)])
    axis.set(xlabel="predicted", ylabel="true (cells)")
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="% of the true label", fraction=0.046, pad=0.03)
    return _save(figure, path)


def recovery_scatter(true: np.ndarray, predicted: np.ndarray, path: str | os.PathLike | None = None) -> "Figure":
    """Draw predicted against true values of masked genes, as densities.

    Args:
        true: True values, -100 where padded. Shape `(C, M)`.
        predicted: Predictions at the same positions.
        path: The PNG to write, if any.

    Example:
        >>> true, predicted = np.array([[0.0, 2.0], [4.0, -100.0]]), np.array([[0.0, 1.0], [3.0, 9.0]])
        >>> figure = recovery_scatter(true, predicted, "recovery.png")
    """
    scores = masked_value_metrics(true, predicted)
    true, predicted = true[true != IGNORED], predicted[true != IGNORED]
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    figure = _figure(4.8, 4.2)
    axis = figure.subplots()
    extent = (low, high, low, high)
    image = axis.hexbin(true, predicted, gridsize=60, extent=extent, bins="log", cmap=SEQUENTIAL, mincnt=1)
    axis.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle="--")
    axis.set(
        aspect="equal",
        xlabel="true, log1p(CP10K)",
        ylabel="predicted, log1p(CP10K)",
        title=f"Pearson {scores['pearson']:.3f}, of expressed {scores['pearson_expressed']:.3f}",
    )
    figure.colorbar(image, ax=axis, label="values")
    return _save(figure, path)


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    path: str | os.PathLike | None = None,
) -> "Figure":
    """Draw curves of correlations or shares with a marker at each point. The y axis spans at least 0.1.

    Args:
        curves: Name -> x values and y values.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        diagonal: Whether to draw the line x = y, with one scale for both axes.
        path: The PNG to write, if any.

    Example:
        >>> figure = lines({"PCA": ([90, 95], [0.5, 0.4])}, "zeros, %", "Pearson", path="lines.png")
    """
    figure = _figure(5.6, 4.8 if diagonal else 3.8)
    axis = figure.subplots()
    for index, (name, (places, heights)) in enumerate(curves.items()):
        look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4}
        axis.plot(places, heights, **look, label=name)
    if diagonal:
        _one_scale(axis)
    else:
        _widen(axis, LEAST_RANGE)
    axis.set(xlabel=x_label, ylabel=y_label)
    _legend_below(axis)
    return _save(figure, path)


def scatter_panels(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    path: str | os.PathLike | None = None,
) -> "Figure":
    """Draw a panel of points for each title, four in a row, with the line x = y.

    Args:
        panels: Title -> x values and y values.
        x_label: Label of the x axes.
        y_label: Label of the y axes.
        path: The PNG to write, if any.

    Example:
        >>> figure = scatter_panels({"KLF1": (np.zeros(3), np.ones(3))}, "true", "predicted", path="panels.png")
    """
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = _figure(2.8 * columns, 2.8 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, (places, heights)) in zip(axes, panels.items(), strict=False):
        axis.scatter(places, heights, s=6, color=COLOURS[0], alpha=0.6, linewidths=0)
        _one_scale(axis)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel=x_label, ylabel=y_label)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return _save(figure, path)


def null_panels(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: str | os.PathLike | None = None
) -> "Figure":
    """Draw a panel for each title: the distribution of a null as an area, and what is compared with it as circles.

    Args:
        panels: Title -> values of the null, values that are compared with it, and whether each of these is significant.
        path: The PNG to write, if any.

    Example:
        >>> null = np.random.default_rng(0).normal(size=1_000)
        >>> figure = null_panels({"PCA": (null, np.array([0.1, 4.0]), np.array([False, True]))}, "null.png")
    """
    figure = _figure(2.8 * len(panels), 2.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, (null, values, is_significant)) in zip(axes, panels.items(), strict=True):
        heights, _, _ = axis.hist(null, bins=60, density=True, color=GREY, alpha=0.5)
        places = np.linspace(0.05, 0.95, len(values)) * heights.max()
        faces = [COLOURS[0] if each else "white" for each in is_significant]
        axis.scatter(values, places, s=14, c=faces, edgecolors=COLOURS[0], linewidths=0.8)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="cosine", yticks=[])
    return _save(figure, path)


def gene_bars(
    types: Mapping[str, tuple[Sequence[str], Sequence[float]]],
    x_label: str,
    colours: Mapping[str, str],
    path: str | os.PathLike | None = None,
) -> "Figure":
    """Draw a panel of horizontal bars for each cell type, one bar a gene, all panels with one scale.

    Args:
        types: Type -> its genes, the first on top, and a number for each.
        x_label: What the numbers are.
        colours: Colour of each type.
        path: The PNG to write, if any.

    Example:
        >>> figure = gene_bars({"B": (["CD79A", "MS4A1"], [0.6, 0.2])}, "adds to the score", {"B": "#332288"})
    """
    columns = min(len(types), 4)
    rows = -(-len(types) // columns)
    longest = max(len(genes) for genes, _ in types.values())
    figure = _figure(2.7 * columns, (0.9 + 0.19 * longest) * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, (name, (genes, numbers)) in zip(axes, types.items(), strict=False):
        axis.barh(range(len(genes)), numbers, color=colours[name], height=0.72)
        axis.set_yticks(range(len(genes)), genes, fontsize=8)
        axis.set_title(textwrap.shorten(name, 34, placeholder="..."), fontsize=9, loc="left")
        axis.tick_params("y", length=0)
        axis.tick_params("x", labelsize=8, labelbottom=True)
        axis.margins(y=0.02)
        axis.invert_yaxis()
    for axis in axes[len(types) :]:
        axis.set_visible(False)
    figure.supxlabel(x_label, fontsize=9)
    return _save(figure, path)


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    entries = [entry for entry in history if key in entry]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]


def _legend_below(axis: Any) -> None:
    """Add a legend below the axis, where it covers no curve."""
    handles, names = axis.get_legend_handles_labels()
    columns = int(np.clip(70 // (6 + max(map(len, names), default=0)), 1, 3))  # 70 letters are as wide as an axis
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
    axis.legend(handles, names, **place, ncols=columns, frameon=False, fontsize=8)


def _one_scale(axis: Any) -> None:
    """Give both axes the same limits and scale, and draw the line x = y."""
    ends = [*axis.get_xlim(), *axis.get_ylim()]
    axis.set(xlim=(min(ends), max(ends)), ylim=(min(ends), max(ends)), aspect="equal")
    axis.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle="--")


def _widen(axis: Any, least: float) -> None:
    """Let the y axis span at least `least`, centred on the curves."""
    low, high = axis.get_ylim()
    if (missing := least - (high - low)) > 0:
        axis.set_ylim(low - missing / 2, high + missing / 2)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: str | os.PathLike | None) -> "Figure":
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path, dpi=DPI, bbox_inches="tight")
    return figure
