"""The model of TxFM: what an embedding depends on, what the loss counts, and how it learns and is saved."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, set_seed

from xtrimogene import (
    TxFMConfig,
    TxFMForPreTraining,
    TxFMForSequenceClassification,
    TxFMModel,
    TxFMTokenizer,
    XTrimoGeneConfig,
    XTrimoGeneForPreTraining,
)
from xtrimogene.modeling_xtrimogene.anchor_xtrimogene import BagOfGenes
from xtrimogene.modeling_xtrimogene.count_loss_txfm import count_loss
from xtrimogene.modeling_xtrimogene.modeling_txfm import DropPath, parts_of_cells
from xtrimogene.modeling_xtrimogene.packed_xtrimogene import Packing
from xtrimogene.modeling_xtrimogene.reconstruction_xtrimogene import dense_values
from xtrimogene.tokenization.visible_genes import DataCollatorForReconstruction
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.objectives import mean_profile

SMALL = {"num_genes": 40, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "drop_path_rate": 0.0}


@pytest.fixture
def config():
    """Make a small configuration whose residual branches count from the first step; keyword arguments change it."""

    def make(**changes):
        return TxFMConfig(**{**SMALL, "layerscale_value": 1.0, "gene_initializer_range": 1.0, **changes})

    return make


@pytest.fixture
def batch():
    """Three cells of which 5, 11 and 8 measured genes are shown, and their expressed genes."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 11, 8])
    ids = torch.stack([torch.randperm(40, generator=generator)[:11] for _ in lengths])
    mask = torch.arange(11) < lengths[:, None]
    values = torch.rand(3, 11, generator=generator) * 8 * (torch.rand(3, 11, generator=generator) > 0.5)
    expressed_ids = torch.stack([torch.randperm(40, generator=generator)[:6] for _ in lengths])
    return {
        "input_ids": ids.masked_fill(~mask, 40),
        "values": values * mask,
        "attention_mask": mask.long(),
        "expressed_ids": expressed_ids,
        "expressed_values": torch.rand(3, 6, generator=generator) * 9,
    }


def inputs(batch):
    return {name: batch[name] for name in ("input_ids", "values", "attention_mask")}


def built(cls, config):
    torch.manual_seed(0)
    return cls(config)


# -- what an embedding depends on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [0, 3])
@pytest.mark.parametrize("anchored", [False, True])
def test_an_embedding_depends_on_no_other_cell_no_order_and_no_padding(config, batch, passes, anchored):
    model = built(TxFMModel, config(inference_passes=passes, num_visible=3, anchored=anchored)).eval()
    if anchored:
        model.bag.from_encoder.weight.data.normal_()
    with torch.no_grad():
        together = model(**inputs(batch)).pooler_output
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            order = torch.randperm(length)
            ids, values = batch["input_ids"][row : row + 1, order], batch["values"][row : row + 1, order]
            torch.testing.assert_close(model(ids, values).pooler_output[0], together[row], atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_and_padded_states_agree(config, batch, implementation):
    model = built(TxFMModel, config()).eval()
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        packed = model(**inputs(batch)).last_hidden_state
    padded = model(**inputs(batch), output_hidden_states=True)  # states that have gradients are not packed
    is_token = torch.nn.functional.pad(batch["attention_mask"], (1, 0), value=1).bool()
    torch.testing.assert_close(packed[is_token], padded.last_hidden_state[is_token], atol=1e-5, rtol=0)
    assert [tuple(states.shape) for states in padded.hidden_states] == [(3, 12, 16)] * 4


def test_which_gene_it_is_and_its_value_both_count(config, batch):
    model = built(TxFMModel, config()).eval()
    with torch.no_grad():
        before = model(**inputs(batch)).pooler_output
        other_values = model(batch["input_ids"], batch["values"] + 1, batch["attention_mask"]).pooler_output
        ids = (batch["input_ids"] + 1).masked_fill(~batch["attention_mask"].bool(), 40) % 40
        other_genes = model(ids, batch["values"], batch["attention_mask"]).pooler_output
    assert (other_values - before).abs().max() > 0.01
    assert (other_genes - before).abs().max() > 0.01


def test_a_zero_is_a_token_like_any_other(config):
    model = built(TxFMModel, config()).eval()
    with torch.no_grad():
        one = model(torch.tensor([[3, 7]]), torch.tensor([[1.0, 0.0]])).pooler_output
        without = model(torch.tensor([[3]]), torch.tensor([[1.0]])).pooler_output
    assert (one - without).abs().max() > 1e-3


def test_the_encoder_reads_the_genes_shown_and_a_cls_token(config, batch):
    states = built(TxFMModel, config()).eval()(**inputs(batch)).last_hidden_state
    assert states.shape == (3, 12, 16)


def test_hidden_genes_influence_neither_embedding_nor_prediction(config, batch):
    model = built(TxFMForPreTraining, config()).eval()
    with torch.no_grad():
        one = model(**batch)
        other = model(**batch | {"expressed_values": batch["expressed_values"] + 1})
    torch.testing.assert_close(one.cell_embedding, other.cell_embedding, atol=0, rtol=0)
    torch.testing.assert_close(one.logits, other.logits, atol=0, rtol=0)
    assert one.loss != other.loss


def test_a_cell_without_a_token_is_nan_and_leaves_the_others_as_they_are(config, batch):
    model = built(TxFMModel, config()).eval()
    with torch.no_grad():
        before = model(**inputs(batch)).pooler_output
        mask = batch["attention_mask"].clone()
        mask[1] = 0
        after = model(batch["input_ids"], batch["values"], mask).pooler_output
    assert after[1].isnan().all()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])


