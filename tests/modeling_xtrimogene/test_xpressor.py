"""Latents: what they depend on, what is decoded from them, and that models without them are what they were."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForPreTraining

from xtrimogene import (
    TxFMConfig,
    TxFMModel,
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
    XTrimoGeneModel,
)
from xtrimogene.modeling_xtrimogene import xpressor_xtrimogene
from xtrimogene.modeling_xtrimogene.convert_scfoundation import convert_config
from xtrimogene.modeling_xtrimogene.reconstruction_xtrimogene import reconstruction_loss
from xtrimogene.modeling_xtrimogene.xpressor_xtrimogene import (
    LatentDecoder,
    WholeCells,
    add_xpressor,
    energy_distance,
    independence_loss,
    latent_loss,
    replace_latent,
)

DECODERS = ["cross_only", "decoder", "shared"]
LATENTS = {"num_latents": 3, "latent_size": 8, "xpressor_layers": 2}


def encoder_inputs(batch):
    return {key: batch[key] for key in ("input_ids", "values", "attention_mask")}


def shaken(model):
    """Return the model without weights that are zero at first, so that everything depends on everything it may."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture
def latent_model(tiny_config):
    """Make a model with latents; keyword arguments change its configuration."""

    def make(**changes):
        torch.manual_seed(0)
        return shaken(XTrimoGeneForPreTraining(tiny_config(**{**LATENTS, **changes}))).eval()

    return make


@torch.no_grad()
def test_a_model_without_latents_is_the_plain_one(tiny_config, make_batch):
    """Fields of latents are off at first: the same weights under the same names, and the same bits."""
    torch.manual_seed(0)
    plain = XTrimoGeneForPreTraining(tiny_config()).eval()
    torch.manual_seed(0)
    with_latents = XTrimoGeneForPreTraining(tiny_config(**LATENTS)).eval()
    names = set(plain.state_dict())
    new = set(with_latents.state_dict()) - names
    assert {name.split(".layers")[0].rsplit(".", 1)[0] for name in new} >= {"model.xpressor", "latent_decoder"}
    assert all(name.startswith(("model.xpressor.", "latent_decoder.")) for name in new)
    with_latents.load_state_dict(plain.state_dict(), strict=False)
    batch = make_batch(plain.config)
    ours, theirs = plain(**batch), with_latents(**batch)
    assert list(ours) == ["loss", "logits"]
    assert torch.equal(ours.logits, theirs.logits)
    base = plain.model(**encoder_inputs(batch))
    assert list(base) == ["last_hidden_state", "pooler_output"]
    assert torch.equal(base.pooler_output, theirs.cell_embedding)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"latent_bottleneck": "gaussian"}, {"depth_tokens": True}], ids=str)
def test_latents_do_not_depend_on_padding_order_or_batch(latent_model, make_batch, changes):
    model = latent_model(**changes)
    model.set_attn_implementation("eager")  # padding stays in the rows
    inputs = encoder_inputs(make_batch(model.config, lengths=(9, 20, 4)))
    latents = model(**inputs).latents
    order = torch.randperm(inputs["input_ids"].shape[1], generator=torch.Generator().manual_seed(0))
    permuted = {name: rows[:, order] for name, rows in inputs.items()}
    padding = {"input_ids": model.config.pad_token_id, "values": 0, "attention_mask": 0}
    padded = {name: torch.nn.functional.pad(rows, (0, 7), value=padding[name]) for name, rows in inputs.items()}
    alone = {name: rows[2:, : 4 + 2 * model.config.depth_tokens] for name, rows in inputs.items()}
    for other, expected in ((permuted, latents), (padded, latents), (alone, latents[2:])):
        assert (model(**other).latents - expected).abs().max() < 1e-5
    assert (latents[0] - latents[1]).abs().max() > 1e-2
    assert torch.equal(model(**inputs).latents, latents)


