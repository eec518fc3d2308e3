"""transformers' own tests of models, run on the models of both families, as in their papers: `make peer-tests`.

The tables say which tests do not apply, and why. Tests that need a GPU or a package that is not installed leave
themselves out, and so do those of text generation, images and sound.
"""

import unittest

import xtrimogene

from .adapter import CellsOfTxFM, ModelTests, without

PANEL = "the rows of the gene table are a panel with padding last; genes are added by add_genes"
NOT_FOR_CELLS = {
    "test_load_with_mismatched_shapes": "it calls models with ids alone, and each gene has a value; "
    "test_can_load_ignoring_mismatched_shapes is run",
    "test_resize_tokens_embeddings": PANEL,
    "test_resize_embeddings_untied": PANEL,
    "test_resize_embeddings_untied_no_reinit_on_post_init": PANEL,
}
DECODER = {
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_head_dim": 6,
    "num_bins": 7,
}


class XTrimoGeneTests(ModelTests):
    config_class, base_class = xtrimogene.XTrimoGeneConfig, xtrimogene.XTrimoGeneModel
    all_model_classes = (
        xtrimogene.XTrimoGeneModel,
        xtrimogene.XTrimoGeneForPreTraining,
        xtrimogene.XTrimoGeneForSequenceClassification,
    )
    fields = DECODER


class TxFMTests(ModelTests):
    inputs_of = CellsOfTxFM
    config_class, base_class = xtrimogene.TxFMConfig, xtrimogene.TxFMModel
    all_model_classes = (xtrimogene.TxFMModel, xtrimogene.TxFMForPreTraining, xtrimogene.TxFMForSequenceClassification)


@without(NOT_FOR_CELLS)
class XTrimoGene(XTrimoGeneTests, unittest.TestCase):
    """Models as in the paper."""


@without(NOT_FOR_CELLS)
class TxFM(TxFMTests, unittest.TestCase):
    """Models as in the paper."""
