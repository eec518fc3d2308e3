"""Each module is loaded as a user loads it, without a network, and compared with plain loops."""

import math
import socket

import evaluate
import numpy as np
import pytest

from xtrimogene.eval import metric_modules
from xtrimogene.eval.measures.metrics import annotation_metrics, masked_value_metrics


@pytest.fixture
def load(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a module asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def load(name, *configuration):
        return evaluate.load(f"{metric_modules.__path__[0]}/{name}", *configuration, cache_dir=str(tmp_path))

    return load


# -- plain loops ------------------------------------------------------------------------------------------------------


def correlation(first, second):
    mean_first, mean_second = sum(first) / len(first), sum(second) / len(second)
    product = square_first = square_second = 0.0
    for one, other in zip(first, second, strict=True):
        product += (one - mean_first) * (other - mean_second)
        square_first += (one - mean_first) ** 2
        square_second += (other - mean_second) ** 2
    return product / math.sqrt(square_first * square_second)


def squared_error(first, second):
    return sum((one - other) ** 2 for one, other in zip(first, second, strict=True)) / len(first)


def ranks(values):
    """Return ranks from 1, ties with the mean of theirs."""
    return [
        sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values
    ]


def silhouettes(points, groups):
    found = []
    for own, (point, group) in enumerate(zip(points, groups, strict=True)):
        distances = {}
        for other, (there, other_group) in enumerate(zip(points, groups, strict=True)):
            if other != own:
                distances.setdefault(other_group, []).append(math.dist(point, there))
        if group not in distances:
            found.append(0.0)
            continue
        inside = np.mean(distances.pop(group))
        outside = min(np.mean(some) for some in distances.values())
        found.append((outside - inside) / max(inside, outside))
    return np.array(found)


def rand_index(first, second):
    """Return the adjusted Rand index by looking at every pair."""
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    in_first = [first[i] == first[j] for i, j in pairs]
    in_second = [second[i] == second[j] for i, j in pairs]
    both = sum(a and b for a, b in zip(in_first, in_second, strict=True))
    expected = sum(in_first) * sum(in_second) / len(pairs)
    return (both - expected) / ((sum(in_first) + sum(in_second)) / 2 - expected)


def information(first, second):
    """Return the mutual information over the mean of both entropies."""

    def share(condition):
        return sum(condition) / len(first)

    def entropy(values):
        shares = [share([value == some for value in values]) for some in set(values)]
        return -sum(p * math.log(p) for p in shares)

    mutual = 0.0
    for one in set(first):
        for other in set(second):
            p = share([a == one and b == other for a, b in zip(first, second, strict=True)])
            if p:
                mutual += p * math.log(p / share([a == one for a in first]) / share([b == other for b in second]))
    return mutual / ((entropy(first) + entropy(second)) / 2)


# -- cell types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_numbers", [False, True], ids=["names", "numbers"])
def test_annotation_agrees_with_counting(load, as_numbers):
    rng = np.random.default_rng(0)
    true = rng.choice(4, 61, p=[0.6, 0.25, 0.1, 0.05])
    predicted = np.where(rng.random(61) < 0.6, true, rng.integers(0, 6, 61))  # 4 and 5 are never true
    names = (lambda ids: ids.tolist()) if as_numbers else (lambda ids: [f"type {number}" for number in ids])
    found = load("cell_type_annotation").compute(predictions=names(predicted), references=names(true))

    f1, sizes = [], []
    for label in sorted({*true.tolist(), *predicted.tolist()}):
        hits = sum(t == p == label for t, p in zip(true, predicted, strict=True))
        f1.append(2 * hits / (sum(true == label) + sum(predicted == label)))
        sizes.append(sum(true == label))
    expected = {
        "accuracy": sum(t == p for t, p in zip(true, predicted, strict=True)) / 61,
        "macro_f1": sum(f1) / len(f1),
        "weighted_f1": sum(size * value for size, value in zip(sizes, f1, strict=True)) / 61,
    }
    assert 0 in f1, "the example should have a label that is never true"
    assert found == pytest.approx(expected)
    package = annotation_metrics(names(true), names(predicted))
    assert found == pytest.approx({name: package[name] for name in expected})


# -- masked values ----------------------------------------------------------------------------------------------------


def masked_cells():
    """Seven cells with 1 to 9 masked genes, padded with -100 as the collator does; a cell is constant."""
    rng = np.random.default_rng(0)
    true = np.where(rng.random((7, 9)) < 0.4, 0, rng.gamma(2, 1, (7, 9)))
    true[4] = 1.0
    predicted = 0.5 * true + rng.normal(0, 0.3, (7, 9))
    is_real = np.arange(9) < np.array([9, 1, 5, 7, 6, 3, 8])[:, None]
    return np.where(is_real, true, -100), np.where(is_real, predicted, 55), is_real


def test_masked_values_agree_with_loops_and_padding_does_not_count(load):
    true, predicted, is_real = masked_cells()
    found = load("masked_expression").compute(predictions=predicted, references=true)
    expected = {}
    for ending, counts in {"": is_real, "_expressed": is_real & (true > 0)}.items():
        pairs = [(true[place], predicted[place]) for place in np.argwhere(counts).tolist() for place in [tuple(place)]]
        first, second = zip(*pairs, strict=True)
        mean = sum(first) / len(first)
        expected[f"pearson{ending}"] = correlation(first, second)
        expected[f"mse{ending}"] = squared_error(first, second)
        expected[f"r2{ending}"] = 1 - squared_error(first, second) / squared_error(first, [mean] * len(first))
    cells = [row for row in range(7) if is_real[row].sum() > 1 and np.ptp(true[row][is_real[row]]) > 0]
    own = [correlation(true[row][is_real[row]], predicted[row][is_real[row]]) for row in cells]
    assert len(own) == 5, "a cell of one value and a constant one have no correlation"
    expected["pearson_per_cell"] = sum(own) / len(own)
    assert found == pytest.approx(expected)
    assert found == pytest.approx(masked_value_metrics(true, predicted))


def test_masked_values_may_be_ragged_and_come_in_batches(load):
    true, predicted, is_real = masked_cells()
    metric = load("masked_expression")
    whole = metric.compute(predictions=predicted, references=true)
    for rows in ([0, 1, 2], [3, 4, 5, 6]):
        metric.add_batch(
            predictions=[predicted[row][is_real[row]] for row in rows],
            references=[true[row][is_real[row]] for row in rows],
        )
    assert metric.compute() == pytest.approx(whole)


def test_masked_values_of_nothing_are_not_a_number(load):
    found = load("masked_expression").compute(predictions=[[1.0, 2.0]], references=[[0.0, -100.0]])
    assert all(math.isnan(value) for value in found.values())
    with pytest.raises(ValueError, match="cell 1 has 2 predictions and 1 references"):
        load("masked_expression").compute(predictions=[[1.0], [1.0, 2.0]], references=[[1.0], [1.0]])


# -- perturbations ----------------------------------------------------------------------------------------------------


def test_perturbation_agrees_with_loops(load):
    rng = np.random.default_rng(0)
    control = rng.gamma(2, 1, 13)
    true = control + rng.normal(0, 1, (5, 13))
    true[:, 3] = control[3]  # did not change: has no direction
    predicted = control + 0.5 * (true - control) + rng.normal(0, 0.4, (5, 13))
    predicted[2] = control  # says nothing of the change
    found = load("perturbation_response").compute(predictions=predicted, references=true, control=control)

    square, absolute, correlations, directions = [], [], [], []
    for row in range(5):
        change, true_change = predicted[row] - control, true[row] - control
        square += [(a - b) ** 2 for a, b in zip(predicted[row], true[row], strict=True)]
        absolute += [abs(a - b) for a, b in zip(predicted[row], true[row], strict=True)]
        correlations.append(0.0 if row == 2 else correlation(true_change, change))
        moved = [(a, b) for a, b in zip(change, true_change, strict=True) if b != 0]
        directions.append(sum(a * b > 0 for a, b in moved) / len(moved))
    assert len(moved) == 12
    expected = {
        "mse": sum(square) / 65,
        "mae": sum(absolute) / 65,
        "pearson_change": sum(correlations) / 5,
        "direction_accuracy": sum(directions) / 5,
    }
    assert found == pytest.approx(expected)


def test_each_perturbation_may_have_genes_of_its_own(load):
    rng = np.random.default_rng(1)
    control, true, predicted = rng.random(8), rng.random((3, 8)), rng.random((3, 8))
    genes = np.array([[0, 3, 5, 7], [1, 2, 3, 4], [7, 6, 0, 2]])
    metric = load("perturbation_response")
    rows = [
        metric.compute(predictions=[predicted[row, own]], references=[true[row, own]], control=control[own])
        for row, own in enumerate(genes)
    ]
    found = metric.compute(
        predictions=np.take_along_axis(predicted, genes, 1),
        references=np.take_along_axis(true, genes, 1),
        control=control[genes],
    )
    assert found == pytest.approx({name: np.mean([row[name] for row in rows]) for name in found})


@pytest.mark.parametrize(
    ("predictions", "control", "message"),
    [
        ([[1.0, 2.0]], [1.0], r"control has shape \(1,\): give \(2,\)"),
        ([[1.0, math.nan]], [1.0, 1.0], "1 values of predictions are not finite"),
        ([[1.0]], [1.0], "profiles have 1 to 2 genes"),
    ],
)
def test_perturbation_refuses_what_does_not_fit(load, predictions, control, message):
    with pytest.raises(ValueError, match=message):
        load("perturbation_response").compute(predictions=predictions, references=[[1.0, 2.0]], control=control)


# -- embeddings -------------------------------------------------------------------------------------------------------


def test_embedding_agrees_with_loops(load):
    rng = np.random.default_rng(0)
    labels = rng.choice(["B", "T", "NK"], 40, p=[0.5, 0.3, 0.2])
    batches = np.where(labels == "NK", "one", rng.choice(["one", "two"], 40))  # NK cells are in one batch only
    centres = {"B": (0, 0, 0), "T": (3, 0, 0), "NK": (0, 4, 0)}
    points = np.array([centres[label] for label in labels]) + rng.normal(0, 1, (40, 3)) + (batches == "two")[:, None]
    clusters = rng.integers(0, 4, 40).tolist()
    found = load("embedding_clusters").compute(
        predictions=points, references=labels.tolist(), batches=batches.tolist(), clusters=clusters
    )
    mixed = [np.mean(1 - np.abs(silhouettes(points[labels == own], batches[labels == own]))) for own in ("B", "T")]
    expected = {
        "ari": rand_index(labels.tolist(), clusters),
        "nmi": information(labels.tolist(), clusters),
        "asw_label": silhouettes(points, labels).mean(),
        "asw_batch": np.mean(mixed),
    }
    assert found == pytest.approx(expected)


def test_clusters_are_found_where_none_are_given(load):
    rng = np.random.default_rng(0)
    labels = np.repeat([7, 8, 9], 20)
    points = 20 * np.eye(3)[labels - 7] + rng.normal(0, 1, (60, 3))
    metric = load("embedding_clusters")
    found = metric.compute(predictions=points, references=labels.tolist())
    assert (found["ari"], found["nmi"]) == pytest.approx((1, 1))
    assert set(found) == {"ari", "nmi", "asw_label"}
    shuffled = metric.compute(predictions=points, references=rng.permutation(labels).tolist())
    assert abs(shuffled["ari"]) < 0.1
    assert math.isnan(metric.compute(predictions=points, references=labels, batches=labels)["asw_batch"])


def test_embedding_refuses_what_does_not_fit(load):
    metric = load("embedding_clusters")
    with pytest.raises(ValueError, match="3 cells have 1 labels"):
        metric.compute(predictions=[[0.0], [1.0], [2.0]], references=["B", "B", "B"])
    with pytest.raises(ValueError, match="batches has 2 values for 3 cells"):
        metric.compute(predictions=[[0.0], [1.0], [2.0]], references=["B", "B", "T"], batches=["x", "y"])


# -- synergy ----------------------------------------------------------------------------------------------------------


def test_synergy_agrees_with_loops(load):
    rng = np.random.default_rng(0)
    true = np.round(rng.normal(5, 20, 50), -1)  # many ties
    predicted = np.round(true / 10 + rng.normal(0, 1.5, 50))
    found = load("synergy").compute(predictions=predicted, references=true)
    expected = {
        "mse": squared_error(true, predicted),
        "pearson": correlation(true, predicted),
        "spearman": correlation(ranks(true), ranks(predicted)),
    }
    assert found == pytest.approx(expected)
    constant = load("synergy", "regression").compute(predictions=[2.0, 2.0], references=[1.0, 3.0])
    assert constant["mse"] == 1
    assert math.isnan(constant["pearson"])
    assert math.isnan(constant["spearman"])


def test_synergy_of_classes_agrees_with_counting_pairs(load):
    rng = np.random.default_rng(0)
    true = rng.random(40) < 0.3
    predicted = np.round(0.4 * true + 0.6 * rng.random(40), 1)  # ties count as half
    found = load("synergy", "classification").compute(predictions=predicted, references=true.astype(float))
    above = [(p > n) + (p == n) / 2 for p in predicted[true] for n in predicted[~true]]
    assert found == pytest.approx({"auroc": sum(above) / len(above)})
    assert 0.6 < found["auroc"] < 1


def test_synergy_refuses_what_does_not_fit(load):
    with pytest.raises(ValueError, match="references are not all 0 or 1"):
        load("synergy", "classification").compute(predictions=[0.1, 0.9], references=[0.0, 12.5])
    with pytest.raises(ValueError, match="1 values of predictions are not finite"):
        load("synergy").compute(predictions=[math.inf, 0.9], references=[0.0, 12.5])
    with pytest.raises(ValueError, match="no configuration 'ranking'"):
        load("synergy", "ranking")
