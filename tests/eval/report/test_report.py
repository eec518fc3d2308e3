import base64
import dataclasses
import hashlib
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from xtrimogene.eval.measures.results import Score, TaskResult
from xtrimogene.eval.report.report import check_output, compare, data_hash, write_report

NASTY = """<script>alert("1")</script> & '|' http://example.org/a.png"""
ARGUMENTS = {"title": "A title", "command": "evaluate it", "data": {"data/cells.h5ad": "a" * 64}, "seconds": 1.5}


def scored(method, metric, value, *, higher_is_better=True, error=0.01, data="pbmc", task="annotation", **changes):
    fields = {"spread": 0.02, "seeds": 3, "units": 1_200} | changes
    return Score(
        task, data, method, metric, value, value - error, value + error, higher_is_better=higher_is_better, **fields
    )


def result(scores, **changes):
    return TaskResult("annotation", "pbmc", "A protocol of somebody.", scores, **changes)


def ours_and_baselines():
    return [
        scored("ours", "macro_f1", 0.8),
        scored("ours", "mse", 2.0, higher_is_better=False),
        scored("linear", "macro_f1", 0.805),
        scored("linear", "mse", 3.0, higher_is_better=False),
        scored("nothing", "macro_f1", 0.1),
        scored("nothing", "mse", 1.0, higher_is_better=False),
    ]


