"""The bag of genes: its first biases, what it learns, and that an anchored pre-training begins with it."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.sparse import csr_matrix

from xtrimogene import (
    TxFMConfig,
    TxFMForPreTraining,
    TxFMTokenizer,
    XTrimoGeneConfig,
    XTrimoGeneForPreTraining,
    XTrimoGeneTokenizer,
)
from xtrimogene.modeling_xtrimogene.xpressor_xtrimogene import energy_distance
from xtrimogene.tokenization.collators import IGNORED, DataCollatorForExpression, DataCollatorForMaskedExpression
from xtrimogene.training.anchoring import (
    alike_of_batches,
    bag_batch,
    bag_loss,
    batch_profiles,
    begin_anchor,
    fit_bag,
    set_components,
    take_out_batches,
    thinned,
)
from xtrimogene.training.arguments import CellTrainingArguments
from xtrimogene.training.components import batch_free_components
from xtrimogene.training.data.dataset import cells_dataset, expression
from xtrimogene.training.pretraining import pretrain

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "decoder_hidden_size": 16}


@pytest.fixture(scope="module")
def blood(pbmc, tmp_path_factory, measured_genes):
    """300 real blood cells, which are taken for two batches, on a panel of their own genes."""
    tokenizer = XTrimoGeneTokenizer.from_genes(measured_genes(pbmc.raw.var_names), tmp_path_factory.mktemp("panel"))
    cells = tokenizer.read_counts(pbmc[:300].copy())
    return tokenizer, cells_dataset(cells, batches=np.repeat([0, 1], 150))


@pytest.fixture
def model(blood):
    torch.manual_seed(0)
    return XTrimoGeneForPreTraining(
        XTrimoGeneConfig.preset("tiny", num_genes=blood[0].num_genes, embedding_size=8, **SIZES)
    )


def test_profiles_are_the_mean_cells_of_the_batches(blood):
    tokenizer, dataset = blood
    profiles, is_expressed = batch_profiles(tokenizer, dataset, 2, "multinomial")
    whole = bag_batch(dataset.__getitems__(list(range(len(dataset)))), tokenizer, None)["whole"].numpy()
    shares = np.expm1(whole) / 1e4
    for batch, rows in enumerate((slice(150), slice(150, 300))):
        np.testing.assert_allclose(np.exp(profiles[batch]) - 1e-6, shares[rows].mean(0), atol=1e-6)
        np.testing.assert_array_equal(is_expressed[batch], (shares[rows] > 0).any(0))
    assert not np.allclose(profiles[0], profiles[1])


def test_a_gene_not_measured_in_a_batch_has_the_profile_of_the_others(tmp_path):
    genes = ["CD3E", "MS4A1", "NKG7"]
    tokenizer = XTrimoGeneTokenizer.from_genes(genes, tmp_path)
    every, two = np.packbits([1, 1, 1]).tobytes(), np.packbits([1, 1, 0]).tobytes()
    cell = {"input_ids": [0, 2], "counts": [6, 2], "total": 8, "cell_index": 0, "batch": 0, "measured": every}
    other = {"input_ids": [0, 1], "counts": [3, 1], "total": 4, "cell_index": 1, "batch": 1, "measured": two}

    found, _ = batch_profiles(tokenizer, Dataset.from_list([cell, other]).with_format("numpy"), 2, "multinomial")
    np.testing.assert_allclose(np.exp(found), [[0.75, 1e-6, 0.25], [0.75, 0.25, 0.25]], rtol=1e-3)


def test_the_bag_learns_cells_better_than_their_mean_profile(blood, model):
    tokenizer, dataset = blood
    train, held_out = dataset.select(range(0, 300, 2)), dataset.select(range(1, 300, 2))
    batch = bag_batch(held_out.__getitems__(list(range(150))), tokenizer, None)
    begin_anchor(model, tokenizer, train, fit=False)
    assert (model.config.num_batches, model.cell_decoder.is_set) == (2, False)
    begin_anchor(model, tokenizer, train)
    encoder = [weight.clone() for weight in model.model.encoder.parameters()]
    with torch.no_grad():
        learned = bag_loss(model, batch).mean()
        bias = model.cell_decoder.to_genes.bias.expand(150, -1)
        mean = torch.nn.functional.cross_entropy(bias, batch["whole"].expm1() / batch["whole"].expm1().sum(1)[:, None])
    assert learned < mean - 0.05
    assert all(torch.equal(*pair) for pair in zip(encoder, model.model.encoder.parameters(), strict=True))
    assert not model.model.bag.from_encoder.weight.any()
    assert all(weight.grad is None for weight in model.parameters())


def test_a_txfm_has_the_bag_of_its_own_values(blood, pbmc, tmp_path):
    genes, dataset = blood[0].genes, blood[1]
    tokenizer = TxFMTokenizer.from_genes(genes, tmp_path)
    examples = dataset.__getitems__(list(range(300)))
    for rng in (None, np.random.default_rng(0)):  # values of all counts, and of some of them
        batch = bag_batch(examples, tokenizer, rng)
        for row in range(0, 300, 50):
            values = batch["values"][row, batch["is_token"][row]]
            assert values.expm1().sum().item() == pytest.approx(1e5, rel=1e-4)
    whole = bag_batch(examples, tokenizer, None)["whole"]
    shares = whole.expm1() / 1e5
    profiles, _ = batch_profiles(tokenizer, dataset, 2, "multinomial")
    np.testing.assert_allclose(np.exp(profiles[0]) - 1e-6, shares[:150].mean(0), atol=1e-6)
    torch.manual_seed(0)
    config = {"embedding_size": 8, "hidden_size": 16, "num_attention_heads": 2, "num_genes": len(genes)}
    model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", anchored=True, **config))
    train, held_out = dataset.select(range(0, 300, 2)), dataset.select(range(1, 300, 2))
    begin_anchor(model, tokenizer, train)
    batch = bag_batch(held_out.__getitems__(list(range(150))), tokenizer, None)
    with torch.no_grad():
        learned = bag_loss(model, batch).mean()
        bias = model.cell_decoder.to_genes.bias.expand(150, -1)
        mean = torch.nn.functional.cross_entropy(bias, batch["whole"].expm1() / 1e5)
    assert learned < mean - 0.05
    assert model.config.num_batches == 2
    # The model reconstructs as its bag does, in its own units.
    tokens = DataCollatorForExpression(tokenizer)(held_out.__getitems__([0, 1, 2]))
    with torch.no_grad():
        predicted, embedding = model.eval().predict_expression(**tokens)
        bag = model.model.bag(*(batch[name][:3] for name in ("input_ids", "values", "is_token")))
    torch.testing.assert_close(embedding, bag, atol=1e-4, rtol=0)
    torch.testing.assert_close(predicted.expm1().sum(1), torch.full((3,), 1e5))


def test_masked_values_begin_better_than_the_mean_of_each_gene(blood, model):
    tokenizer, dataset = blood
    train, held_out = dataset.select(range(0, 300, 2)), dataset.select(range(1, 300, 2))
    begin_anchor(model, tokenizer, train)
    collate = DataCollatorForMaskedExpression(tokenizer, seed=1, epoch=0, hidden_ratio=1.0, random_ratio=0.0)
    seen, new = (collate(cells.__getitems__(list(range(150)))) for cells in (train, held_out))
    is_seen, is_new = seen["labels"] != IGNORED, new["labels"] != IGNORED
    ids, labels = seen["masked_ids"][is_seen], seen["labels"][is_seen]
    sums, numbers = (torch.zeros(tokenizer.num_genes).index_add(0, ids, part) for part in (labels, labels * 0 + 1))
    means = (sums + labels.mean()) / (numbers + 1)
    with torch.no_grad():
        predicted = model.eval()(**new).logits[is_new]
    true, guessed = new["labels"][is_new], means[new["masked_ids"][is_new]]
    assert (predicted - true).square().mean() < 0.98 * (guessed - true).square().mean()
    beyond = torch.corrcoef(torch.stack([predicted - guessed, true - guessed]))[0, 1]
    assert beyond > 0.15


def test_the_same_seed_gives_the_same_bag_and_another_one_another(blood, model):
    tokenizer, dataset = blood
    begin_anchor(model, tokenizer, dataset, fit=False)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    losses = []
    for seed in (0, 0, 1):
        model.load_state_dict(state)
        losses.append(list(fit_bag(model, tokenizer, dataset, seed=seed, steps=3)))
    assert losses[0] == losses[1] != losses[2]


def test_with_a_weight_of_mixing_batches_get_nearer(blood, model):
    tokenizer, dataset = blood
    by_depth = np.argsort(np.asarray(dataset["total"][:]))  # batches that differ in depth
    batches = np.zeros(len(dataset), np.int64)
    batches[by_depth[150:]] = 1
    dataset = dataset.remove_columns("batch").add_column("batch", batches).with_format("numpy")
    set_components(model, tokenizer, dataset.remove_columns("batch"))
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    batch = bag_batch(dataset.__getitems__(list(range(300))), tokenizer, None)
    distances = []
    for weight in (0, 3):
        model.load_state_dict(state)
        model.config.mixing_weight = weight
        for _ in fit_bag(model, tokenizer, dataset, steps=20):
            pass
        embedding = model.model.bag(batch["input_ids"], batch["values"], batch["is_token"]).detach()
        distances.append(energy_distance(embedding, batch["batch_ids"]).item())
    assert distances[1] < 0.5 * distances[0], distances
    with torch.no_grad():
        assert torch.equal(bag_loss(model, batch), bag_loss(model, batch, mixes=False))
        assert not torch.equal(bag_loss(model, batch), bag_loss(model, batch, mixes=True))


def test_after_the_fit_batches_of_a_source_are_nearer_and_the_mean_cell_stays(blood, model):
    tokenizer, dataset = blood
    values = expression(dataset, tokenizer)
    by_depth = np.argsort(np.asarray(dataset["total"][:]))  # batches that differ in depth
    batches, sources = np.zeros((2, len(dataset)), np.int64)
    batches[by_depth[150:]] = 1
    sources[by_depth[75:225]] = 1  # two sources, each with cells of both batches
    set_components(model, tokenizer, dataset.remove_columns("batch"))
    bag = model.model.bag

    def after(of_cells):
        numbered = dataset.remove_columns("batch")
        for name, numbers in of_cells.items():
            numbered = numbered.add_column(name, numbers)
        take_out_batches(model, tokenizer, numbered.with_format("numpy"))
        components = values @ bag.components.numpy()
        means = [components[(batches == batch) & (sources == 1)].mean(0) for batch in (0, 1)]
        return np.linalg.norm(means[0] - means[1]), components.mean(0) + bag.bias.numpy()

    apart, mean = after({"batch": np.zeros(len(dataset), np.int64)})  # a single batch: nothing is taken out
    nearer, same_mean = after({"batch": batches, "source": sources})
    assert nearer == pytest.approx(0.75 * apart, rel=0.05)
    np.testing.assert_allclose(same_mean, mean, atol=1e-3)
    same, _ = after({"batch": batches, "source": batches})  # each source is one batch
    assert same == pytest.approx(nearer)


def test_the_bag_learns_only_while_it_is_fitted(blood, model):
    tokenizer, dataset = blood
    steps = fit_bag(model, tokenizer, dataset, steps=3)
    next(steps)
    assert model.model.bag.components.requires_grad
    steps.close()  # as when adaptation stops early
    assert not any(part.requires_grad for part in model.model.bag.buffers())


def test_as_many_cells_of_each_batch_are_drawn_as_it_has():
    cells = Dataset.from_dict({"batch": [0] * 90 + [1] * 7 + [2] * 3}).with_format("numpy")
    rows = alike_of_batches(cells, 20, np.random.default_rng(0))
    assert np.bincount(cells["batch"][:][rows]).tolist() == [10, 7, 3]
    assert (np.diff(rows) > 0).all()
    assert alike_of_batches(cells, 1000, np.random.default_rng(0)).tolist() == list(range(100))


def test_a_third_to_all_counts_of_a_cell_are_kept(blood):
    tokenizer, dataset = blood
    examples = dataset.__getitems__(list(range(100)))
    every, some = (bag_batch(examples, tokenizer, rng) for rng in (None, np.random.default_rng(0)))
    shares = some["is_token"].sum(1) / every["is_token"].sum(1)
    assert 0.3 < shares.min() < 0.6  # of genes; more of them than of the counts
    assert 0.9 < shares.max() <= 1
    assert torch.equal(some["whole"], every["whole"])


def test_fewer_counts_are_those_of_a_cell_that_was_sequenced_less():
    counts, rng = np.repeat([10.0, 2.5], 20_000), np.random.default_rng(0)
    kept = thinned(counts, np.full(40_000, 0.3), rng)
    assert (kept <= counts).all()
    assert kept[:20_000].mean() == pytest.approx(3, abs=0.05)
    assert kept[:20_000].var() == pytest.approx(10 * 0.3 * 0.7, abs=0.1)
    assert kept[20_000:].mean() == pytest.approx(0.75, abs=0.02)
    assert set(kept[20_000:].tolist()) <= {0, 0.5, 1, 1.5, 2, 2.5}
    np.testing.assert_array_equal(thinned(counts, np.ones(40_000), rng), counts)


def test_before_it_learns_the_bag_embeds_cells_by_their_principal_components(blood, model):
    tokenizer, dataset = blood
    begin_anchor(model, tokenizer, dataset, fit=False)
    set_components(model, tokenizer, dataset)
    batch = bag_batch(dataset.__getitems__(list(range(300))), tokenizer, None)
    with torch.no_grad():
        embedding = model.model.bag(batch["input_ids"], batch["values"], batch["is_token"]).numpy()
    values = batch["whole"].numpy()
    rng = np.random.default_rng(0)
    rng.permutation(300)  # of the cells, of which all are taken
    components = (values - values.mean(0)) @ batch_free_components(csr_matrix(values), np.repeat([0, 1], 150), 8, rng)
    expected = (components - components.mean(1, keepdims=True)) / components.std(1, keepdims=True)
    np.testing.assert_allclose(embedding, expected, atol=0.01)


def test_a_pre_training_begins_with_the_bag_and_goes_on_from_a_checkpoint_without_a_new_one(blood, model, tmp_path):
    tokenizer, dataset = blood

    def arguments(steps):
        return CellTrainingArguments(
            tmp_path, max_steps=steps, disable_tqdm=True, use_cpu=True, save_strategy="steps", save_steps=2,
            report_to="none",
        )  # fmt: skip

    other = deepcopy(model)
    pretrain(model, tokenizer, dataset, arguments=arguments(2))
    assert model.cell_decoder.is_set
    begin_anchor(other, tokenizer, dataset, seed=arguments(2).seed)
    for name, fitted in other.model.bag.named_buffers():  # the steps that followed have not changed it
        assert torch.equal(model.model.bag.get_buffer(name), fitted), name
    assert model.model.bag.from_encoder.weight.any()
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    again = XTrimoGeneForPreTraining(model.config)
    pretrain(again, tokenizer, dataset, arguments=arguments(2), resume=True)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, state[name]), name
