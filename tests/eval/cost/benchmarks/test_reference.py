"""Peers to measure against have our weights and give our results."""

import sys

import pytest
import torch

from xtrimogene import XTrimoGeneForPreTraining
from xtrimogene.eval.cost.benchmarks.reference import (
    PlainPerformer,
    ReferenceModel,
    plain_favor,
    transformers_encoder,
)


@pytest.fixture
def config(tiny_config):
    return tiny_config(
        favor_stabilizer="head", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pooling="all"
    )


@torch.no_grad()
def test_the_reference_gives_the_cells_genes_and_loss_of_our_model(config, make_batch):
    pytest.importorskip("performer_pytorch")
    torch.manual_seed(0)
    reference, ours = ReferenceModel(config).eval(), XTrimoGeneForPreTraining(config).eval()
    ours.load_state_dict(reference.our_weights())
    batch = make_batch(config, lengths=(9,))
    ids, values = batch["input_ids"], batch["values"]
    expected = ours.model(ids, values).pooler_output
    torch.testing.assert_close(reference.cell_embedding(ids, values), expected, atol=1e-5, rtol=0)
    theirs = reference.loss(ids, values, batch["masked_ids"], batch["labels"])
    torch.testing.assert_close(theirs, ours(**batch).loss, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_encoder_of_transformers_gives_our_hidden_states(config, make_batch):
    torch.manual_seed(0)
    ours = XTrimoGeneForPreTraining(config).eval().model
    bert = transformers_encoder(ours, config).eval()
    batch = make_batch(config, lengths=(9,))
    rows = ours.embeddings(batch["input_ids"], batch["values"])
    expected = ours(batch["input_ids"], batch["values"]).last_hidden_state
    torch.testing.assert_close(ours.encoder.norm(bert(rows)[0]), expected, atol=1e-5, rtol=0)


def test_without_performer_pytorch_the_same_is_computed(config, make_batch, monkeypatch):
    torch.manual_seed(0)
    theirs = pytest.importorskip("performer_pytorch").FastAttention(8)
    heads = torch.randn(3, 2, 3, 40, 8)
    torch.testing.assert_close(plain_favor(*heads, theirs.projection_matrix), theirs(*heads), atol=1e-5, rtol=0)
    whole = ReferenceModel(config).eval()
    monkeypatch.setitem(sys.modules, "performer_pytorch", None)
    plain = ReferenceModel(config).eval()
    assert isinstance(plain.decoder.performer, PlainPerformer)
    plain.load_state_dict({name: part for name, part in whole.state_dict().items() if name in plain.state_dict()})
    batch = make_batch(config, lengths=(9,))
    given = batch["input_ids"], batch["values"], batch["masked_ids"], batch["labels"]
    torch.testing.assert_close(plain.loss(*given), whole.loss(*given))
    XTrimoGeneForPreTraining(config).load_state_dict(plain.our_weights())
