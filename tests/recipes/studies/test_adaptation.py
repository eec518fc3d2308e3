"""The study of adaptation: what is scored was neither pre-trained on nor adapted to."""

import json

import anndata
import numpy as np
import pytest
import yaml

from xtrimogene.recipes.studies.adaptation import main
from xtrimogene.training import adapting


@pytest.mark.slow  # a pre-training on the full panel, and an adaptation
@pytest.mark.usefixtures("quick_bag", "quick_umap")
def test_the_adapted_checkpoint_is_scored_on_cells_that_it_has_not_seen(pbmc, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "LEAST_STEPS", 5)
    cells = pbmc.raw.to_adata()[:400]
    cells = anndata.AnnData(cells.X, pbmc.obs.iloc[:400][["bulk_labels"]], cells.var[[]])
    cells[:100].copy().write_h5ad(tmp_path / "corpus.h5ad")
    cells[100:].copy().write_h5ad(tmp_path / "new.h5ad")
    plan, output = tmp_path / "plan.yaml", tmp_path / "found.json"
    entry = {"task": "embedding", "data": str(tmp_path / "new.h5ad"), "label_key": "bulk_labels"}
    plan.write_text(yaml.safe_dump({"tasks": [entry]}))
    main(plan, [tmp_path / "corpus.h5ad"], output, steps=1, seeds="0")
    (run,) = json.loads(output.read_text())["seeds"]
    found = run["data sets"]["new"]
    assert found["gained"]["nats of a count after"] < found["gained"]["nats of a count before"]
    rows = found["scores"]["k-NN macro-F1"]
    assert {"tiny", "adapted", "PCA of the corpus of tiny"} <= rows.keys()
    num_scored = int(rows["adapted"]["seen"].split(" of ")[1])
    assert rows["adapted"]["seen"] == rows["tiny"]["seen"] == f"0 of {num_scored}"
    assert 200 < sum(found["gained"]["cells"].values()) + num_scored <= 300  # but for types with few cells
    assert np.isfinite(rows["adapted"]["value"])
