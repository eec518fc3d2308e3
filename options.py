"""Declare an option once: its name, type, range, help and default are one field of a small frozen dataclass.

    @group
    class Masking(Options):
        zero_ratio: Annotated[float, Option("Share of zero genes to mask.", least=0, most=1)] = 0.03

Python reads the field as an attribute, `spelled_out` as a keyword of a function, YAML files as a key, and
`cli/command.py` as `--zero-ratio`. Groups hold groups: `Pretraining` has a field `masking: Masking`, and its options
are spelled out flat, each name once.
"""

import dataclasses
import functools
import inspect
import os
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

Group = TypeVar("Group", bound="Options")


@dataclass(frozen=True)
class Option:
    """Help and range of an option; its name, type and default are those of the field.

    Attributes:
        help: A sentence for people.
        least: Smallest value.
        most: Largest value.
        default: Text to show as the default, if the default value depends on something else.
        flags: Flags on the command line, such as `("--quiet", "-q")`; the name of the field with dashes unless given.
        is_python_only: Whether the command line lacks the option.

    >>> Option("Cells at a time.", least=1).least
    1
    """

    help: str
    least: float | None = None
    most: float | None = None
    default: str | None = None
    flags: tuple[str, ...] = ()
    is_python_only: bool = False


@dataclass(frozen=True)
class Leaf:
    """An option of a group, or of a group within it."""

    name: str
    type: Any
    option: Option
    default: Any

    def check(self, value: Any) -> None:
        """Refuse a value of another type, or outside of the type's choices or of the range.

        Raises:
            ValueError: If it is such a value; the message names the option, the value and the valid values.
        """
        if value is self.default:
            return
        if not fits(value, self.type):
            raise ValueError(f"{self.name} is {value!r}: give {words_of(self.type)}")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return
        least, most = self.option.least, self.option.most
        if (least is not None and not value >= least) or (most is not None and not value <= most):
            bounds = [f"at {end} {bound:g}" for end, bound in (("least", least), ("most", most)) if bound is not None]
            words = "".join(f", or {word!r}" for word in choices_of(self.type))
            raise ValueError(f"{self.name} is {value}: give {' and '.join(bounds)}{words}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """A group of options, made by `group`: frozen, and checked when it is made.

    numpy's numbers become Python's, and paths become text: that is what can be written as JSON.

    >>> from typing import Annotated
    >>> @group
    ... class Masking(Options):
    ...     zero_ratio: Annotated[float, Option("Share of zero genes to mask.", least=0, most=1)] = 0.03
    >>> Masking(zero_ratio=2)
    Traceback (most recent call last):
    ValueError: zero_ratio is 2: give at least 0 and at most 1

    Raises:
        ValueError: If a value has another type, or is outside of its range or choices.
    """

    def __post_init__(self) -> None:
        """Check every option of this group, and that groups within it are groups."""
        for leaf in direct_leaves(type(self)):
            value = getattr(self, leaf.name)
            value = value if fits(value, leaf.type) else plain_value(value)
            leaf.check(value)
            object.__setattr__(self, leaf.name, value)
        for field in dataclasses.fields(self):
            hint, value = hints_of(type(self))[field.name], getattr(self, field.name)
            if is_group(hint) and not isinstance(value, hint):
                raise ValueError(f"{field.name} is {value!r}: give a group of options, {hint.__name__}(...)")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def group(kind: type[Group]) -> type[Group]:
    """Make a class a frozen dataclass with keyword arguments, whose fields hold their help as metadata.

    >>> from typing import Annotated
    >>> @group
    ... class Batches(Options):
    ...     batch_size: Annotated[int, Option("Cells at a time.", least=1)] = 32
    >>> Batches(batch_size=8)
    Batches(batch_size=8)
    """
    made = dataclass(frozen=True, kw_only=True)(kind)
    for field in dataclasses.fields(made):
        if not is_group(field.type):
            said = next(part for part in get_args(field.type) if isinstance(part, Option))
            field.metadata = types.MappingProxyType({"help": said.help})  # HfArgumentParser reads it
    return made


def hints_of(kind: Any) -> dict[str, Any]:
    """Return the type hints of a group, with their annotations."""
    return get_type_hints(kind, include_extras=True)


def is_group(hint: Any) -> bool:
    """Return whether a type is a group of options."""
    return isinstance(hint, type) and issubclass(hint, Options)


def direct_leaves(kind: type[Options]) -> Iterator[Leaf]:
    """Yield the options of a group itself, not those of groups within it."""
    for field in dataclasses.fields(kind):
        hint = hints_of(kind)[field.name]
        if not is_group(hint):
            base, option = get_args(hint)[:2]
            is_needed = field.default is dataclasses.MISSING
            yield Leaf(field.name, base, option, inspect.Parameter.empty if is_needed else field.default)


def leaves(kind: type[Options]) -> Iterator[Leaf]:
    """Yield all options of a group and of the groups within it, in the order of the fields.

    >>> from xtrimogene.tokenization.reading import CellInput
    >>> [leaf.name for leaf in leaves(CellInput)][:2]
    ['layer', 'gene_column']
    """
    own = {leaf.name: leaf for leaf in direct_leaves(kind)}
    for field in dataclasses.fields(kind):
        if field.name in own:
            yield own[field.name]
        else:
            yield from leaves(hints_of(kind)[field.name])


def flat(group: Options) -> dict[str, Any]:
    """Return name -> value of all options of a group and of groups within it.

    >>> from xtrimogene.tokenization.reading import CellInput
    >>> flat(CellInput(layer="counts"))
    {'layer': 'counts', 'gene_column': None}
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        values |= flat(value) if isinstance(value, Options) else {field.name: value}
    return values


def build(kind: type[Group], values: Mapping[str, Any]) -> Group:
    """Return a group with the given values, name -> value, and defaults for the rest; the inverse of `flat`.

    Raises:
        ValueError: If a name is unknown, or a value is outside of its range.

    Example:
        >>> from xtrimogene.tokenization.reading import CellInput
        >>> build(CellInput, {"layer": "counts"}).layer
        'counts'
    """
    known = [leaf.name for leaf in leaves(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown option {unknown[0]!r}; options are {', '.join(sorted(known))}")
    chosen: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = hints_of(kind)[field.name]
        if is_group(hint):
            names = {leaf.name for leaf in leaves(hint)}
            chosen[field.name] = build(hint, {name: value for name, value in values.items() if name in names})
        elif field.name in values:
            chosen[field.name] = values[field.name]
    return kind(**chosen)


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the words of a Literal, or of the Literals in a union; nothing for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in parts_of(hint) for word in choices_of(part))


def parts_of(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union; nothing for other types."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()


def plain_value(value: Any) -> Any:
    """Return a number of numpy as one of Python, and a path as text; other values as they are."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0 else value


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value has a type. A whole number is a float too; a bool is no number.

    >>> fits(3, float), fits(3.5, int), fits(True, int), fits("auto", int | Literal["auto"])
    (True, False, False, True)
    """
    if parts := parts_of(hint):
        return any(fits(value, part) for part in parts)
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if get_origin(hint) is Callable:
        return callable(value)
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping)
    if hint is Path:
        return isinstance(value, (str, os.PathLike))
    if get_origin(hint) is not None:  # a list or another sequence, of names
        return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    return isinstance(value, hint)


def words_of(hint: Any) -> str:
    """Return what a type takes, in words.

    >>> words_of(int | Literal["auto"])
    "a whole number or 'auto'"
    """
    if parts := parts_of(hint):
        return " or ".join(words_of(part) for part in parts)
    if choices := choices_of(hint):
        return ", ".join(map(repr, choices))
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text", types.NoneType: "None"}
    origins = {Callable: "a function", Mapping: "names with values"}
    if origin := get_origin(hint):
        return origins.get(origin, "a list of names")
    return "a path" if hint is Path else names.get(hint, str(hint))


def takes_numbers(hint: Any) -> bool:
    """Return whether a union of words takes numbers too, such as `int | Literal["auto"]`."""
    return any(part in (int, float) for part in parts_of(hint))


# -- groups as keywords of a function ---------------------------------------------------------------------------------


def spelled_out(function: Callable[..., Any], **defaults: Any) -> Callable[..., Any]:
    """Return a function that takes the options of its groups as keyword arguments.

    In the signature and in the docstring, each parameter that is a group is replaced by the options of the group.

    Args:
        function: A function with groups among its parameters.
        **defaults: Defaults of parameters that stand before a group, where `function` itself cannot have them.

    >>> from xtrimogene import tl
    >>> import inspect
    >>> inspect.signature(tl.embed).parameters["device"]
    <Parameter "device: str = 'auto'">
    """
    signature = inspect.signature(function)
    groups = groups_of(signature)
    names = {name: [leaf.name for leaf in leaves(kind)] for name, kind in groups.items()}

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            bound = spelled.bind(*args, **keywords).arguments
        except TypeError as error:
            raise TypeError(f"{function.__name__}: {error}; it takes {', '.join(spelled.parameters)}") from None
        for name, kind in groups.items():
            bound[name] = build(kind, {each: bound.pop(each) for each in names[name] if each in bound})
        return function(**(defaults | bound))

    parameters = spelled_parameters(signature, groups)
    spelled = signature.replace(
        parameters=[each.replace(default=defaults.get(each.name, each.default)) for each in parameters]
    )
    call.__signature__ = spelled  # type: ignore[attr-defined]
    call.__doc__ = spelled_docstring(function.__doc__ or "", groups)
    return call


def groups_of(signature: inspect.Signature) -> dict[str, type[Options]]:
    """Return name -> group of the parameters of a signature that are groups of options."""
    return {name: each.annotation for name, each in signature.parameters.items() if is_group(each.annotation)}


def spelled_parameters(signature: inspect.Signature, groups: Mapping[str, type[Options]]) -> Iterator[Any]:
    """Yield the parameters of a signature, then the options of its groups as keyword arguments."""
    yield from (each for name, each in signature.parameters.items() if name not in groups)
    for kind in groups.values():
        for leaf in leaves(kind):
            yield inspect.Parameter(
                leaf.name, inspect.Parameter.KEYWORD_ONLY, default=leaf.default, annotation=leaf.type
            )


def spelled_docstring(text: str, groups: Mapping[str, type[Options]]) -> str:
    """Return a docstring in which the line of each group is replaced by lines of its options."""
    lines = []
    for line in text.splitlines():
        name, colon, _ = line.strip().partition(":")
        if not colon or name not in groups:
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for leaf in leaves(groups[name]):
            shown = leaf.option.default or repr(leaf.default)
            entry = f"{leaf.name}: {leaf.option.help} Default: {shown}."
            lines += textwrap.wrap(
                entry, 120, initial_indent=indent, subsequent_indent=f"{indent}    ", break_on_hyphens=False
            )
    return "\n".join(lines)
