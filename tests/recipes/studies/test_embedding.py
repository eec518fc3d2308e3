"""The study of embeddings: no evaluated cell is trained on, and each method has its scores."""

import json

import anndata
import numpy as np
import pytest
import yaml

from xtrimogene.recipes.studies.embedding import cells_to_train_on, main
from xtrimogene.tokenization.reading import cells_of


@pytest.fixture
def entries(pbmc, tmp_path):
    cells = pbmc.raw.to_adata()[:240]
    cells = anndata.AnnData(cells.X, pbmc.obs.iloc[:240][["bulk_labels"]], cells.var[[]])
    cells.obs["site"] = np.where(np.arange(240) % 3, "a", "b")
    cells.write_h5ad(tmp_path / "one.h5ad")
    cells[::-1].copy().write_h5ad(tmp_path / "two.h5ad")
    one = {"task": "embedding", "data": str(tmp_path / "one.h5ad"), "label_key": "bulk_labels", "max_cells": 120}
    return [one, {"task": "embedding", "data": str(tmp_path / "two.h5ad"), "batch_key": "site", "max_cells": 60}]


def test_what_is_left_to_train_on_holds_no_evaluated_cell_and_says_the_batches(entries, tmp_path):
    (tmp_path / "left").mkdir()
    one, two = (anndata.read_h5ad(path) for path in cells_to_train_on(entries, tmp_path / "left"))
    for left, entry in ((one, entries[0]), (two, entries[1])):
        evaluated = set(cells_of(entry["data"], {}, entry["max_cells"]).obs_names)
        assert evaluated.isdisjoint(left.obs_names)
        assert len(evaluated) + left.n_obs == 240
    assert "batch" not in one.obs
    assert set(two.obs["batch"]) == {"a", "b"}
    with pytest.raises(ValueError, match="2 entries of the plan evaluate 1 files"):
        cells_to_train_on([entries[0], entries[0]], tmp_path / "left")


@pytest.mark.slow  # a pre-training on the full panel
@pytest.mark.usefixtures("quick_bag", "quick_umap")
def test_every_method_is_scored_for_every_seed(entries, tmp_path):
    plan, output = tmp_path / "plan.yaml", tmp_path / "found.json"
    plan.write_text(yaml.safe_dump({"tasks": entries}))
    main(plan, None, output, steps=1, seeds="0")
    (run,) = json.loads(output.read_text())["seeds"]
    rows = run["scores"]["one"]["k-NN macro-F1"]
    assert {"tiny", "bag of genes of tiny", "PCA of the corpus of tiny", "PCA of variable genes"} <= rows.keys()
    assert 0 <= rows["tiny"]["value"] <= 1
    assert "mixing of batches" in run["scores"]["two"]
    for of_file in run["recovered"].values():
        assert of_file["as read"].keys() == {"tiny", "PCA", "gene mean"}
        assert -1 <= of_file["as read"]["tiny"]["Pearson beyond gene means"] <= 1
