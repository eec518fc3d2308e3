"""The program: its help, its version, and errors of one line."""

import json
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import typer

import xtrimogene
from xtrimogene.cli import app
from xtrimogene.cli.app import way_on

COMMANDS = [
    "demo", "convert", "pretrain", "finetune", "adapt", "embed", "enhance", "annotate", "evaluate", "compare",
    "inspect", "plan", "doctor", "convert-checkpoint",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_holds_an_example(succeed, command):
    assert f"Example: xtrimogene {command}" in " ".join(succeed(command, "--help").stdout.split())


def test_help_lists_all_commands(succeed):
    text = succeed("--help").stdout
    assert all(command in text for command in COMMANDS)


def test_version(succeed):
    assert succeed("--version").stdout == f"xtrimogene {xtrimogene.__version__}\n"


def test_help_and_errors_of_typing_import_nothing_heavy(files, tmp_path):
    """torch takes seconds, and a wrong name of a command, an option, a file or a column is answered before."""
    shutil.copyfile(files / "whole.h5ad", tmp_path / "b.h5ad")
    code = """
        import sys
        sys.argv = ["xtrimogene"]
        from typer.testing import CliRunner
        from xtrimogene.cli import app
        run = lambda *words: CliRunner().invoke(app, words)
        assert "Did you mean 'embed'" in run("embd").stderr
        assert "--modle" in run("embed", "a.h5ad", "--modle", "b").stderr
        assert "a.h5ad does not exist" in run("embed", "a.h5ad", "--model", "owner/model", "-o", "out.h5ad").stderr
        assert "./model does not exist" in run("adapt", "a.h5ad", "--model", "./model").stderr
        typed = {"pretrain": ["--batch-key", "x"], "adapt": ["--batch-key", "x"], "convert": ["--obs", "x"]}
        typed |= {"finetune": [], "annotate": ["--reference", "b.h5ad", "--label-key", "x"]}
        for command in ("inspect", "enhance", "annotate", "convert", "pretrain", "finetune", "adapt"):
            more = {"inspect": [], "convert": ["-o", "c"], "pretrain": [], "finetune": ["--label-key", "x", "-o", "f"]}
            model = [] if command in ("inspect", "convert", "pretrain") else ["--model", "owner/model"]
            file = ["-o", "out.h5ad"] if command in ("enhance", "annotate") else more.get(command, [])
            assert "a.h5ad does not exist" in run(command, "a.h5ad", *model, *file).stderr, command
            answer = run(command, "b.h5ad", *model, *file, *typed.get(command, ["--layer", "x"])).stderr
            assert "'x'" in answer, command
            assert "b.h5ad has the columns bulk_labels, donor" in answer or "slots of b.h5ad are X" in answer, command
        judged = ["evaluate", "owner/model", "--task", "embedding", "--data", "b.h5ad", "-o", "report"]
        assert "--label-key is 'x', and obs of b.h5ad has" in run(*judged, "--label-key", "x").stderr
        assert "Example" in run("pretrain", "--help").stdout
        heavy = {"torch", "transformers", "datasets", "scanpy", "anndata", "pandas", "scipy.sparse", "sklearn"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        import xtrimogene
        assert xtrimogene.XTrimoGeneConfig.preset("tiny").hidden_size == 64
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)


def test_the_program_runs_in_a_thread(succeed, files):
    with ThreadPoolExecutor() as threads:
        assert threads.submit(succeed, "inspect", files / "whole.h5ad", "--json").result().exit_code == 0


def test_errors_in_json(run, files, tmp_path):
    result = run("inspect", tmp_path / "none.h5ad", "--json")
    assert result.exit_code == 1
    assert "does not exist" in json.loads(result.stdout)["error"]
    assert result.stderr == ""


def test_debug_shows_the_error_itself(run, tmp_path):
    assert isinstance(run("--debug", "inspect", tmp_path / "none.h5ad").exception, FileNotFoundError)


def test_an_error_that_nobody_expected_is_a_line_with_the_command(fail, monkeypatch, files):
    def broken(path):
        raise KeyError("condition")

    monkeypatch.setattr("xtrimogene.tokenization.files_xtrimogene.load", broken)
    line = fail("inspect", files / "whole.h5ad")
    assert line.startswith("Error: KeyError 'condition' in `xtrimogene inspect ")
    assert "whole.h5ad`, which was not expected" in line


def test_no_memory_is_told_as_such(fail, monkeypatch, files):
    def broken(path):
        raise MemoryError

    monkeypatch.setattr("xtrimogene.tokenization.files_xtrimogene.load", broken)
    assert fail("inspect", files / "whole.h5ad").endswith("MemoryError: give a smaller --batch-size, or fewer cells")


def test_messages_name_options_and_not_arguments_of_python(fail, files, real_cells, checkpoint, tmp_path):
    command = ["annotate", files / "whole.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad"]
    assert "annotate by labelled cells (--reference and --label-key; in " in fail(*command)
    real_cells[:5].write_zarr(tmp_path / "cells.zarr")
    command[1] = tmp_path / "cells.zarr"
    assert "--layer 'nope' is not there" in fail("embed", *command[1:], "--layer", "nope")


@pytest.mark.parametrize(("name", "way"), [("finetune", "--resume"), ("convert", "goes on"), ("embed", "begins anew")])
def test_a_command_that_is_stopped_says_how_to_go_on(name, way):
    assert way in way_on(typer.main.get_command(app).commands[name])
