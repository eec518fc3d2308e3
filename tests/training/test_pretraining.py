"""Read-depth-aware batches; the whole of pre-training is in test_training.py and test_checkpoints.py."""

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
from xtrimogene.modeling_xtrimogene.reconstruction_xtrimogene import reconstructed_values
from xtrimogene.tokenization.collators import IGNORED, DataCollatorForMaskedExpression, reduce_depth
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training.anchoring import begin_latents
from xtrimogene.training.arguments import CellTrainingArguments
from xtrimogene.training.data.dataset import cells_dataset, expression
from xtrimogene.training.pretraining import pretrain

NUM_GENES = 2_000


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    genes = [f"GENE{index}" for index in range(NUM_GENES)]
    return XTrimoGeneTokenizer.from_genes(genes, tmp_path_factory.mktemp("panel"), depth_tokens=True)


@pytest.fixture(scope="module")
def cells(panel):
    """600 cells: the first 200 with fewer than 1,000 counts, which each cell has on and off the panel."""
    rng = np.random.default_rng(0)
    depth = np.repeat([0.15, 2.0], [200, 400])[:, None]
    rates = rng.gamma(0.2, 5, (600, NUM_GENES)) * depth
    counts = rng.poisson(np.hstack([rates, np.full((600, 1), 100) * depth]))
    return cells_dataset(panel.read_counts(counts, gene_names=[*panel.genes, "OTHER"]))


def examples_of(cells, rows=None):
    return [cells[row] for row in (range(len(cells)) if rows is None else rows)]


def test_half_of_the_deep_cells_lose_half_of_their_counts_on_average(cells):
    examples = examples_of(cells)
    lengths = np.array([len(example["counts"]) for example in examples])
    counts = np.concatenate([example["counts"] for example in examples])
    totals = np.array([example["total"] for example in examples])
    assert (totals[:200] < 1_000).all()
    assert (totals[200:] >= 1_000).all()
    shares, rows = [], np.repeat(np.arange(600), lengths)
    for epoch in range(5):
        reduced, reduced_totals = reduce_depth(counts, lengths, totals, np.arange(600), 0, epoch)
        assert (reduced <= counts).all()
        assert (reduced == np.rint(reduced)).all()
        is_raw = reduced_totals == totals
        assert is_raw[:200].all()
        np.testing.assert_array_equal(reduced[is_raw[rows]], counts[is_raw[rows]])
        shares.append((reduced_totals / totals)[200:])
        on_panel = np.bincount(rows, reduced) / np.bincount(rows, counts)
        np.testing.assert_allclose(on_panel[200:], shares[-1], atol=0.06)  # what is off the panel is reduced alike
    drawn = np.concatenate(shares)
    assert abs((drawn == 1).mean() - 0.5) < 0.04  # 2,000 draws: 3.5 standard deviations
    drawn = drawn[drawn < 1]
    assert abs(drawn.mean() - 0.5) < 0.025  # Beta(2, 2)
    assert abs(drawn.std() - 0.05**0.5) < 0.02
    assert (shares[0] != shares[1]).any()


def test_a_kept_share_is_binomial():
    counts = np.full(4_000, 50.0, np.float32)
    for cell in range(20):
        reduced, total = reduce_depth(counts, np.array([4_000]), np.array([200_000.0]), np.array([cell]), 0, 0)
        share = total[0] / 200_000
        assert abs(reduced.var() - 50 * share * (1 - share)) < 1.5
        assert reduced.sum() == total[0]


def test_labels_are_of_the_raw_cell_and_what_is_seen_of_the_input(panel, cells):
    collator = DataCollatorForMaskedExpression(
        panel, Masking(expressed_ratio=0.5, zero_ratio=0.1, hidden_ratio=0, random_ratio=0, read_depth_aware=True)
    )
    rows = np.arange(150, 300)
    batch = {key: value.numpy() for key, value in collator(examples_of(cells, rows)).items()}
    num_dropped = 0
    for row, cell in enumerate(examples_of(cells, rows)):
        raw = np.zeros(NUM_GENES, np.float32)
        raw[cell["input_ids"]] = panel.normalize(cell["counts"], cell["total"])
        *own, target, source = np.flatnonzero(batch["attention_mask"][row])
        assert batch["input_ids"][row, [target, source]].tolist() == [NUM_GENES, NUM_GENES + 1]
        depth, seen_depth = batch["values"][row, [target, source]]
        assert depth == np.float32(np.log10(cell["total"]))
        assert seen_depth <= depth
        is_label = batch["labels"][row] != IGNORED
        masked_ids, shown = batch["masked_ids"][row, is_label], batch["masked_values"][row, is_label]
        np.testing.assert_array_equal(batch["labels"][row, is_label], raw[masked_ids])
        # With `hidden_ratio` 0 the decoder sees the input at masked genes: together they are the cell at its depth.
        ids = np.concatenate([batch["input_ids"][row, own], masked_ids])
        values = np.concatenate([batch["values"][row, own], shown])
        assert len(set(ids)) == len(ids)
        counts = np.expm1(values.astype(np.float64)) * 10.0**seen_depth / 1e4
        np.testing.assert_allclose(counts, np.rint(counts), atol=0.01)
        if seen_depth == depth:
            np.testing.assert_allclose(values, raw[ids], rtol=1e-6)
        dropped = (shown == 0) & (raw[masked_ids] > 0)
        num_dropped += dropped.sum()
    assert num_dropped > 100


