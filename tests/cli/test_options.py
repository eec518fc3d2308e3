"""Options that several commands share: a model that is none is refused, and so is a name that no file holds."""

import h5py
import pytest

from xtrimogene.cli.options import check_cells, names_held
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.tokenization.reading import CellInput


def test_folder_without_checkpoint(fail, files, tmp_path):
    (tmp_path / "weights.bin").touch()
    error = fail("embed", files / "whole.h5ad", "--model", tmp_path, "-o", tmp_path / "out.h5ad", code=2)
    assert "config.json" in error
    assert "weights.bin" in error
    error = fail("embed", files / "whole.h5ad", "--model", tmp_path / "none", "-o", tmp_path / "out.h5ad", code=2)
    assert "does not exist" in error


def test_folder_without_checkpoint_is_refused_in_the_words_of_tl(fail, files, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json") as refused:
        CellModel.load(tmp_path)
    arguments = ["embed", files / "whole.h5ad", "--model", tmp_path, "-o", tmp_path / "out.h5ad"]
    assert str(refused.value) in fail(*arguments, code=2)


def test_a_name_has_to_be_held_by_one_of_the_files(files, real_cells, tmp_path):
    real_cells[:4, :9].write_h5ad(tmp_path / "cells.h5ad")
    other = real_cells[:4, :9].copy()
    other.obs["study"], other.layers["counts"] = "one", other.X
    other.write_h5ad(tmp_path / "other.h5ad")
    both = [tmp_path / "cells.h5ad", tmp_path / "other.h5ad"]
    check_cells(*both, where=CellInput(layer="counts"), batch_key="study")
    with pytest.raises(ValueError, match="batch_key is 'studies', and obs of 2 files has the columns bulk_labels, "):
        check_cells(*both, batch_key="studies")
    with pytest.raises(ValueError, match=r"layer is 'counts', and the slots of cells\.h5ad are X"):
        check_cells(both[0], where=CellInput(layer="counts"))
    with pytest.raises(ValueError, match=r"gene_column is 'ids', and var of cells\.h5ad has the columns \(none\)"):
        check_cells(both[0], where=CellInput(gene_column="ids"))


def test_names_of_damaged_files_and_other_formats_are_left_to_those_who_read_them(real_cells, tmp_path):
    real_cells[:4, :9].to_df().to_csv(tmp_path / "cells.csv")
    real_cells[:4, :9].write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["obs"].attrs["column-order"]
    for name in ("cells.csv", "cells.h5ad"):
        assert names_held(tmp_path / name) == {}
        check_cells(tmp_path / name, label_key="x")
