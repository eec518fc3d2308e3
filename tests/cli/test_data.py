"""`inspect` says what a file holds."""

import json

import h5py
import numpy as np

LABEL_KEY = "bulk_labels"


def test_inspect_says_what_is_there(succeed, files):
    found = json.loads(succeed("inspect", files / "empty.h5ad", "--json").stdout)
    assert (found["cells"], found["columns"], found["empty_cells"]) == (120, 765, 1)
    assert (found["slot"], found["state"]) == ("X", "log1p")
    assert found["genes"]["n_matched"] > 700
    assert found["obs"][LABEL_KEY]["values"] == 4
    assert any("--label-key" in command for command in found["next"])
    text = succeed("inspect", files / "empty.h5ad").stdout
    assert "120 cells x 765 columns" in text
    assert "Next: xtrimogene embed" in text


def test_inspect_shows_slots_of_what_cannot_be_used(run, files):
    result = run("inspect", files / "scaled.h5ad", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["slots"]["X"].startswith("scaled: ")
    assert "no counts found" in found["problem"]
    assert found["next"] == []


def test_inspect_reads_csv(succeed, real_cells, tmp_path):
    real_cells[:20].to_df().to_csv(tmp_path / "cells.csv")
    found = json.loads(succeed("inspect", tmp_path / "cells.csv", "--json").stdout)
    assert (found["cells"], found["obs"]) == (20, {})


def test_inspect_shows_the_shape_of_what_is_no_matrix(run, tmp_path):
    np.save(tmp_path / "one.npy", np.ones(5))
    result = run("inspect", tmp_path / "one.npy", "--json")
    assert result.exit_code == 1
    assert "array has 1 dimensions, shape (5,)" in json.loads(result.stdout)["problem"]
    assert "(5,)" in run("inspect", tmp_path / "one.npy").stdout


def test_inspect_of_an_array_says_that_it_names_no_genes(run, tmp_path):
    np.save(tmp_path / "one.npy", np.ones((2, 5)))
    problem = json.loads(run("inspect", tmp_path / "one.npy", "--json").stdout)["problem"]
    assert "does not name its columns; pass them, or save AnnData with var_names as .h5ad" in problem


def test_inspect_of_another_hdf5_file(fail, tmp_path):
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = np.ones(3)
    assert "other.h5ad holds x and no obs or var" in fail("inspect", tmp_path / "other.h5ad")