@torch.no_grad()
def test_a_cell_without_tokens_has_no_embedding_and_harms_no_other(latent_model, make_batch):
    model = latent_model(pooling="xpressor")
    inputs = encoder_inputs(make_batch(model.config))
    inputs["input_ids"][1], inputs["attention_mask"][1] = model.config.pad_token_id, 0
    output = model.model(**inputs)
    assert output.latents.isfinite().all()
    assert output.pooler_output.isnan().any(1).tolist() == [False, True, False]
    assert torch.equal(output.pooler_output[0], output.latents[0].flatten())


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_only_latents_reach_what_is_decoded_from_them(latent_model, make_batch, decoder):
    model = latent_model(xpressor_decoder=decoder)
    inputs = encoder_inputs(make_batch(model.config))
    latents = model(**inputs).latents
    scores = model.decode_latents(latents)
    assert scores.shape == (3, 50)
    model(**inputs | {"values": inputs["values"] * 2})  # nothing of an earlier call is kept
    assert torch.equal(model.decode_latents(latents), scores)
    assert not torch.allclose(model.decode_latents(torch.zeros_like(latents)), scores, atol=1e-3)
    swapped = replace_latent(latents, 1, latents[2, 1])
    assert torch.equal(swapped[2], latents[2])
    assert torch.equal(swapped[0, [0, 2]], latents[0, [0, 2]])
    assert not torch.allclose(model.decode_latents(swapped)[0], scores[0], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_scores_of_a_gene_list(latent_model, make_batch, decoder):
    """With `cross_only` a gene's score is its own whatever else is asked for; elsewhere genes see each other."""
    model = latent_model(xpressor_decoder=decoder)
    latents = model(**encoder_inputs(make_batch(model.config))).latents
    few, many = torch.tensor([4, 30]), torch.tensor([4, 30, 7, 19, 2])
    part, whole = model.decode_latents(latents, few), model.decode_latents(latents, many)[:, :2]
    assert torch.allclose(part, whole, atol=1e-6) == (decoder == "cross_only")
    own = model.decode_latents(latents, few.expand(3, -1))
    torch.testing.assert_close(own, part)


def test_decoding_refuses_what_it_cannot_do(tiny_config, latent_model):
    with pytest.raises(ValueError, match="num_latents is 0, so there are no latents"):
        XTrimoGeneForPreTraining(tiny_config()).decode_latents(torch.zeros(1, 3, 8))
    with pytest.raises(ValueError, match=r"latents are \(1, 2, 8\) and this model has 3 latents of width 8"):
        latent_model().decode_latents(torch.zeros(1, 2, 8))
    with pytest.raises(ValueError, match=r"5,000 genes .* at most 4,096 at a time"):
        latent_model(xpressor_decoder="shared").decode_latents(torch.zeros(1, 3, 8), torch.zeros(5000).long())
    model, latents = latent_model(), torch.zeros(2, 3, 8)
    for genes, message in (
        ([0, 1], r"gene_ids are \[0, 1\]: give a tensor of whole numbers"),
        (torch.tensor([0.5]), r"gene_ids are torch.float32 \(1,\)"),
        (torch.zeros(0).long(), r"gene_ids are torch.int64 \(0,\)"),
        (torch.tensor([0, 50]), "gene_ids are from 0 to 50, and genes of the panel are 0 to 49"),
        (torch.tensor([-1, 3]), "gene_ids are from -1 to 3"),
        (torch.zeros(3, 2).long(), "gene_ids have 3 rows for 2 cells"),
    ):
        with pytest.raises(ValueError, match=message):
            model.decode_latents(latents, genes)
    for index in (3, -1, 0.5):
        with pytest.raises(ValueError, match=f"there is no latent {index}: these cells have 3"):
            replace_latent(latents, index, torch.zeros(8))
    for shape in ((1,), (2, 3, 8), (1, 8), (7,)):
        with pytest.raises(ValueError, match=r"give \(8,\), or one for each cell, \(2, 8\)"):
            replace_latent(latents, 1, torch.zeros(shape))
    assert replace_latent(latents, 1, torch.zeros(8).double()).dtype == torch.float32


@torch.no_grad()
def test_cells_with_very_many_genes_are_evaluated_where_the_encoder_decodes(latent_model, monkeypatch):
    model, latents = latent_model(xpressor_decoder="shared"), torch.randn(2, 3, 8)
    cells = WholeCells(torch.rand(2, 50), torch.ones(2, 50, dtype=torch.bool))
    every = latent_loss(model.latent_decoder, model.model, latents, None, cells)
    monkeypatch.setattr(xpressor_xtrimogene, "GENES_OF_SHARED", 25)
    ids, measured = cells.evenly(25)
    assert ids.tolist() == [list(range(0, 50, 2))] * 2
    assert measured.all()
    half = latent_loss(model.latent_decoder, model.model, latents, None, cells)
    assert half == latent_loss(model.latent_decoder, model.model, latents, None, cells)
    assert half != every


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("bottleneck", ["none", "gaussian", "fsq"])
def test_gradients_reach_every_part(latent_model, make_batch, decoder, bottleneck):
    model = latent_model(xpressor_decoder=decoder, latent_bottleneck=bottleneck).train()
    model(**make_batch(model.config)).loss.backward()
    for name, parameter in model.named_parameters():
        if name == "model.embeddings.padding_vector":  # nothing attends to padding
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_bottlenecks_draw_in_training_only(latent_model, make_batch):
    for bottleneck in ("gaussian", "fsq"):
        model = latent_model(latent_bottleneck=bottleneck, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
        inputs = encoder_inputs(make_batch(model.config))
        first, second = model(**inputs).latents, model(**inputs).latents
        assert torch.equal(first, second)
        model.train()
        assert torch.equal(model(**inputs).latents, first) == (bottleneck == "fsq")
    assert set(first.flatten().tolist()) == {-1.0, 1.0}


@torch.no_grad()
def test_the_divergence_of_gaussian_latents_is_that_of_torch(latent_model, make_batch):
    model = latent_model(latent_bottleneck="gaussian")
    bottleneck, latents = model.model.xpressor.bottleneck, torch.randn(2, 3, 8)
    mean, kl = bottleneck(latents)
    std = (0.5 * bottleneck.log_variance(latents)).exp()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(kl, expected.sum((1, 2)))
    batch = make_batch(model.config)
    losses = [model(**batch).loss]
    model.config.kl_weight = 1
    losses.append(model(**batch).loss)
    expected = (1 - 1e-3) * model.model(**encoder_inputs(batch)).latent_kl.mean()
    torch.testing.assert_close(losses[1] - losses[0], expected, rtol=1e-4, atol=1e-4)


# -- the loss ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("likelihood", ["multinomial", "poisson", "squared_error"])
def test_the_loss_is_that_of_masked_genes_of_the_cell_and_of_latents(latent_model, make_batch, likelihood):
    model = latent_model(reconstruction_likelihood=likelihood)
    batch = make_batch(model.config)
    measured = torch.rand(3, 50) < 0.8
    true = torch.zeros(3, 50)
    for row in range(3):
        for ids, values in ((batch["input_ids"], batch["values"]), (batch["masked_ids"], batch["labels"])):
            is_gene = ids[row] < 50
            true[row, ids[row][is_gene]] = values[row][is_gene]
    output = model(**batch, measured=measured)
    of_masked = model.masked_loss(output.logits.unsqueeze(-1), batch["labels"], None)
    scores = model.decode_latents(output.latents)
    of_cells = reconstruction_loss(scores, true, measured, likelihood).mean()
    expected = of_masked + of_cells + 0.1 * independence_loss(output.latents)
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_accumulated_parts_add_up_to_the_loss_of_the_batch(latent_model, make_batch):
    """As transformers' Trainer does it: each part is told how many labels the whole batch has."""
    model = latent_model()
    batch = make_batch(model.config, lengths=(5, 5), num_masked=4)
    batch["masked_ids"], batch["labels"] = batch["masked_ids"][:, :3], batch["labels"][:, :3]
    parts = [{name: rows[row : row + 1] for name, rows in batch.items()} for row in range(2)]
    total = sum(model(**part, num_items_in_batch=torch.tensor(6)).loss for part in parts)
    torch.testing.assert_close(total, model(**batch).loss)


@pytest.mark.parametrize("likelihood", ["multinomial", "poisson", "squared_error"])
def test_the_loss_of_a_sample_estimates_that_of_all_genes(likelihood):
    """Half of the sample is expressed, and one gene in twenty of the cell: without weights it would be another loss."""
    torch.manual_seed(0)
    values = torch.where(torch.rand(1, 400) < 0.05, 3.0, 0.0).expand(2000, -1)
    scores = torch.linspace(-1, 1, 400).expand(2000, -1)
    measured = (torch.arange(400) % 5 != 0).expand(2000, -1)
    ids, weights = WholeCells(values, measured).sample(is_same=False)
    assert ids.shape[1] == 2 * int((values[0] * measured[0] > 0).sum())
    assert measured.gather(1, ids)[weights > 0].all()
    found = reconstruction_loss(scores.gather(1, ids), values.gather(1, ids), weights, likelihood)
    exact = reconstruction_loss(scores, values, measured, likelihood)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - exact[0]) < 5 * error + 0.01


def test_a_sample_is_capped_and_tells_nothing_where_genes_see_each_other():
    torch.manual_seed(0)
    cells = WholeCells((torch.rand(3, 300) < 0.5).float(), torch.ones(3, 300, dtype=torch.bool))
    ids, weights = cells.sample(is_same=False, at_most=40)
    assert ids.shape == (3, 40)
    assert all(len(set(row.tolist())) == 40 for row in ids)
    assert (cells.values.gather(1, ids) > 0).sum(1).tolist() == [20, 20, 20]
    torch.testing.assert_close(weights.sum(1), torch.full((3,), 300.0))
    ids, _ = cells.sample(is_same=True, at_most=40)
    assert (ids == ids[0]).all()
    torch.manual_seed(1)
    first, _ = cells.sample(is_same=True, at_most=40)
    torch.manual_seed(1)
    other, _ = WholeCells(1 - cells.values, cells.measured).sample(is_same=True, at_most=40)
    assert torch.equal(first, other)


@pytest.mark.parametrize("decoder", DECODERS)
def test_training_decodes_a_sample_and_evaluation_all_genes(latent_model, make_batch, monkeypatch, decoder):
    asked = []

    def spy(self, base, latents, gene_ids=None):
        asked.append(None if gene_ids is None else gene_ids.shape)
        return forward(self, base, latents, gene_ids)

    forward = LatentDecoder.forward
    monkeypatch.setattr(LatentDecoder, "forward", spy)
    model = latent_model(num_genes=3000, xpressor_decoder=decoder)
    batch = make_batch(model.config)
    model.train()(**batch)
    if decoder != "shared":
        model.eval()(**batch)
        assert asked[1:] == [None]
    expressed = 13 + int((batch["labels"][2] > 0).sum())
    assert asked[0] == ((3, 2 * expressed) if decoder == "cross_only" else (2048,))


@pytest.mark.slow
def test_latents_learn_what_a_cell_is_like(tiny_config):
    """Counts of rank four: what is decoded from the latents of new cells is far better than the mean of each gene."""
    torch.manual_seed(0)
    factors, loadings = torch.randn(800, 4), 0.7 * torch.randn(4, 100)
    values = torch.poisson((factors @ loadings + 0.5 * torch.randn(100) - 0.5).exp().clamp(max=60)).log1p()
    config = tiny_config(
        num_genes=100, hidden_size=32, decoder_hidden_size=32, decoder_head_dim=16, num_latents=8, xpressor_layers=2,
        reconstruction_likelihood="squared_error", decoder_context="nonzero", num_bins=20, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = XTrimoGeneForPreTraining(config).train()

    def batch(rows):
        shown = torch.where(torch.rand(len(rows), 100) < 0.7, values[rows], 0)
        order = shown.argsort(dim=1, descending=True, stable=True)
        masked = torch.where((shown == 0) & (values[rows] > 0), torch.arange(100), config.pad_token_id)
        return {
            "input_ids": order.masked_fill(shown.gather(1, order) == 0, config.pad_token_id),
            "values": shown.gather(1, order),
            "masked_ids": masked,
            "labels": values[rows].masked_fill(masked == config.pad_token_id, -100),
        }

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=200, pct_start=0.1)
    for _ in range(200):
        model(**batch(torch.randint(700, (32,)))).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        model.eval()
        held_out = torch.arange(700, 800)
        found = model.decode_latents(model(**batch(held_out)).latents)
    error = (found - values[held_out]).square().mean()
    assert error < 0.6 * (values[:700].mean(0) - values[held_out]).square().mean()


def test_one_latent_is_independent_of_itself():
    assert independence_loss(torch.randn(2, 1, 4)) == 0


# -- adding latents to a trained model --------------------------------------------------------------------------------

SCFOUNDATION = {
    "encoder": {"hidden_dim": 16, "depth": 2, "heads": 2},
    "decoder": {"hidden_dim": 12, "depth": 2, "heads": 2, "dim_head": 6},
    "seq_len": 52,
    "bin_num": 7,
    "bin_alpha": 1.0,
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("origin", ["ours", "scfoundation"])
def test_latents_that_are_added_change_nothing_at_first(tiny_config, make_batch, tmp_path, origin, decoder):
    torch.manual_seed(0)
    config = tiny_config() if origin == "ours" else convert_config(SCFOUNDATION, favor_stabilizer="batch")
    model = shaken(XTrimoGeneForPreTraining(config)).eval()
    batch = make_batch(config)
    inputs = encoder_inputs(batch)
    with torch.no_grad():
        logits, pooled = model(**batch).logits, model.model(**inputs).pooler_output
        genes = model.model.contextual_gene_embeddings(**inputs)
    extended = add_xpressor(model, num_latents=3, latent_size=8, xpressor_decoder=decoder)
    assert extended is model
    assert not extended.training
    with torch.no_grad():
        output = extended(**batch)
        assert output.latents.shape == (3, 3, 8)
        assert torch.equal(output.logits, logits)
        assert torch.equal(output.cell_embedding, pooled)
        assert torch.equal(model.model.contextual_gene_embeddings(**inputs), genes)
        extended.save_pretrained(tmp_path)
        again = AutoModelForPreTraining.from_pretrained(tmp_path)  # memory aligned otherwise rounds otherwise
        torch.testing.assert_close(again(**batch).logits, logits)
        torch.testing.assert_close(again(**batch).latents, output.latents)
        expected = extended.decode_latents(output.latents)
        torch.testing.assert_close(again.decode_latents(output.latents), expected)
    weights = extended.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in again.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_what_layers_add_is_zero_at_first(tiny_config, decoder):
    """Of a new decoder of latents, and of the attention that is put before trained layers."""
    model = add_xpressor(shaken(XTrimoGeneForPreTraining(tiny_config())).eval(), xpressor_decoder=decoder)
    decoder_of_latents, latents = model.latent_decoder, torch.randn(2, 8, 16)
    rows = torch.randn(2, 5, decoder_of_latents.query_norm.normalized_shape[0])
    for layer in decoder_of_latents.layers:
        assert torch.equal(layer(rows, latents), rows) == (decoder != "cross_only")
    scores = model.decode_latents(latents)
    assert not torch.allclose(scores[0], scores[1], atol=1e-2)  # the linear path is there from the beginning
    torch.nn.init.zeros_(decoder_of_latents.direction.weight)
    torch.testing.assert_close(*model.decode_latents(latents))


def test_latents_are_added_once_and_with_fields_that_exist(tiny_config):
    model = XTrimoGeneForPreTraining(tiny_config())
    for fields, message in (
        ({"latents": 3}, "latents cannot be set when an Xpressor is added"),
        ({"hidden_size": 128}, "hidden_size cannot be set when an Xpressor is added"),
        ({"num_latents": 0}, "num_latents is 0: give at least 1"),
        ({"xpressor_layers": 0}, "xpressor_layers is 0 and must be at least 1"),
    ):
        with pytest.raises(Exception, match=message):
            add_xpressor(model, **fields)
        assert model.config.num_latents == 0
    with pytest.raises(ValueError, match="the model has 8 latents already"):
        add_xpressor(add_xpressor(model))
    with pytest.raises(ValueError, match="TxFMModel cannot have latents"):
        add_xpressor(TxFMModel(TxFMConfig.preset("txfm-tiny", num_genes=4)))
    with pytest.raises(ValueError, match="the classifier was trained on pooling 'max' and would read 'xpressor'"):
        add_xpressor(XTrimoGeneForSequenceClassification(tiny_config()), pooling="xpressor")
    anchored = XTrimoGeneForPreTraining(tiny_config(anchored=True))
    with pytest.raises(ValueError, match="reconstruction_likelihood cannot be set"):
        add_xpressor(anchored, reconstruction_likelihood="poisson")


@torch.no_grad()
def test_an_anchored_model_that_embeds_by_latents_begins_at_its_bag_of_genes(tiny_config, make_batch):
    model = shaken(XTrimoGeneModel(tiny_config(anchored=True))).eval()
    inputs = encoder_inputs(make_batch(model.config))
    width = model.config.encoder_pooled_size
    add_xpressor(model, num_latents=2, latent_size=width // 2, pooling="xpressor")  # as wide as what was pooled before
    assert model.bag.from_encoder.weight.shape[1] == width
    bag = model.bag(inputs["input_ids"], inputs["values"], inputs["attention_mask"].bool())
    torch.testing.assert_close(model(**inputs).pooler_output, bag)


@torch.no_grad()
def test_every_model_embeds_by_latents(latent_model, make_batch, tmp_path):
    """The same latents, whichever class loads the checkpoint, and a classifier on them."""
    model = latent_model(pooling="xpressor")
    model.save_pretrained(tmp_path)
    inputs = encoder_inputs(make_batch(model.config))
    expected = model(**inputs).cell_embedding
    assert expected.shape == (3, model.config.pooled_size)
    assert torch.equal(XTrimoGeneModel.from_pretrained(tmp_path)(**inputs).pooler_output, expected)
    classifier = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert torch.equal(classifier.model(**inputs).pooler_output, expected)
    assert classifier(**inputs).logits.shape == (3, 2)
    assert torch.equal(model.predict_expression(**inputs)[1], expected)


@torch.no_grad()
def test_latents_stay_in_float32_when_products_are_in_bfloat16(latent_model, make_batch, tmp_path):
    model = latent_model(latent_bottleneck="gaussian", pooling="xpressor")
    model.save_pretrained(tmp_path)
    half = AutoModelForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    dtypes = {name: weight.dtype for name, weight in half.named_parameters()}
    in_float32 = ("latents", "bottleneck", "gene_bias", "direction", "head", "norm")
    for name, dtype in dtypes.items():
        if name.startswith(("model.xpressor", "latent_decoder")):
            is_exact = any(part in name.removeprefix("latent_decoder") for part in in_float32)
            assert (dtype is torch.float32) == is_exact, name
    inputs = encoder_inputs(make_batch(model.config))
    latents = half(**inputs).latents
    assert latents.dtype is torch.float32
    assert 0 < (latents - model(**inputs).latents).abs().max() < 0.2
    half.decode_latents(latents)


# -- mixing of batches ------------------------------------------------------------------------------------------------


def test_the_energy_distance_is_that_of_pairs_and_has_a_gradient():
    torch.manual_seed(0)
    cells = torch.randn(9, 3)
    batches = torch.tensor([0, 1, 2, 0, 1, 0, 1, 1, 5])
    expected = []
    for batch in (0, 1):  # 2 and 5 have one cell
        a, b = cells[batches == batch], cells[batches != batch]
        pairs = [
            np.mean([float((x - y).norm()) for i, x in enumerate(one) for j, y in enumerate(other)
                     if one is not other or i != j])
            for one, other in ((a, b), (a, a), (b, b))
        ]  # fmt: skip
        expected.append(2 * pairs[0] - pairs[1] - pairs[2])
    assert energy_distance(cells, batches).item() == pytest.approx(np.mean(expected), abs=1e-5)
    cells.requires_grad_()
    (gradient,) = torch.autograd.grad(energy_distance(cells, batches), cells)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("fields", [{"num_latents": 2}, {"anchored": True, "embedding_size": 5}])
def test_with_a_weight_of_mixing_batches_get_nearer_in_training(tiny_config, make_batch, fields):
    torch.manual_seed(0)
    config = tiny_config(**fields, mixing_weight=10.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = XTrimoGeneForPreTraining(config)
    batch, of_batches = make_batch(config, lengths=(9, 9, 9, 9, 9, 9)), torch.tensor([0, 0, 0, 1, 1, 1])
    batch["values"] = batch["values"] * (1 + of_batches)[:, None] / 2

    def embeddings():
        output = model.model(batch["input_ids"], batch["values"], batch["attention_mask"])
        return output.pooler_output if config.anchored else output.latents.flatten(1)

    with torch.no_grad():
        first = energy_distance(embeddings(), of_batches)
        torch.manual_seed(1)
        with_batches = model(**batch, batch_ids=of_batches).loss
        torch.manual_seed(1)
        torch.testing.assert_close(with_batches, model(**batch).loss + 10 * first)
        assert torch.equal(model.eval()(**batch, batch_ids=of_batches).loss, model(**batch).loss)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    for _ in range(10):
        model(**batch, batch_ids=of_batches).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert energy_distance(embeddings().detach(), of_batches) < first - 0.2 * first.abs()


def test_descent_on_the_energy_distance_mixes_batches():
    torch.manual_seed(0)
    cells = torch.randn(40, 2) + torch.tensor([4.0, 0.0]) * (torch.arange(40) < 20).unsqueeze(1)
    batches = (torch.arange(40) < 20).long()
    cells.requires_grad_()
    before = energy_distance(cells, batches)
    for _ in range(50):
        (gradient,) = torch.autograd.grad(energy_distance(cells, batches), cells)
        cells = (cells - 5 * gradient).detach().requires_grad_()
    assert energy_distance(cells, batches) < 0.1 * before


def test_one_batch_has_no_distance():
    cells = torch.randn(4, 2, requires_grad=True)
    distance = energy_distance(cells, torch.zeros(4))
    assert distance == 0
    distance.backward()
    assert not cells.grad.any()
