"""Options that several commands share: a model that is none is refused."""

import pytest

import xtrimogene


def test_folder_without_checkpoint(fail, files, tmp_path):
    (tmp_path / "weights.bin").touch()
    error = fail("embed", files / "whole.h5ad", "--model", tmp_path, "-o", tmp_path / "out.h5ad", code=2)
    assert "config.json" in error
    assert "weights.bin" in error
    error = fail("embed", files / "whole.h5ad", "--model", tmp_path / "none", "-o", tmp_path / "out.h5ad", code=2)
    assert "does not exist" in error


def test_folder_without_checkpoint_is_refused_in_the_words_of_tl(fail, files, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json") as refused:
        xtrimogene.inference.cell_model.CellModel.load(tmp_path)
    arguments = ["embed", files / "whole.h5ad", "--model", tmp_path, "-o", tmp_path / "out.h5ad"]
    assert str(refused.value) in fail(*arguments, code=2)
