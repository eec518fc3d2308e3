"""Genes are added to a model of any kind: old outputs stay, all parts follow, and a saved folder has them."""

import numpy as np
import pytest
import torch

import xtrimogene
from xtrimogene import TxFMConfig, XTrimoGeneForPerturbationPrediction, XTrimoGenePerturbationConfig
from xtrimogene.modeling_xtrimogene.added_genes_xtrimogene import BY_GENE

SMALL = {"num_genes": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
KINDS = {
    "plain": ("XTrimoGeneForPreTraining", {"decoder_context": "nonzero", "depth_tokens": True}),
    "anchored": ("XTrimoGeneForPreTraining", {"anchored": True, "num_batches": 2, "num_latents": 2}),
    "annotator": ("XTrimoGeneForSequenceClassification", {"anchored": True, "classifier_anchored": True}),
    "TxFM": ("TxFMForPreTraining", {"loss": "nb"}),
    "anchored TxFM": ("TxFMForPreTraining", {"anchored": True, "num_batches": 2}),
    "annotator TxFM": ("TxFMForSequenceClassification", {"anchored": True, "classifier_anchored": True}),
}


def made(tiny_config, kind):
    name, fields = KINDS[kind]
    torch.manual_seed(0)
    config = TxFMConfig(**SMALL, **fields) if name.startswith("TxFM") else tiny_config(**fields)
    model = getattr(xtrimogene, name)(config).eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point() and not tensor.any():
            tensor.data.normal_(std=0.1)
    return model


def inputs(pad, ids=((3, 7, 11, 20), (5, 9))):
    batch = torch.full((2, 4), pad)
    for row, own in enumerate(ids):
        batch[row, : len(own)] = torch.tensor(own)
    return {
        "input_ids": batch,
        "values": torch.linspace(0.5, 4, 8).reshape(2, 4),
        "attention_mask": (batch < pad).long(),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_old_cells_keep_their_embedding_and_new_genes_have_outputs(tiny_config, kind, tmp_path):
    model = made(tiny_config, kind)
    sizes = {name: part.shape for name, part in model.state_dict().items()}
    before = model.base_model(**inputs(model.config.pad_token_id))
    assert model.add_genes(3).config.num_genes == 53
    pad = model.config.pad_token_id
    assert pad == 53 + 2 * getattr(model.config, "depth_tokens", False)
    after = model.base_model(**inputs(pad))
    torch.testing.assert_close(after.pooler_output, before.pooler_output)
    out = model(**inputs(pad, ids=((3, 7, 50, 52), (5, 51))))
    assert out.logits.isfinite().all()
    assert out.logits.shape[1] in (53, model.config.num_labels)
    model.save_pretrained(tmp_path)
    again, found = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    for name, part in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], part), name
    # What a fresh model of the new configuration has is what grew: no part with a row for each gene was forgotten.
    fresh = type(model)(model.config).state_dict()
    assert {name: part.shape for name, part in model.state_dict().items()} == {
        n: part.shape for n, part in fresh.items()
    }
    grown = {name for name, part in model.state_dict().items() if part.shape != sizes[name]}
    others = {name for name in grown if not any(name.endswith(end) for end in BY_GENE)}
    assert others == {name for name in grown if name.endswith("gene_embedding.weight")}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "TxFM"])
def test_new_genes_begin_as_the_mean_or_as_what_is_given(tiny_config, kind):
    model = made(tiny_config, kind)
    table = model.get_input_embeddings().weight.clone()
    model.add_genes(1)
    torch.testing.assert_close(model.get_input_embeddings().weight[50], table[:50].mean(0))
    given = torch.randn(2, table.shape[1])
    grown = model.add_genes(given).get_input_embeddings().weight
    assert torch.equal(grown[51:53], given)
    assert torch.equal(grown[53:], table[50:])  # depth tokens and padding
    assert torch.equal(grown[:50], table[:50])
    assert grown.requires_grad


def test_a_model_with_new_genes_learns(tiny_config, make_batch):
    model = made(tiny_config, "anchored").add_genes(2).train()
    model(**make_batch(model.config), batch_ids=torch.tensor([0, 1, 1])).loss.backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is None} == set()


@pytest.mark.parametrize("family", ["XTrimoGene", "TxFM"])
def test_the_tokenizer_follows(tiny_config, family, tmp_path):
    tokenizer = getattr(xtrimogene, f"{family}Tokenizer").from_genes(["CD3D", "MS4A1"], tmp_path / "panel")
    config = tiny_config(num_genes=2) if family == "XTrimoGene" else TxFMConfig(**{**SMALL, "num_genes": 2})
    model = getattr(xtrimogene, f"{family}Model")(config).eval().add_genes(1)
    tokenizer = tokenizer.with_genes(["GFP"], tmp_path / "longer")
    assert (len(tokenizer), tokenizer.pad_token_id) == (model.config.vocab_size, model.config.pad_token_id)
    batch = tokenizer(np.array([[3, 0, 1]]), gene_names=["CD3D", "MS4A1", "GFP"])
    assert 2 in batch["input_ids"]
    assert model(**batch).pooler_output.isfinite().all()


def test_what_is_wrong_is_said(tiny_config):
    model = made(tiny_config, "plain")
    with pytest.raises(ValueError, match="0 genes are to be added: give at least 1"):
        model.add_genes(0)
    with pytest.raises(ValueError, match=r"vectors of new genes are \(2, 5\), and each needs 16 finite numbers"):
        model.add_genes(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"new_num_tokens is 60, and the model has 53 ids, .* model.add_genes"):
        model.resize_token_embeddings(60)
    assert model.resize_token_embeddings(53) is model.get_input_embeddings()
    perturbation = XTrimoGeneForPerturbationPrediction(XTrimoGenePerturbationConfig(num_nodes=5, num_measured=3))
    with pytest.raises(ValueError, match="has no panel of its own"):
        perturbation.add_genes(1)
    with pytest.raises(ValueError, match="has no panel of its own"):
        perturbation.resize_token_embeddings(60)
