"""Tables of a report as they are written."""

import math

import pytest

from xtrimogene.eval.measures.results import Score
from xtrimogene.eval.report.tables import _markdown, _tables


def scored(method, metric, value, **changes):
    fields = {"low": value - 0.1, "high": value + 0.1, "spread": 0.0, "seeds": 1, "units": 50}
    return Score("annotation", "blood", method, metric, value, **{**fields, **changes})


def test_a_table_has_a_row_for_each_method_and_marks_the_best_of_each_metric():
    (table,) = _tables(
        [
            scored("ours", "macro_f1", 0.8, spread=0.02, seeds=3),
            scored("kNN", "macro_f1", 0.7),
            scored("ours", "error", 0.5, higher_is_better=False),
            scored("kNN", "error", 0.25, higher_is_better=False),
        ]
    )
    assert table.title == "annotation: blood"
    assert table.metrics == [("macro f1", "↑"), ("error", "↓")]
    assert [(method, [cell.is_best for cell in cells]) for method, _, cells in table.rows] == [
        ("ours", [True, False]),
        ("kNN", [False, True]),
    ]
    best = table.rows[0][2][0]
    assert (best.value, best.interval, best.spread) == ("0.800", "[0.700, 0.900]", "± 0.020")


def test_methods_say_what_they_were_trained_on_where_the_task_does():
    (table,) = _tables([scored("ours", "r2", 0.5, seen="0 of 50"), scored("kNN", "r2", 0.4)])
    lines = _markdown([table]).splitlines()
    assert "| method | trained on these cells | r2 ↑ |" in lines
    assert any(line.startswith("| ours | 0 of 50 | **") for line in lines)
    assert any(line.startswith("| kNN | - | 0.4") for line in lines)
    assert "trained on" not in _markdown(_tables([scored("ours", "r2", 0.5)]))


def test_a_score_that_does_not_exist_is_a_dash_and_never_the_best():
    (table,) = _tables(
        [scored("ours", "pearson", math.nan), scored("gene mean", "pearson", 0.1), scored("ours", "r2", 1)]
    )
    assert [[cell.value for cell in cells] for _, _, cells in table.rows] == [["-", "1.000"], ["0.100", "-"]]
    assert [cells[0].is_best for _, _, cells in table.rows] == [False, True]


def test_each_data_set_has_a_table_in_the_order_of_the_scores():
    scores = [scored("ours", "r2", 0.5), scored("ours", "r2", 0.6)]
    with pytest.raises(ValueError, match="ours has two scores of r2: give each data a name of its own"):
        _tables(scores)
    other = Score("recovery", "lung", "ours", "r2", 0.6, 0.5, 0.7, 0.0, 1, 50)
    assert [table.title for table in _tables([scores[0], other])] == ["annotation: blood", "recovery: lung"]


def test_what_stands_in_a_table_of_markdown_breaks_no_row():
    text = _markdown(_tables([scored("a|b", "r2", 0.5)]))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
