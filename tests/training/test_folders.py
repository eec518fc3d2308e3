"""A folder is the earlier one or the new one, whole, whenever a run is stopped."""

import os

import pytest

from xtrimogene.training.folders import whole_folder


def write(output, text):
    with whole_folder(output) as unfinished:
        unfinished.mkdir()
        if text is SystemExit:
            raise SystemExit
        (unfinished / "file").write_text(text)


@pytest.fixture
def output(tmp_path):
    write(tmp_path / "out", "earlier")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    return tmp_path / "out"


def test_a_new_folder_takes_the_place_of_the_earlier_one(output):
    write(output, "new")
    assert (output / "file").read_text() == "new"
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_run_that_is_told_to_stop_leaves_the_earlier_folder(output, monkeypatch, step):
    """Told to stop while it writes, before the earlier folder is put aside, and before the new one takes its place."""
    replace, calls = os.replace, []

    def stop(*paths):
        calls.append(paths)
        if len(calls) == step:
            raise SystemExit
        replace(*paths)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(SystemExit):
        write(output, "new" if step else SystemExit)
    assert (output / "file").read_text() == "earlier"
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_mended_by_the_next(output):
    output.rename(output.with_name("out.earlier"))
    output.with_name("out.unfinished").mkdir()
    with pytest.raises(RuntimeError), whole_folder(output):
        raise RuntimeError
    assert (output / "file").read_text() == "earlier"
    assert [path.name for path in output.parent.iterdir()] == ["out"]
