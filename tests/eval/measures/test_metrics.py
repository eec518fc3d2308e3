import numpy as np
import pytest

from xtrimogene.eval.measures.metrics import annotation_metrics, confusion, masked_value_metrics


def padded_values():
    """Five cells with 3, 7, 1, 5 and 4 masked genes, a third of them truly zero."""
    rng = np.random.default_rng(0)
    lengths = np.array([3, 7, 1, 5, 4])
    is_real = np.arange(7) < lengths[:, None]
    true = np.where(rng.random((5, 7)) < 0.33, 0, rng.gamma(2, 1, (5, 7))).astype(np.float32)
    predicted = (0.5 * true + rng.normal(0, 0.3, (5, 7))).astype(np.float32)
    return np.where(is_real, true, np.float32(-100)), predicted, is_real


def correlation(first, second):
    first, second = first - first.mean(), second - second.mean()
    return (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())


def test_annotation_metrics_agree_with_counts_by_hand():
    true = ["B", "B", "B", "T", "T", "NK"]
    predicted = ["B", "B", "T", "T", "B", "Mono"]
    metrics = annotation_metrics(true, predicted)
    # B: 2 hits, 3 true, 3 predicted. T: 1 hit, 2 true, 2 predicted. NK and Mono: none.
    f1 = {"B": 2 / 3, "T": 1 / 2, "NK": 0.0, "Mono": 0.0}
    assert metrics["accuracy"] == pytest.approx(3 / 6)
    assert metrics["macro_f1"] == pytest.approx(sum(f1.values()) / 4)
    assert metrics["weighted_f1"] == pytest.approx((3 * f1["B"] + 2 * f1["T"]) / 6)
    assert {name: entry["f1"] for name, entry in metrics["per_class"].items()} == pytest.approx(f1)
    assert {name: entry["support"] for name, entry in metrics["per_class"].items()} == {
        "B": 3, "T": 2, "NK": 1, "Mono": 0,
    }  # fmt: skip


def test_confusion_counts_true_labels_in_rows():
    counts = confusion(["a", "a", "b"], ["b", "a", "b"], labels=["b", "a"])
    assert counts.tolist() == [[1, 0], [1, 1]]


def test_masked_value_metrics_agree_with_numpy():
    true, predicted, is_real = padded_values()
    metrics = masked_value_metrics(true, predicted)
    for suffix, chosen in {"": is_real, "_expressed": is_real & (true > 0)}.items():
        t, p = true[chosen].astype(float), predicted[chosen].astype(float)
        assert metrics["pearson" + suffix] == pytest.approx(correlation(t, p), abs=1e-6)
        assert metrics["mse" + suffix] == pytest.approx(((t - p) ** 2).mean(), rel=1e-5)
        assert metrics["r2" + suffix] == pytest.approx(1 - ((t - p) ** 2).mean() / t.var(), rel=1e-5)
    cells = [0, 1, 3, 4]  # one masked gene has no correlation
    per_cell = [correlation(true[c][is_real[c]], predicted[c][is_real[c]]) for c in cells]
    assert metrics["pearson_per_cell"] == pytest.approx(np.mean(per_cell), abs=1e-5)


def test_padding_does_not_count():
    true, predicted, is_real = padded_values()
    changed = np.where(is_real, predicted, 1e6)
    assert masked_value_metrics(true, changed) == pytest.approx(masked_value_metrics(true, predicted))


@pytest.mark.filterwarnings("error")
def test_constant_predictions_have_no_pearson():
    true, _, _ = padded_values()
    metrics = masked_value_metrics(true, np.ones_like(true))
    assert np.isnan(metrics["pearson"])
    assert np.isnan(metrics["pearson_per_cell"])
    assert metrics["r2"] <= 0


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        masked_value_metrics(np.zeros((2, 3)), np.zeros((3, 2)))
