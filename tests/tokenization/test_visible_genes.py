"""Which genes the encoder sees, drawn quickly, and the batches that ask for whole cells."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from xtrimogene import TxFMTokenizer, XTrimoGeneTokenizer
from xtrimogene.tokenization.collators import IGNORED, DataCollatorForMaskedExpression
from xtrimogene.tokenization.masking import VISIBLE, Masking, stream_keys
from xtrimogene.tokenization.visible_genes import (
    DataCollatorForReconstruction,
    DataCollatorForVisibleGenes,
    choose,
    draw_genes,
)


def keys(number, epoch=0):
    return stream_keys(0, epoch, VISIBLE, np.arange(number))


def is_chosen(size, number, cells):
    """Whether each place is chosen in each cell, (cells, size)."""
    places = choose(size, number, keys(cells))
    assert (np.diff(places) > 0).all()
    chosen = np.zeros((cells, size), int)
    np.put_along_axis(chosen, places, 1, axis=1)
    assert (chosen.sum(1) == number).all()
    return chosen


@pytest.mark.parametrize(("size", "number"), [(10, 1), (10, 3), (10, 5), (10, 8), (997, 300), (2, 1)])
def test_each_place_is_chosen_equally_often(size, number):
    chosen = is_chosen(size, number, 4_000)
    scaled = chosen.sum(0) * (size - 1) / (size - number)  # the variance of draws without return is smaller
    assert chisquare(scaled).pvalue > 1e-3


@pytest.mark.parametrize("number", [3, 7])
def test_pairs_of_places_are_chosen_equally_often(number):
    chosen = is_chosen(10, number, 20_000)
    together = (chosen.T @ chosen)[np.triu_indices(10, 1)] / 20_000
    np.testing.assert_allclose(together, number * (number - 1) / 90, atol=0.015)


def test_a_draw_depends_on_no_other_cell():
    panels = [np.arange(500), np.arange(0, 900, 2), np.arange(30)]
    mixed = [panels[row % 3] for row in range(9)]
    together = draw_genes(mixed, 100, keys(9))
    for row in range(9):
        (alone,) = draw_genes([mixed[row].copy()], 100, keys(9)[row : row + 1])
        np.testing.assert_array_equal(alone, together[row])
    assert [len(genes) for genes in together] == [100, 100, 30] * 3
    assert all((np.diff(genes) > 0).all() for genes in together)
    assert all(np.isin(genes, panel).all() for genes, panel in zip(together, mixed, strict=True))


@pytest.fixture
def tokenizer(tmp_path):
    return TxFMTokenizer.from_genes([f"GENE{index}" for index in range(200)], tmp_path / "panel")


@pytest.fixture
def cells():
    """Forty cells of 60 expressed genes; every other one is of a file that measured the first 150 genes."""
    rng = np.random.default_rng(0)
    few = np.packbits(np.arange(200) < 150).tobytes()
    return [
        {"input_ids": np.sort(rng.permutation(150)[:60]), "counts": rng.integers(1, 9, 60).astype(np.float32),
         "total": 999.0, "cell_index": index, **({"measured": few} if index % 2 else {})}
        for index in range(40)
    ]  # fmt: skip


def test_zeros_are_shown_as_often_as_expressed_genes(tokenizer, cells):
    batch = DataCollatorForVisibleGenes(tokenizer, 50)(cells)
    assert batch["input_ids"].shape == (40, 50)
    shown = (batch["values"] > 0).float().mean(1)
    assert shown[::2].mean().item() == pytest.approx(60 / 200, abs=0.04)
    assert shown[1::2].mean().item() == pytest.approx(60 / 150, abs=0.04)
    assert batch["input_ids"][1::2].max() < 150  # genes that were not measured are never shown


def test_values_are_those_of_the_genes_shown(tokenizer, cells):
    batch = DataCollatorForReconstruction(tokenizer, 50)(cells)
    for row, cell in enumerate(cells):
        dense = np.zeros(200)
        dense[cell["input_ids"]] = np.log1p(1e5 * cell["counts"] / cell["counts"].sum())
        np.testing.assert_allclose(batch["values"][row], dense[batch["input_ids"][row]], rtol=1e-5)
        assert batch["expressed_ids"][row].tolist() == cell["input_ids"].tolist()
        np.testing.assert_allclose(batch["expressed_values"][row], dense[cell["input_ids"]], rtol=1e-5)
        assert batch["totals"][row] == cell["counts"].sum()
        assert batch["measured"][row].sum() == (150 if row % 2 else 200)
    assert "labels" not in batch


def test_a_panel_of_few_genes_is_shown_whole_and_padded(tokenizer, cells):
    batch = DataCollatorForVisibleGenes(tokenizer, 170)(cells[:2])
    assert batch["attention_mask"].sum(1).tolist() == [170, 150]
    assert batch["input_ids"][1, 150:].tolist() == [200] * 20


def test_draws_follow_from_seed_epoch_and_cell_alone(tokenizer, cells):
    def ids(rows, **options):
        return DataCollatorForVisibleGenes(tokenizer, 50, **options)([cells[row] for row in rows])["input_ids"]

    every = ids(range(40), epoch=1)
    assert ids([7, 39, 2], epoch=1).tolist() == every[[7, 39, 2]].tolist()
    assert ids([7], epoch=2).tolist() != every[[7]].tolist()
    assert ids([7], epoch=1, seed=1).tolist() != every[[7]].tolist()


def test_masked_genes_are_those_of_xtrimogene_and_are_not_shown(tokenizer, cells, tmp_path):
    masking = Masking(expressed_ratio=0.3, zero_ratio=0.1)
    batch = DataCollatorForReconstruction(tokenizer, 60, masking, seed=3)(cells)
    other = XTrimoGeneTokenizer.from_genes(tokenizer.genes, tmp_path / "other")
    theirs = DataCollatorForMaskedExpression(other, masking, seed=3)(cells)
    assert batch["masked_ids"].tolist() == theirs["masked_ids"].tolist()
    for shown, masked, labels, theirs_labels in zip(
        batch["input_ids"], batch["masked_ids"], batch["labels"], theirs["labels"], strict=True
    ):
        assert not set(shown.tolist()) & set(masked.tolist()) - {200}
        assert ((labels > 0) == (theirs_labels > 0)).all()
        assert ((labels == IGNORED) == (masked == 200)).all()


def test_labels_of_tasks_are_kept(tokenizer, cells):
    labelled = [cell | {"labels": index % 3} for index, cell in enumerate(cells)]
    batch = DataCollatorForVisibleGenes(tokenizer, 50)(labelled)
    assert batch["labels"].tolist() == [index % 3 for index in range(40)]
    assert sorted(batch) == ["attention_mask", "input_ids", "known_ids", "known_values", "labels", "values"]


def test_known_genes_are_all_expressed_ones_that_are_not_masked(tokenizer, cells):
    every = DataCollatorForVisibleGenes(tokenizer, 50)(cells)
    whole = DataCollatorForReconstruction(tokenizer, 50)(cells)
    for batch in (every, whole):
        assert torch.equal(batch["known_ids"], whole["expressed_ids"])
        assert torch.equal(batch["known_values"], whole["expressed_values"])
    masked = DataCollatorForReconstruction(tokenizer, 50, Masking(expressed_ratio=0.3, zero_ratio=0.1))(cells)
    for row, cell in enumerate(cells):
        is_left = ~np.isin(cell["input_ids"], masked["masked_ids"][row])
        number = is_left.sum()
        assert masked["known_ids"][row, :number].tolist() == cell["input_ids"][is_left].tolist()
        assert torch.equal(masked["known_values"][row, :number], whole["expressed_values"][row, torch.tensor(is_left)])
        assert (masked["known_ids"][row, number:] == 200).all()


def test_batches_of_cells_are_given_where_they_are_known(tokenizer, cells):
    assert "batch_ids" not in DataCollatorForReconstruction(tokenizer, 50)(cells)
    of_batches = [cell | {"batch": index % 3} for index, cell in enumerate(cells)]
    assert DataCollatorForReconstruction(tokenizer, 50)(of_batches)["batch_ids"].tolist() == [i % 3 for i in range(40)]


def test_a_cell_without_counts_is_refused(tokenizer):
    cell = {"input_ids": [], "counts": [], "total": 9.0, "cell_index": 4}
    with pytest.raises(ValueError, match=r"1 of 1 cells of a batch have no counts on the panel \(cell 4 of the"):
        DataCollatorForVisibleGenes(tokenizer, 50)([cell])
