"""The process that a command runs in."""

import sys

import pytest

from xtrimogene.cli.process import is_first_process, keep_freed_memory, prepare_process


@pytest.mark.parametrize(("rank", "is_first"), [(None, True), ("0", True), ("1", False)])
def test_the_first_of_several_processes_speaks(monkeypatch, rank, is_first):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is is_first


def test_elsewhere_than_on_linux_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_libraries_draw_no_bars_and_note_errors_only(monkeypatch):
    import datasets
    import transformers

    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", True)
    verbosity, has_bars = transformers.utils.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    try:
        prepare_process()
        assert transformers.utils.logging.get_verbosity() == transformers.logging.ERROR
        assert not transformers.utils.logging.is_progress_bar_enabled()
        assert datasets.are_progress_bars_disabled()
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if not has_bars:
            datasets.enable_progress_bars()
