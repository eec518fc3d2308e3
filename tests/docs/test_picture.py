"""The picture of README.md is drawn from a file of cells."""

import sys
from pathlib import Path

import anndata
import pytest

import xtrimogene


@pytest.mark.slow  # two checkpoints and a map: python -m pytest -m slow tests/docs/test_picture.py
def test_the_picture_is_drawn_with_the_checkpoints_that_come_with_the_package(pbmc, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(xtrimogene.__file__).parent / "docs"))
    import picture

    cells = pbmc.raw.to_adata()[:80]
    anndata.AnnData(cells.X, var=cells.var[[]]).write_h5ad(tmp_path / "blood.h5ad")
    (tmp_path / "pictures").mkdir()
    monkeypatch.setattr(picture, "__file__", str(tmp_path / "picture.py"))
    monkeypatch.setattr(picture, "EVERY", 1)
    monkeypatch.setattr(sys, "argv", ["picture.py", str(tmp_path / "blood.h5ad")])
    picture.main()
    drawn = (tmp_path / "pictures/annotated.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 10_000
