"""An extension of griffe, which reads docstrings for the site.

Sections called `Example:` are shown as code, and functions of `xtrimogene.tl` have the signatures that they have at run
time: their options are groups whose members are spelled out when the module is imported.
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import griffe

EXAMPLE = re.compile(r"^Example:[ \t]*$", re.MULTILINE)
TOLD_TWICE = re.compile(r"\s+Default:\s+(?:None|True|False|'[^']*'|[\d.]+)\.$", re.MULTILINE)  # the signature tells it
BARE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # an example that no section holds


class Docstrings(griffe.Extension):
    """Prepare docstrings of this package for mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Call examples by the name under which griffe knows them."""
        if obj.docstring is not None:
            text = EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = BARE.sub(lambda match: "Examples:\n" + textwrap.indent(match[0], "    "), text)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Replace the functions of `tl`, which are assigned, by what they are at run time."""
        if pkg.name == "xtrimogene":
            tools = importlib.import_module("xtrimogene.tl")
            for name in tools.__all__:
                if inspect.isfunction(tool := getattr(tools, name)):
                    found = at_run_time(name, tool)
                    pkg.members["tl"].set_member(name, found)
                    self.on_instance(obj=found)


def of_code(value: Any) -> str:
    """Return a default as code: a function by its name, so that the signature can be broken into lines."""
    return value.__name__ if callable(value) else repr(value)


def at_run_time(name: str, function: Callable[..., Any]) -> griffe.Function:
    """Return what griffe shows of a function, by the signature and docstring that it has now."""
    signature = inspect.signature(function)

    def shown(annotation: Any) -> str | None:
        if annotation is inspect.Parameter.empty:
            return None
        if get_origin(annotation) is Union:  # as it is written today
            return " | ".join(shown(each) or "" for each in get_args(annotation))
        if annotation is type(None):
            return "None"
        return re.sub(r"\b(?:typing|collections\.abc|os)\.", "", inspect.formatannotation(annotation).strip("'"))

    parameters = [
        griffe.Parameter(
            each.name,
            annotation=shown(each.annotation),
            kind=griffe.ParameterKind[each.kind.name.lower()],
            default=None if each.default is inspect.Parameter.empty else of_code(each.default),
        )
        for each in signature.parameters.values()
    ]
    found = griffe.Function(
        name, parameters=griffe.Parameters(*parameters), returns=shown(signature.return_annotation), runtime=False
    )
    # Types stand in the signature.
    quiet = {"warn_unknown_params": False, "warn_missing_types": False}
    text = TOLD_TWICE.sub("", inspect.getdoc(function) or "")
    found.docstring = griffe.Docstring(text, parent=found, parser="google", parser_options=quiet)
    return found
