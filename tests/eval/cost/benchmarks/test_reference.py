"""Peers to measure against have our weights and give our results."""

import pytest
import torch

from xtrimogene import XTrimoGeneForPreTraining
from xtrimogene.eval.cost.benchmarks.reference import ReferenceModel, transformers_encoder


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
