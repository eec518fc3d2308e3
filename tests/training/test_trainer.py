"""The Trainer's own parts: what it refuses, and what it does without training cells."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import TrainerState

from xtrimogene import XTrimoGeneTokenizer
from xtrimogene.tokenization.collators import DataCollatorForExpression, DataCollatorForMaskedExpression
from xtrimogene.training.callbacks import SaveOnTheWay
from xtrimogene.training.dataset import cells_dataset
from xtrimogene.training.finetuning import annotation_model, annotation_scores
from xtrimogene.training.trainer import CellTrainer, training_arguments

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


@pytest.fixture
def panel(tmp_path):
    return XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel")


@pytest.fixture
def dataset(panel):
    """Seven cells with labels."""
    counts = np.random.default_rng(0).poisson(2, (7, len(GENES))) + 1
    return cells_dataset(panel.read_counts(counts, gene_names=GENES), [0, 1, 1, 0, 1, 0, 0])


def trainer(folder, config, collator, dataset=None, **changes):
    return CellTrainer(
        model=annotation_model(config, ["B", "T"]),
        args=training_arguments(folder, use_cpu=True, disable_tqdm=True, **changes),
        data_collator=collator,
        train_dataset=dataset,
        compute_metrics=annotation_scores,
    )


def test_without_training_cells_it_evaluates_and_predicts(panel, dataset, tiny_config, tmp_path):
    config = tiny_config(num_genes=len(GENES))
    only_evaluating = trainer(tmp_path, config, DataCollatorForExpression(panel))
    scores = only_evaluating.evaluate(dataset)
    predicted = only_evaluating.predict(dataset).predictions.argmax(-1)
    assert scores["eval_accuracy"] == np.mean(predicted == dataset["labels"])
    with pytest.raises(ValueError, match="requires a train_dataset"):
        only_evaluating.train()


def test_workers_that_persist_are_refused_where_masks_change(panel, dataset, tiny_config, tmp_path):
    config = tiny_config(num_genes=len(GENES))
    changes = {"dataloader_persistent_workers": True, "dataloader_num_workers": 1}
    with pytest.raises(ValueError, match=r"keep the first epoch of their DataCollatorForMaskedExpression"):
        trainer(tmp_path, config, DataCollatorForMaskedExpression(panel), dataset, **changes)
    trainer(tmp_path, config, DataCollatorForExpression(panel), dataset, **changes)


def test_a_run_is_saved_on_the_way(tiny_config, tmp_path):
    saved = []
    model, tokenizer = (SimpleNamespace(save_pretrained=lambda folder, name=name: saved.append(name)) for name in "mt")
    callback = SaveOnTheWay(tmp_path, tokenizer)
    for step in range(1, 26):
        callback.on_step_end(None, TrainerState(global_step=step, max_steps=25), None, model=model)
    assert saved == ["m", "t"] * 8
    other = TrainerState(global_step=3, max_steps=25, is_world_process_zero=False)
    callback.on_step_end(None, other, None, model=model)
    assert len(saved) == 16
