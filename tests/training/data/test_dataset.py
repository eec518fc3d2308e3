"""A dataset of cells in memory."""

import numpy as np
import pytest
import torch

from xtrimogene.tokenization.collators import DataCollatorForExpression
from xtrimogene.training.data import dataset as datasets_of_cells
from xtrimogene.training.data.dataset import cells_dataset, run_dataset


def test_dataset_holds_every_cell_in_order(blood_panel, pbmc, labelled):
    dataset, ids, _ = labelled
    counts, totals = blood_panel.read_counts(pbmc).read()
    assert len(dataset) == pbmc.n_obs
    for row in (0, 17, 699):
        example = dataset[row]
        np.testing.assert_array_equal(example["input_ids"], counts[row].indices)
        np.testing.assert_array_equal(example["counts"], counts[row].data)
        assert (example["total"], example["cell_index"], example["labels"]) == (totals[row], row, ids[row])


def test_dataset_refuses_empty_cells_and_missing_labels(blood_panel, pbmc):
    counts, _ = blood_panel.read_counts(pbmc).read()
    counts = counts.tolil()
    counts[[4, 9]] = 0
    cells = blood_panel.read_counts(counts.tocsr(), gene_names=blood_panel.genes)
    with pytest.raises(ValueError, match=r"2 of 700 cells have no counts on the panel \(cell 4 first\)"):
        cells_dataset(cells)
    with pytest.raises(ValueError, match="3 labels for 700 cells"):
        cells_dataset(cells, [0, 1, 2])


def test_every_cell_gets_its_own_result_in_batches_of_cells_of_like_length(blood_panel, labelled, monkeypatch):
    monkeypatch.setattr(datasets_of_cells, "BATCH", 64)
    dataset, widths = labelled[0], []

    def totals(batch):
        assert "labels" not in batch
        widths.append(batch["input_ids"].shape[1])
        return torch.stack([batch["values"].sum(1), batch["attention_mask"].sum(1)], dim=1)

    found = run_dataset(dataset, DataCollatorForExpression(blood_panel), torch.device("cpu"), totals)
    assert widths == sorted(widths)
    assert len(widths) == 11
    for row in (0, 17, 699):
        alone = run_dataset(dataset.select([row]), DataCollatorForExpression(blood_panel), torch.device("cpu"), totals)
        torch.testing.assert_close(found[[row]], alone)