def test_shapes_that_differ_are_refused(config):
    with pytest.raises(ValueError, match=r"input_ids \(1, 2\) and values \(1, 3\) differ in shape"):
        TxFMModel(config())(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 3))


# -- inference in parts -----------------------------------------------------------------------------------------------


def test_parts_are_disjoint_of_like_size_and_the_same_in_any_order():
    ids = torch.randperm(23, generator=torch.Generator().manual_seed(0)).expand(2, -1).clone()
    is_token = torch.ones_like(ids, dtype=torch.bool)
    is_token[1, 4:] = False
    cells, part_ids, _, is_there = parts_of_cells(ids, ids.float(), is_token, number=3, most=5)
    assert cells.tolist() == [0, 0, 0, 1]
    assert is_there.sum(1).tolist() == [5, 5, 5, 4]
    shown = part_ids[:3][is_there[:3]].tolist()
    assert len(set(shown)) == 15
    _, again, _, _ = parts_of_cells(ids.flip(1)[:1], ids.flip(1)[:1].float(), is_token[:1], number=3, most=5)
    assert torch.equal(again, part_ids[:3])
    halves = parts_of_cells(ids[:1], ids[:1].float(), is_token[:1], number=9, most=12)[3]
    assert halves.sum(1).tolist() == [12, 11]


def test_the_embedding_in_parts_is_the_mean_over_them(config, batch):
    model = built(TxFMModel, config(num_visible=4, inference_passes=2)).eval()
    cells, ids, values, is_there = parts_of_cells(
        batch["input_ids"], batch["values"], batch["attention_mask"].bool(), number=2, most=4
    )
    with torch.no_grad():
        of_parts = [model(ids[part][keep][None], values[part][keep][None]).pooler_output[0]
                    for part, keep in enumerate(is_there)]  # fmt: skip
        together = model(**inputs(batch)).pooler_output
    for row in range(3):
        expected = torch.stack([each for each, cell in zip(of_parts, cells.tolist(), strict=True) if cell == row])
        torch.testing.assert_close(together[row], expected.mean(0), atol=1e-5, rtol=0)


def test_states_of_cells_in_parts_are_refused(config, batch):
    model = built(TxFMModel, config(num_visible=4, inference_passes=2)).eval()
    with pytest.raises(ValueError, match=r"output_hidden_states is set, and cells of .* inference_passes=0"):
        model(**batch, output_hidden_states=True)


def test_training_is_never_in_parts(config, batch):
    model = built(TxFMModel, config(num_visible=4, inference_passes=2)).train()
    assert model(**inputs(batch)).last_hidden_state is not None


# -- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["poisson", "mse", "smooth_l1", "nb"])
@pytest.mark.parametrize("activation", ["rectified_tanh", "clamped_relu", "softmax"])
def test_the_loss_is_that_of_the_whole_cell(config, batch, loss, activation):
    model = built(TxFMForPreTraining, config(loss=loss, count_activation=activation)).eval()
    measured = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) > 0.3
    totals = torch.tensor([500.0, 2_000.0, 9_000.0])
    output = model(**batch, measured=measured, totals=totals)
    true = torch.zeros(3, 40).scatter(1, batch["expressed_ids"], batch["expressed_values"])
    expected = count_loss(output.logits, true, measured, loss, model.log_dispersion, totals).mean()
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert missing == []


