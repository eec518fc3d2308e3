"""An extension of griffe, which reads docstrings for the site.

Sections called `Example:` are shown as code, and functions of `xtrimogene.tl` have the signatures that they have at run
time: their options are groups whose members are spelled out when the module is imported.
"""

import re
import textwrap
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
            found = griffe.inspect("tl", filepath=pkg.members["tl"].filepath, parent=pkg)
            for name, member in found.members.items():
                if not member.is_alias and member.is_function:
                    self.on_instance(obj=member)
                    pkg.members["tl"].set_member(name, member)
