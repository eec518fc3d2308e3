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
    """Groups that stand in a ring: each has two neighbours."""
    rng = np.random.default_rng(0)
    angles = np.repeat(2 * np.pi * np.arange(number) / number, cells)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1) + rng.normal(0, 1.2 / number, (number * cells, 2))
    return np.repeat([f"type {index:02}" for index in range(number)], cells), places


@pytest.mark.parametrize("number", [10, 30])
def test_neighbours_look_less_alike_than_by_their_order(number):
    labels, places = ring(number)
    names = list(np.unique(labels))

    def least(looks):
        slots = [colours.COLOURS.index(looks[name][0]) for name in names]
        return min(colours.differences()[slots[index], slots[index - 1]] for index in range(number))

    found = colours.apart(names, labels, [places])
    assert least(found) > 1.2 * least(colours.looks(names))
    assert sorted(found.values()) == sorted(colours.looks(names).values())
    assert found == colours.apart(names, labels, [places])


def test_more_groups_than_looks_are_refused():
    most = len(colours.COLOURS) * len(colours.MARKERS)
    assert len(set(colours.looks([str(index) for index in range(most)]).values())) == most > 100
    with pytest.raises(ValueError, match=f"labels have {most + 1} categories, and the picture tells {most} apart"):
        colours.looks([str(index) for index in range(most + 1)])