def test_genes_that_no_cell_measured_are_not_learned(config, batch):
    model = built(TxFMForPreTraining, config())
    model.set_mean_profile(torch.ones(40))
    measured = torch.ones(3, 40, dtype=torch.bool)
    measured[:, 7] = False
    model(**batch, measured=measured).loss.backward()
    assert not model.decoder.output.weight.grad[7].any()
    assert model.decoder.output.weight.grad[8].any()


def test_values_are_given_at_masked_genes(config, batch):
    model = built(TxFMForPreTraining, config()).eval()
    masked_ids = torch.tensor([[3, 9, 40], [1, 2, 3], [39, 40, 40]])
    with torch.no_grad():
        every, some = model(**batch).logits, model(**batch, masked_ids=masked_ids).logits
    torch.testing.assert_close(some, every.gather(1, masked_ids.clamp(max=39)), atol=0, rtol=0)


def test_a_zero_embedding_reconstructs_the_mean_profile(config):
    model = built(TxFMForPreTraining, config(decoder_num_hidden_layers=0))
    profile = torch.linspace(0, 10, 40)
    model.set_mean_profile(profile)
    with torch.no_grad():
        torch.testing.assert_close(model.reconstruct(torch.zeros(2, 16))[1], profile)


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_model_learns_what_cells_differ_in_without_nan(config, is_begun):
    """Two kinds of cells: a model that ignored its input would stay at the loss of their mean."""
    generator = torch.Generator().manual_seed(0)
    profiles = torch.rand(2, 40, generator=generator) * 6
    model = built(TxFMForPreTraining, config(num_visible=20))
    if is_begun:
        model.set_mean_profile(profiles.expm1().mean(0).log1p())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    expressed_ids = torch.arange(40).expand(2, -1)
    mean = count_loss(profiles.expm1().mean(0).log1p().expand(2, -1), profiles, None, "poisson").mean()
    best = count_loss(profiles, profiles, None, "poisson").mean()
    losses = []
    for _ in range(200):
        ids = torch.stack([torch.randperm(40, generator=generator)[:20] for _ in range(2)])
        loss = model(ids, profiles.gather(1, ids), expressed_ids=expressed_ids, expressed_values=profiles).loss
        assert torch.isfinite(loss)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # From zero biases, genes whose first logits are negative stay at 0: rectified values have no gradient there.
    assert losses[-1] < (best + 0.2 * (mean - best) if is_begun else losses[0] - 10)


