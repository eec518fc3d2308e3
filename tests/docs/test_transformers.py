"""The code of docs/transformers.md runs as it stands there."""

import re

import numpy as np
import pytest
import torch

import xtrimogene

PAGE = (xtrimogene.__path__[0]) + "/docs/transformers.md"
GENES = ["CD3D", "CD3E", "MS4A1", "CD79A", "NKG7", "GNLY", "LYZ", "S100A8", "PPBP", "ACTB"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a small checkpoint and labelled cells of two types."""
    import anndata
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = xtrimogene.XTrimoGeneConfig.preset("tiny", num_genes=len(GENES), num_hidden_layers=1)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained("checkpoint")
    xtrimogene.XTrimoGeneTokenizer.from_genes(GENES, "panel").save_pretrained("checkpoint")
    rng = np.random.default_rng(0)
    rates = np.where(np.arange(20)[:, None] % 2, np.linspace(0.3, 4, 10), np.linspace(4, 0.3, 10))
    counts = (rng.poisson(rates) + np.eye(20, 10)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": [f"type {row % 2}" for row in range(20)]}, index=[f"cell{row}" for row in range(20)]
    )
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad("labelled.h5ad")
    return tmp_path


def test_the_code_of_the_page_runs(workplace):
    pytest.importorskip("peft", reason="needs peft")
    with open(PAGE, encoding="utf-8") as file:
        blocks = re.findall(r"^```python\n(.*?)^```", file.read(), flags=re.M | re.S)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, PAGE, "exec"), names)
    labelled = names["adata"].obs["xtrimogene_label"]
    assert set(labelled) <= {"type 0", "type 1"}
    assert names["adata"].uns["xtrimogene"]["adapter"] == "adapter"
    for folder in ("annotator", "by_accelerate"):
        model = xtrimogene.XTrimoGeneForSequenceClassification.from_pretrained(workplace / folder)
        assert model.config.id2label == {0: "type 0", 1: "type 1"}
    longer = xtrimogene.XTrimoGeneForPreTraining.from_pretrained(workplace / "longer")
    assert longer.config.num_genes == names["longer"].num_genes == 12
