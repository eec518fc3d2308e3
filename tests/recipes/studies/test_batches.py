"""The study of batches: each way is trained on the same cells, and scored on the same others."""

import json

import anndata
import numpy as np
import pytest
import yaml

from xtrimogene.recipes.studies.batches import AS_IS, DISTANCE, NO_KEY, main


@pytest.mark.slow  # three pre-trainings on the full panel
@pytest.mark.usefixtures("quick_bag", "quick_umap")
def test_each_way_is_scored(pbmc, tmp_path):
    cells = pbmc.raw.to_adata()[:240]
    cells = anndata.AnnData(cells.X, pbmc.obs.iloc[:240][["bulk_labels"]], cells.var[[]])
    cells.obs["site"] = np.where(np.arange(240) % 2, "a", "b")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    plan, output = tmp_path / "plan.yaml", tmp_path / "found.json"
    entry = {"task": "embedding", "data": str(tmp_path / "cells.h5ad"), "batch_key": "site", "max_cells": 100}
    plan.write_text(yaml.safe_dump({"tasks": [entry]}))
    main(plan, output, seeds="0")
    (run,) = json.loads(output.read_text())["seeds"]
    scores = {name: run["scores"][name]["cells"]["mixing of batches"]["tiny"]["value"] for name in run["scores"]}
    assert scores.keys() == {AS_IS, NO_KEY, DISTANCE}
    assert len(set(scores.values())) == 3  # the ways differ
