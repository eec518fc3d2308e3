"""Inputs that went wrong for people: each gives a result, or one line that names the file and what is wrong with it."""

import subprocess
import sys

import anndata
import numpy as np
import pytest

import xtrimogene

READ = [
    "cite.h5ad", "counts_of_variable_genes_only.h5ad", "ercc.h5ad", "layers_only.h5ad", "mtx_geo_genes_gz",
    "mtx_one_column", "mtx_starsolo", "mtx_two_columns", "nullable_strings.h5ad", "odd_labels.h5ad", "semicolons.csv",
    "uns_log1p_text.h5ad",
]  # fmt: skip
REFUSED = {
    "index_negative.h5ad": "X/indices holds -4 at place 5",
    "index_too_large.h5ad": "X/indices holds 1,000,000 at place 5",
    "indptr_broken.h5ad": "X/indptr holds 10,000,000 at place 3",
    "obs_without_column.h5ad": "obs lists the column 'condition' and does not hold it",
    "truncated.csv.gz": "ends too early",
}


@pytest.fixture(scope="module")
def inputs(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    subprocess.run([sys.executable, shared / "cases" / "make_inputs.py", folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", READ)
def test_it_is_inspected_and_embedded(inputs, succeed, checkpoint, tmp_path, name):
    assert "cells" in succeed("inspect", inputs / name, "--json").stdout
    succeed("embed", inputs / name, "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    embedding = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_xtrimogene"]
    assert len(embedding) >= 20
    assert np.isfinite(embedding).all()


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_line_that_names_it(inputs, fail, run, checkpoint, tmp_path, name):
    line = fail("embed", inputs / name, "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    assert name in line
    assert REFUSED[name] in line
    assert run("inspect", inputs / name).exit_code == 1
    assert "was not expected" not in line


def test_folders_of_10x_give_the_same_counts_whatever_their_files_are_called(inputs):
    tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
    folders = ("mtx_geo_genes_gz", "mtx_two_columns", "mtx_starsolo")
    of_folders = [tokenizer.read_counts(inputs / name).read()[0] for name in folders]
    assert of_folders[0].nnz > 0
    for counts in of_folders[1:]:
        assert (counts != of_folders[0]).nnz == 0


def test_text_with_missing_values_comes_back(inputs, succeed, checkpoint, tmp_path):
    succeed("embed", inputs / "nullable_strings.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    before, after = (anndata.read_h5ad(path).obs for path in (inputs / "nullable_strings.h5ad", tmp_path / "out.h5ad"))
    for column in before:
        assert before[column].astype(str).tolist() == after[column].astype(str).tolist()
