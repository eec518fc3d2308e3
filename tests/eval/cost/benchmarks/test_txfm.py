"""The benchmark of TxFM: variants do the same work on other numbers of genes."""

import json

import pytest
import torch

from xtrimogene.eval.cost.benchmarks import txfm
from xtrimogene.eval.cost.flops import kept_bytes


@pytest.mark.parametrize("variant", [txfm.PEER, "16"])
def test_a_variant_has_a_loss_of_all_genes_and_gradients_in_all_layers(variant):
    model, loss = txfm.loss_of(variant, "txfm-tiny", num_genes=200, num_cells=2)
    found = loss()
    found.backward()
    assert torch.isfinite(found)
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_what_is_kept_grows_with_the_genes_shown():
    few, many, plain = (
        kept_bytes(txfm.loss_of(variant, "txfm-tiny", num_genes=400, num_cells=2)[1])
        for variant in ("16", "128", txfm.PEER)
    )
    assert few < many < plain


def test_batches_of_cells_are_timed(monkeypatch):
    monkeypatch.setattr(txfm, "COLLATED", (2, 4, 16))
    found = txfm.collating(num_genes=100)
    assert found["genes shown"] == 16
    assert found["cells a second of one core"] > 0


@pytest.mark.slow  # it starts a process of its own
def test_the_command_writes_every_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(txfm, "SHOWN", (16, 64))
    txfm.main(tmp_path / "found.json", genes=300, cells=1, repeats=1)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["steps"].keys() == {txfm.PEER, "16", "64"}
    assert found["steps"][txfm.PEER]["times as fast as all genes"] == 1
