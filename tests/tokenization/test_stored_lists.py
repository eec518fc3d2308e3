"""Lists of gene ids and counts in Parquet are read as the cells they were made of."""

import anndata
import numpy as np
import pytest


@pytest.mark.parametrize("kind", ["parquet", "file", "arrow"])
def test_tahoe_schema_holds_the_cells_it_was_made_of(stored, shared, to_corpus, tmp_path, tokenizer, kind):
    folder = shared / "data" / "format_fixtures" / "tahoe_schema_from_kang"
    path = {
        "parquet": folder,
        "file": folder / "data" / "train-00001-of-00002.parquet",
        "arrow": folder / "arrow_dataset",
    }
    to_corpus(path[kind], obs=["sample", "cell_line_id"])
    found, table = stored(tmp_path / "corpus")
    kang = anndata.read_h5ad(shared / "data" / "kang_ifnb" / "kang_ifnb.h5ad")
    expected, totals = tokenizer.read_counts(kang).read()
    places = kang.obs_names.get_indexer([name.split("_", 1)[1] for name in table["cell_name"].to_pylist()])
    if (places < 0).any():
        places = kang.obs_names.get_indexer(table["cell_name"].to_pylist())
    assert len(table) == (150 if kind == "file" else 300)
    assert (found != expected[places]).nnz == 0
    np.testing.assert_array_equal(table["total"].to_numpy(), totals[places])
    assert set(table["sample"].to_pylist()) <= {"smp_kang_ctrl", "smp_kang_stim"}
