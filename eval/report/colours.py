"""Colours of all pictures: they can be told apart with any colour vision, and neighbours on a map differ.

    names of groups                  ->  looks    a colour and a marker for each
    names and their places on a map  ->  apart    the same, with unlike colours where groups are neighbours

Sources: Paul Tol's scheme "muted"; Machado et al. 2009, how colours look to people without one of three kinds of cones;
CIE 1976, how different two colours look.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

# Paul Tol's "muted" scheme, and nearly black in the place of its grey, which some people take for two of the others.
# After ten groups the colours repeat with another marker.
COLOURS = (
    "#332288", "#CC6677", "#117733", "#88CCEE", "#DDCC77", "#882255", "#44AA99", "#999933", "#AA4499", "#222222",
)  # fmt: skip
MARKERS = ("o", "^", "s", "D", "P", "X", "v", "*", "p", "<", ">", "h")
GREY = "#888888"  # what stands in the background
SEQUENTIAL = "cividis"  # its lightness rises evenly, and it looks the same with and without red or green cones
NEIGHBOURS = 10  # cells whose groups count as neighbours of a cell's group
STARTS = 8  # assignments from which exchanges begin
# Linear RGB as people see it without long-wave, medium-wave or short-wave cones.
VISIONS = (
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
)
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)  # D65

Look = tuple[str, str]  # colour and marker


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a colour and a marker for each name, in the order of the names.

    Raises:
        ValueError: If there are more names than pairs of colour and marker.

    Example:
        >>> looks(["B", "T"])
        {'B': ('#332288', 'o'), 'T': ('#CC6677', 'o')}
    """
    most = len(COLOURS) * len(MARKERS)
    if len(names) > most:
        raise ValueError(f"labels have {len(names)} categories, and the picture tells {most} apart: merge rare ones")
    return {name: (COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS)]) for index, name in enumerate(names)}


def apart(names: Sequence[str], labels: np.ndarray, maps: Sequence[np.ndarray]) -> dict[str, Look]:
    """Return a colour and a marker for each name, such that groups that are neighbours on a map look unlike.

    Args:
        names: The groups.
        labels: Name of the group of each cell, `(cells,)`.
        maps: Places of the cells on each map, `(cells, 2)`.

    Raises:
        ValueError: If there are more names than pairs of colour and marker.

    Example:
        >>> places = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]])
        >>> apart(["B", "T"], np.array(["B", "B", "T", "T"]), [places])["B"][1]
        'o'
    """
    chosen = list(looks(names).values())
    if len(names) < 3:
        return dict(zip(names, chosen, strict=True))
    slots = [COLOURS.index(colour) for colour, _ in chosen]
    likeness = 1 / (1 + (differences()[np.ix_(slots, slots)] / 10) ** 2)
    nearness = np.sum([neighbourhood(names, labels, places) for places in maps], axis=0)
    rng = np.random.default_rng(0)
    starts = [np.arange(len(names)), *(rng.permutation(len(names)) for _ in range(STARTS - 1))]
    found = [exchanged(nearness, likeness, start) for start in starts]
    best = min(found, key=lambda order: float((nearness * likeness[np.ix_(order, order)]).sum()))
    return {name: chosen[slot] for name, slot in zip(names, best, strict=True)}


def exchanged(nearness: np.ndarray, likeness: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an assignment of looks to groups in which no exchange of two looks makes neighbours less alike.

    Args:
        nearness: How near groups are, symmetric `(names, names)`, 0 on the diagonal.
        likeness: How alike looks are, symmetric `(names, names)`, 1 on the diagonal.
        order: Look of each group to begin with, `(names,)`.
    """
    order = order.copy()
    while True:
        alike = likeness[np.ix_(order, order)]
        sums = nearness @ alike
        own = np.diag(sums)
        # What the sum over all pairs of nearness x likeness changes by, for each exchange.
        changes = 2 * (sums + sums.T - own - own[:, None] - 2 * nearness * (1 - alike))
        first, second = np.unravel_index(changes.argmin(), changes.shape)
        if changes[first, second] > -1e-9:
            return order
        order[[first, second]] = order[[second, first]]


def neighbourhood(names: Sequence[str], labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return how near groups are on a map, symmetric `(names, names)`, 0 on the diagonal.

    It is the share of the neighbours of a group's cells that are of the other group. Groups without a common border
    have a small number, which is larger for those that are nearer.
    """
    from sklearn.neighbors import NearestNeighbors

    place_of = {name: index for index, name in enumerate(names)}
    ids = np.array([place_of[label] for label in labels])
    number = min(NEIGHBOURS, len(places) - 1)
    near = NearestNeighbors(n_neighbors=number).fit(places).kneighbors(return_distance=False)
    shares = np.zeros((len(names), len(names)))
    np.add.at(shares, (np.repeat(ids, number), ids[near].ravel()), 1)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1)
    middles = np.stack([np.median(places[ids == index], axis=0) for index in range(len(names))])
    distances = np.linalg.norm(middles[:, None] - middles, axis=-1)
    near_middles = 0.1 * np.exp(-distances / max(np.median(distances), 1e-12))
    both = shares + shares.T + near_middles
    np.fill_diagonal(both, 0)
    return both


@cache
def differences() -> np.ndarray:
    """Return how different each two of `COLOURS` look to those who see their difference worst, `(10, 10)`.

    Example:
        >>> bool(differences()[~np.eye(10, dtype=bool)].min() > 15)
        True
    """
    seen = [[lab(np.array(vision) @ linear(colour)) for colour in COLOURS] for vision in VISIONS]
    points = np.array(seen)
    return np.linalg.norm(points[:, :, None] - points[:, None], axis=-1).min(axis=0)


def linear(colour: str) -> np.ndarray:
    """Return the linear red, green and blue of a colour, from 0 to 1; it is written as `#332288`."""
    parts = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Return lightness, green to red, and blue to yellow of linear red, green and blue (CIE 1976)."""
    shares = np.array(TO_XYZ) @ rgb.clip(0, 1) / WHITE
    x, y, z = np.where(shares > 0.008856, np.cbrt(shares), 7.787 * shares + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
