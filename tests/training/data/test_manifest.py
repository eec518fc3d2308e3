"""The manifest of a corpus is read whole or refused."""

import os

import numpy as np
import pytest

from xtrimogene.training.data.manifest import Manifest, read_manifest


def edit_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"cells": 128', '"cells": 127', 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "data" / "cells-00001.parquet").unlink(), "lacks 1 of 5 shards, data/cells-00001"),
        (lambda folder: os.truncate(folder / "data" / "cells-00002.parquet", 100), "cells-00002.parquet has 100 bytes"),
        (edit_manifest, "was changed after it was written"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is no manifest of a corpus"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json, so it is no corpus"),
    ],
    ids=["deleted", "truncated", "edited", "half", "none"],
)
def test_a_damaged_corpus_is_refused_by_reader_and_converter(blood, to_corpus, tmp_path, change, reason):
    to_corpus(blood[0], shard_cells=128)
    change(tmp_path / "corpus")
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        to_corpus(blood[0], shard_cells=128)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        read_manifest(tmp_path / "corpus")


def test_a_half_converted_corpus_is_not_read(stored, blood, to_corpus, tmp_path):
    to_corpus(blood[0], shard_cells=128)
    file = tmp_path / "corpus" / "manifest.json"
    manifest = Manifest.from_json(file.read_text(), "")
    manifest.sources[0].state, manifest.sources[0].cells_read = "converting", 512
    manifest.shards.pop()
    file.write_text(manifest.to_json())
    with pytest.raises(ValueError, match=r"is not finished: 512 of 600 cells of blood.h5ad were read; repeat"):
        read_manifest(tmp_path / "corpus")
    other = blood[0].with_name("other.h5ad")
    blood[1][:50].write_h5ad(other)
    with pytest.raises(ValueError, match="was interrupted after 512 of 600 cells and is not given"):
        to_corpus(other, shard_cells=128)
    assert to_corpus(other, blood[0], shard_cells=128).num_new == 88 + 50
    np.testing.assert_array_equal(stored(tmp_path / "corpus")[1]["cell_index"].to_numpy(), np.arange(650))