@pytest.mark.slow  # 2,000 steps, twice
@pytest.mark.parametrize("is_begun", [False, True])
def test_2000_steps_on_real_cells_stay_finite(pbmc, tmp_path, is_begun):
    counts = pd.DataFrame(np.expm1(pbmc.raw.X[:, :400].toarray()).round(), columns=pbmc.raw.var_names[:400])
    tokenizer = TxFMTokenizer.from_genes(list(counts), tmp_path)
    dataset = cells_dataset(tokenizer.read_counts(counts), empty="drop")
    set_seed(0)
    model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=400, num_visible=40, anchored=False)).train()
    if is_begun:
        model.set_mean_profile(torch.from_numpy(mean_profile(dataset, tokenizer, 0)))
    collator = DataCollatorForReconstruction(tokenizer, 40, epoch=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    losses = []
    for epoch in range(2_000):
        collator.epoch = epoch
        loss = model(**collator(dataset.__getitems__(rng.permutation(len(dataset))[:8].tolist()))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert np.mean(losses[-100:]) < np.mean(losses[:100])


# -- anchored ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def anchored(config):
    """An anchored model of two batches whose encoder and batches count, as after training."""
    model = built(TxFMForPreTraining, config(anchored=True, embedding_size=5, anchor_decoder_size=6, num_batches=2))
    with torch.no_grad():
        model.model.bag.from_encoder.weight.normal_()
        model.cell_decoder.batch_bias.weight.normal_()
        model.cell_decoder.to_genes.bias.normal_()
    return model.eval()


def known(batch):
    """The expressed genes of the cells, as training gives them beside the genes shown."""
    return {"known_ids": batch["expressed_ids"], "known_values": batch["expressed_values"]}


def of_bag(model, batch):
    """The embeddings of the bag of genes of all expressed genes, and the values that its decoder reconstructs."""
    is_there = torch.ones_like(batch["expressed_ids"], dtype=torch.bool)
    embedding = model.model.bag(*known(batch).values(), is_there)
    visible = dense_values(40, *known(batch).values(), is_there)
    scores = model.cell_decoder.in_likely_batch(model.cell_decoder(embedding), visible)
    return embedding, (1e5 * scores.softmax(-1)).log1p()


@torch.no_grad()
def test_without_the_encoders_part_all_outputs_are_those_of_the_bag_whatever_is_shown(anchored, batch):
    embedding, values = of_bag(anchored, batch)
    others = {**batch, "input_ids": batch["input_ids"].flip(0), "attention_mask": batch["attention_mask"].flip(0)}
    found = anchored(**batch, **known(batch))
    assert not torch.allclose(found.logits, anchored(**others, **known(batch)).logits)
    anchored.model.bag.from_encoder.weight.zero_()
    for given in (batch, others):
        output = anchored(**given, **known(batch))
        torch.testing.assert_close(output.cell_embedding, embedding, atol=0, rtol=0)
        torch.testing.assert_close(output.logits, values, atol=0, rtol=0)
        loss = count_loss(values, dense_values(40, *known(batch).values(), torch.tensor(True)), None, "poisson").mean()
        torch.testing.assert_close(output.loss, loss)


@torch.no_grad()
def test_at_inference_the_bag_reads_all_tokens_once_and_the_encoder_reads_them_in_parts(anchored, batch):
    config = anchored.config
    config.num_visible, config.inference_passes = 3, 2
    state = anchored.model(**inputs(batch)).pooler_output
    anchored.model.bag.from_encoder.weight.zero_()
    is_token = batch["attention_mask"].bool()
    bag = anchored.model.bag(batch["input_ids"], batch["values"], is_token)
    torch.testing.assert_close(anchored.model(**inputs(batch)).pooler_output, bag, atol=0, rtol=0)
    assert not torch.allclose(state, bag)
    predicted, embedding = anchored.predict_expression(**inputs(batch))
    torch.testing.assert_close(embedding, bag, atol=0, rtol=0)
    expected = anchored(**inputs(batch)).logits
    torch.testing.assert_close(predicted, expected, atol=0, rtol=0)


def test_the_bag_reads_counts_per_10_000_as_that_of_the_other_family(anchored):
    sizes = {"num_genes": 40, "embedding_size": anchored.config.embedding_size}
    other = BagOfGenes(XTrimoGeneConfig.preset("tiny", **sizes))
    other.load_state_dict({**other.state_dict(), **dict(anchored.model.bag.named_buffers())})
    shares = torch.tensor([[0.2, 0.0, 0.001]])
    ids, is_token = torch.tensor([[3, 17, 39]]), torch.ones(1, 3, dtype=torch.bool)
    per_10k, per_100k = (other(ids, (total * shares).log1p(), is_token) for total in (1e4, 1e5))
    torch.testing.assert_close(anchored.model.bag(ids, (1e5 * shares).log1p(), is_token), per_10k)
    assert not torch.allclose(per_100k, per_10k)


def test_the_reconstruction_begins_alike_in_both_families_whatever_the_initializer_range():
    wide, narrow = (TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", initializer_range=std)) for std in (0.5, 0.01))
    other = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny"))
    assert wide.model.layers[0].fc1.weight.std() > 10 * narrow.model.layers[0].fc1.weight.std()
    for name in ("dense", "block.fc1", "block.fc2", "to_genes"):
        spreads = [model.cell_decoder.get_submodule(name).weight.std() for model in (wide, narrow, other)]
        torch.testing.assert_close(spreads[0], spreads[1], rtol=0.05, atol=0)
        torch.testing.assert_close(spreads[0], spreads[2], rtol=0.05, atol=0)


def test_biases_of_batches_count_in_training_and_are_inferred_else(anchored, batch):
    of_batches = torch.tensor([0, 1, 1])
    assert torch.equal(anchored(**batch, batch_ids=of_batches).loss, anchored(**batch).loss)
    anchored.train()
    assert not torch.equal(
        anchored(**batch, batch_ids=of_batches).loss, anchored(**batch, batch_ids=1 - of_batches).loss
    )
    anchored(**batch, batch_ids=of_batches).loss.backward()
    missing = [name for name, weight in anchored.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert missing == []
    anchored.eval()
    bias, ids = anchored.cell_decoder.batch_bias.weight.data, torch.tensor([[0], [2]])
    bias.zero_()
    bias[0, [0, 1]], bias[1, [2, 3]] = 5.0, 5.0
    anchored.model.bag.components.zero_()  # so that cells differ in their visible gene alone
    anchored.model.bag.from_encoder.weight.data.zero_()
    first, second = anchored(ids, torch.full((2, 1), 9.0)).logits.detach()
    assert first[1] > second[1] + 0.3
    assert second[3] > first[3] + 0.3


@torch.no_grad()
def test_genes_that_a_batch_does_not_express_are_left_out_of_the_loss_of_its_cells(anchored, batch):
    anchored.train()
    of_batches = torch.zeros(3, dtype=torch.long)
    measured = torch.ones(3, 40)
    measured[:, 7] = 0
    expected = anchored(**batch, batch_ids=of_batches, measured=measured).loss
    anchored.cell_decoder.is_expressed[0, 7] = False
    torch.testing.assert_close(anchored(**batch, batch_ids=of_batches).loss, expected)
    anchored.cell_decoder.to_genes.bias[7] += 3  # of which nothing is asked
    torch.testing.assert_close(anchored(**batch, batch_ids=of_batches).loss, expected)


def test_an_anchored_model_is_saved_whole_and_its_anchor_stays_in_float32(anchored, batch, tmp_path):
    anchored.save_pretrained(tmp_path)
    again, loading = TxFMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    torch.testing.assert_close(again.eval()(**batch).logits, anchored(**batch).logits, atol=0, rtol=0)
    assert AutoModel.from_pretrained(tmp_path)(**inputs(batch)).pooler_output.shape == (3, 5)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    assert classifier(**inputs(batch)).logits.shape == (3, 4)
    classifier.freeze_encoder(0)
    assert not classifier.model.bag.from_encoder.weight.requires_grad
    half = TxFMForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half.model.bag.components.dtype is half.cell_decoder.to_genes.weight.dtype is torch.float32
    torch.testing.assert_close(half(**batch).logits, anchored(**batch).logits, atol=0.3, rtol=0)


def test_an_anchored_folder_without_its_bag_is_refused(anchored, tmp_path):
    anchored.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: part for name, part in load_file(file).items() if not name.startswith("model.bag.components")}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"is anchored and lacks model.bag.components"):
        AutoModelForPreTraining.from_pretrained(tmp_path)


def test_a_plain_folder_is_anchored_only_with_the_activation_of_an_anchor(config, tmp_path):
    built(TxFMForPreTraining, config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="anchored is True and count_activation 'rectified_tanh'"):
        TxFMForPreTraining.from_pretrained(tmp_path, anchored=True)
    changes = {"anchored": True, "count_activation": "softmax"}
    model = TxFMForPreTraining.from_pretrained(tmp_path, **changes)
    assert not model.cell_decoder.is_set
    with pytest.raises(ValueError, match="anchored is True, so the mean cell is that of the bag"):
        model.set_mean_profile(torch.ones(40))


@torch.no_grad()
def test_a_classifier_adds_to_a_regression_on_known_genes(config, batch):
    model = built(TxFMForSequenceClassification, config(num_labels=3, classifier_anchored=True)).eval()
    model.classifier.anchor.weight.normal_()
    values = dense_values(40, *known(batch).values(), torch.tensor(True))
    logits = model(**inputs(batch), **known(batch)).logits
    torch.testing.assert_close(logits, values @ model.classifier.anchor.weight)
    assert not torch.allclose(model(**inputs(batch)).logits, logits)


# -- precision, drop-path, initial values -----------------------------------------------------------------------------


def test_half_precision_keeps_values_and_loss_in_float32(config, batch, tmp_path):
    built(TxFMForPreTraining, config()).save_pretrained(tmp_path)
    half = TxFMForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half.model.layers[0].fc1.weight.dtype is torch.bfloat16
    assert half.decoder.output.weight.dtype is half.model.embeddings.gene_embedding.weight.dtype is torch.float32
    assert half.model.layers[0].scale1.dtype is torch.float32
    whole = TxFMForPreTraining.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ours, theirs = half(**batch), whole(**batch)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = whole(**batch)
    for output in (ours, autocast):
        assert output.logits.dtype is output.loss.dtype is torch.float32
        torch.testing.assert_close(output.logits, theirs.logits, atol=0.3, rtol=0)
        # The activation is not rounded: values of bfloat16 have 8 bits.
        assert not torch.equal(output.logits, output.logits.bfloat16().float())


def test_drop_path_skips_whole_cells_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    kept = drop(torch.ones(4000, 2, 3))
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean() == pytest.approx(1, abs=0.05)
    packed = drop(torch.ones(1, 5, 3), Packing.of(torch.tensor([[True, True, False], [True, True, True]])))
    assert (packed[0, :2] == packed[0, 0, 0]).all()
    assert (packed[0, 2:] == packed[0, 2, 0]).all()
    assert torch.equal(drop.eval()(kept), kept)


def test_layers_deeper_down_skip_more():
    model = TxFMModel(TxFMConfig(**{**SMALL, "drop_path_rate": 0.3}))
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0, 0.15, 0.3])


