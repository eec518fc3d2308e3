"""Files that pre-training reads without a corpus."""

import anndata
import numpy as np
import pytest

from xtrimogene.tokenization.collators import DataCollatorForMaskedExpression
from xtrimogene.tokenization.reading import TrainingInput
from xtrimogene.training.data.cells import by_length, check_source, open_cells, read_files
from xtrimogene.training.options import CellSource, HeldOut


def test_cells_of_files_with_other_genes_are_masked_by_what_their_own_file_measured(pbmc, tokenizer, tmp_path):
    adata = anndata.AnnData(pbmc.raw.X, pbmc.obs[[]], pbmc.raw.var[[]])
    files = [tmp_path / "all.h5ad", tmp_path / "few.h5ad"]
    adata[:40].write_h5ad(files[0])
    adata[40:80, -300:].write_h5ad(files[1])
    dataset, numbers = read_files(files, tokenizer, TrainingInput(), say=lambda line: None)
    assert numbers == [("all.h5ad", 40), ("few.h5ad", 40)]
    np.testing.assert_array_equal(dataset["source"][:], np.repeat([0, 1], 40))
    batch = DataCollatorForMaskedExpression(tokenizer, zero_ratio=0.2)([dataset[row] for row in range(80)])
    for path, cells in zip(files, (slice(0, 40), slice(40, 80)), strict=True):
        measured = tokenizer.read_counts(path).match.rows
        ids = batch["masked_ids"][cells][batch["labels"][cells] == 0].numpy()
        assert len(ids) > 100
        assert np.isin(ids, measured).all()
        assert len(np.unique(ids)) > 0.9 * len(np.unique(measured[measured >= 0]))


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        ({}, None, "one is needed"),
        ({"files": ["a.h5ad"], "corpus": "corpus"}, None, "exclude each other"),
        ({"files": ["a.h5ad"]}, "donor", "name columns of a corpus"),
    ],
)
def test_cells_come_from_files_or_a_corpus(source, column, message):
    check_source(CellSource(files=["a.h5ad"]))
    check_source(CellSource(corpus="corpus"), "donor")
    with pytest.raises(ValueError, match=message):
        check_source(CellSource(**source), None, column)


def test_cells_held_out_are_a_share_of_all_files_and_none_is_on_both_sides(tmp_path, pbmc, tokenizer):
    files = [str(tmp_path / f"{name}.h5ad") for name in "ab"]
    for file, rows in zip(files, (slice(0, 30), slice(30, 70)), strict=True):
        pbmc[rows].write_h5ad(file)
    source, held_out, lines = CellSource(files=files), HeldOut(validation_share=0.1), []
    cells = open_cells(source, held_out, tokenizer, 0, lines.append)
    of_first = int((cells.train < 30).sum())
    assert cells.sources == [("a.h5ad", of_first), ("b.h5ad", 63 - of_first)]
    assert len(cells.held_out) == 7
    np.testing.assert_array_equal(np.sort(np.concatenate([cells.train, cells.held_out])), np.arange(70))
    assert (np.diff(cells.dataset["length"][:][cells.held_out]) >= 0).all()
    assert lines[0].startswith("a.h5ad: 30 cells; counts")
    assert set(open_cells(source, held_out, tokenizer, 1, lines.append).held_out) != set(cells.held_out)
    pbmc[:1].write_h5ad(files[0])
    with pytest.raises(ValueError, match="1 of 1 cells held out leave none to train on"):
        open_cells(CellSource(files=files[:1]), held_out, tokenizer, 0, lines.append)


def test_cells_of_like_length_stand_side_by_side():
    lengths = {"length": np.array([5, 1, 3, 1, 9])}
    np.testing.assert_array_equal(by_length(lengths, np.array([0, 1, 3, 4])), [1, 3, 0, 4])
