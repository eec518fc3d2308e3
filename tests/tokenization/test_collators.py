"""Masks under transformers' own Trainer, which tells the collator nothing: each epoch has its own."""

import pickle
from multiprocessing.context import set_spawning_popen

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneTokenizer
from xtrimogene.tokenization.collators import IGNORED, DataCollatorForExpression, DataCollatorForMaskedExpression
from xtrimogene.training.arguments import CellTrainingArguments
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.trainer import CellTrainer

NUM_CELLS = 10
NUM_EPOCHS = 3


class Collator(DataCollatorForMaskedExpression):
    """Says which cells a batch has."""

    def __call__(self, examples):
        cells = torch.tensor([int(example["cell_index"]) for example in examples])
        return {**super().__call__(examples), "cells": cells}


class Recorder(XTrimoGeneForPreTraining):
    """Keeps the masked genes of each cell that it sees in training and in evaluation."""

    def __init__(self, config):
        super().__init__(config)
        self.seen = {True: [], False: []}

    def forward(self, input_ids, values, attention_mask, masked_ids, cells, masked_values, is_hidden, labels, **kwargs):
        for cell, ids in zip(cells.tolist(), masked_ids, strict=True):
            masks = frozenset(ids[ids != self.config.pad_token_id].tolist())
            self.seen[self.training].append((cell, masks))
        return super().forward(input_ids, values, attention_mask, masked_ids, masked_values, is_hidden, labels)

    def epochs(self, training=True):
        """Return cell -> its masks, of each epoch."""
        seen = self.seen[training]
        return [dict(seen[start : start + NUM_CELLS]) for start in range(0, len(seen), NUM_CELLS)]


@pytest.fixture(scope="module")
def panel(tmp_path_factory, tokenizer):
    return XTrimoGeneTokenizer.from_genes(tokenizer.genes[:60], tmp_path_factory.mktemp("panel"))


@pytest.fixture(scope="module")
def cells(panel):
    counts = np.random.default_rng(0).poisson(3, (NUM_CELLS, panel.num_genes)) + 1
    return cells_dataset(panel.read_counts(counts, gene_names=panel.genes))


