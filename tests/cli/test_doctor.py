"""`doctor` says what this machine has."""

import json

import pytest


def test_doctor_knows_versions_and_devices(succeed):
    found = json.loads(succeed("doctor", "--json").stdout)
    assert {"python", "torch", "transformers"} <= set(found["versions"])
    assert "cpu" in found["devices"]
    assert found["problems"] == []
    assert "All is well" in succeed("doctor").stdout


@pytest.mark.parametrize("is_there", [True, False])
def test_doctor_says_what_can_compute_the_decoder(succeed, monkeypatch, is_there):
    import importlib.util

    find_spec = importlib.util.find_spec
    spec = object() if is_there else None
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *_: spec if name == "performer_pytorch" else find_spec(name, *_)
    )
    found = json.loads(succeed("doctor", "--json").stdout)
    assert found["favor_backends"] == ["native", "performer-pytorch"][: 1 + is_there]
    assert found["problems"] == []


def test_doctor_warns_of_old_versions(run, monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["torch>=999", "rich>=13"])
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["problems"]) == 1
