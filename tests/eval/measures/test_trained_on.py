"""Cells are recognised by their counts on the panel, whatever file they are read from."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import xtrimogene
from xtrimogene.eval.measures import trained_on
from xtrimogene.eval.measures.trained_on import FILE, TrainedOn, cell_keys, save_trained_on, seen_of
from xtrimogene.training.data.convert import convert_files
from xtrimogene.training.data.corpus import read_corpus
from xtrimogene.training.data.dataset import cells_dataset


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    genes = xtrimogene.XTrimoGeneTokenizer.default().genes[:12]
    return xtrimogene.XTrimoGeneTokenizer.from_genes(genes, tmp_path_factory.mktemp("panel"))


@pytest.fixture(scope="module")
def table(tokenizer):
    counts = np.random.default_rng(0).poisson(2.0, size=(40, 12)) + np.eye(40, 12, dtype=int)
    return pd.DataFrame(counts, columns=tokenizer.genes, index=[f"cell{row}" for row in range(40)])


def test_keys_tell_cells_apart_and_do_not_depend_on_the_order_of_genes():
    cells = {
        "cell": ([3, 5], [1, 2]), "other order": ([5, 3], [2, 1]), "counts swapped": ([3, 5], [2, 1]),
        "other genes": ([4, 6], [1, 2]), "a gene more": ([3, 5, 7], [1, 2, 1]), "a gene less": ([3], [1]),
    }  # fmt: skip
    ids = np.concatenate([genes for genes, _ in cells.values()])
    counts = np.concatenate([counts for _, counts in cells.values()])
    keys = dict(zip(cells, cell_keys(ids, counts, np.array([len(genes) for genes, _ in cells.values()])), strict=True))
    assert keys["cell"] == keys["other order"]
    assert len(set(keys.values())) == len(cells) - 1
    # What earlier versions saved must be recognised by later ones.
    assert int(keys["cell"]) == 1973970513191059533


def test_cells_are_recognised_in_other_files_and_other_orders(tokenizer, table, tmp_path, monkeypatch):
    table.to_csv(tmp_path / "cells.csv")
    convert_files(
        [tmp_path / "cells.csv"], tmp_path / "corpus", tokenizer=tokenizer, min_genes=1, say=lambda line: None
    )
    corpus = read_corpus(tmp_path / "corpus", tokenizer, cache_dir=str(tmp_path / "cache"))
    save_trained_on(tmp_path, corpus.select(np.arange(30)), tokenizer)
    found = TrainedOn.load(tmp_path, tokenizer)
    turned = table[table.columns[::-1]][::-1].assign(OFF_PANEL=7)
    for chunk in (4096, 7):
        monkeypatch.setattr(trained_on, "CHUNK", chunk)
        assert found.share_of(tokenizer.read_counts(turned)) == "30 of 40"
    assert found.share_of(tokenizer.read_counts(table[30:])) == "0 of 10"
    changed = table.copy()
    changed.iloc[0, 0] += 1
    assert found.share_of(tokenizer.read_counts(changed)) == "29 of 40"


def test_a_training_that_went_on_has_seen_the_cells_of_both(tokenizer, table, tmp_path):
    first, second, unknown = (tmp_path / name for name in ("first", "second", "unknown"))
    for folder in (first, second, unknown):
        folder.mkdir()
    cells = tokenizer.read_counts(table)
    dataset = cells_dataset(cells)
    save_trained_on(first, dataset.select(range(10)), tokenizer)
    save_trained_on(second, dataset.select(range(5, 20)), tokenizer, origin=str(first))
    assert seen_of(TrainedOn.load(second, tokenizer), cells) == "20 of 40"
    # Of what the first training saw nothing is known, so that nothing can be said of the second.
    save_trained_on(unknown, dataset.select(range(5)), tokenizer, origin=str(tmp_path))
    assert not (unknown / FILE).exists()
    assert seen_of(TrainedOn.load(unknown, tokenizer), cells) == "not known"


def test_a_file_of_another_panel_or_of_nothing_is_refused(tokenizer, table, tmp_path):
    save_trained_on(tmp_path, cells_dataset(tokenizer.read_counts(table)), tokenizer)
    other = xtrimogene.XTrimoGeneTokenizer.from_genes(tokenizer.genes[::-1], tmp_path / "panel")
    with pytest.raises(ValueError, match="its gene ids mean other genes"):
        TrainedOn.load(tmp_path, other)
    save_file({"cells": np.zeros(3)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="holds no keys of cells"):
        TrainedOn.load(tmp_path, tokenizer)
