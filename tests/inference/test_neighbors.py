"""Labels of the nearest cells of a reference."""

import numpy as np

from xtrimogene.inference.neighbors import label_probabilities


def test_nearest_labels_ignore_scale_and_empty_references():
    reference = np.array([[0.0, 0], [0, 1000], [np.nan, np.nan], [1, 0]])
    probabilities, names = label_probabilities(
        reference, ["a", "a", "b", "c"], np.array([[0.9, 10], [np.nan, 0]]), n_neighbors=1
    )
    assert names == ["a", "c"]
    assert probabilities[0].tolist() == [0.0, 1.0]
    assert np.isnan(probabilities[1]).all()
