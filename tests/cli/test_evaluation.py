"""`plan` says what a pre-training takes, and wrong arguments of `evaluate` are named."""

import json

import pytest


def test_plan_says_what_pretraining_takes(succeed):
    plans = json.loads(succeed("plan", "--cells", 1e6, "--expressed", 300, "--json").stdout)["plans"]
    assert [found["preset"] for found in plans] == ["3M", "10M", "100M"]
    assert plans[0]["cost"] < plans[1]["cost"] < plans[2]["cost"]
    assert plans[2]["parameters"] == pytest.approx(119.25e6, rel=0.001)
