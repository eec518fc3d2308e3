"""The study of time to quality: the bag of genes trains on unlabelled cells, and is looked at while it does."""

import json

import anndata
import pytest
import yaml

from xtrimogene.eval.cost import time_to_quality as clock
from xtrimogene.recipes.studies import time_to_quality
from xtrimogene.recipes.studies.time_to_quality import main


@pytest.mark.usefixtures("quick_bag")
def test_neighbours_are_found_soon_and_data_without_labels_are_left_out(pbmc, tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "scvi_version", lambda: None)
    monkeypatch.setattr(time_to_quality, "EVERY", 2)
    cells = pbmc.raw.to_adata()[:200]
    cells = anndata.AnnData(cells.X, pbmc.obs.iloc[:200][["bulk_labels"]], cells.var[[]])
    cells.write_h5ad(tmp_path / "blood.h5ad")
    plan, output = tmp_path / "plan.yaml", tmp_path / "found.json"
    entry = {"task": "embedding", "data": str(tmp_path / "blood.h5ad")}
    plan.write_text(yaml.safe_dump({"tasks": [entry | {"label_key": "bulk_labels"}, entry | {"batch_key": "louvain"}]}))
    main(plan, output, seeds="1")
    ((name, (runs,)),) = json.loads(output.read_text())["data sets"].items()
    assert name == "blood"
    found = runs["tiny"]
    seconds, scores = zip(*found["curve"], strict=True)
    assert list(seconds) == sorted(seconds)
    assert len(scores) >= 3  # principal components alone, and looks while it trains
    assert found["best"] == pytest.approx(max(scores), abs=1e-4)
    assert found["best"] > 0.5  # ten types
    assert 0 < found["seconds"] <= found["seconds in all"]
