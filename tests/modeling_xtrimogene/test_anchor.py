"""Anchored models: they begin at the simple method, learn on from it, and depend on nothing but their cell."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification, XTrimoGeneModel

ANCHOR = {"anchored": True, "embedding_size": 5, "anchor_decoder_size": 6, "pooling": "all"}


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    return XTrimoGeneForPreTraining(tiny_config(**ANCHOR, num_batches=2)).eval()


def learned(model):
    """Let the encoder's and the decoder's parts count, as after training."""
    with torch.no_grad():
        model.model.bag.from_encoder.weight.normal_()
        model.head.weight.normal_()
        model.cell_decoder.batch_bias.weight.normal_()
    return model


def inputs(batch):
    return {name: batch[name] for name in ("input_ids", "values", "attention_mask")}


@torch.no_grad()
def test_at_first_all_outputs_are_those_of_the_bag_of_genes(model, make_batch):
    batch = make_batch(model.config)
    is_token = batch["attention_mask"].bool()
    bag = model.model.bag(batch["input_ids"], batch["values"], is_token)
    assert torch.equal(model.model(**inputs(batch)).pooler_output, bag)
    visible = batch["input_ids"], batch["values"], is_token
    values = model.cell_decoder.values(model.cell_decoder(bag), *visible)
    masked_ids = batch["masked_ids"].clamp(max=model.config.num_genes - 1)
    assert torch.equal(model(**batch).logits, values.gather(1, masked_ids))
    predicted, embedding = model.predict_expression(**inputs(batch))
    assert torch.equal(predicted, values)
    assert torch.equal(embedding, bag)


def test_every_weight_has_a_gradient_where_nothing_is_known_of_batches(model, make_batch):
    model.train()(**make_batch(model.config)).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert not model.cell_decoder.batch_bias.weight.grad.any()


@torch.no_grad()
def test_the_bag_is_a_sum_of_gene_vectors_times_values(model):
    bag, ids, values = model.model.bag, torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
    components = values @ bag.components[ids[0]] + bag.bias.normal_()
    expected = torch.nn.functional.layer_norm(components, (5,))
    torch.testing.assert_close(bag(ids, values, torch.ones(1, 3, dtype=torch.bool)), expected)


@torch.no_grad()
def test_a_cell_depends_on_no_other_cell_nor_padding_nor_the_order_of_its_genes(model, make_batch):
    learned(model)
    batch = make_batch(model.config)
    together = model(**batch).logits, model.model(**inputs(batch)).pooler_output
    for row, length in enumerate((1, 7, 13)):
        order = torch.from_numpy(np.random.default_rng(1).permutation(length))
        alone = {name: part[[row]] for name, part in batch.items()}
        for name in inputs(batch):
            alone[name] = alone[name][:, order]
        torch.testing.assert_close(model(**alone).logits, together[0][[row]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.model(**inputs(alone)).pooler_output, together[1][[row]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cell_without_genes_has_no_embedding_and_leaves_the_others_alone(model, make_batch):
    batch = make_batch(model.config, lengths=(0, 7))
    embedding = model.model(**inputs(batch)).pooler_output
    assert embedding[0].isnan().all()
    assert embedding[1].isfinite().all()


def test_biases_of_batches_count_in_training_only(model, make_batch):
    learned(model)
    batch, of_batches = make_batch(model.config), torch.tensor([0, 1, 1])
    assert torch.equal(model(**batch, batch_ids=of_batches).loss, model(**batch).loss)
    model.train()
    model.model.eval()  # no dropout
    assert not torch.equal(model(**batch, batch_ids=of_batches).loss, model(**batch).loss)
    model(**batch, batch_ids=of_batches).loss.backward()
    assert (model.cell_decoder.batch_bias.weight.grad != 0).any(1).all()


@torch.no_grad()
@pytest.mark.parametrize("likelihood", ["multinomial", "poisson", "squared_error"])
def test_masked_values_are_those_of_the_batch_that_the_visible_genes_tell(model, likelihood):
    decoder = model.cell_decoder
    decoder.config.reconstruction_likelihood = likelihood
    scores = torch.full((1, decoder.config.num_genes), 1.0 if likelihood == "squared_error" else 0.0)
    decoder.batch_bias.weight.zero_()
    decoder.batch_bias.weight[0, [0, 1]], decoder.batch_bias.weight[1, [2, 3]] = 3.0, 3.0
    high, values = torch.tensor([4.0, 1.0]), torch.ones(1, 2, dtype=torch.bool)
    of_first, of_second = (
        decoder.values(scores, torch.tensor([[gene, 9]]), high[None], values)[0, [1, 3]] for gene in (0, 2)
    )
    assert of_first[0] > of_first[1] + 0.3
    assert of_second[1] > of_second[0] + 0.3


def test_masked_values_teach_the_transformer_and_cells_teach_the_bag(model, make_batch):
    learned(model).train()
    batch = make_batch(model.config)
    scores = model(**{**batch, "labels": None}).logits
    (scores - 1).square().mean().backward()
    assert model.cell_decoder.to_genes.weight.grad is None  # squared errors do not reach the reconstruction
    assert model.head.weight.grad.abs().sum() > 0
    model(**batch).loss.backward()
    for name, weight in model.named_parameters():
        if "batch_bias" not in name and "mask_vector" not in name and "padding_vector" not in name:
            assert weight.grad is not None, name


@torch.no_grad()
def test_genes_that_a_batch_does_not_express_are_left_out_of_the_loss_of_its_cells(model):
    decoder = learned(model).cell_decoder
    decoder.is_expressed[0, 3] = False
    scores, values = torch.randn(2, model.config.num_genes), torch.rand(2, model.config.num_genes)
    batches = torch.tensor([0, 1])
    before = decoder.loss(scores, values, None, batches)
    scores[:, 3] += 1
    after = decoder.loss(scores, values, None, batches)
    assert after[0] == before[0]
    assert after[1] != before[1]
    measured = torch.ones_like(values)
    measured[:, 3] = 0
    torch.testing.assert_close(decoder.loss(scores, values, measured, batches)[0], before[0])


def test_losses_of_micro_batches_sum_to_that_of_equal_cells(model, make_batch):
    batch = make_batch(model.config, lengths=(7, 7), num_masked=4)
    batch["labels"] = batch["labels"].clamp(min=0)
    batch["masked_ids"] = batch["masked_ids"].clamp(max=model.config.num_genes - 1)
    whole = model(**batch).loss
    total = batch["labels"].numel()
    parts = [
        model(**{name: part[[row]] for name, part in batch.items()}, num_items_in_batch=total).loss for row in (0, 1)
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_every_class_loads_an_anchored_checkpoint(model, make_batch, tmp_path):
    learned(model).save_pretrained(tmp_path)
    batch = make_batch(model.config)
    again, loading = XTrimoGeneForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    torch.testing.assert_close(again.eval()(**batch).logits, model(**batch).logits)
    base = XTrimoGeneModel.from_pretrained(tmp_path).eval()
    embedding = base(**inputs(batch)).pooler_output
    assert embedding.shape == (3, 5)
    torch.testing.assert_close(embedding, model.model(**inputs(batch)).pooler_output)
    classifier = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    assert classifier(**inputs(batch)).logits.shape == (3, 3)


@pytest.mark.parametrize(
    "lost", ["model.bag.components", "model.bag.", "cell_decoder.is_expressed", "cell_decoder.to_genes.bias"]
)
def test_an_anchored_folder_without_a_part_of_its_anchor_is_refused(model, tmp_path, lost):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: part for name, part in load_file(file).items() if not name.startswith(lost)}
    save_file(kept, file, metadata={"format": "pt"})
    for load in (XTrimoGeneForPreTraining.from_pretrained, AutoModelForPreTraining.from_pretrained):
        with pytest.raises(ValueError, match=rf"{tmp_path} is anchored and lacks .*{lost}.*: .* pretrain"):
            load(tmp_path)
    if "bag" in lost:
        with pytest.raises(ValueError, match="is anchored and lacks"):
            XTrimoGeneForSequenceClassification.from_pretrained(tmp_path)


def test_what_the_saved_model_did_not_have_is_new(model, tmp_path):
    model.model.save_pretrained(tmp_path / "base")
    assert not XTrimoGeneForPreTraining.from_pretrained(tmp_path / "base").cell_decoder.is_set
    model.set_num_batches(1)
    model.save_pretrained(tmp_path / "without_batches")
    decoder = XTrimoGeneForPreTraining.from_pretrained(tmp_path / "without_batches", num_batches=3).cell_decoder
    assert decoder.is_expressed.all()
    assert not decoder.batch_bias.weight.any()


def test_a_plain_checkpoint_gets_an_anchor_that_is_new(tiny_config, make_batch, tmp_path):
    plain = XTrimoGeneForPreTraining(tiny_config(pooling="all")).eval()
    plain.save_pretrained(tmp_path)
    anchored = XTrimoGeneForPreTraining.from_pretrained(tmp_path, **ANCHOR).eval()
    assert not anchored.cell_decoder.is_set
    assert (anchored.model.bag.bias == 0).all()
    assert not anchored.model.bag.from_encoder.weight.any()
    # The head was trained, and stays what it was: what it predicts is added to the values of the anchor.
    batch = make_batch(plain.config)
    visible = batch["input_ids"], batch["values"], batch["attention_mask"].bool()
    values = anchored.cell_decoder.values(anchored.cell_decoder(anchored.model.bag(*visible)), *visible)
    of_anchor = values.gather(1, batch["masked_ids"].clamp(max=plain.config.num_genes - 1))
    torch.testing.assert_close(anchored(**batch).logits, plain(**batch).logits + of_anchor)


def test_half_precision_keeps_the_anchor_in_float32(model, make_batch, tmp_path):
    learned(model).save_pretrained(tmp_path)
    batch = make_batch(model.config)
    half = XTrimoGeneForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half.model.bag.components.dtype is half.cell_decoder.to_genes.weight.dtype is torch.float32
    assert half.model(**inputs(batch)).pooler_output.dtype is torch.float32
    torch.testing.assert_close(half(**batch).logits, model(**batch).logits, rtol=0.1, atol=0.3)
    whole = half.bfloat16()
    assert whole(**batch).logits.isfinite().all()


def test_the_number_of_batches_can_change(model):
    model.set_num_batches(4)
    assert model.config.num_batches == 4
    assert model.cell_decoder.batch_bias.weight.shape == (4, 50)
    model.set_num_batches(1)
    assert (model.config.num_batches, model.cell_decoder.batch_bias) == (0, None)


@pytest.mark.parametrize("wrong", [{"objective": "classification"}, {"sentinel_values": True}, {"num_batches": -1}])
def test_configurations_that_have_no_anchor_are_refused(tiny_config, wrong):
    with pytest.raises(Exception, match=next(iter(wrong))):
        tiny_config(**{**ANCHOR, **wrong})
