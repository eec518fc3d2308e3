"""Rows of genes that cells share are computed once."""

import pytest
import torch

from xtrimogene import XTrimoGeneForPreTraining
from xtrimogene.modeling_xtrimogene import modeling_xtrimogene
from xtrimogene.modeling_xtrimogene.gene_rows_xtrimogene import GeneRows, decoder_rows, gather_rows


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


def test_rows_equal_those_written_out_and_the_last_group_counts():
    torch.manual_seed(0)
    shared = torch.randn(7, 3)
    first, last = (
        (torch.tensor([[0, 4], [2, 7]]), torch.randn(2, 2, 3)),
        (torch.tensor([[4], [5]]), torch.randn(2, 1, 3)),
    )
    rows = GeneRows.build(shared, [first, last])
    expected = shared.repeat(2, 1, 1)
    for ids, own in (first, last):
        for cell in range(2):
            for place, gene in enumerate(ids[cell].tolist()):
                if gene < 7:  # 7 is padding
                    expected[cell, gene] = own[cell, place]
    assert torch.equal(rows.at(), expected)
    asked = torch.tensor([[4, 1, 0], [5, 5, 6]])
    assert torch.equal(rows.at(asked), gather_rows(expected, asked))
    assert torch.equal(rows.map(lambda rows: 2 * rows + 1).at(), 2 * expected + 1)


def test_each_row_stands_for_one_gene_and_each_gene_has_one_row():
    ids, slots = decoder_rows([torch.tensor([[0, 4], [2, 7]]), torch.tensor([[4], [5]])], 7)
    assert ids.tolist() == [[0, 7, 4], [2, 7, 5]]
    assert [row[:7] for row in slots.tolist()] == [[0, -1, -1, -1, 2, -1, -1], [-1, -1, 0, -1, -1, 2, -1]]
