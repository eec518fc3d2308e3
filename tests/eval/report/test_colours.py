import itertools

import numpy as np
import pytest

from xtrimogene.eval.report import colours


def test_no_two_colours_look_alike_to_anybody():
    different = colours.differences()[~np.eye(len(colours.COLOURS), dtype=bool)]
    assert different.min() > 15  # the grey that the scheme has instead of the last colour is 5 from two others
    assert len(set(colours.COLOURS)) == len(colours.COLOURS)


def test_people_without_red_or_green_cones_confuse_red_and_green():
    """The model of their eyes is right about what is known of them."""
    red, green = (colours.linear(colour) for colour in ("#D55E00", "#7F8000"))
    normal, _, without_green, _ = (np.array(vision) for vision in colours.VISIONS)
    seen = [
        np.linalg.norm(colours.lab(vision @ red) - colours.lab(vision @ green)) for vision in (normal, without_green)
    ]
    assert seen[1] < seen[0] / 3


def ring(number, cells=20):
    """Groups that stand in a ring in a random order: each has two neighbours."""
    rng = np.random.default_rng(0)
    names = [f"type {index:02}" for index in rng.permutation(number)]
    angles = np.repeat(2 * np.pi * np.arange(number) / number, cells)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1) + rng.normal(0, 1.2 / number, (number * cells, 2))
    return names, np.repeat(names, cells), places


@pytest.mark.parametrize("number", [10, 30, 100])
def test_neighbours_look_unlike(number):
    around, labels, places = ring(number)

    def least(looks):
        slots = [colours.COLOURS.index(looks[name][0]) for name in around]
        return min(colours.differences()[slots[index], slots[index - 1]] for index in range(number))

    found = colours.apart(sorted(around), labels, [places])
    assert least(found) > 22
    assert least(found) > 1.2 * least(colours.looks(sorted(around)))
    assert sorted(found.values()) == sorted(colours.looks(around).values())
    assert found == colours.apart(sorted(around), labels, [places])


def test_exchanges_end_where_every_single_one_would_be_worse():
    rng = np.random.default_rng(0)
    nearness, likeness = (each + each.T for each in rng.random((2, 7, 7)))
    np.fill_diagonal(nearness, 0)
    np.fill_diagonal(likeness, 1)

    def total(order):
        return (nearness * likeness[np.ix_(order, order)]).sum()

    order = colours.exchanged(nearness, likeness, np.arange(7))
    assert total(order) < total(np.arange(7))
    for first, second in itertools.combinations(range(7), 2):
        other = order.copy()
        other[[first, second]] = other[[second, first]]
        assert total(other) >= total(order) - 1e-9


def test_more_groups_than_looks_are_refused():
    most = len(colours.COLOURS) * len(colours.MARKERS)
    assert len(set(colours.looks([str(index) for index in range(most)]).values())) == most > 100
    with pytest.raises(ValueError, match=f"labels have {most + 1} categories, and the picture tells {most} apart"):
        colours.looks([str(index) for index in range(most + 1)])
