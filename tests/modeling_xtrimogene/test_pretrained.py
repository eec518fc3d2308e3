"""What models of all families share: saving with code, loading, and classification. `test_modeling.py` has more."""

import json

import pytest
import torch
from torch import nn

from xtrimogene import TxFMConfig, TxFMForSequenceClassification, TxFMModel, XTrimoGeneForSequenceClassification
from xtrimogene.modeling_xtrimogene.pretrained_xtrimogene import CellPreTrainedModel, ClassifiesCells


@pytest.fixture
def txfm():
    return TxFMConfig(num_genes=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, num_labels=3)


def test_each_family_saves_its_own_auto_map(tmp_path, txfm, tiny_config):
    for name, model in (
        ("modeling_txfm.TxFM", TxFMForSequenceClassification(txfm)),
        ("modeling_xtrimogene.XTrimoGene", XTrimoGeneForSequenceClassification(tiny_config())),
    ):
        model.save_pretrained(tmp_path / name)
        saved = json.loads((tmp_path / name / "config.json").read_text())["auto_map"]
        assert saved["AutoModel"] == f"{name}Model"
        assert (tmp_path / name / "pretrained_xtrimogene.py").exists()


def test_weights_are_as_readable_as_the_rest_of_the_folder(tmp_path, txfm):
    TxFMModel(txfm).save_pretrained(tmp_path, max_shard_size="1KB")
    modes = {path.stat().st_mode for path in tmp_path.iterdir() if path.is_file()}
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert len(modes) == 1


def test_a_class_that_a_user_derived_says_that_its_code_is_not_used(tmp_path, txfm):
    class Derived(TxFMModel):
        pass

    Derived.__module__ = "__main__"  # as in a notebook
    Derived(txfm).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="the checkpoint was saved by Derived, and TxFMModel takes its weights"):
        TxFMModel.from_pretrained(tmp_path)


def test_both_families_classify_alike(txfm, tiny_config):
    for cls, config in (
        (TxFMForSequenceClassification, txfm),
        (XTrimoGeneForSequenceClassification, tiny_config(num_labels=3)),
    ):
        model = cls(config).train()
        assert isinstance(model, (ClassifiesCells, CellPreTrainedModel))
        with pytest.raises(ValueError, match="1 of 2 cells of a batch have no tokens"):
            model(torch.tensor([[1, 2], [1, 2]]), torch.ones(2, 2), torch.tensor([[1, 1], [0, 0]]))
        with pytest.raises(ValueError, match="class_weights has 2 entries for 3 labels"):
            cls(type(config)(**{**config.to_dict(), "class_weights": [1.0, 2.0]}))


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def classify(tiny_config):
    torch.manual_seed(0)
    model = XTrimoGeneForSequenceClassification(tiny_config(num_genes=6, num_labels=3)).eval()
    return lambda labels: model(torch.tensor([[0, 3], [1, 2]]), torch.ones(2, 2), labels=labels)


def test_numbers_for_each_label_are_several_labels_as_in_transformers(classify):
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    out = classify(labels)
    torch.testing.assert_close(out.loss, nn.functional.binary_cross_entropy_with_logits(out.logits, labels))
    ids = torch.tensor([2, 0], dtype=torch.int32)
    torch.testing.assert_close(classify(ids).loss, nn.functional.cross_entropy(out.logits, ids.long()))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["B", "T"], TypeError, "labels is a list: give a tensor of class ids"),
        (torch.tensor([1, 2, 0]), ValueError, r"labels have the shape \(3,\) for 2 cells and 3 labels"),
        (torch.tensor([1.0, 0.0]), ValueError, r"multi_label_classification needs \(2, 3\)"),
        (torch.rand(3, 2), ValueError, r"labels have the shape \(3, 2\) for 2 cells and 3 labels"),
        (torch.tensor([1, 7]), ValueError, "labels hold 7, and the model has 3 labels: ids are 0 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_told_in_a_sentence(classify, labels, error, message):
    with pytest.raises(error, match=message):
        classify(labels)


def test_a_kind_of_labels_that_there_is_not_is_refused(tiny_config):
    model = XTrimoGeneForSequenceClassification(tiny_config(num_genes=6, num_labels=2)).eval()
    model.config.problem_type = "nonsense"
    with pytest.raises(ValueError, match="problem_type is 'nonsense': give one of regression"):
        model(torch.tensor([[0, 3]]), torch.ones(1, 2), labels=torch.tensor([1]))


def test_a_model_with_an_adapter_is_saved(tmp_path, txfm):
    peft = pytest.importorskip("peft")
    model = TxFMModel(txfm)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_numbers_where_ids_are_needed_are_refused(tiny_config):
    config = tiny_config(num_genes=6, num_labels=2, problem_type="single_label_classification")
    model = XTrimoGeneForSequenceClassification(config).eval()
    with pytest.raises(ValueError, match=r"labels are torch\.float32 numbers, and single_label_classification needs"):
        model(torch.tensor([[0, 3]]), torch.ones(1, 2), labels=torch.tensor([1.0]))
