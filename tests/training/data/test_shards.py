"""Shards of a corpus: cells as rows of a table."""

import pytest


def test_columns_of_obs_are_kept_as_text(stored, blood, to_corpus, tmp_path):
    path, adata = blood
    to_corpus(path, obs=["batch", "age"], shard_cells=250)
    table = stored(tmp_path / "corpus")[1]
    assert table["batch"].to_pylist() == adata.obs["batch"].to_list()
    assert table["age"].to_pylist()[:5] == ["0.0", "1.0", "2.0", None, "4.0"]
    with pytest.raises(ValueError, match=r"'nope' is not in blood.h5ad; its columns are batch, age"):
        to_corpus(path, obs=["nope"], strict=True, output="other")
    with pytest.raises(ValueError, match="'total' has the name of a column of the corpus"):
        to_corpus(path, obs=["total"], output="another")
