"""Maps of cells: the UMAP of an embedding, coloured by groups or by how sure their labels are.

    embeddings of cells (cells, D)  ->  umap_places (cells, 2)  ->  umap              groups, a panel for each embedding
                                                               ->  annotation_map    labels, and how sure they are

`colours.py` chooses the colours.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .colours import SEQUENTIAL, Look, apart
from .pictures import _figure, _save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, LARGE_SIDE = 4.2, 5.6  # inches of a map's width
FLATTEST, HIGHEST = 0.6, 1.1  # height of a map as a share of its width
INK = 14_000  # square points that all dots of a map have together; a map has 91,000
DOT = (0.5, 40)  # square points of a dot, at least and at most
SHORT = 18  # characters in a line of a name on the map
ROWS = 24  # names in a column of the legend
NAMED, LEAST_NAMED = 40, 0.01  # groups that have their name on the map: the largest ones, with that share of the cells
PUSHES = 100  # times that names which overlap are pushed apart


def umap(
    panels: Mapping[str, np.ndarray], labels: Sequence[str], path: str | os.PathLike | None = None, seed: int = 0
) -> "Figure":
    """Draw a UMAP of each embedding, side by side, with the same colours.

    Args:
        panels: Title -> embedding of the cells, `(cells, width)`.
        labels: Category of each cell.
        path: The PNG to write, if any.
        seed: Seed of the UMAP.

    Raises:
        ValueError: If there are more categories than pairs of colour and marker.

    Example:
        >>> figure = umap({"checkpoint": embedding}, labels, "umap.png")  # doctest: +SKIP
    """
    categories = np.asarray(labels, dtype=str)
    maps = {title: umap_places(embedding, seed) for title, embedding in panels.items()}
    chosen = apart(list(np.unique(categories)), categories, list(maps.values()))
    figure = _figure(SIDE * len(panels) + legend_width(chosen), SIDE * max(map(height, maps.values())))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, places) in zip(axes, maps.items(), strict=True):
        draw_groups(axis, places, categories, chosen)
        frame(axis, title)
    add_legend(figure, axes[0], "outside right center", -(-len(chosen) // ROWS))
    return _save(figure, path)


def annotation_map(
    places: np.ndarray,
    labels: Sequence[str],
    probabilities: np.ndarray,
    unknown: np.ndarray | None = None,
    chosen: Mapping[str, Look] | None = None,
    path: str | os.PathLike | None = None,
) -> "Figure":
    """Draw annotated cells twice: by their label, with the names on the map, and by how sure the label is.

    Args:
        places: Places of the cells on the map, `(cells, 2)`.
        labels: Label of each cell.
        probabilities: Probability of its label, `(cells,)`.
        unknown: Which cells are called unknown, `(cells,)`; they are drawn as crosses. Nothing is known of that if
            None.
        chosen: Label -> its colour and marker; neighbours on the map get unlike ones unless given.
        path: The PNG to write, if any.

    Raises:
        ValueError: If there are more labels than pairs of colour and marker.

    Example:
        >>> places = np.random.default_rng(0).normal(size=(4, 2))
        >>> figure = annotation_map(places, ["B", "B", "T", "T"], np.array([0.9, 0.8, 0.5, 0.7]), path="map.png")
    """
    categories = np.asarray(labels, dtype=str)
    chosen = chosen or apart(list(np.unique(categories)), categories, [places])
    width = 2 * LARGE_SIDE
    columns = max(int(width / (0.6 + 0.08 * max(map(len, chosen)))), 1)
    figure = _figure(width, LARGE_SIDE * height(places) + 0.2 * -(-len(chosen) // columns))
    left, right = figure.subplots(1, 2)
    draw_groups(left, places, categories, chosen)
    frame(left, "type")
    is_known = np.ones(len(places), bool) if unknown is None else ~np.asarray(unknown, bool)
    order = np.flatnonzero(is_known)[np.argsort(-probabilities[is_known], kind="stable")]  # unsure cells on top
    dots = right.scatter(
        *places[order].T, c=probabilities[order], s=dot_area(len(places)), cmap=SEQUENTIAL, vmin=0, vmax=1, linewidths=0
    )
    if not is_known.all():
        area = max(dot_area(len(places)), 4)
        right.scatter(*places[~is_known].T, s=area, marker="x", color="black", linewidths=0.5, label="called unknown")
        right.legend(loc="upper right", bbox_to_anchor=(1, -0.01), frameon=False, fontsize=9, borderpad=0)
    frame(right, "probability of the type")
    figure.colorbar(dots, ax=right, fraction=0.046, pad=0.02)
    add_legend(figure, left, "outside lower center", columns)
    name_groups(figure, left, places, categories)
    return _save(figure, path)


def umap_places(embedding: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the places of cells on a UMAP of their embedding, `(cells, 2)`; it takes three cells at least."""
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(np.asarray(embedding, dtype=np.float32))
    sc.pp.neighbors(cells, use_rep="X", n_neighbors=min(15, cells.n_obs - 1), random_state=seed)
    sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]


