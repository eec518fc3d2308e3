"""What released checkpoints are scored by: rounded weights, coarse types."""

import numpy as np
import pytest
import torch

from xtrimogene.recipes.studies.released import Coarse, evaluated, round_weights, types_by_genes


def test_weights_are_rounded_and_stay_float32():
    layer = torch.nn.Linear(3, 2)
    exact = layer.weight.detach().clone()
    round_weights(layer, "float16")
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, exact.half().float())
    assert not torch.equal(layer.weight, exact)


def test_the_type_is_that_of_the_best_label_and_its_probability_the_sum_over_the_type():
    names = ["CD19+ B", "CD4+ T Helper2", "CD8+ Cytotoxic T", "CD34+"]
    probabilities = np.array([[0.4, 0.3, 0.3, 0.0], [0.1, 0.3, 0.5, 0.1], [0.1, 0.0, 0.0, 0.9]])
    found = Coarse.of(probabilities, names, np.array([False, False, True]))
    assert found.types.tolist() == ["B", "T", "CD34+"]  # of the first cell T would have the higher sum
    np.testing.assert_allclose(found.probability, [0.4, 0.8, 0.9])
    scores = found.scores(np.array(["T", "T", "B"]))
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["accuracy of the others"] == 0.5
    assert scores["called unknown"] == pytest.approx(1 / 3)
    assert scores["calibration error"] == pytest.approx((0.4 + 0.2 + 0.9) / 3)
    of_four = Coarse.of(np.array([[0.2, 0.1, 0.6, 0.1]]), ["B", "NK", "T", "monocyte"])
    assert of_four.types.tolist() == ["T"]


def test_cells_without_a_type_count_for_the_share_of_unknown_ones_alone():
    found = Coarse(np.array(["B", "T"]), np.array([1.0, 1.0]), np.array([False, True])).scores(np.array(["B", ""]))
    assert (found["cells"], found["accuracy"], found["called unknown"]) == (1, 1.0, 0.5)
    assert found["called unknown of those with a type"] == 0
    none = Coarse(np.array(["B"]), np.ones(1), np.ones(1, bool)).scores(np.array([""]))
    assert none == {"cells": 0, "called unknown": 1.0}


def test_genes_tell_the_types_that_sorting_told(pbmc):
    """Of 700 cells of the bundled file, whose labels come from sorted cells of the same study."""
    types = types_by_genes(pbmc.raw.X.tocsr(), list(pbmc.raw.var_names))
    labels = pbmc.obs["bulk_labels"].astype(str).to_numpy()
    for type_, names in {"B": ["CD19+ B"], "monocyte": ["CD14+ Monocyte", "Dendritic"]}.items():
        of_type = labels[types == type_]
        assert len(of_type) > 20
        assert np.isin(of_type, names).mean() > 0.9


def test_paths_of_a_plan_are_moved_to_the_folder_of_the_data(tmp_path):
    (tmp_path / "plan.yaml").write_text("tasks:\n  - {task: embedding, data: data/a/a.h5ad, label_key: type}\n")
    (entry,) = evaluated(tmp_path / "plan.yaml", tmp_path / "mine")
    assert entry["data"] == str(tmp_path / "mine/a/a.h5ad")
