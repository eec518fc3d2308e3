"""`convert-checkpoint`: a scFoundation checkpoint becomes checkpoint folders."""

from typer.testing import CliRunner

from xtrimogene.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["convert-checkpoint", *map(str, arguments)])


def test_help_holds_an_example():
    assert "Example: xtrimogene convert-checkpoint models.ckpt" in " ".join(run("--help").stdout.split())