def height(places: np.ndarray) -> float:
    """Return the height of a map as a share of its width, such that its cells fill it.

    >>> height(np.array([[0.0, 0.0], [10.0, 8.0]]))
    0.8
    """
    across, up = np.ptp(places, axis=0)
    return float(np.clip(up / across if across else 1, FLATTEST, HIGHEST))


def dot_area(num_cells: int) -> float:
    """Return the area of a dot in square points: the more cells, the smaller.

    >>> dot_area(100), dot_area(7_000), dot_area(1_000_000)
    (40.0, 2.0, 0.5)
    """
    return float(np.clip(INK / max(num_cells, 1), *DOT))


def draw_groups(axis: Any, places: np.ndarray, categories: np.ndarray, chosen: Mapping[str, Look]) -> None:
    """Draw the cells of each group by its look; the largest group lies at the bottom, so that it covers no other."""
    sizes = {name: int((categories == name).sum()) for name in chosen}
    for name in chosen:
        colour, marker = chosen[name]
        axis.scatter(
            *places[categories == name].T,
            s=dot_area(len(categories)),
            color=colour,
            marker=marker,
            linewidths=0,
            label=f"{name} ({sizes[name]:,})",
            zorder=2 - sizes[name] / len(categories),
        )


def frame(axis: Any, title: str) -> None:
    """Give both axes of a map one scale, so that distances can be compared in all directions."""
    axis.set(title=title, xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[], aspect="equal")
    axis.set_adjustable("datalim")


def legend_width(names: Mapping[str, Look]) -> float:
    """Return the inches that a legend with these names takes."""
    columns = -(-len(names) // ROWS)
    return columns * (0.9 + 0.075 * max(map(len, names)))


def add_legend(figure: Any, axis: Any, place: str, columns: int) -> None:
    """Add a legend of the groups beside or below the maps, where it covers no cells."""
    handles, names = axis.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc=place, frameon=False, fontsize=9, handletextpad=0.2, ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a name is a "$"
    for handle in legend.legend_handles:
        handle.set_sizes([36])


def name_groups(figure: Any, axis: Any, places: np.ndarray, categories: np.ndarray) -> None:
    """Write the names of the largest groups on the map, each in the middle of its cells, and none over another.

    Groups of few cells have theirs in the legend alone: they lie among others, whose names they would push away.
    """
    from matplotlib.patheffects import withStroke

    names, counts = np.unique(categories, return_counts=True)
    texts = []
    largest = np.argsort(-counts, kind="stable")[:NAMED]
    for name in names[largest[counts[largest] >= LEAST_NAMED * len(categories)]]:
        middle = np.median(places[categories == name], axis=0)
        text = axis.text(
            *middle, textwrap.fill(name, SHORT), parse_math=False, ha="center", va="center", fontsize=7, zorder=5
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        text.set_in_layout(False)
        texts.append(text)
    figure.draw_without_rendering()  # now the places on the page are known
    boxes = [text.get_window_extent() for text in texts]
    heights = np.array([box.height for box in boxes])
    frame_box = axis.get_window_extent()
    # A name at the side of the map moves inward, so that it covers no axis.
    aside = [max(frame_box.x0 - box.x0, 0) + min(frame_box.x1 - box.x1, 0) for box in boxes]
    middles = np.array([(box.y0 + box.y1) / 2 for box in boxes])
    beside = np.array([[one.x0 < other.x1 and other.x0 < one.x1 for other in boxes] for one in boxes])
    for _ in range(PUSHES):
        gaps = middles[:, None] - middles
        overlaps = np.where(beside, np.maximum((heights[:, None] + heights) / 2 - np.abs(gaps), 0), 0)
        np.fill_diagonal(overlaps, 0)
        if not overlaps.any():
            break
        first = np.arange(len(texts))[:, None] < np.arange(len(texts))
        upward = np.where(gaps == 0, np.where(first, 1, -1), np.sign(gaps))
        middles += (0.5 * upward * overlaps).sum(axis=1) / np.maximum((overlaps > 0).sum(axis=1), 1)
    for text, box, shift, middle in zip(texts, boxes, aside, middles, strict=True):
        text.set_position(axis.transData.inverted().transform(((box.x0 + box.x1) / 2 + shift, middle)))
