"""Every figure of README.md and docs/*.md comes from a file of results."""

import importlib.util
import json
from pathlib import Path

import pytest

import xtrimogene

ROOT = Path(xtrimogene.__file__).parent
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def figures():
    specification = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", DOCUMENTS)
def test_blocks_are_what_the_results_say(figures, name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == figures.rendered(text), "run: python docs/figures.py"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_measured_figure_stands_outside_of_a_block(figures, name):
    loose = figures.uncovered((ROOT / name).read_text(encoding="utf-8"))
    assert not loose, "move these into a block of docs/measured/, or add a constant of the method to CONSTANTS"


def test_every_block_and_constant_is_used(figures):
    texts = [path.read_text(encoding="utf-8") for path in figures.documents()]
    used = [match[2] for text in texts for match in figures.BLOCK.finditer(text)]
    assert sorted(used) == sorted(figures.BLOCKS)
    outside = " ".join(" ".join(figures.BLOCK.sub(" ", figures.CODE.sub(" ", text)).split()) for text in texts)
    assert [constant for constant in figures.CONSTANTS if constant not in outside] == []


def test_the_table_of_the_benchmarks_is_theirs():
    from xtrimogene.eval.cost.benchmarks.report import table

    folder = ROOT / "docs/benchmarks"
    assert (folder / "table.md").read_text() == table(json.loads((folder / "results.json").read_text()))


@pytest.mark.parametrize(
    "figure",
    [
        "0.837",
        ".837",
        "1.5x",
        "3.3e-6",
        "22 minutes",
        "12 s",
        "370 GFLOP/s",
        "8,300 cells/s",
        "85 %",
        "8 times",
        "3 GiB",
    ],
)
def test_a_figure_typed_by_hand_is_found(figures, figure):
    around = "Ours came to {}, of 8 cells ([page](a/v0.837.md), `x=0.837`, xTrimoGene2)."
    assert figures.uncovered(around.format("a lot")) == []
    (found,) = figures.uncovered(around.format(figure))
    assert f"Ours came to {figure}"[: len(found)] in found or figure in found
    assert figures.uncovered(f"<!-- results: demo -->\n{figure}\n<!-- end -->") == []


@pytest.fixture
def folder(figures, tmp_path, monkeypatch):
    monkeypatch.setattr("measured.ROOT", tmp_path)
    (tmp_path / "docs/results").mkdir(parents=True)
    return tmp_path / "docs/results"


def test_annotators_are_averaged_over_the_seeds_that_are_there(figures, folder):
    for seed, accuracy in enumerate((0.8, 0.9, 0.85)):
        scores = {"xTrimoGene": {"accuracy": accuracy, "macro_f1": 0.7}}
        scores |= {name: {"accuracy": 0.7, "macro_f1": 0.75} for name in ("k-NN on PCA", "logistic regression")}
        run = {"cells": {"train": 80, "test": 20, "types": 3}, "epochs": 15, "annotation of held-out cells": scores}
        (folder / f"finetune_blood_seed{seed}.json").write_text(json.dumps(run))
    text = figures.rendered("<!-- results: finetune_blood -->\nold\n<!-- end -->\n")
    assert "| xTrimoGene, tiny | **0.850** ± 0.050 | 0.700 ± 0.000 |" in text
    assert "100 sorted blood cells, 3 types" in text
    assert "simple baselines win" not in text


def test_what_was_not_measured_says_so_and_unknown_results_are_refused(figures, folder):
    block = "<!-- results: {} -->\n<!-- end -->"
    assert figures.rendered(block.format("annotators")) == block.format("annotators").replace(
        "\n", "\n*Not measured yet.*\n"
    )
    with pytest.raises(ValueError, match="there are no results called 'speeds', only pretrain_blood"):
        figures.rendered(block.format("speeds"))
    row = {
        "test set": "Kang",
        "method": "ours",
        "seeds": 3,
        "sure": 0.5,
        "accuracy": 0.9,
        "accuracy std": 0.01,
        "macro_f1": 0.8,
    }
    row |= {"right of probability >= .9": 0.913, "called unknown": None}
    (folder / "annotators.json").write_text(json.dumps({"rows": [row]}))
    assert "| Kang | ours | 3 | 0.900 ± 0.010 | 0.800 | 50.0 % | 91.3 % | - |" in figures.rendered(
        block.format("annotators")
    )
    found = {"cells": 150, "15 neighbours shared": 0.985, "labels equal": 1.0}
    found |= {"unknown by the calibration made in float32": [6, 7]}
    (folder / "precision.json").write_text(json.dumps(found))
    assert "| 150 | 98.5 % | 100.0 % | 6 | 7 |" in figures.rendered(block.format("precision"))
