"""What is written for people and programs."""

import json
import tomllib
from pathlib import Path

import numpy as np

import xtrimogene
from xtrimogene.records import VERSION, first_names, plain


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((Path(xtrimogene.__file__).parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION == xtrimogene.__version__


def test_ten_names_are_shown_each_once_and_the_rest_is_counted():
    assert first_names(["a", "b", "a", 3]) == "a, b, 3"
    assert first_names(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert first_names(range(12)).endswith("8, 9 and 2 more")


def test_values_become_what_json_knows():
    values = {
        1: np.float32(0.5), "array": np.array([[1, 2]]), "path": Path("a/b"), "none": None,
        "not finite": [np.nan, float("inf"), np.array([np.nan, 2.0])], "pair": (True, "text"),
    }  # fmt: skip
    found = json.loads(json.dumps(plain(values), allow_nan=False))
    assert found == {
        "1": 0.5, "array": [[1, 2]], "path": "a/b", "none": None, "not finite": [None, None, [None, 2.0]],
        "pair": [True, "text"],
    }  # fmt: skip
