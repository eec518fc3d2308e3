"""transformers' own tests of tokenizers, run on those of this package: `make peer-tests`.

A text of these tokenizers is names of genes, separated by spaces.
"""

import tempfile
import unittest

from transformers_tests.test_tokenization_common import TokenizerTesterMixin

import xtrimogene

from .adapter import without

GENES = ["CD3D", "MS", "NKG", "LYZ", "GNLY", "PPBP", "TP", "KIT", "ACTB", "INS", "ALB", "CD"]
NOT_FOR_GENES = {
    "test_pad_token_initialization": "it renames padding, which is what unk_token of these texts names",
    "test_tokenizer_store_full_signature": "it leaves files of the vocabulary out by name, and does not know our table "
    "of gene names",
}


class GeneNames(TokenizerTesterMixin):
    """A panel of a few genes."""

    test_rust_tokenizer = test_slow_tokenizer = False
    test_tokenizer_from_extractor = False

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.mkdtemp(dir=cls.tmpdirname)
        # The tests have English texts: what is no gene becomes padding.
        cls.tokenizer_class.from_genes(GENES, folder, unk_token="<pad>").save_pretrained(cls.tmpdirname)

    def get_input_output_texts(self, tokenizer):
        return "LYZ KIT ALB", "LYZ KIT ALB"


@without(NOT_FOR_GENES)
class XTrimoGeneNames(GeneNames, unittest.TestCase):
    tokenizer_class = xtrimogene.XTrimoGeneTokenizer


@without(NOT_FOR_GENES)
class TxFMNames(GeneNames, unittest.TestCase):
    tokenizer_class = xtrimogene.TxFMTokenizer
