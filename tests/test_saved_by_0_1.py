"""Folders that version 0.1.0 saved load and give what it computed; their README.md says what they are."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer

import xtrimogene
from xtrimogene.training.data.corpus import read_corpus

SAVED = Path(__file__).parent / "data" / "saved_by_0_1"
TOKENS = ("input_ids", "values", "attention_mask")
MODELS = ("pretrained", "depth", "classifier", "released_classifier", "perturbation", "synergy")


@pytest.fixture(scope="module")
def saved():
    """Tensors by the folder and the name that they stand under, and lists of names."""
    with safe_open(SAVED / "expected.safetensors", "pt") as file:
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        for key in file.keys():
            folder, name = key.split("/", 1)
            tensors.setdefault(folder, {})[name] = file.get_tensor(key)
        lists = {key: json.loads(text) for key, text in file.metadata().items()}
    return tensors, lists


@pytest.fixture(scope="module")
def cells(saved):
    """Ten cells, with counts of 80 genes of the panel, some by an older name, and of 20 other columns."""
    tensors, lists = saved
    adata = anndata.AnnData(tensors["cells"]["counts"].numpy().astype(np.float32))
    adata.var_names = lists["columns"]
    return adata


def part(tensors, *names, prefix=""):
    return {name: tensors[prefix + name] for name in names}


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["pretrained", "depth", "classifier", "released_classifier"])
def test_a_saved_tokenizer_gives_the_same_batches(saved, cells, name):
    tokens = AutoTokenizer.from_pretrained(SAVED / name)(cells)
    assert set(tokens) == set(TOKENS)
    for key in TOKENS:
        assert_close(tokens[key], saved[0][name][key])


@pytest.mark.parametrize("name", MODELS)
def test_every_saved_folder_has_a_tokenizer_for_its_genes(name):
    tokenizer, config = (
        AutoTokenizer.from_pretrained(SAVED / name),
        json.loads((SAVED / name / "config.json").read_text()),
    )
    assert tokenizer.num_genes == config["num_genes"]
    assert tokenizer.depth_tokens == config["depth_tokens"] == (name == "depth")
    assert tokenizer.pad_token_id == config["pad_token_id"]


@pytest.mark.parametrize("name", ["pretrained", "depth"])
def test_a_saved_encoder_gives_the_same_cells_and_genes(saved, name):
    tensors = saved[0][name]
    model = AutoModel.from_pretrained(SAVED / name).eval()
    with torch.no_grad():
        encoded = model(**part(tensors, *TOKENS))
        genes = model.contextual_gene_embeddings(**part(tensors, *TOKENS))
    is_token = tensors["attention_mask"][:3, :, None]  # states of padding, which 0.1 computed, are 0 now
    assert_close(encoded.last_hidden_state[:3], tensors["hidden"] * is_token)
    assert_close(encoded.pooler_output, tensors["pooled"])
    assert_close(genes[:2], tensors["genes"])
    assert_close(model.static_gene_embeddings().detach(), tensors["table"])


@pytest.mark.parametrize("name", ["pretrained", "depth"])
def test_a_saved_pretrained_model_recovers_the_same_values(saved, name):
    tensors = saved[0][name]
    model = AutoModelForPreTraining.from_pretrained(SAVED / name).eval()
    masked = {key.removeprefix("masked/"): value for key, value in tensors.items() if key.startswith("masked/")}
    with torch.no_grad():
        recovered = model(**masked)
    assert_close(recovered.logits, tensors["logits"])
    assert_close(recovered.loss, tensors["loss"])


@pytest.mark.parametrize("name", ["classifier", "released_classifier"])
def test_a_saved_classifier_gives_the_same_logits(saved, name):
    tensors = saved[0][name]
    model = AutoModelForSequenceClassification.from_pretrained(SAVED / name).eval()
    with torch.no_grad():
        assert_close(model(**part(tensors, *TOKENS)).logits, tensors["logits"])


def test_a_classifier_saved_before_there_was_a_choice_of_norm_has_batch_norm():
    assert "classifier_norm" not in json.loads((SAVED / "released_classifier" / "config.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(SAVED / "released_classifier")
    assert any(isinstance(module, torch.nn.BatchNorm1d) for module in model.modules())


@pytest.mark.filterwarnings("ignore:Only 48 cells calibrate")
def test_a_saved_calibration_gives_the_same_probabilities_and_unknown_cells(saved, cells):
    tensors, lists = saved
    obs = xtrimogene.tl.annotate(
        cells, SAVED / "classifier", unknown_threshold=0.6, device="cpu", copy=True
    ).obs  # fmt: skip
    assert obs["xtrimogene_label"].astype(str).tolist() == lists["labels"]
    probability = torch.from_numpy(obs["xtrimogene_probability"].to_numpy(np.float32))
    assert_close(probability, tensors["classifier"]["probability"])
    assert obs["xtrimogene_unknown"].tolist() == tensors["classifier"]["unknown"].tolist()
    assert 0 < tensors["classifier"]["unknown"].sum() < len(obs)


def test_a_saved_perturbation_model_predicts_the_same_profiles(saved):
    tensors = saved[0]["perturbation"]
    model = xtrimogene.XTrimoGeneForPerturbationPrediction.from_pretrained(SAVED / "perturbation").eval()
    with torch.no_grad():
        predicted = model(**part(tensors, "perturbation_ids", "control_values", "labels"))
    assert_close(predicted.logits, tensors["logits"])
    assert_close(predicted.loss, tensors["loss"])


def test_a_saved_synergy_model_predicts_the_same_scores_from_embeddings_and_from_tokens(saved):
    tensors = saved[0]["synergy"]
    model = xtrimogene.XTrimoGeneForDrugSynergy.from_pretrained(SAVED / "synergy").eval()
    with torch.no_grad():
        predicted = model(**part(tensors, "drug_a", "drug_b", "cell_embeddings", "labels"))
        from_tokens = model(**part(tensors, "drug_a", "drug_b"), **part(tensors, *TOKENS, prefix="tokens/"))
    assert_close(predicted.logits, tensors["logits"])
    assert_close(predicted.loss, tensors["loss"])
    # The cells' embeddings hardly differ, and the head divides by how much they do: in float32 the scores are within
    # 1e-3 of those in float64, on the computer that saved them and on others.
    torch.testing.assert_close(from_tokens.logits, tensors["logits_of_tokens"], rtol=1e-3, atol=2e-3)


def test_a_saved_corpus_of_format_1_gives_the_same_cells(saved, tmp_path):
    tensors, lists = saved
    expected = tensors["corpus"]
    tokenizer = AutoTokenizer.from_pretrained(SAVED / "pretrained")
    corpus = read_corpus(SAVED / "corpus", tokenizer, cache_dir=str(tmp_path))
    for name in ("length", "total", "cell_index"):
        np.testing.assert_array_equal(corpus[name][:], expected[name].numpy())
    for name in ("input_ids", "counts"):
        np.testing.assert_array_equal(np.concatenate(corpus[name][:]), expected[name].numpy())
    assert list(corpus["donor"][:]) == lists["donors"]
    # Each of its two files lacks genes that the other measures.
    first, second = (set(np.concatenate(corpus["input_ids"][rows])) for rows in (slice(0, 30), slice(30, 60)))
    assert first - second
    assert second - first
