"""Gene tokens from proteins: off, nothing changes; on, the table is frozen, and genes can be added after training."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from xtrimogene import (
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
    XTrimoGeneModel,
    XTrimoGeneTokenizer,
)
from xtrimogene.modeling_xtrimogene.protein_xtrimogene import set_proteins

FIELDS = {"protein_size": 5, "decoder_context": "nonzero"}


@pytest.fixture
def proteins():
    return torch.randn(50, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(tiny_config, proteins):
    torch.manual_seed(0)
    return set_proteins(XTrimoGeneForPreTraining(tiny_config(**FIELDS)), proteins).eval()


def test_off_the_model_is_the_plain_one(tiny_config, make_batch):
    models = []
    for fields in ({}, {"protein_size": 0}):
        torch.manual_seed(0)
        models.append(XTrimoGeneForPreTraining(tiny_config(**fields)).eval())
    plain, off = models
    assert type(off.get_input_embeddings()) is torch.nn.Embedding
    assert off.state_dict().keys() == plain.state_dict().keys()
    batch = make_batch(plain.config)
    assert torch.equal(off(**batch).logits, plain(**batch).logits)


def test_a_token_is_the_adapter_of_its_protein(model, proteins):
    embedding, ids = model.get_input_embeddings(), torch.tensor([[7, 3, 7, model.config.pad_token_id]])
    with torch.no_grad():
        expected = embedding.fc2(embedding.fc1(proteins[[7, 3, 7]]).relu())
        torch.testing.assert_close(embedding(ids)[0, :3], expected)
        torch.testing.assert_close(embedding(ids)[0, 3], embedding.others.weight[-1])
        torch.testing.assert_close(model.model.static_gene_embeddings()[[7, 3]], expected[:2])


def test_training_teaches_the_adapter_and_leaves_the_table(model, make_batch, proteins):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.get_input_embeddings().fc1.weight.clone()
    model(**make_batch(model.config)).loss.backward()
    optimizer.step()
    assert torch.equal(model.get_input_embeddings().proteins, proteins)
    assert not torch.equal(model.get_input_embeddings().fc1.weight, before)


def test_a_saved_folder_holds_the_table_and_gives_the_same(model, make_batch, tmp_path, proteins):
    model.save_pretrained(tmp_path)
    again, found = XTrimoGeneForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert torch.equal(again.get_input_embeddings().proteins, proteins)
    batch = make_batch(model.config)
    torch.testing.assert_close(again.eval()(**batch).logits, model(**batch).logits)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).embeddings.gene_embedding.proteins, proteins)
    half = XTrimoGeneForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.get_input_embeddings().proteins.dtype is half.get_input_embeddings().fc1.weight.dtype is torch.float32


def shifted(batch, model, number):
    """The batch with padding at its new id."""
    is_padding = {name: batch[name] == model.config.pad_token_id - number for name in ("input_ids", "masked_ids")}
    return batch | {
        name: batch[name].masked_fill(is_there, model.config.pad_token_id) for name, is_there in is_padding.items()
    }


@torch.no_grad()
def test_genes_are_added_after_training_and_old_outputs_stay(model, make_batch, proteins, tmp_path):
    batch = make_batch(model.config)
    before = model(**batch).logits
    model.add_genes(proteins[[7, 9]] + torch.tensor([[0.0], [0.5]]))
    again = shifted(batch, model, 2)
    assert torch.equal(model(**again).logits, before)
    static = model.model.static_gene_embeddings()
    torch.testing.assert_close(static[50], static[7])  # the same protein
    with_new = again | {"input_ids": again["input_ids"].clone()}
    with_new["input_ids"][2, 0] = 51
    assert not torch.equal(model(**with_new).logits[2], before[2])
    model.save_pretrained(tmp_path)
    loaded = XTrimoGeneForPreTraining.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**with_new).logits, model(**with_new).logits)


@torch.no_grad()
def test_latents_and_regressions_of_classifiers_get_room_for_new_genes(tiny_config, make_batch, proteins):
    config = tiny_config(**FIELDS, num_latents=2, xpressor_layers=1)
    model = set_proteins(XTrimoGeneForPreTraining(config), proteins).eval()
    model.latent_decoder.gene_bias.normal_()
    latents = model(**make_batch(config)).latents
    before = model.decode_latents(latents)
    scores = model.add_genes(proteins[:3] + 1).decode_latents(latents)
    torch.testing.assert_close(scores[:, :50], before)
    assert scores.shape[1] == 53
    config = tiny_config(**FIELDS, num_labels=3, classifier_anchored=True)
    classifier = set_proteins(XTrimoGeneForSequenceClassification(config), proteins).eval()
    classifier.classifier.anchor.weight.normal_()
    batch = make_batch(config)
    before = classifier(batch["input_ids"], batch["values"], batch["attention_mask"]).logits
    batch = shifted(batch, classifier.add_genes(proteins[:1]), 1)
    assert torch.equal(classifier(batch["input_ids"], batch["values"], batch["attention_mask"]).logits, before)


@pytest.mark.parametrize("depth_tokens", [True, False])
def test_the_tokenizer_follows(tmp_path, depth_tokens, tiny_config, proteins):
    tokenizer = XTrimoGeneTokenizer.from_genes(["CD3D", "MS4A1"], tmp_path / "panel", depth_tokens=depth_tokens)
    longer = tokenizer.with_genes(["mouse-Cd3d", "NKG7"], tmp_path / "longer")
    assert longer.genes == ["CD3D", "MS4A1", "mouse-Cd3d", "NKG7"]
    assert longer.depth_tokens == depth_tokens
    again = AutoTokenizer.from_pretrained(tmp_path / "longer")
    model = XTrimoGeneModel(tiny_config(num_genes=2, depth_tokens=depth_tokens, pooling="all", protein_size=5))
    set_proteins(model, proteins[:2]).add_genes(proteins[2:4])
    for made in (longer, again):
        assert (len(made), made.pad_token_id) == (model.config.vocab_size, model.config.pad_token_id)
        batch = made(np.array([[3, 0, 1, 2], [0, 2, 0, 0]]), gene_names=["CD3D", "MS4A1", "mouse-Cd3d", "NKG7"])
        assert batch["input_ids"][0, :3].tolist() == [0, 2, 3]
        assert model(**batch).pooler_output.isfinite().all()
    assert tokenizer.num_genes == 2
    tokenizer.save_pretrained(tmp_path / "twice")
    with pytest.raises(ValueError, match="CD3D is on the panel already"):
        tokenizer.with_genes(["CD3D"], tmp_path / "twice")
    assert type(tokenizer).from_pretrained(tmp_path / "twice").num_genes == 2  # what was there is whole


def test_what_is_wrong_is_said(model, tiny_config, proteins, make_batch):
    with pytest.raises(ValueError, match=r"table of protein embeddings is empty: set it by set_proteins"):
        XTrimoGeneForPreTraining(tiny_config(**FIELDS))(**make_batch(model.config))
    with pytest.raises(ValueError, match="protein_size is 0"):
        set_proteins(XTrimoGeneModel(tiny_config()), proteins)
    with pytest.raises(ValueError, match=r"proteins is \(49, 5\), and 50 genes"):
        set_proteins(model, proteins[1:])
    with pytest.raises(ValueError, match="1 of 50 genes have no protein embedding, the first is number 4"):
        set_proteins(model, proteins.index_fill(0, torch.tensor([4]), 0.0))
    with pytest.raises(ValueError, match="protein_size is 5, so each gene needs a protein"):
        model.add_genes(2)
    with pytest.raises(Exception, match="protein_size"):
        tiny_config(protein_size=-1)