def test_draws_do_not_depend_on_the_batch(panel, cells):
    collator = DataCollatorForMaskedExpression(panel, seed=3, read_depth_aware=True)
    together = collator(examples_of(cells, range(196, 212)))
    for place in range(16):
        alone = collator(examples_of(cells, [196 + place]))
        for key, column in alone.items():
            np.testing.assert_array_equal(together[key][place, : column.shape[1]], column[0])
    collator.epoch = 1
    again = collator(examples_of(cells, range(196, 212)))
    assert again["labels"].shape != together["labels"].shape or (again["labels"] != together["labels"]).any()


def test_a_cell_of_which_nothing_would_be_left_keeps_its_depth():
    totals = np.full(200, 2_000.0)  # one count of 2,000 is on the panel
    counts, after = reduce_depth(np.ones(200, np.float32), np.ones(200, int), totals, np.arange(200), 0, 0)
    assert (counts == 1).all()
    assert 20 < (after < totals).sum() < 80


def test_depths_need_tokens_that_tell_them(tokenizer):
    with pytest.raises(ValueError, match="read_depth_aware is True, and the tokenizer has depth_tokens False"):
        DataCollatorForMaskedExpression(tokenizer, read_depth_aware=True)


def test_a_run_with_unmeasured_genes_goes_on_with_the_same_choice_and_the_same_lists_only(
    sizes, tokenizer, pbmc, tmp_path
):
    import anndata

    from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
    from xtrimogene.training.arguments import CellTrainingArguments
    from xtrimogene.training.pretraining import pretrain

    adata = anndata.AnnData(pbmc.raw.X, pbmc.obs[[]], pbmc.raw.var[[]])[:12, -300:].copy()
    dataset = cells_dataset(tokenizer.read_counts(adata))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {f"decoder_{name}": value for name, value in sizes.items()} | {"decoder_head_dim": 8}

    def run(sizes, steps, cells=dataset, **options):
        model = XTrimoGeneForPreTraining(XTrimoGeneConfig(**sizes, num_genes=tokenizer.num_genes))
        arguments = CellTrainingArguments(
            tmp_path / "run", max_steps=steps, per_device_train_batch_size=4, save_strategy="steps", save_steps=2,
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        return pretrain(model, tokenizer, cells, arguments=arguments, **options)

    run(sizes, 2)
    with pytest.raises(ValueError, match="is of a run with unmeasured 'ignore', now 'zero': resume with the same"):
        run(sizes, 4, resume=True, options=Masking(unmeasured="zero"))
    with pytest.raises(ValueError, match=r"is of a run with hash of the cells '.*', now '.*': resume with the same"):
        run(sizes, 4, dataset.remove_columns("measured"), resume=True)
    trainer = run(sizes, 4, resume=True)
    assert trainer.state.global_step == 4
    assert trainer.data_collator.masking.unmeasured == trainer.eval_collator.masking.unmeasured == "ignore"


def run(sizes, blood_panel, dataset, folder, steps=6, **changes):
    torch.manual_seed(0)
    model = XTrimoGeneForPreTraining(XTrimoGeneConfig(num_genes=blood_panel.num_genes, **sizes))
    arguments = CellTrainingArguments(
        folder, max_steps=steps, learning_rate=1e-3, logging_steps=1, disable_tqdm=True, use_cpu=True, **changes
    )
    return pretrain(model, blood_panel, dataset, dataset.select(range(32)), arguments=arguments)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_gradient_accumulation_gives_the_loss_of_one_large_batch(sizes, blood_panel, labelled, tmp_path):
    small = run(sizes, blood_panel, labelled[0], tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    large = run(sizes, blood_panel, labelled[0], tmp_path, per_device_train_batch_size=32)
    assert len(losses(large)) == len(losses(small)) == 6
    np.testing.assert_allclose(losses(large), losses(small), rtol=1e-4)


def test_workers_change_nothing(sizes, blood_panel, labelled, tmp_path):
    alone = run(sizes, blood_panel, labelled[0], tmp_path, steps=3)
    helped = run(sizes, blood_panel, labelled[0], tmp_path, steps=3, dataloader_num_workers=2)
    assert losses(helped) == losses(alone)


def test_every_epoch_has_other_masks_and_another_order(sizes, blood_panel, labelled, tmp_path):
    seen = []
    dataset = labelled[0].select(range(64))
    model = XTrimoGeneForPreTraining(XTrimoGeneConfig(num_genes=blood_panel.num_genes, **sizes))
    forward = model.forward

    def recording(**batch):
        if model.training:
            seen.append(batch["masked_ids"].clone())
        return forward(**batch)

    model.forward = recording
    model._signature_columns = None
    arguments = CellTrainingArguments(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=64, disable_tqdm=True, use_cpu=True
    )
    trainer = pretrain(model, blood_panel, dataset, arguments=arguments)
    assert len(seen) == 2
    assert seen[0].shape != seen[1].shape or (seen[0] != seen[1]).any()
    assert trainer.train_sampler.epoch == 1


def test_evaluation_hides_the_same_genes_every_time(sizes, blood_panel, labelled, tmp_path):
    trainer = run(sizes, blood_panel, labelled[0], tmp_path, steps=1)
    held_out = labelled[0].select(range(32))
    first, again = trainer.predict(held_out), trainer.predict(held_out)
    np.testing.assert_array_equal(first.label_ids[1], again.label_ids[1])
    np.testing.assert_array_equal(first.predictions, again.predictions)
    scores = trainer.evaluate()
    counted = first.label_ids[0] != -100
    expected = np.mean((first.predictions - first.label_ids[0])[counted] ** 2)
    assert abs(scores["eval_mse"] - expected) < 1e-6


@pytest.mark.parametrize("likelihood", ["multinomial", "poisson", "squared_error"])
def test_a_model_with_latents_begins_at_the_mean_profile(tmp_path, tiny_config, likelihood):
    tokenizer = XTrimoGeneTokenizer.from_genes([f"GENE{index}" for index in range(30)], tmp_path)
    counts = np.random.default_rng(0).poisson(np.arange(30), (50, 30))
    dataset = cells_dataset(tokenizer.read_counts(counts, gene_names=tokenizer.genes))
    model = XTrimoGeneForPreTraining(tiny_config(num_genes=30, num_latents=2, reconstruction_likelihood=likelihood))
    begin_latents(model, tokenizer, dataset)
    torch.nn.init.zeros_(model.latent_decoder.direction.weight)  # the path by which latents tell cells apart
    values = expression(dataset, tokenizer).toarray()
    expected = values.mean(0) if likelihood == "squared_error" else np.log1p(np.expm1(values).mean(0))
    with torch.no_grad():
        for latents in torch.randn(2, 3, 2, 16):  # whatever they are
            found = reconstructed_values(model.decode_latents(latents), likelihood)
            np.testing.assert_allclose(found.numpy(), np.tile(expected, (3, 1)), atol=0.011)
    model.latent_decoder.gene_bias.data += 1
    before = model.latent_decoder.gene_bias.clone()
    begin_latents(model, tokenizer, dataset)  # what was set stays
    assert torch.equal(model.latent_decoder.gene_bias, before)


def test_the_mean_of_a_gene_is_over_the_cells_that_measured_it(tmp_path, tiny_config):
    tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "LYZ"], tmp_path)
    dataset = cells_dataset(tokenizer.read_counts(np.array([[5, 5, 0]]), gene_names=tokenizer.genes))
    measured = [np.packbits([True, True, False]).tobytes()]
    other = cells_dataset(tokenizer.read_counts(np.array([[2, 4, 4]]), gene_names=tokenizer.genes))
    both = concatenate_datasets([
        part.remove_columns([name for name in ("measured",) if name in part.column_names]).add_column("measured", bits)
        for part, bits in ((dataset, measured), (other, [np.packbits([True] * 3).tobytes()]))
    ]).with_format("numpy")  # fmt: skip
    model = XTrimoGeneForPreTraining(tiny_config(num_genes=3, num_latents=2))
    begin_latents(model, tokenizer, both)
    assert (1e4 * model.latent_decoder.gene_bias.exp()).round().tolist() == [3500, 4500, 4000]
