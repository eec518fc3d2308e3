"""A model and its tokenizer: from a folder, from memory, or refused."""

import numpy as np
import pandas as pd
import pytest
import torch

import xtrimogene
from xtrimogene import XTrimoGeneConfig, XTrimoGeneForSequenceClassification, XTrimoGeneModel
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.modeling_xtrimogene.xpressor_xtrimogene import add_xpressor


def embedding(adata, checkpoint, **options):
    return xtrimogene.tl.embed(adata, checkpoint, device="cpu", copy=True, **options).obsm["X_xtrimogene"]


def test_a_loaded_model_is_used_and_left_as_it_is(sizes, checkpoint, real_cells):
    model = XTrimoGeneModel.from_pretrained(checkpoint)
    np.testing.assert_array_equal(embedding(real_cells, model), embedding(real_cells, checkpoint))
    pooled = embedding(real_cells, model, pooling="mean")
    assert pooled.shape[1] == model.config.hidden_size
    assert model.config.pooling == "all"
    model.train()
    embedding(real_cells[:5].copy(), model)
    assert all(module.training for module in model.modules())
    classifier = XTrimoGeneForSequenceClassification.from_pretrained(checkpoint)
    np.testing.assert_array_equal(embedding(real_cells, classifier), embedding(real_cells, checkpoint))
    with pytest.raises(ValueError, match="this XTrimoGeneModel was not loaded from a folder"):
        xtrimogene.tl.embed(real_cells.copy(), XTrimoGeneModel(model.config.__class__(**sizes)))


def test_cells_are_embedded_by_latents_where_there_are_any(checkpoint, real_cells, tmp_path):
    cells = real_cells[:14].copy()
    with pytest.raises(Exception, match="pooling 'xpressor' needs latents and num_latents is 0"):
        embedding(cells, checkpoint, pooling="xpressor")
    model = add_xpressor(XTrimoGeneModel.from_pretrained(checkpoint), num_latents=3, latent_size=8)
    model.save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    np.testing.assert_allclose(embedding(cells, tmp_path), embedding(cells, checkpoint), atol=1e-5)
    latents = embedding(cells, tmp_path, pooling="xpressor", batch_size=4)
    assert latents.shape == (14, 24)
    assert np.isnan(latents).all(axis=1).nonzero()[0].tolist() == [11]  # it has no counts
    alone = embedding(cells[3:4].copy(), tmp_path, pooling="xpressor")
    np.testing.assert_allclose(alone[0], latents[3], atol=1e-5)


@pytest.mark.parametrize("encoder", ["full", "criss_cross"])
def test_the_bag_alone_is_the_model_whose_encoder_adds_nothing(real_cells, checkpoint, encoder):
    config = XTrimoGeneConfig.from_pretrained(checkpoint, anchored=True, encoder_attention=encoder)
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_pretrained(checkpoint)
    torch.manual_seed(0)
    model = CellModel(XTrimoGeneModel(config).eval(), tokenizer)
    cells = model.read(real_cells)
    alone = model.without_encoder().embed(cells)
    np.testing.assert_array_equal(model.embed(cells), alone)  # the encoder's part is 0 at first
    model.model.bag.from_encoder.weight.data.normal_()
    assert np.nanmax(np.abs(model.embed(cells) - alone)) > 0.1
    np.testing.assert_array_equal(model.without_encoder().embed(cells), alone)


def test_the_bag_alone_of_an_anchored_txfm_needs_no_layers(tmp_path):
    tokenizer = xtrimogene.TxFMTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], tmp_path / "panel")
    torch.manual_seed(0)
    config = xtrimogene.TxFMConfig.preset("txfm-tiny", num_genes=4, anchored=True, layerscale_value=1.0)
    model = CellModel(xtrimogene.TxFMModel(config).eval(), tokenizer)
    cells = model.read(pd.DataFrame([[5, 0, 1, 2], [0, 3, 1, 0]], columns=tokenizer.genes, dtype=np.float32))
    assert (model.needs_encoder, model.has_own_scale) == (False, True)
    alone = model.without_encoder()
    assert not alone.model.layers
    np.testing.assert_array_equal(model.embed(cells), alone.embed(cells))
    model.model.bag.from_encoder.weight.data.normal_()
    assert np.abs(model.embed(cells) - alone.embed(cells)).max() > 0.1
    np.testing.assert_array_equal(model.without_encoder().embed(cells), alone.embed(cells))


def test_a_pooling_that_a_family_does_not_have_is_refused(tmp_path):
    config = xtrimogene.TxFMConfig.preset("txfm-tiny", num_genes=2)
    xtrimogene.TxFMModel(config).save_pretrained(tmp_path)
    xtrimogene.TxFMTokenizer.from_genes(["CD3E", "LYZ"], tmp_path / "panel").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of the family TxFM, which has only the pooling 'cls': leave pooling out"):
        CellModel.load(tmp_path, pooling="max")


def test_values_of_every_family_are_of_counts_per_10_000(tmp_path):
    tokenizer = xtrimogene.TxFMTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], tmp_path / "panel")
    config = xtrimogene.TxFMConfig.preset("txfm-tiny", num_genes=4, anchored=False)
    model = xtrimogene.TxFMForPreTraining(config).eval()
    model.decoder.output.bias.data.fill_(8.0)
    loaded = CellModel(model, tokenizer)
    cells = loaded.read(pd.DataFrame([[5, 0, 1, 2]], columns=tokenizer.genes, dtype=np.float32))
    batch = tokenizer.tokenize_counts(*cells.read())
    with torch.inference_mode():
        per_100k = model.predict_expression(**batch)[0]
    assert (per_100k > 1).all()
    expected = np.log1p(np.expm1(per_100k.numpy()) / 10)
    np.testing.assert_allclose(loaded.predict_expression(cells), expected, rtol=1e-5)


def test_adapters_of_peft_take_part(checkpoint, real_cells):
    from peft import LoraConfig, get_peft_model

    base = XTrimoGeneModel.from_pretrained(checkpoint)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    cells = real_cells[:5].copy()
    assert np.abs(embedding(cells, adapted) - embedding(cells, checkpoint)).max() > 1e-4
    assert embedding(cells, adapted, pooling="mean").shape[1] == base.config.hidden_size


def test_model_and_tokenizer_of_different_panels_are_refused(checkpoint, real_cells, tmp_path):
    XTrimoGeneModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    xtrimogene.XTrimoGeneTokenizer.from_genes(["CD3D", "LYZ"], tmp_path)
    xtrimogene.XTrimoGeneTokenizer.from_genes(["CD3D", "LYZ"], tmp_path).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not belong together: the model has"):
        xtrimogene.tl.embed(real_cells.copy(), tmp_path, device="cpu")


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, real_cells):
    with pytest.raises(ValueError, match=r"has no config.json, it holds nothing"):
        xtrimogene.tl.embed(real_cells.copy(), tmp_path)
