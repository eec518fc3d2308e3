"""Rows of genes that cells share are computed once."""

import pytest
import torch

from xtrimogene import XTrimoGeneForPreTraining
from xtrimogene.modeling_xtrimogene import modeling_xtrimogene


@pytest.mark.parametrize("layers", [1, 2])
def test_sharing_zero_genes_changes_no_prediction_and_no_gradient(monkeypatch, tiny_config, make_batch, layers):
    torch.manual_seed(0)
    config = tiny_config(decoder_num_hidden_layers=layers)
    model = XTrimoGeneForPreTraining(config).double().eval()
    batch = make_batch(config)
    batch |= {name: batch[name].double() for name in ("values", "labels")}
    results = []
    for cells in (0, 100):
        monkeypatch.setattr(modeling_xtrimogene, "CELLS_THAT_SHARE", cells)
        model.zero_grad()
        out = model(**batch)
        out.loss.backward()
        results.append([out.logits, *(part.grad for part in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)
