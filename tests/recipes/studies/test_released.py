"""What released checkpoints are scored by: rounded weights, coarse types."""

import numpy as np
import pytest
import torch

from xtrimogene.recipes.studies.released import Coarse, coarsely, evaluated, round_weights


def test_weights_are_rounded_and_stay_float32():
    layer = torch.nn.Linear(3, 2)
    exact = layer.weight.detach().clone()
    round_weights(layer, "float16")
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, exact.half().float())
    assert not torch.equal(layer.weight, exact)


def test_coarse_types_sum_their_labels_and_unknown_cells_are_left_out_of_the_second_accuracy():
    names = ["CD19+ B", "CD4+ T Helper2", "CD8+ Cytotoxic T", "CD34+"]
    probabilities = np.array([[0.4, 0.3, 0.3, 0.0], [0.1, 0.0, 0.0, 0.9]])
    found = Coarse(coarsely(probabilities, names), np.array([False, True])).scores(np.array(["T", "B"]))
    assert found["accuracy"] == 0.5
    assert found["accuracy of the others"] == 1
    assert found["called unknown"] == 0.5
    assert found["calibration error"] == pytest.approx((0.4 + 0.9) / 2)
    of_four = coarsely(np.array([[0.2, 0.1, 0.6, 0.1]]), ["B", "NK", "T", "monocyte"])
    assert of_four.tolist() == [[0.2, 0.1, 0.6, 0.1, 0.0]]


def test_paths_of_a_plan_are_moved_to_the_folder_of_the_data(tmp_path):
    (tmp_path / "plan.yaml").write_text("tasks:\n  - {task: embedding, data: data/a/a.h5ad, label_key: type}\n")
    (entry,) = evaluated(tmp_path / "plan.yaml", tmp_path / "mine")
    assert entry["data"] == str(tmp_path / "mine/a/a.h5ad")
