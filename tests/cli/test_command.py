"""Groups of options as options of a command, typed or from a file."""

import json
from typing import Annotated, Any, Literal

import pytest
import typer
import yaml
from typer.testing import CliRunner

from xtrimogene.cli.command import PrintConfig, command, config_text, read_config
from xtrimogene.options import Option, Options, group


@group
class Sizes(Options):
    share: Annotated[float, Option("Share of cells.", least=0, most=1)] = 0.5
    kind: Annotated[Literal["wide", "deep"], Option("Kind.")] = "wide"
    cells: Annotated[int | Literal["auto"], Option("Cells at a time.", least=1)] = "auto"
    is_quick: Annotated[bool, Option("Quick.", flags=("--quick",))] = False
    hook: Annotated[Any, Option("Not for the command line.", is_python_only=True)] = None


@pytest.fixture
def program(monkeypatch):
    """Make a program of one command, and return what runs it and gives output and what the command was given."""
    program, given = typer.Typer(), []

    @program.callback()
    def main():
        """Have one command."""

    monkeypatch.setattr("xtrimogene.cli.command.app", program)

    @command
    def measure(
        ctx: typer.Context,
        name: str,
        sizes: Sizes,
        config: Annotated[str | None, typer.Option(callback=read_config, is_eager=True)] = None,
        print_config: PrintConfig = False,
    ):
        if print_config:
            typer.echo(config_text(ctx))
        else:
            given.append((name, sizes))

    def run(*arguments):
        return CliRunner().invoke(program, ["measure", *arguments]), given

    return run


def test_a_group_becomes_options_and_comes_back_as_a_group(program):
    result, given = program("cells")
    assert (result.exit_code, given) == (0, [("cells", Sizes())]), result.output
    _, given = program("cells", "--share", "0.25", "--kind", "deep", "--cells", "8", "--quick")
    assert given[1:] == [("cells", Sizes(share=0.25, kind="deep", cells=8, is_quick=True))]
    result, _ = program("--help")
    assert "Share of cells." in result.output
    assert "--hook" not in result.output


@pytest.mark.parametrize(
    "typed", [["--share", "2"], ["--kind", "tall"], ["--cells", "0"], ["--cells", "some"], ["--hook", "x"]]
)
def test_what_is_out_of_range_never_reaches_the_command(program, typed):
    result, given = program("cells", *typed)
    assert (result.exit_code, given) == (2, [])
    assert typed[0] in result.output


def test_a_file_of_options_is_what_print_config_writes_and_what_is_typed_wins(program, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(program("cells", "--share", "0.25", "--kind", "deep", "--print-config")[0].stdout)
    assert yaml.safe_load(recipe.read_text())["share"] == 0.25
    result, given = program("cells", "--config", str(recipe), "--kind", "wide")
    assert (result.exit_code, given) == (0, [("cells", Sizes(share=0.25))]), result.output
    recipe.write_text("shares: 0.25")
    result, _ = program("cells", "--config", str(recipe))
    assert result.exit_code == 2
    assert "unknown option 'shares'" in " ".join(result.output.split())


@pytest.mark.slow  # two trainings
def test_options_of_pretrain_come_from_a_file_and_what_is_typed_wins(succeed, fail, files, checkpoint, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(succeed("pretrain", "--max-steps", 3, "--schedule", "linear", "--print-config").stdout)
    options = yaml.safe_load(recipe.read_text())
    assert options["schedule"] == "linear"
    assert options["zero_ratio"] == 0.03
    assert options["unmeasured"] == "ignore"
    recipe.write_text(yaml.safe_dump(options | {"zero_ratio": 0.5, "unmeasured": "zero", "batch_size": "7"}))
    typed = ["pretrain", files / "whole.h5ad", "-o", tmp_path / "out", "--config", recipe, "--checkpoint", checkpoint]
    metrics = json.loads(succeed(*typed, "--batch-size", 4, "--json").stdout)["metrics"]
    assert (metrics["steps"], metrics["zero_ratio"], metrics["batch size"]) == (3, 0.5, 4)
    assert metrics["unmeasured"] == "zero"

    # Epochs that are typed stand in the place of the file's steps: 114 cells, 16 a step.
    again = succeed(*typed, "--force", "--batch-size", 16, "--epochs", 1, "--json")
    assert json.loads(again.stdout)["metrics"]["steps"] == 8

    recipe.write_text("batchsize: 4")
    assert "unknown option 'batchsize'" in fail(*typed, "--force", code=2)
    recipe.write_text("a: [1\n\tb")
    assert "recipe.yaml is no YAML" in fail(*typed, "--force", code=2)
    assert "none.yaml does not exist" in fail("pretrain", "--config", tmp_path / "none.yaml", code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed"],
        ["embed", "a.h5ad", "--unknown"],
        ["pretrain", "a.h5ad", "-o", "out", "--epochs", "1", "--max-steps", "1"],
        ["pretrain", "a.h5ad", "-o", "out", "--batch-size", "many"],
        ["pretrain", "a.h5ad", "-o", "out", "--zero-ratio", "2"],
    ],
)
def test_usage_errors_are_one_line(fail, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fail(*arguments, code=2)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("batch_size: 8", "batch_size: 8"),
        ("batch_size: auto", "batch_size: auto"),
        ("learning_rate: 1e-3", "learning_rate: 0.001"),
        ("bf16: true", "bf16: true"),
        ("schedule: null", "schedule: cosine"),
    ],
)
def test_an_option_in_a_file_is_read_as_if_it_were_typed(succeed, tmp_path, text, shown):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    printed = succeed("pretrain", "--config", recipe, "--print-config").stdout
    assert shown in printed.splitlines()
    recipe.write_text(printed)
    assert succeed("pretrain", "--config", recipe, "--print-config").stdout == printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size: 0", "--batch-size is '0'"),
        ("batch_size: 2.5", "--batch-size is '2.5'"),
        ("epochs: 2.5", "--epochs"),
        ("epochs: true", "--epochs"),
        ("zero_ratio: [0.1, 0.2]", "zero_ratio: [0.1, 0.2]; give one value"),
        ("layer: [a]", "layer: ['a']; give one value"),
        ("zero_ratio: .nan", "ratio"),
        ("schedule: foo", "--schedule"),
        ("bf16: maybe", "--bf16"),
        ("3: 4", "unknown option '3'"),
        ("- epochs", "no lines such as `epochs: 3`"),
    ],
)
def test_an_option_of_another_type_in_a_file_is_refused_by_name(fail, tmp_path, text, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert message in fail("pretrain", "--config", recipe, "--print-config", code=2)
