"""Training on real cells: datasets, order, masks, accumulation; several processes are in test_processes.py."""

import numpy as np
import pytest
import torch

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
from xtrimogene.training.arguments import CellTrainingArguments
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.data.splits import encode_labels, stratified_split
from xtrimogene.training.finetuning import annotation_model, balanced_class_weights, finetune
from xtrimogene.training.pretraining import pretrain

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_head_dim": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pooling": "all",
}


@pytest.fixture(scope="module")
def panel(tmp_path_factory, pbmc, tokenizer):
    from xtrimogene import XTrimoGeneTokenizer

    rows = tokenizer.matcher.match(list(pbmc.raw.var_names)).rows
    names = [tokenizer.genes[row] for row in np.unique(rows[rows >= 0])]
    return XTrimoGeneTokenizer.from_genes(names, tmp_path_factory.mktemp("panel"))


@pytest.fixture(scope="module")
def labelled(panel, pbmc):
    ids, names = encode_labels(pbmc.obs["bulk_labels"])
    return cells_dataset(panel.read_counts(pbmc), ids), ids, names


def test_dataset_holds_every_cell_in_order(panel, pbmc, labelled):
    dataset, ids, _ = labelled
    counts, totals = panel.read_counts(pbmc).read()
    assert len(dataset) == pbmc.n_obs
    for row in (0, 17, 699):
        example = dataset[row]
        np.testing.assert_array_equal(example["input_ids"], counts[row].indices)
        np.testing.assert_array_equal(example["counts"], counts[row].data)
        assert (example["total"], example["cell_index"], example["labels"]) == (totals[row], row, ids[row])


def test_dataset_refuses_empty_cells_and_missing_labels(panel, pbmc):
    counts, _ = panel.read_counts(pbmc).read()
    counts = counts.tolil()
    counts[[4, 9]] = 0
    cells = panel.read_counts(counts.tocsr(), gene_names=panel.genes)
    with pytest.raises(ValueError, match=r"2 of 700 cells have no counts on the panel \(cell 4 first\)"):
        cells_dataset(cells)
    with pytest.raises(ValueError, match="3 labels for 700 cells"):
        cells_dataset(cells, [0, 1, 2])