def test_a_fresh_model_has_the_initial_values_of_the_table():
    model = built(TxFMForPreTraining, TxFMConfig(num_genes=500, num_hidden_layers=1, hidden_size=96,
                  num_attention_heads=2, gene_initializer_range=0.3, loss="nb", layerscale_value=0.01))  # fmt: skip
    model.requires_grad_(False)
    assert model.model.embeddings.gene_embedding.weight.std() == pytest.approx(0.3, rel=0.05)
    assert model.model.embeddings.cls_vector.std() == pytest.approx(0.02, rel=0.3)
    layer = model.model.layers[0]
    assert layer.fc1.weight.abs().max() <= 0.04
    assert layer.fc1.weight.std() == pytest.approx(0.0176, rel=0.05)
    assert (layer.scale1 == 0.01).all()
    assert (layer.norm1.weight == 1).all()
    assert not layer.fc1.bias.any()
    assert not model.decoder.output.bias.any()
    assert model.decoder.output.weight.any()  # with weights and biases of zero no gradient would pass
    assert not model.log_dispersion.any()
    anchored = built(TxFMForPreTraining, TxFMConfig(**SMALL, anchored=True, num_batches=2))
    bag, decoder = anchored.model.bag, anchored.cell_decoder
    assert bag.components.std() == pytest.approx(0.02, rel=0.1)
    assert decoder.is_expressed.all()
    assert not any(part.any() for part in (bag.bias, bag.from_encoder.weight, decoder.direct.weight))
    assert not decoder.batch_bias.weight.any()


