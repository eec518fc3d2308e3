"""`explain` on real cells."""

import json

import pandas as pd

from xtrimogene.released import knows


def test_explain_writes_a_table_and_shows_the_first_genes(succeed, fail, files, blood_annotator, tmp_path):
    command = ("explain", files / "empty.h5ad", "--model", blood_annotator, "--cells-per-type", 2, "--num-genes", 3)
    result = json.loads(succeed(*command, "-o", tmp_path / "new" / "genes.csv", "--json").stdout)
    table = pd.read_csv(tmp_path / "new" / "genes.csv")
    assert len(table) == result["rows"] == 3 * table["type"].nunique()
    assert {name: part["gene"].tolist() for name, part in table.groupby("type")} == result["genes"]
    assert table["cells"].max() == 2
    assert "exists: choose another --output" in fail(*command, "-o", tmp_path / "new" / "genes.csv")
    assert "name it so that it ends in .csv or .tsv" in fail(*command, "-o", tmp_path / "genes.txt", code=2)


def test_the_annotator_that_comes_with_the_package_is_explained_unless_another_is_named(succeed, files, tmp_path):
    result = succeed("explain", files / "whole.h5ad", "-o", tmp_path / "genes.csv", "--cells-per-type", 2)
    assert f"Model: blood-annotator, which comes with xtrimogene. {knows('blood-annotator')}" in result.stderr
    assert "CD14+ Monocyte" in set(pd.read_csv(tmp_path / "genes.csv")["type"])


def test_a_pretrained_model_decides_no_types(fail, files, checkpoint, tmp_path):
    line = fail("explain", files / "whole.h5ad", "-m", checkpoint, "-o", tmp_path / "genes.csv")
    assert "knows no cell types" in line