def run(panel, dataset, folder, steps=6, **changes):
    torch.manual_seed(0)
    model = XTrimoGeneForPreTraining(XTrimoGeneConfig(num_genes=panel.num_genes, **SIZES))
    arguments = CellTrainingArguments(
        folder, max_steps=steps, learning_rate=1e-3, logging_steps=1, disable_tqdm=True, use_cpu=True, **changes
    )
    return pretrain(model, panel, dataset, dataset.select(range(32)), arguments=arguments)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_gradient_accumulation_gives_the_loss_of_one_large_batch(panel, labelled, tmp_path):
    small = run(panel, labelled[0], tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    large = run(panel, labelled[0], tmp_path, per_device_train_batch_size=32)
    assert len(losses(large)) == len(losses(small)) == 6
    np.testing.assert_allclose(losses(large), losses(small), rtol=1e-4)


def test_workers_change_nothing(panel, labelled, tmp_path):
    alone = run(panel, labelled[0], tmp_path, steps=3)
    helped = run(panel, labelled[0], tmp_path, steps=3, dataloader_num_workers=2)
    assert losses(helped) == losses(alone)


def test_every_epoch_has_other_masks_and_another_order(panel, labelled, tmp_path):
    seen = []
    dataset = labelled[0].select(range(64))
    model = XTrimoGeneForPreTraining(XTrimoGeneConfig(num_genes=panel.num_genes, **SIZES))
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
    trainer = pretrain(model, panel, dataset, arguments=arguments)
    assert len(seen) == 2
    assert seen[0].shape != seen[1].shape or (seen[0] != seen[1]).any()
    assert trainer.train_sampler.epoch == 1


def test_evaluation_hides_the_same_genes_every_time(panel, labelled, tmp_path):
    trainer = run(panel, labelled[0], tmp_path, steps=1)
    held_out = labelled[0].select(range(32))
    first, again = trainer.predict(held_out), trainer.predict(held_out)
    np.testing.assert_array_equal(first.label_ids[1], again.label_ids[1])
    np.testing.assert_array_equal(first.predictions, again.predictions)
    scores = trainer.evaluate()
    counted = first.label_ids[0] != -100
    expected = np.mean((first.predictions - first.label_ids[0])[counted] ** 2)
    assert abs(scores["eval_mse"] - expected) < 1e-6


def test_projections_are_redrawn_by_the_step(panel, labelled, tmp_path):
    torch.manual_seed(0)
    config = XTrimoGeneConfig(num_genes=panel.num_genes, favor_redraw_interval=2, **SIZES)
    model = XTrimoGeneForPreTraining(config)
    attention = model.model.decoder.layers[0].self_attn
    arguments = CellTrainingArguments(tmp_path, max_steps=5, disable_tqdm=True, use_cpu=True)
    pretrain(model, panel, labelled[0], arguments=arguments)
    assert torch.equal(attention.projection, attention.drawn_projection(2))


def test_a_head_for_other_labels_starts_anew(panel, tmp_path):
    config = XTrimoGeneConfig(num_genes=panel.num_genes, **SIZES)
    first = annotation_model(config, ["B", "T"])
    first.save_pretrained(tmp_path)
    weight = first.classifier.dense.weight
    assert torch.equal(annotation_model(tmp_path, ["B", "T"]).classifier.dense.weight, weight)
    assert not torch.equal(annotation_model(tmp_path, ["NK", "T"]).classifier.dense.weight, weight)
    assert annotation_model(tmp_path, ["B", "NK", "T"]).classifier.out_proj.weight.shape[0] == 3


def test_fine_tuning_learns_real_cell_types(panel, labelled, tmp_path):
    dataset, ids, names = labelled
    train, test = stratified_split(ids, 0.25, seed=0)
    torch.manual_seed(0)
    model = annotation_model(
        XTrimoGeneConfig(num_genes=panel.num_genes, **SIZES), names, balanced_class_weights(ids[train], len(names))
    )
    arguments = CellTrainingArguments(
        tmp_path,
        num_train_epochs=3,
        learning_rate=2e-3,
        per_device_train_batch_size=32,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = finetune(model, panel, dataset.select(train), dataset.select(test), arguments=arguments)
    scores = trainer.evaluate()
    majority = np.bincount(ids[test]).max() / len(test)
    assert scores["eval_accuracy"] > majority + 0.2
    trainer.save_model(str(tmp_path / "annotator"))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tmp_path / "annotator")
    assert list(config.id2label.values()) == names
    assert config.label2id == {name: index for index, name in enumerate(names)}


def test_splits_keep_groups_together_and_classes_in_proportion(labelled):
    _, ids, _ = labelled
    train, test = stratified_split(ids, 0.25, seed=0)
    assert sorted([*train, *test]) == list(range(len(ids)))
    shares = np.bincount(ids[test]) / np.bincount(ids)
    assert shares.min() > 0.15
    assert shares.max() < 0.35
    groups = np.arange(len(ids)) % 7
    train, test = stratified_split(ids, 0.25, seed=0, groups=groups)
    assert not set(groups[train]) & set(groups[test])


@pytest.mark.parametrize(("labels", "message"), [
    (["B", None, "T", np.nan], "labels has no label for 2 of 4 cells"),
    (["B", "B"], r"labels has 1 class in 2 cells \(B\)"),
])  # fmt: skip
def test_labels_that_cannot_be_learnt_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        encode_labels(labels)


def test_a_class_of_one_cell_cannot_be_split():
    with pytest.raises(ValueError, match="Mast has 1 cell of 5"):
        stratified_split(["B", "B", "B", "B", "Mast"], 0.5, seed=0)


def test_class_weights_are_one_on_average():
    ids = np.array([0] * 90 + [1] * 10)
    weights = balanced_class_weights(ids, 2)
    assert abs(np.mean([weights[i] for i in ids]) - 1) < 1e-9
    assert abs(weights[1] / weights[0] - 3) < 1e-9
