"""A folder is the earlier one or the new one, whole, whenever a run is stopped."""

import os

import pytest

from xtrimogene.atomic import final_model, whole_folder


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


def model_files(folder, text, *names):
    for name in ("config.json", "model.safetensors", *names):
        (folder / name).write_text(text)


def test_a_model_has_its_name_when_all_of_it_is_there(tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    model_files(output, "earlier", "calibration.safetensors", "model-00002-of-00002.safetensors")
    (output / "notes.txt").write_text("of the user")
    replace, seen = os.replace, []

    def watch(source, target):
        seen.append((source.name, (output / "config.json").exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    with final_model(output) as folder:
        model_files(folder, "new", "tokenizer.json")
        assert (output / "config.json").read_text() == "earlier"
    assert [name for name, _ in seen][-1] == "config.json"
    assert not any(is_model for _, is_model in seen)
    names = {file.name for file in output.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "notes.txt"}  # and no calibration of another
    assert (output / "model.safetensors").read_text() == "new"


def test_weights_are_as_readable_as_the_configuration(tmp_path):
    with final_model(tmp_path / "model") as folder:
        (folder / "adapter").mkdir()
        (folder / "config.json").write_text("{}")
        for path in (folder / "model.safetensors", folder / "adapter" / "adapter_model.safetensors"):
            path.touch(mode=0o600)
    modes = {path.stat().st_mode for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_a_model_that_is_not_finished_leaves_the_earlier_one(tmp_path):
    def stop():
        with final_model(tmp_path) as folder:
            model_files(folder, "new")
            raise RuntimeError

    model_files(tmp_path, "earlier")
    with pytest.raises(RuntimeError):
        stop()
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "config.json").read_text() == "earlier"
