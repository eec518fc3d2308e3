"""`plan` says what a pre-training takes, and wrong arguments of `evaluate` are named."""

import json

import pytest
import typer

from xtrimogene.cli.evaluation import Evaluated, asked, named, option_of, read_plan


@pytest.mark.slow  # a model of each size computes: a minute and a half
def test_plan_says_what_pretraining_takes(succeed):
    plans = json.loads(succeed("plan", "--cells", 1e6, "--expressed", 300, "--json").stdout)["plans"]
    assert [found["preset"] for found in plans] == ["3M", "10M", "100M"]
    assert plans[0]["cost"] < plans[1]["cost"] < plans[2]["cost"]
    assert plans[2]["parameters"] == pytest.approx(119.25e6, rel=0.001)


def test_plan_says_which_rates_were_measured(succeed, tmp_path, monkeypatch):
    from xtrimogene.eval.cost import plan

    given = []
    monkeypatch.setattr(plan, "plan", lambda *arguments: given.append(arguments) or [])
    row = {"group": "pre-training step, 10M", "variant": "ours, bfloat16", "TFLOP/s": 200.0}
    found = {"machine": {"device": "GPU"}, "peaks": {"bfloat16": 700.0}, "parts": {"training": {"rows": [row]}}}
    (tmp_path / "results.json").write_text(json.dumps(found))
    shown = " ".join(succeed("plan", "--measured", tmp_path / "results.json").stdout.split())
    assert "as measured on GPU (3M, 100M: 30% of its peak)" in shown
    assert given[0][2].teraflops == 700.0
    assert given[0][5].rates == {"10M": 2e14}


def test_a_task_is_asked_for_with_its_options_as_yaml_reads_them():
    options = ["max_cells=1000", "where={batch: a}", "name=a=b"]
    what = Evaluated(task="annotation", data="cells.h5ad", label_key="type", options=options)
    entry = {
        "task": "annotation",
        "data": "cells.h5ad",
        "label_key": "type",
        "max_cells": 1000,
        "where": {"batch": "a"},
    }
    assert asked(what) == ({}, [{**entry, "name": "a=b"}])


@pytest.mark.parametrize("text", ["max_cells", "=3", "task=embedding", "where=[1"])
def test_what_is_no_option_of_a_task_is_refused(text):
    with pytest.raises(typer.BadParameter, match=f"^--set {text.replace('[', '.')}"):
        option_of(text)


def test_two_checkpoints_of_one_name_are_told_apart(tmp_path):
    for folder in ("a/model", "b/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    one, other = str(tmp_path / "a" / "model"), str(tmp_path / "b" / "model")
    assert named([one, f"other={other}"]) == {"model": one, "other": other}
    with pytest.raises(typer.BadParameter, match="same name: tell them apart, as name=folder"):
        named([one, other])


@pytest.mark.parametrize("text", ["[1, 2]", "tasks: 3", "tasks: []\ncells: a", "tasks: []\ncheckpoints: 3"])
def test_what_is_no_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"plan\.yaml holds no plan: it needs `tasks`"):
        read_plan(tmp_path / "plan.yaml")