class Page(HTMLParser):
    """What a browser would see: attributes, tags, text, and rows of tables with what is bold in them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.rows, self.bold = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag == "tr":
            self.rows.append([])
            self.bold.append([])
        if tag in ("th", "td"):
            self.rows[-1].append([])
            self.bold[-1].append(False)
        if tag == "b":
            self.bold[-1][-1] = True

    def handle_data(self, data):
        self.text.append(data)
        if self.rows and self.rows[-1] and data.strip() and "table" in self.tags:
            self.rows[-1][-1].append(data.strip())

    def values(self, name):
        return [value for _, own, value in self.attributes if own == name]


def written(folder, *args, **changes):
    record = write_report(folder, *args, **(ARGUMENTS | changes))
    return record, Page((folder / "report.html").read_text(encoding="utf-8")), (folder / "table.md").read_text("utf-8")


# -- the page ---------------------------------------------------------------------------------------------------------


def test_page_loads_nothing_from_elsewhere_and_runs_nothing(tmp_path):
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0], color="red")
    written(tmp_path, [result(ours_and_baselines(), pictures={"A curve": figure}), result([], settings={"a": 1})])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    (source,) = page.values("src")
    assert source.startswith("data:image/png;base64,")
    pixels = imread(io.BytesIO(base64.b64decode(source.split(",")[1])))
    assert ((pixels[..., 0] > 0.9) & (pixels[..., 1] < 0.2)).any(), "the red curve is not in the picture"
    assert page.values("alt") == ["A curve. annotation: pbmc"]
    assert all(link.startswith("#") and link[1:] in page.values("id") for link in page.values("href"))
    assert not set(page.tags) & {"script", "link", "iframe", "object", "base", "form"}
    assert not re.search(r"@import|url\(|srcset|\bon\w+=", text)
    assert "default-src 'none'" in " ".join(page.values("content"))
    assert ("meta", "name", "viewport") in page.attributes
    assert "prefers-color-scheme: dark" in text


def test_what_comes_from_outside_is_text_and_not_markup(tmp_path):
    figures = {NASTY: Figure(figsize=(1, 1))}
    scores = [scored(NASTY, NASTY, 0.5, data=NASTY, task=NASTY), scored("other", NASTY, 0.6, data=NASTY, task=NASTY)]
    nasty = TaskResult(NASTY, NASTY, NASTY, scores, figures, {NASTY: NASTY, "list": [NASTY]})
    record, page, table = written(tmp_path, [nasty], title=NASTY, command=NASTY, data={NASTY: NASTY})
    assert "script" not in page.tags
    assert {name for _, name, _ in page.attributes} == {
        "lang", "charset", "name", "content", "http-equiv", "class", "id", "role", "tabindex", "aria-label", "scope",
        "src", "width", "alt",
    }  # fmt: skip
    assert page.values("alt") == [f"{NASTY}. {NASTY}: {NASTY}"]
    # title twice, heading, protocol, caption, metric, method, picture, setting twice, command, data twice
    assert sum(NASTY in part for part in page.text) >= 12
    assert record["results"][0]["scores"][0]["method"] == NASTY
    assert "<" not in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}, "a name has made a column"


# -- the table --------------------------------------------------------------------------------------------------------


def test_best_of_each_metric_follows_its_direction_and_the_model_comes_first(tmp_path):
    scores = ours_and_baselines()
    scores += [
        scored("linear", "recall", 0.7, seeds=1, spread=0.0),
        scored("nothing", "recall", 0.7),
        scored("ours", "recall", math.nan, error=math.nan),
    ]
    _, page, table = written(tmp_path, [result(scores)])
    header, *rows = page.rows
    assert [cell[0] for cell in header] == ["method", "macro f1 ↑", "mse ↓", "recall ↑"]
    assert [row[0] for row in rows] == [[name, "3 seeds, 1,200 units"] for name in ("ours",)] + [
        ["linear", "1 or 3 seeds, 1,200 units"],
        ["nothing", "3 seeds, 1,200 units"],
    ]
    assert page.bold == [
        [False] * 4,
        [False, False, False, False],
        [False, True, False, True],
        [False, False, True, True],
    ]
    assert rows[0][1] == ["0.800", "[0.790, 0.810]", "± 0.020"]
    assert rows[0][3] == ["-"]
    assert rows[1][3] == ["0.700", "[0.690, 0.710]", "best"]
    assert table.splitlines()[4:9] == [
        "| method | macro f1 ↑ | mse ↓ | recall ↑ |",
        "| --- | ---: | ---: | ---: |",
        "| ours | 0.800 [0.790, 0.810] ± 0.020 | 2.000 [1.990, 2.010] ± 0.020 | - |",
        "| linear | **0.805** [0.795, 0.815] ± 0.020 | 3.000 [2.990, 3.010] ± 0.020 | **0.700** [0.690, 0.710] |",
        "| nothing | 0.100 [0.090, 0.110] ± 0.020 | **1.000** [0.990, 1.010] ± 0.020 "
        "| **0.700** [0.690, 0.710] ± 0.020 |",
    ]


def test_a_metric_without_a_better_end_has_neither_arrow_nor_winner(tmp_path):
    scores = [scored(name, "coverage", value, higher_is_better=None) for name, value in (("ours", 0.9), ("b", 0.99))]
    _, page, table = written(tmp_path, [result(scores)])
    assert "| method | coverage |" in table
    assert "lower is better" not in page.text
    assert "higher is better" not in page.text
    assert not any(bold for row in page.bold for bold in row)
    assert "is better than ours" not in table


def test_model_comes_first_in_each_table_whatever_the_order(tmp_path):
    scores = [scored("ours", "accuracy", 0.5), scored("linear", "accuracy", 0.4)]
    scores += [scored(name, "accuracy", 0.5, data="pbmc, rare") for name in ("linear", "ours")]
    _, page, _ = written(tmp_path, [result(scores)])
    assert [row[0][0] for row in page.rows] == ["method", "ours", "linear", "method", "ours", "linear"]


def test_rows_that_show_the_same_are_said_to(tmp_path):
    scores = [
        scored(name, metric, value)
        for name, values in {"ours": (0.5, 0.6), "a": (0.4, 0.3), "b, c": (0.4, 0.30001), "d": (0.4, 0.2)}.items()
        for metric, value in zip(("accuracy", "macro_f1"), values, strict=True)
    ]
    scores += [scored(name, metric, math.nan) for name in ("e", "f") for metric in ("accuracy", "macro_f1")]
    _, page, table = written(tmp_path, [result(scores)])
    sentence = "a and “b, c” have the same scores here, in every column."
    assert [part for part in page.text if "same scores" in part] == [sentence]
    assert f"* {sentence}" in table.splitlines()
    assert f"* {sentence}" in compare([tmp_path]).splitlines()


@pytest.mark.parametrize(
    ("value", "shown"), [(0.00012345, "0.000123"), (-0.0002, "-0.000200"), (12.3456, "12.35"), (23456.7, "23457")]
)
def test_three_digits_are_shown_whatever_the_unit(tmp_path, value, shown):
    _, page, _ = written(tmp_path, [result([scored("ours", "mse", value)])])
    assert page.rows[1][1][0] == shown


def test_sentences_say_where_another_method_wins(tmp_path):
    _, page, table = written(tmp_path, [result(ours_and_baselines())])
    for sentence in (
        "linear is better than ours in macro f1: 0.805 against 0.800; their 95 % intervals overlap.",
        "nothing is better than ours in mse: 1.000 against 2.000; their 95 % intervals do not overlap.",
    ):
        assert sentence in page.text
        assert f"* {sentence}" in table.splitlines()
    tied = scored("linear", "accuracy", 0.9004)  # as shown
    winning = [scored("ours", "accuracy", 0.9), tied, scored("chance", "accuracy", 0.1)]
    _, page, _ = written(tmp_path, [result(winning)])
    assert "No other method here is better than ours in any of these metrics." in page.text
    losing = [scored("ours", "accuracy", 0.1), *(scored(f"m{value}", "accuracy", value / 10) for value in (3, 9, 5))]
    _, page, _ = written(tmp_path, [result(losing)])
    assert any(part.startswith("m9 is better") and part.endswith("So are m5, m3.") for part in page.text)
    _, page, _ = written(tmp_path, [result([scored("ours", "accuracy", math.nan), scored("m", "accuracy", 0.1)])])
    assert "ours has no value for accuracy." in page.text
    names = ["ours", "m, of two", "m", "third, k-NN"]
    commas = [scored(name, "accuracy", value / 10) for value, name in enumerate(names)]
    _, page, _ = written(tmp_path, [result(commas)])
    assert any(
        part.startswith("“third, k-NN” is better") and part.endswith("So are m, “m, of two”.") for part in page.text
    )
    assert not any("No other method" in part for part in page.text)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([scored("ours", "mse", 1.0), scored("ours", "mse", 2.0)], "annotation: pbmc: ours has two scores of mse"),
        ([scored("ours", "mse", 1.0), scored("b", "mse", 2.0, higher_is_better=False)], "mse has two directions"),
    ],
)
def test_scores_that_contradict_each_other_are_refused(tmp_path, scores, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "new", [result(scores)], **ARGUMENTS)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="results hold no task"):
        write_report(tmp_path / "new", [], **ARGUMENTS)


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_numbers_come_back_from_json(tmp_path):
    import numpy as np

    scores = [*ours_and_baselines(), scored("ours", "recall", math.nan, error=0)]
    settings = {"seeds": (0, 1), "array": np.array([1.5, np.nan]), "count": np.int64(3), "rate": np.float32(np.inf)}
    record, _, _ = written(tmp_path / "new", [result(scores, settings=settings)])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / "new" / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == record
    assert read["schema_version"] == 1
    assert (read["title"], read["command"], read["data"], read["seconds"]) == tuple(ARGUMENTS.values())
    assert read["created"].endswith("+00:00")
    assert {"xtrimogene", "torch", "transformers", "scikit-learn", "numpy"} <= set(read["versions"])
    (only,) = read["results"]
    assert (only["task"], only["data"], only["model"]) == ("annotation", "pbmc", "ours")
    assert only["settings"] == {"seeds": [0, 1], "array": [1.5, None], "count": 3, "rate": None}
    assert [Score(**entry) for entry in only["scores"][:-1]] == scores[:-1]
    assert only["scores"][-1] == dataclasses.asdict(scores[-1]) | {"value": None, "low": None, "high": None}


def test_metrics_of_a_training_run_are_not_overwritten(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"loss": 0.5}')
    for refuse in (check_output, lambda folder: write_report(folder, [result(ours_and_baselines())], **ARGUMENTS)):
        with pytest.raises(ValueError, match="is not from an evaluation"):
            refuse(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == '{"loss": 0.5}'
    check_output(tmp_path / "new")
    write_report(tmp_path / "new", [result(ours_and_baselines())], **ARGUMENTS)
    write_report(tmp_path / "new", [result(ours_and_baselines()[:2])], **ARGUMENTS)
    assert len(json.loads((tmp_path / "new" / "metrics.json").read_text())["results"][0]["scores"]) == 2


# -- several reports --------------------------------------------------------------------------------------------------


def two_reports(folder, data=("a" * 64, "a" * 64), linear=(0.7, 0.7), names=("small", "large"), settings=({}, {})):
    for index, own in enumerate(("first", "second")):
        scores = [scored(names[index], "accuracy", 0.8 + index / 10), scored("linear", "accuracy", linear[index])]
        hashes = {f"{own}/place/cells.h5ad": data[index]}
        tasks = [result(scores, settings=settings[index])]
        write_report(folder / own, tasks, **(ARGUMENTS | {"data": hashes}))
    return [folder / "first", folder / "second"]


def methods(table):
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][2:]


def test_compare_puts_models_first_and_shared_baselines_once(tmp_path):
    table = compare(two_reports(tmp_path))
    assert methods(table) == ["small", "large", "linear"]
    assert "| large | **0.900** [0.890, 0.910] ± 0.020 |" in table
    assert table.count("**0.") == 1
    assert "is better than" not in table


def test_compare_tells_apart_what_has_the_same_name_and_other_numbers(tmp_path):
    table = compare(two_reports(tmp_path, linear=(0.7, 0.6), names=("ours", "ours"), settings=({"k": 1}, {"k": 2})))
    assert methods(table) == ["ours (first)", "ours (second)", "linear (first)", "linear (second)"]
    assert "* The setting k differs: 1 in first, 2 in second." in table


def test_compare_refuses_data_that_changed(tmp_path):
    folders = two_reports(tmp_path, data=("a" * 64, "b" * 64))
    with pytest.raises(ValueError, match=r"cells\.h5ad differs .* a{12}\.\.\. in first, b{12}\.\.\. in second"):
        compare(folders)


def test_compare_refuses_what_is_no_report(tmp_path):
    first, second = two_reports(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"third has no metrics\.json"):
        compare([first, tmp_path / "third"])
    content = json.loads((second / "metrics.json").read_text())
    (second / "metrics.json").write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(ValueError, match="has schema 99, and 1 can be read"):
        compare([first, second])
    (second / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        compare([first, second])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])


def test_compare_of_one_report_is_its_table(tmp_path):
    scores = [*ours_and_baselines(), scored("ours", "recall", math.nan), scored("ours", "mse", 3.0, data="other")]
    _, _, table = written(tmp_path, [result(scores)])
    rows = [line for line in table.splitlines() if not line.startswith("* ")]
    assert [line for line in compare([tmp_path]).splitlines() if line] == [line for line in rows if line]


# -- hashes -----------------------------------------------------------------------------------------------------------


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 5_000
    (tmp_path / "cells").write_bytes(content)
    assert data_hash(tmp_path / "cells") == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileNotFoundError):
        data_hash(tmp_path / "nothing")


def test_hash_of_a_folder_is_of_names_and_contents(tmp_path, monkeypatch):
    def folder(name, files):
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return data_hash(tmp_path / name)

    first = folder("first", {"a/0": "x", "b": "y"})
    assert folder("moved", {"b": "y", "a/0": "x"}) == first
    with monkeypatch.context() as patch:  # file systems list files in any order
        listed = list((tmp_path / "first").rglob("*"))
        for order in (listed, listed[::-1]):
            patch.setattr(Path, "rglob", lambda *_, order=order: iter(order))
            assert data_hash(tmp_path / "first") == first
    others = [{"a/1": "x", "b": "y"}, {"a/0": "y", "b": "x"}, {"a/0": "xb", "c": "y"}, {"a/0": "x"}]
    assert len({first, *(folder(f"other {number}", files) for number, files in enumerate(others))}) == 5
    shutil.rmtree(tmp_path / "first" / "a")
    (tmp_path / "first" / "b").unlink()
    with pytest.raises(FileNotFoundError, match="folder without files"):
        data_hash(tmp_path / "first")
