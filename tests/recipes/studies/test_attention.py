"""The study of what the transformer is worth: what it adds is taken away whole, and nothing else."""

import anndata
import numpy as np
import torch

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.recipes.studies.attention import parts_of, with_and_without


def test_without_is_the_bag_of_genes_and_with_is_the_model_as_it_is(tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], tmp_path)
    torch.manual_seed(0)
    model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=4)).eval()
    for weight in (*model.model.bag.buffers(), model.model.bag.from_encoder.weight, *model.head.parameters()):
        weight.data.normal_()
    cell = {
        "input_ids": torch.tensor([[0, 3]]), "values": torch.tensor([[1.0, 2.0]]), "attention_mask": torch.ones(1, 2),
        "masked_ids": torch.tensor([[1, 2]]), "masked_values": torch.zeros(1, 2), "is_hidden": torch.ones(1, 2).bool(),
    }  # fmt: skip
    models = with_and_without(CellModel(model, tokenizer))
    values = {name: each.model(**cell).logits for name, each in models.items()}
    visible = cell["input_ids"], cell["values"], torch.ones(1, 2, dtype=torch.bool)
    of_bag = model.cell_decoder.values(model.cell_decoder(model.model.bag(*visible)), *visible)
    torch.testing.assert_close(values["without"], of_bag[:, [1, 2]])
    assert torch.equal(values["with"], model(**cell).logits)
    assert not torch.allclose(values["with"], values["without"])


def test_a_share_of_a_file_is_the_same_cells_at_each_call(tmp_path):
    path = tmp_path / "a.h5ad"
    anndata.AnnData(np.arange(24, dtype=np.float32).reshape(12, 2)).write_h5ad(path)
    first, again = (anndata.read_h5ad(parts_of([path], 1 / 3, tmp_path / name)[0]) for name in ("one", "two"))
    assert first.n_obs == 4
    assert list(first.obs_names) == list(again.obs_names)
