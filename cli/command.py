"""Turn groups of options into options of a command: `--zero-ratio` is the field `zero_ratio` of `Masking`."""

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import Leaf, build, choices_of, groups_of, leaves, takes_numbers
from .app import app


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command. Each parameter that is a group of options becomes one option for each field.

    typer checks the typed values by type, range and choices of the field. `function` gets the groups.

    Example:
        >>> from xtrimogene.training.options import Converting
        >>> @command  # doctest: +SKIP
        ... def convert(output: Path, recipe: Converting) -> None:
        ...     print(recipe.min_genes)  # the value of --min-genes
    """
    signature = inspect.signature(function)
    groups = groups_of(signature)
    names = {name: [leaf.name for leaf in command_line_leaves(kind)] for name, kind in groups.items()}

    @functools.wraps(function)
    def call(**typed: Any) -> None:
        try:
            made = {name: build(kind, {each: typed.pop(each) for each in names[name]}) for name, kind in groups.items()}
        except ValueError as error:  # typer lets some values pass, by version NaN, and cannot see options together
            raise typer.BadParameter(str(error)) from error
        function(**typed, **made)

    parameters = [each for name in signature.parameters for each in spelled(signature.parameters[name], groups)]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command()(call)
    return function


def command_line_leaves(kind: Any) -> Iterator[Leaf]:
    """Yield the options of a group without those for Python only."""
    return (leaf for leaf in leaves(kind) if not leaf.option.is_python_only)


def spelled(parameter: inspect.Parameter, groups: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Return the parameters that replace a parameter: one for each option of a group, else itself."""
    if parameter.name not in groups:
        return [parameter.replace(kind=parameter.KEYWORD_ONLY)]
    return [
        inspect.Parameter(leaf.name, parameter.KEYWORD_ONLY, default=leaf.default, annotation=typer_type(leaf))
        for leaf in command_line_leaves(groups[parameter.name])
    ]


def typer_type(leaf: Leaf) -> Any:
    """Return the type of an option, annotated with its flags, help and range for typer."""
    option, base = leaf.option, leaf.type
    flags = option.flags or ("--" + leaf.name.replace("_", "-"),)
    said: dict[str, Any] = {"help": option.help, "show_default": option.default or True}
    if choices_of(base) and takes_numbers(base):
        return Annotated[
            str, typer.Option(*flags, parser=word_or_number(leaf), metavar="|".join(choices_of(base)), **said)
        ]
    if option.least is not None or option.most is not None:
        said |= {"min": option.least, "max": option.most}
    if base == float | str | None:
        base = str | None
    return Annotated[base, typer.Option(*flags, **said)]


def word_or_number(leaf: Leaf) -> Callable[[str], Any]:
    """Return a function that parses an option which is one of its words or a whole number."""

    def read(text: str) -> Any:
        if text in choices_of(leaf.type):
            return text
        flag = leaf.name.replace("_", "-")
        if not text.isdigit() or int(text) < (leaf.option.least or 0):
            words = " or ".join(map(repr, choices_of(leaf.type)))
            raise typer.BadParameter(f"--{flag} is {text!r}: give {words} or a number, such as 64")
        return int(text)

    return read


# -- options of a run in a file ---------------------------------------------------------------------------------------

NOT_IN_A_FILE = ("output", "force", "as_json", "quiet", "print_config", "resume")


def read_config(ctx: typer.Context, value: str | None) -> str | None:
    """Use the options of a YAML file as defaults; return its `config`, or `value` if that is no YAML file.

    Raises:
        BadParameter: If the file does not exist, is no YAML, or has unknown options.
    """
    if value is None or not value.endswith((".yaml", ".yml")):
        return value
    import yaml

    if not Path(value).is_file():
        raise typer.BadParameter(f"{value} does not exist: --print-config writes one to begin with")
    try:
        options = yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"{value} is no YAML: {' '.join(str(error).split())}") from error
    known = {option.name: option for option in ctx.command.params if option.name != "output"}
    if not isinstance(options, dict) or (unknown := sorted(set(map(str, options)) - set(known))):
        what = f"the unknown option {unknown[0]!r}" if isinstance(options, dict) else "no lines such as `epochs: 3`"
        raise typer.BadParameter(f"{value} holds {what}; options are {', '.join(sorted(known))}")
    as_typed = {
        name: typed_text(value, name, said, known[name].multiple or known[name].nargs == -1)
        for name, said in options.items()
        if said is not None  # nothing chosen
    }
    ctx.default_map = {**(ctx.default_map or {}), **as_typed}
    return as_typed.get("config")


def typed_text(file: str, name: str, said: Any, is_many: bool) -> Any:
    """Return a value of a YAML file as what would be typed for it: text, or a list of texts where several may be.

    Raises:
        BadParameter: If it is a list of several or a table where one value is wanted.
    """
    values = said if isinstance(said, list) else [said]
    if (isinstance(said, list) and not is_many) or any(isinstance(one, (dict, list)) for one in values):
        raise typer.BadParameter(f"{file} says {name}: {said}; give {'a list of values' if is_many else 'one value'}")
    return list(map(str, values)) if is_many else str(said)


def config_text(ctx: typer.Context) -> str:
    """Return all options of a command as YAML that `--config` can read."""
    import yaml

    shown = {name: value for name, value in ctx.params.items() if name not in NOT_IN_A_FILE}
    return yaml.safe_dump(json.loads(json.dumps(shown, default=str)), sort_keys=False)


PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print all options as YAML, and do nothing.")]
