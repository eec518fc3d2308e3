"""How well a model knows what it does not know."""

import numpy as np
import pytest

from xtrimogene.eval.measures.certainty import calibration_error


def test_calibration_error_agrees_with_a_plain_loop():
    rng = np.random.default_rng(5)
    confidence = np.append(rng.random(500) ** 0.5, [0.0, 1.0])
    is_right = rng.random(502) < confidence**2
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        is_last = number == 14
        cells = [cell for cell, sure in enumerate(confidence) if low <= sure < high or (is_last and sure == 1)]
        if cells:
            accuracy = sum(is_right[cell] for cell in cells) / len(cells)
            expected += len(cells) / 502 * abs(accuracy - sum(confidence[cell] for cell in cells) / len(cells))
    assert calibration_error(confidence, is_right) == pytest.approx(expected)
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