def trained(folder, panel, cells, config, *, kind=Trainer, resume=None, collator=None, **changes):
    """Train for three epochs of five steps with an evaluation after each, and return what the model saw."""
    model = Recorder(config(num_genes=panel.num_genes))
    arguments = {"num_train_epochs": NUM_EPOCHS, "per_device_train_batch_size": 2, "eval_strategy": "epoch"}
    arguments |= {"disable_tqdm": True, "use_cpu": True}
    trainer = kind(
        model=model,
        args=CellTrainingArguments(folder, **{**arguments, **changes}),
        data_collator=collator or Collator(panel, seed=4),
        train_dataset=cells,
        eval_dataset=cells,
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def masks_of(collator, cells):
    batch = collator([cells[row] for row in range(NUM_CELLS)])
    return {
        cell: frozenset(ids[labels != IGNORED].tolist())
        for cell, ids, labels in zip(batch["cells"].tolist(), batch["masked_ids"], batch["labels"], strict=True)
    }


@pytest.mark.slow  # three trainings
def test_each_epoch_of_a_plain_trainer_has_its_own_masks_also_after_a_resume(panel, cells, tiny_config, tmp_path):
    given = (panel, cells, tiny_config)
    first = trained(tmp_path / "run", *given, save_strategy="steps", save_steps=7, save_total_limit=None)
    masks = first.epochs()
    assert [len(epoch) for epoch in masks] == [NUM_CELLS] * NUM_EPOCHS
    for cell in range(NUM_CELLS):
        assert len({epoch[cell] for epoch in masks}) == NUM_EPOCHS

    helped = trained(tmp_path / "helped", *given, dataloader_num_workers=2)
    assert helped.seen == first.seen
    own = trained(tmp_path / "own", *given, kind=CellTrainer, dataloader_num_workers=2)
    assert own.epochs() == masks
    for workers in (0, 2):  # step 7 is the second of the second epoch
        checkpoint = tmp_path / "run" / "checkpoint-7"
        rest = trained(tmp_path / "rest", *given, resume=str(checkpoint), dataloader_num_workers=workers)
        assert rest.seen[True] == first.seen[True][14:]

    evaluated = first.epochs(training=False)
    assert len(evaluated) == NUM_EPOCHS
    assert evaluated == [masks[0]] * NUM_EPOCHS


def test_columns_that_a_plain_trainer_left_out_are_told_with_the_setting(panel, cells, tiny_config, tmp_path):
    model = XTrimoGeneForPreTraining(tiny_config(num_genes=panel.num_genes))
    arguments = TrainingArguments(tmp_path, max_steps=1, use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments, DataCollatorForMaskedExpression(panel), train_dataset=cells)
    with pytest.raises(ValueError, match=r"no counts and total, only input_ids.*remove_unused_columns=False"):
        trainer.train()


def test_a_column_named_label_has_the_labels(panel, cells):
    examples = [{**cells[row], "label": row} for row in range(3)]
    assert DataCollatorForExpression(panel)(examples)["labels"].tolist() == [0, 1, 2]


def test_a_column_label_of_text_is_left_alone_and_labels_of_text_are_refused(panel, cells):
    collate = DataCollatorForExpression(panel)
    assert "labels" not in collate([{**cells[0], "label": "B"}])
    with pytest.raises(ValueError, match="labels hold 'B', and no numbers"):
        collate([{**cells[0], "labels": "B"}])


def test_workers_that_persist_are_refused_and_a_fixed_epoch_is_kept(panel, cells, tiny_config, tmp_path):
    given = (tmp_path, panel, cells, tiny_config)
    changes = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    for kind in (Trainer, CellTrainer):
        with pytest.raises(ValueError, match="workers that persist keep the masks of their first epoch"):
            trained(*given, kind=kind, **changes)
    fixed = trained(*given, collator=Collator(panel, seed=4, epoch=2), **changes).epochs()
    assert len(fixed) == NUM_EPOCHS
    assert fixed == [masks_of(Collator(panel, seed=4, epoch=2), cells)] * NUM_EPOCHS


def test_a_worker_that_is_spawned_has_the_epoch(panel, cells):
    collator = DataCollatorForMaskedExpression(panel)
    loader = Accelerator(cpu=True).prepare(DataLoader(cells, 5, collate_fn=collator))
    for epoch in range(2):
        for _ in loader:
            set_spawning_popen(object())
            try:
                spawned = pickle.dumps(collator)
            finally:
                set_spawning_popen(None)
            assert pickle.loads(spawned).epoch == epoch
            assert pickle.loads(pickle.dumps(collator)).epoch is None


def test_a_run_that_stopped_within_an_epoch_changes_no_other_masks(panel, cells):
    examples = [cells[row] for row in range(NUM_CELLS)]
    before = DataCollatorForMaskedExpression(panel)(examples)
    for used in (Collator(panel), DataCollatorForExpression(panel)):
        loader = Accelerator(cpu=True).prepare(DataLoader(cells, 5, collate_fn=used))
        loader.set_epoch(1)
        next(iter(loader))
        after = DataCollatorForMaskedExpression(panel)(examples)
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture(scope="module")
def two_panels(tokenizer, pbmc):
    """Real cells of two files, one with all columns and one with the last 300, and which genes each measured."""
    import anndata

    adata = anndata.AnnData(pbmc.raw.X, pbmc.obs[[]], pbmc.raw.var[[]])
    parts = [tokenizer.read_counts(part.copy()) for part in (adata[:20], adata[20:40, -300:])]
    examples = [cell | {"cell_index": 20 * number + place} for number, part in enumerate(parts)
                for place, cell in enumerate(cells_dataset(part))]  # fmt: skip
    return examples, np.repeat([part.measured for part in parts], 20, axis=0)


def masked_genes(batch):
    """Return the masked genes of each cell, as pairs of gene and label."""
    return [
        {(gene, label) for gene, label in zip(ids, labels, strict=True) if label != IGNORED}
        for ids, labels in zip(batch["masked_ids"].tolist(), batch["labels"].tolist(), strict=True)
    ]


def test_genes_that_a_file_did_not_measure_are_in_no_mask_unless_they_are_to_be_zero(tokenizer, two_panels):
    examples, is_measured = two_panels
    ignored = DataCollatorForMaskedExpression(tokenizer)(examples)
    zero = DataCollatorForMaskedExpression(tokenizer, unmeasured="zero")(examples)
    unsaid = [{key: value for key, value in cell.items() if key != "measured"} for cell in examples]
    as_before = DataCollatorForMaskedExpression(tokenizer)(unsaid)
    assert all(torch.equal(as_before[key], zero[key]) for key in zero)
    assert torch.equal(ignored["input_ids"], zero["input_ids"])
    for cell, (kept, all_masked) in enumerate(zip(masked_genes(ignored), masked_genes(zero), strict=True)):
        assert kept == {(gene, label) for gene, label in all_masked if is_measured[cell, gene]}
        assert {label for gene, label in all_masked - kept} == {0.0}
        assert any(label == 0 for _, label in kept)


def test_what_was_measured_changes_no_mask_of_another_cell_of_the_batch(tokenizer, two_panels):
    examples, _ = two_panels
    collator = DataCollatorForMaskedExpression(tokenizer, seed=2)
    together = masked_genes(collator(examples))
    apart = [masked_genes(collator([cell]))[0] for cell in (examples[3], examples[33])]
    assert apart == [together[3], together[33]]
    unsaid = [{key: value for key, value in examples[3].items() if key != "measured"}, examples[33]]
    assert masked_genes(collator(unsaid))[1] == together[33]
    assert len(masked_genes(collator(unsaid))[0]) > len(together[3])


def test_depths_are_reduced_and_unmeasured_genes_are_in_no_mask(depth_tokenizer, two_panels):
    examples, is_measured = two_panels
    collator = DataCollatorForMaskedExpression(depth_tokenizer, read_depth_aware=True)
    for cell, genes in enumerate(masked_genes(collator(examples))):
        assert all(is_measured[cell, gene] for gene, _ in genes)


def test_what_was_measured_is_refused_of_another_panel_and_what_to_do_of_another_word(tokenizer, two_panels):
    examples = [*two_panels[0][:2], two_panels[0][2] | {"measured": b"\xff" * 2_409}]
    with pytest.raises(ValueError, match=r"1 of 3 cells say .* in 2,409 bytes, and the 19,264 genes .* need 2,408"):
        DataCollatorForMaskedExpression(tokenizer)(examples)
    with pytest.raises(ValueError, match="unmeasured is 'leave': give 'ignore', 'zero'"):
        DataCollatorForMaskedExpression(tokenizer, unmeasured="leave")
