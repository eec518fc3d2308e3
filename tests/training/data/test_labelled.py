"""Labelled cells are read and split."""

import anndata
import numpy as np
import pytest

from xtrimogene.tokenization.reading import TrainingInput
from xtrimogene.training.data.labelled import read_labelled
from xtrimogene.training.options import LabelledSplit

SPLIT = LabelledSplit(label_key="type", group_key="donor", test_share=0.25)


@pytest.fixture
def path(tmp_path, pbmc):
    """80 cells of two types and four donors, the first without counts."""
    obs = pbmc.obs[[]][:80].assign(type=["B", "T"] * 40, donor=[f"donor{row // 20}" for row in range(80)])
    counts = pbmc.raw.X[:80].tolil()
    counts[0] = 0
    anndata.AnnData(counts.tocsr(), obs=obs, var=pbmc.raw.var[[]]).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_cells_keep_their_labels_and_no_donor_is_on_both_sides(path, tokenizer):
    lines = []
    found = read_labelled(path, tokenizer, SPLIT, TrainingInput(drop_empty=True), seed=0, say=lines.append)
    assert found.names == ["B", "T"]
    every = np.arange(79)
    np.testing.assert_array_equal(np.sort(np.concatenate([found.train, found.test])), every)
    np.testing.assert_array_equal(found.labels(every), (["B", "T"] * 40)[1:])
    donors = (every + 1) // 20
    assert not set(donors[found.train]) & set(donors[found.test])
    assert lines[0] == "cells.h5ad: 1 of 80 cells have no counts on the panel and are left out"
    assert lines[1].startswith(f"cells.h5ad: 79 cells, 2 types, {len(found.test)} cells held out by donor; counts")


def test_what_is_not_there_is_named(path, tokenizer):
    with pytest.raises(
        ValueError, match=r"label_key is 'cell_type', and obs of cells\.h5ad has the columns type, donor"
    ):
        read_labelled(path, tokenizer, LabelledSplit(label_key="cell_type"), TrainingInput(), seed=0)
    with pytest.raises(ValueError, match="1 of 80 cells have no counts on the panel"):
        read_labelled(path, tokenizer, SPLIT, TrainingInput(), seed=0)
