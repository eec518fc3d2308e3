"""What commands print and write: tables, JSON, files that are whole or not there."""

import io
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from rich.console import Console

from xtrimogene.cli.output import of_markdown, scores_table


def test_embed_prints_tables_for_people_and_nothing_when_quiet(succeed, files, checkpoint, tmp_path):
    arguments = ["embed", files / "whole.h5ad", "--model", checkpoint, "--key-added", "E", "--pooling", "all"]
    result = succeed(*arguments, "-o", tmp_path / "a.h5ad")
    assert "cells/s" in result.stdout
    assert "matched" in result.stdout
    assert "120/120 cells" in result.stderr
    assert anndata.read_h5ad(tmp_path / "a.h5ad").obsm["E"].shape == (120, 64)
    assert succeed(*arguments, "-o", tmp_path / "b.h5ad", "--quiet").output == ""


def test_embed_writes_over_only_with_force(succeed, fail, files, checkpoint, tmp_path):
    output = tmp_path / "out.h5ad"
    output.write_text("mine")
    arguments = ["embed", files / "whole.h5ad", "--model", checkpoint, "-o", output]
    assert "--force" in fail(*arguments)
    assert output.read_text() == "mine"
    succeed(*arguments, "--force")
    assert "X_xtrimogene" in anndata.read_h5ad(output).obsm


def test_scores_mark_the_best_also_when_a_baseline_wins():
    table = scores_table("", {"ours": {"a": 0.5, "b": 0.9}, "theirs": {"a": 0.6, "b": float("nan")}})
    assert [list(column.cells) for column in table.columns[1:]] == [
        ["0.500", "[bold green]★ 0.600[/]"],
        ["[bold green]★ 0.900[/]", "-"],
    ]
    assert "ours does not win: a." in table.caption


def test_a_copy_that_does_not_fit_is_refused_before_anything_is_computed(
    fail, files, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
    error = fail("embed", files / "empty.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    assert "will hold all of" in error
    assert "has 10 bytes free: choose another --output" in error
    assert not any(tmp_path.iterdir())


@pytest.mark.slow  # processes of their own
def test_a_full_disk_is_an_error_with_a_reason_and_leaves_what_was_there(files, checkpoint, tmp_path):
    """A limit of the size of files stands for the disk: the copy fits, what is added does not."""
    output = tmp_path / "out.h5ad"
    output.write_text("as it was")
    size = (files / "empty.h5ad").stat().st_size
    code = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 1000}, {size + 1000}))
        from xtrimogene.cli import app
        app({["embed", str(files / "empty.h5ad"), "-m", str(checkpoint), "-o", str(output), "--force"]})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode  # 1, or what HDF5 makes of it when it closes the file a second time at exit
    assert "Error: " in done.stderr
    assert "out.h5ad could not be written:" in done.stderr
    assert output.read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5ad"]


