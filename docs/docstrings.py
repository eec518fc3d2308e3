"""An extension of griffe, which reads docstrings for the site.

Sections called `Example:` are shown as code, and functions of `xtrimogene.tl` have the signatures that they have at run
time: their options are groups whose members are spelled out when the module is imported.
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:[ \t]*$", re.MULTILINE)
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


def at_run_time(name: str, function: Callable[..., Any]) -> griffe.Function:
    """Return what griffe shows of a function, by the signature and docstring that it has now."""
    signature = inspect.signature(function)

    def shown(annotation: Any) -> str | None:
        if annotation is inspect.Parameter.empty:
            return None
        return re.sub(r"\b(?:typing|collections\.abc|os)\.", "", inspect.formatannotation(annotation).strip("'"))

    parameters = [
        griffe.Parameter(
            each.name,
            annotation=shown(each.annotation),
            kind=griffe.ParameterKind[each.kind.name.lower()],
            default=None if each.default is inspect.Parameter.empty else repr(each.default),
        )
        for each in signature.parameters.values()
    ]
    found = griffe.Function(
        name, parameters=griffe.Parameters(*parameters), returns=shown(signature.return_annotation), runtime=False
    )
    # Types stand in the signature.
    quiet = {"warn_unknown_params": False, "warn_missing_types": False}
    text = inspect.getdoc(function) or ""
    found.docstring = griffe.Docstring(text, parent=found, parser="google", parser_options=quiet)
    return found
