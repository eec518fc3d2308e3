"""Small models of both forms, and real cells."""

import pytest
import torch

import xtrimogene
from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel


@pytest.fixture(scope="session")
def sizes():
    """Sizes of a model that a test can run over real cells."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 1,
        "decoder_head_dim": 8,
        "pooling": "all",
    }


@pytest.fixture(scope="session", params=[False, True], ids=["genes only", "depth tokens"])
def checkpoint(sizes, request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    XTrimoGeneModel(XTrimoGeneConfig(depth_tokens=request.param, **sizes)).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.default(depth_tokens=request.param).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_cells(shared):
    """Sorted blood cells with 200 to 2,000 expressed genes, one of them emptied."""
    import anndata

    adata = anndata.read_h5ad(shared / "data" / "pbmc_facs_zheng" / "pbmc_facs_zheng.h5ad")[::100].copy()
    counts = adata.X.tolil()
    counts[11] = 0
    adata.X = counts.tocsr()
    return adata