def test_a_job_that_is_told_to_stop_leaves_nothing_half_written(files, checkpoint, tmp_path):
    output = tmp_path / "out.h5ad"
    code = f"""
        import os, signal
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # all is written, but under another name
        from xtrimogene.cli import app
        app({["embed", str(files / "empty.h5ad"), "-m", str(checkpoint), "-o", str(output)]})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not any(tmp_path.iterdir())


def test_output_that_cannot_be_written_is_refused_before_anything_is_read(fail, checkpoint, tmp_path):
    (tmp_path / "folder.h5ad").mkdir()
    (tmp_path / "file").touch()
    none = tmp_path / "none.h5ad"
    none.touch()  # reading would refuse it
    for_file = [["embed", none, "--model", checkpoint], ["annotate", none, "--model", checkpoint]]
    for_folder = [["demo"], ["pretrain", none], ["finetune", none, "--label-key", "x", "--model", checkpoint]]
    for_folder.append(["adapt", none, "--model", checkpoint])
    for arguments in for_file:
        assert "is a folder, and --output a file" in fail(*arguments, "-o", tmp_path / "folder.h5ad", "--force")
        assert "file is a file: choose another" in fail(*arguments, "-o", tmp_path / "file" / "a.h5ad")
    for arguments in for_folder:
        assert "is a file, and --output a folder" in fail(*arguments, "-o", tmp_path / "file", "--force")
        assert "file is a file: choose another" in fail(*arguments, "-o", tmp_path / "file" / "new", "--force")


def test_wide_tables_of_markdown_fit_the_screen_and_lose_no_score():
    metrics = [f"metric {number}" for number in range(9)]
    scores = [f"0.{number}00 [0.{number}50, 0.{number}60] ± 0.010" for number in range(9)]
    rows = [
        ["method", *metrics],
        ["---"] * 10,
        [r"bag \[of\] genes, a long name", *scores],
        ["PCA", *["**0.999**"] * 9],
    ]
    console = Console(file=io.StringIO(), width=80)
    for part in of_markdown("\n".join(["### Blood", "", *(f"| {' | '.join(row)} |" for row in rows)]), 80):
        console.print(part)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "Blood"
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    for number in range(9):
        assert all(
            part in text for part in (f"metric {number}", f"0.{number}00 ± 0.010", f"[0.{number}50, 0.{number}60]")
        )
    assert "bag [of] genes" in text


def test_what_cannot_be_written_is_found_before_the_model_is_loaded(
    fail, real_cells, checkpoint, tmp_path, monkeypatch
):
    def load(*_, **__):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("xtrimogene.inference.cell_model.CellModel.load", load)
    path, output = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    real_cells[:9].copy().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        anndata.io.write_elem(file["obs"], "_index", np.arange(9))
        file["obs"].attrs["column-order"] = [*file["obs"].attrs["column-order"], "_index"]
    for command in ("embed", "enhance", "annotate"):
        line = fail(command, path, "--model", checkpoint, "-o", output)
        assert "obs cannot be written into" in line
        assert "'_index' is a reserved name" in line
    assert not output.exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write into")
def test_a_folder_that_cannot_be_written_into_is_found_at_once(fail, files, checkpoint):
    assert "nothing can be written into /proc" in fail(
        "embed", files / "whole.h5ad", "--model", checkpoint, "-o", "/proc/none/out.h5ad"
    )
    assert "nothing can be written into /proc" in fail("demo", "-o", "/proc/none")


@pytest.mark.parametrize("damage", ["a chunk of raw/X", "the encoding of X"])
def test_a_matrix_that_would_be_copied_unread_is_read_before_anything_is_computed(
    fail, real_cells, checkpoint, tmp_path, damage
):
    cells = real_cells[:40].copy()
    cells.raw, cells.layers["counts"] = cells, cells.X
    cells.X = cells.X.toarray()
    cells.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        if damage == "the encoding of X":
            file["X"].attrs["encoding-type"] = [10**6, 5]
        start = file["raw/X/data"].id.get_chunk_info(0).byte_offset
    if damage == "a chunk of raw/X":
        content = bytearray((tmp_path / "cells.h5ad").read_bytes())
        content[start : start + 100] = bytes(100)
        (tmp_path / "cells.h5ad").write_bytes(content)
    error = fail("embed", tmp_path / "cells.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    assert f"cells.h5ad: {damage.split()[-1]} cannot be read" in error
    assert not (tmp_path / "out.h5ad").exists()


def test_a_sparse_matrix_that_does_not_say_how_it_is_stored_is_not_copied(fail, real_cells, checkpoint, tmp_path):
    cells = real_cells[:40].copy()
    cells.layers["counts"] = cells.X
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["X"].attrs["encoding-type"]
    error = fail("embed", tmp_path / "cells.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    assert "cells.h5ad: X does not state how it is stored (encoding-type)" in error
    assert not (tmp_path / "out.h5ad").exists()
