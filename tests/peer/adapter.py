"""What transformers' model tests need to know of our models: configurations, inputs, and which tests do not apply.

Letters: B cells, L tokens, M masked genes.
"""

import copy
import re
import unittest

import torch
import transformers_tests.test_configuration_common as configurations
from transformers.models.auto import modeling_auto
from transformers_tests.test_modeling_common import ModelTesterMixin

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
# The tests know what an output holds and what labels are like by these tables, in which transformers' own models stand.
BASES = modeling_auto.MODEL_MAPPING_NAMES
CLASSIFIERS = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


class Tester:
    """What transformers calls `model_tester`: it makes the configuration and the inputs."""

    batch_size, is_training = 3, True
    hidden_size, num_hidden_layers, num_attention_heads = SIZES.values()
    fields: dict = {}

    def __init__(self, parent, config_class, base_class, **fields):
        self.parent, self.config_class, self.base_model_class = parent, config_class, base_class
        self.fields = {**self.fields, **fields}

    def get_config(self):
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.inputs(torch.Generator().manual_seed(0))


class Cells(Tester):
    """Cells of seven genes each."""

    seq_length, num_genes, num_masked = 7, 60, 4
    fields = {"num_genes": 60, **SIZES}

    def inputs(self, generator):
        genes = torch.stack([torch.randperm(self.num_genes, generator=generator) for _ in range(self.batch_size)])
        return {
            "input_ids": genes[:, : self.seq_length].sort(1).values,
            "values": 0.5 + 4 * torch.rand(self.batch_size, self.seq_length, generator=generator),
            "attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
        }

    def masked(self):
        """Return the genes to predict and their values, `(B, M)` each."""
        ids = torch.arange(self.num_genes - self.num_masked, self.num_genes).expand(self.batch_size, -1)
        return {"masked_ids": ids.clone(), "labels": torch.linspace(0, 3, self.num_masked).expand(ids.shape).clone()}


class CellsOfTxFM(Cells):
    """The encoder of TxFM has a token more, CLS."""

    encoder_seq_length = key_length = Cells.seq_length + 1

    def masked(self):
        given = super().masked()
        return {**given, "expressed_ids": given["masked_ids"], "expressed_values": given["labels"]}


class Screens(Tester):
    """A perturbed gene, and the profile of control cells."""

    num_measured = 7
    fields = {"num_nodes": 11, "num_measured": 7, "hidden_size": 16, "feature_size": 5, "features": "learned"}

    def inputs(self, generator):
        # Before a screen is read, the genes of the graphs all have the id 0.
        return {
            "perturbation_ids": torch.zeros(self.batch_size, 1, dtype=torch.long),
            "control_values": torch.rand(self.batch_size, self.num_measured, generator=generator),
        }


class DrugPairs(Cells):
    """Two drugs, and the cells of a line."""

    num_drug_features = 5

    def get_config(self):
        encoder = self.config_class.sub_configs["encoder_config"](**self.fields)
        names = [f"feature {number}" for number in range(self.num_drug_features)]
        return self.config_class(
            encoder_config=encoder, drug_features=names, hidden_size=16, problem_type="regression", num_labels=1
        )

    def inputs(self, generator):
        drugs = torch.rand(2, self.batch_size, self.num_drug_features, generator=generator)
        return {**super().inputs(generator), "drug_a": drugs[0], "drug_b": drugs[1]}


def without(table):
    """Leave out tests of a class that do not apply: the table gives the reason of each.

    A name stands for all tests that begin like it, since transformers numbers the cases of some.
    """

    def change(cls):
        for start, reason in table.items():
            names = [name for name in dir(cls) if name == start or re.match(rf"{start}_\d\d_", name)]
            if not names:
                raise LookupError(f"transformers has no test {start}: take it out of the table")
            for name in names:
                setattr(cls, name, unittest.skip(f"does not apply: {reason}")(lambda self: None))
        return cls

    return change


class ModelTests(ModelTesterMixin):
    """transformers' tests of models and configurations, for a family of ours."""

    test_can_init_all_missing_weights_before_2023 = True
    additional_model_inputs = ["values"]
    inputs_of, config_class, base_class = Cells, None, None
    fields: dict = {}
    config_fields: dict = SIZES

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        model_type = cls.config_class.model_type
        BASES[model_type] = cls.base_class.__name__
        for model_class in cls.all_model_classes:
            if model_class.__name__.endswith("ForSequenceClassification"):
                CLASSIFIERS[model_type] = model_class.__name__

    def setUp(self):
        self.model_tester = self.inputs_of(self, self.config_class, self.base_class, **self.fields)
        self.config_tester = configurations.ConfigTester(
            self,
            config_class=self.config_class,
            **self.config_fields,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_init_weights_can_init_buffers(self):
        # It takes no buffer for random, and the components of a new bag of genes are: with this deviation they are 0.
        self.model_tester.fields["initializer_range"] = 1e-300
        super().test_init_weights_can_init_buffers()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(copy.deepcopy(inputs_dict), model_class, return_labels)
        if return_labels and model_class.__name__.endswith("ForPreTraining"):
            inputs |= self.model_tester.masked()
        return inputs
