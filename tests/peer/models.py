"""transformers' own tests of models, run on the models of both families, as in their papers: `make peer-tests`.

The tables say which tests do not apply, and why. Tests that need a GPU or a package that is not installed leave
themselves out, and so do those of text generation, images and sound.
"""

import unittest

import xtrimogene

from .adapter import CellsOfTxFM, DrugPairs, ModelTests, Screens, without

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
ANCHOR = {"anchored": True, "embedding_size": 8, "anchor_decoder_size": 8, "num_batches": 2}
LATENTS = {
    "encoder_attention": "criss_cross",
    "criss_cross_latents": 4,
    "criss_cross_size": 16,
    "num_latents": 3,
    "latent_size": 8,
    "xpressor_layers": 2,
    "pooling": "xpressor",
}
WITHOUT_ANCHOR = "it loads a folder without weights, and a folder without its anchor is refused: numbers would be wrong"
CALLS_A_DICTIONARY = "it calls a dictionary where a model has a buffer of true and false; test_save_load is run"
NOT_FOR_ANCHORED = {
    **NOT_FOR_CELLS,
    "test_model_weights_reload_no_missing_tied_weights": WITHOUT_ANCHOR,
    "test_torch_save_load": CALLS_A_DICTIONARY,
}
NO_MAP = "it asks for maps of genes by genes, which criss-cross attention refuses in a sentence: it has none"
NOT_FOR_CRISS_CROSS = {**NOT_FOR_CELLS, "test_capture_outputs_decorator": NO_MAP}
NO_LAYERS = "the model has no layers of attention"
NO_TABLE = "the model has no table of tokens"
NOT_FOR_PERTURBATIONS = {
    "test_hidden_states_output": NO_LAYERS,
    "test_retain_grad_hidden_states_attentions": NO_LAYERS,
    "test_model_get_set_embeddings": NO_TABLE,
    "test_resize_tokens_embeddings": NO_TABLE,
}
NOT_FOR_PAIRS = {
    "test_correct_missing_keys": "it loads the folder of an encoder, which does not name the features of drugs",
    "test_resize_tokens_embeddings": PANEL,
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


class PerturbationTests(ModelTests):
    inputs_of, additional_model_inputs = Screens, ["control_values"]
    config_class, base_class = xtrimogene.XTrimoGenePerturbationConfig, xtrimogene.XTrimoGeneForPerturbationPrediction
    all_model_classes = (xtrimogene.XTrimoGeneForPerturbationPrediction,)
    config_fields = {"hidden_size": 16, "common_properties": ["hidden_size"], "has_text_modality": False}
    has_attentions = False


class SynergyTests(ModelTests):
    inputs_of, additional_model_inputs = DrugPairs, ["drug_b", "input_ids", "values"]
    config_class, base_class = xtrimogene.XTrimoGeneSynergyConfig, xtrimogene.XTrimoGeneForDrugSynergy
    all_model_classes = (xtrimogene.XTrimoGeneForDrugSynergy,)
    config_fields = {"hidden_size": 16, "common_properties": ["hidden_size"], "has_text_modality": False}
    fields = DECODER


@without(NOT_FOR_CELLS)
class XTrimoGene(XTrimoGeneTests, unittest.TestCase):
    """Models as in the paper."""


@without(NOT_FOR_CELLS)
class TxFM(TxFMTests, unittest.TestCase):
    """Models as in the paper."""


@without(NOT_FOR_ANCHORED)
class AnchoredXTrimoGene(XTrimoGeneTests, unittest.TestCase):
    """Models that add to a bag of genes."""

    fields = {**DECODER, **ANCHOR, "pooling": "all", "decoder_context": "nonzero"}


@without(NOT_FOR_ANCHORED)
class AnchoredTxFM(TxFMTests, unittest.TestCase):
    """Models that add to a bag of genes."""

    fields = ANCHOR


@without(NOT_FOR_CRISS_CROSS)
class CrissCross(XTrimoGeneTests, unittest.TestCase):
    """Models whose encoder attends through latents, and whose cells are latents."""

    fields = {**DECODER, **LATENTS}
    has_attentions = False


@without(NOT_FOR_PERTURBATIONS)
class Perturbation(PerturbationTests, unittest.TestCase):
    """The model of perturbations."""


@without(NOT_FOR_PAIRS)
class Synergy(SynergyTests, unittest.TestCase):
    """The model of two drugs."""
