"""The strongest attention weights are those of the whole matrix that eager attention gives."""

import numpy as np
import pytest
import torch

import xtrimogene
from xtrimogene import TxFMConfig, TxFMModel, XTrimoGeneConfig, XTrimoGeneModel, tl
from xtrimogene.inference.attention import attention
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.options import Attending, Running
from xtrimogene.tokenization.reading import CellInput

CPU = Running(device="cpu")


def saved(folder, model, tokenizer_class, genes):
    tokenizer_class.from_genes(genes, folder).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["xtrimogene", "txfm"])
def checkpoint(request, pbmc, measured_genes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    genes = measured_genes(pbmc.raw.var_names)[:60]
    if request.param == "txfm":
        config = TxFMConfig.preset("txfm-tiny", num_genes=60, num_hidden_layers=2)
        return saved(folder, TxFMModel(config), xtrimogene.TxFMTokenizer, genes)
    config = XTrimoGeneConfig.preset("tiny", num_genes=60, num_hidden_layers=2)
    return saved(folder, XTrimoGeneModel(config), xtrimogene.XTrimoGeneTokenizer, genes)


def test_weights_are_the_largest_of_the_whole_matrix(checkpoint, pbmc):
    loaded = CellModel.load(checkpoint)
    model = type(loaded.model).from_pretrained(checkpoint, attn_implementation="eager")
    batch = loaded.tokenizer(pbmc[:1].copy())
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions
    names = [loaded.tokenizer.genes[token] for token in batch["input_ids"][0]]
    names = ["CLS"] * (maps[0].shape[-1] - len(names)) + names
    for per_head in (False, True):
        table = attention(pbmc, loaded.model, CellInput(), Attending(num_cells=1, num_keys=3, per_head=per_head), CPU)
        assert set(table["cell"]) == {pbmc.obs_names[0]}
        assert len(table) == len(maps) * (maps[0].shape[1] if per_head else 1) * len(names) * 3
        for layer, weights in enumerate(maps):
            heads = weights[0] if per_head else weights[0].mean(0, keepdim=True)
            top = heads.topk(3, dim=-1)
            found = table[table["layer"] == layer]
            np.testing.assert_allclose(found["weight"], top.values.numpy().ravel(), atol=1e-5)
            keys = np.array(names)[top.indices.numpy().ravel()]
            assert (found["key_gene"].astype(str).to_numpy() == keys).mean() > 0.98  # equal weights may change places
            assert found["query_gene"].astype(str).tolist() == list(np.tile(np.repeat(names, 3), len(heads)))


def test_genes_asked_for_are_told_and_no_hook_stays(checkpoint, pbmc):
    loaded = CellModel.load(checkpoint)
    gene = loaded.tokenizer.genes[int(loaded.tokenizer(pbmc[:1].copy())["input_ids"][0, 0])]
    table = tl.attention(pbmc, loaded.model, genes=[gene], num_cells=5, num_keys=3, device="cpu")
    assert set(table["query_gene"]) == {gene}
    assert table.groupby(["cell", "layer"], observed=True).size().eq(3).all()
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_attention_through_latents_is_refused(pbmc, measured_genes, tmp_path):
    config = XTrimoGeneConfig.preset("tiny", num_genes=60, encoder_attention="criss_cross")
    genes = measured_genes(pbmc.raw.var_names)[:60]
    saved(tmp_path, XTrimoGeneModel(config), xtrimogene.XTrimoGeneTokenizer, genes)
    with pytest.raises(ValueError, match="has no attention of genes to genes"):
        tl.attention(pbmc, tmp_path, device="cpu")
