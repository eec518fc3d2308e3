"""Docstrings as the site shows them: examples are code, and options of `tl` are spelled out."""

import inspect
import sys
from pathlib import Path

import pytest

import xtrimogene

griffe = pytest.importorskip("griffe")
sys.path.insert(0, str(Path(xtrimogene.__file__).parent / "docs"))
docstrings = pytest.importorskip("docstrings")

TEXT = """Return twice a number.

Args:
    number: Any.

Example:
    >>> double(2)
    4
"""


def shown(text):
    function = griffe.Function("double")
    function.docstring = griffe.Docstring(text, parent=function, parser="google")
    docstrings.Docstrings().on_instance(obj=function)
    return {section.kind.value: section.value for section in function.docstring.parsed}


def test_an_example_is_code_with_and_without_a_section_of_its_own():
    for text in (TEXT, "Return twice a number.\n\n>>> double(2)\n4"):
        ((kind, code),) = shown(text)["examples"]
        assert (kind.value, code) == ("examples", ">>> double(2)\n4")


def test_a_function_without_a_docstring_is_left_alone():
    function = griffe.Function("double")
    docstrings.Docstrings().on_instance(obj=function)
    assert function.docstring is None


def test_a_function_of_tl_has_the_options_that_it_takes_at_run_time():
    found = docstrings.at_run_time("embed", xtrimogene.tl.embed)
    taken = inspect.signature(xtrimogene.tl.embed).parameters
    assert [each.name for each in found.parameters] == list(taken)
    assert found.parameters["batch_size"].default == repr(taken["batch_size"].default)
    assert "typing." not in str(found.parameters["batch_size"].annotation)
    assert found.parameters["say"].default == "print"  # code, not the text of an object
    assert str(found.parameters["layer"].annotation) == "str | None"
    told = inspect.getdoc(xtrimogene.tl.embed)
    assert found.docstring.value.splitlines()[0] == told.splitlines()[0]
    assert "found. Default: None." in told  # which the signature tells on the site
    assert "Default: None." not in found.docstring.value
    assert "Default: that of the checkpoint." in found.docstring.value