def test_gene_tables_are_those_of_the_genes(config):
    model = built(TxFMForPreTraining, config())
    assert model.model.static_gene_embeddings().shape == (40, 15)
    assert model.decoder_gene_embeddings().shape == (40, 16)
    anchored = built(TxFMForPreTraining, config(anchored=True, anchor_decoder_size=6))
    assert anchored.decoder_gene_embeddings() is anchored.cell_decoder.to_genes.weight


def test_gradient_checkpointing_gives_the_same_gradients(config, batch):
    def gradient(is_checkpointed):
        model = built(TxFMForPreTraining, config()).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        return model.model.layers[0].fc1.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


# -- heads and saving -------------------------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_by_each_auto_class(config, batch, tmp_path):
    model = built(TxFMForPreTraining, config()).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits, atol=0, rtol=0)
        torch.testing.assert_close(
            encoder(**inputs(batch)).pooler_output, model(**batch).cell_embedding, atol=0, rtol=0
        )
    assert type(encoder) is TxFMModel
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    assert type(classifier) is TxFMForSequenceClassification
    assert classifier(**inputs(batch)).logits.shape == (3, 4)


def test_a_classifier_learns_from_its_labels(config, batch):
    model = built(TxFMForSequenceClassification, config(num_labels=3)).train()
    labels = torch.tensor([0, 2, 1])
    output = model(**inputs(batch), labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    assert model.model.embeddings.gene_embedding.weight.grad.any()


def test_only_the_last_layers_learn_if_asked_for(config):
    model = TxFMForSequenceClassification(config())
    model.freeze_encoder(1)
    assert [layer.scale1.requires_grad for layer in model.model.layers] == [False, False, True]
    assert model.model.norm.weight.requires_grad
    assert not model.model.embeddings.cls_vector.requires_grad
    with pytest.raises(ValueError, match="trainable_layers is 4, the encoder has 3 layers"):
        model.freeze_encoder(4)
