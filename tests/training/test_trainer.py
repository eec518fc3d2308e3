"""The Trainer's own parts: what it refuses, what it logs, and what it does without training cells."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import TrainerState

import xtrimogene.training
from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneTokenizer
from xtrimogene.tokenization.collators import DataCollatorForExpression, DataCollatorForMaskedExpression
from xtrimogene.training.callbacks import SaveOnTheWay, Throughput
from xtrimogene.training.dataset import cells_dataset
from xtrimogene.training.finetuning import annotation_model, annotation_scores
from xtrimogene.training.pretraining import pretrain
from xtrimogene.training.sampler import LengthGroupedSampler
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


def pretrained(folder, panel, dataset, tiny_config, resume=False, max_tokens=None, masking=None, **changes):
    arguments = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = training_arguments(folder, **{**arguments, **changes})
    model = XTrimoGeneForPreTraining(tiny_config(num_genes=len(GENES)))
    given = {"resume": resume, "max_tokens": max_tokens, **(masking or {})}
    return pretrain(model, panel, dataset, arguments=arguments, **given)


def test_a_run_resumes_with_the_same_data_and_settings_only(panel, dataset, tiny_config, tmp_path):
    given = (tmp_path / "run", panel, dataset, tiny_config)
    assert pretrained(*given, resume=True).state.global_step == 8  # there was nothing to resume: it began
    assert pretrained(*given, resume=True).state.global_step == 8  # it was at its end
    with pytest.raises(ValueError, match=r"run holds checkpoint-8 of an earlier run: resume it, or choose another"):
        pretrained(*given)
    refused = "is of a run with "
    for changes, message in (
        ({"seed": 1}, "seed 42, now 1"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size 2, now 4"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1, now 2"),
        ({"learning_rate": 1.0}, "learning_rate 0.0001, now 1.0"),
        ({"weight_decay": 0.5}, "weight_decay 0.0, now 0.5"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type 'cosine', now 'linear'"),
        ({"max_tokens": 12}, "max_tokens None, now 12, sampler 'LengthGroupedSampler', now 'TokenBudgetBatches'"),
        ({"masking": {"expressed_ratio": 0.5}}, "expressed_ratio 0.3, now 0.5"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint-8 {refused}{message}"):
            pretrained(*given, resume=True, **changes)
    counts = np.random.default_rng(1).poisson(2, (7, len(GENES))) + 1
    others = cells_dataset(panel.read_counts(counts, gene_names=GENES))
    for other, message in ((dataset.select(range(5)), "cells 7, now 5, hash"), (others, "hash of the cells '")):
        with pytest.raises(ValueError, match=refused + message):
            pretrained(tmp_path / "run", panel, other, tiny_config, resume=True)
    longer = pretrained(*given, resume=True, num_train_epochs=3)
    assert [entry["step"] for entry in longer.state.log_history if "loss" in entry] == list(range(1, 13))


def test_a_checkpoint_that_is_named_has_to_be_whole(panel, dataset, tiny_config, tmp_path):
    trainer = pretrained(tmp_path, panel, dataset, tiny_config)
    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    os.truncate(weights, 10)
    with pytest.raises(ValueError, match=r"checkpoint-6 is no whole checkpoint: model.safetensors has 10 of"):
        trainer.train(resume_from_checkpoint=str(weights.parent))


def test_what_cannot_be_resumed_is_not_saved(panel, dataset, tiny_config, tmp_path):
    sharded = trainer(
        tmp_path, tiny_config(num_genes=len(GENES)), DataCollatorForExpression(panel), dataset, save_strategy="epoch"
    )
    sharded.is_distributed_loading_by_transformers = True
    with pytest.raises(ValueError, match="shared out by from_pretrained, and checkpoints do not hold its optimizer"):
        sharded.train()


def test_the_best_checkpoint_stays_and_is_loaded(panel, dataset, tiny_config, tmp_path):
    arguments = training_arguments(
        tmp_path,
        num_train_epochs=4,
        per_device_train_batch_size=4,
        learning_rate=1e-1,
        save_strategy="epoch",
        eval_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="mse",
        greater_is_better=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    model = XTrimoGeneForPreTraining(tiny_config(num_genes=len(GENES)))
    trainer = pretrain(model, panel, dataset, dataset, arguments=arguments)
    scores = {entry["step"]: entry["eval_mse"] for entry in trainer.state.log_history if "eval_mse" in entry}
    best = min(scores, key=scores.get)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert Path(trainer.state.best_model_checkpoint).is_dir()
    assert trainer.evaluate()["eval_mse"] == pytest.approx(scores[best], rel=1e-5)


def test_the_log_tells_speed_and_memory(panel, dataset, tiny_config, tmp_path):
    trainer = pretrained(tmp_path, panel, dataset, tiny_config, save_strategy="no")
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in logs:
        # 0.67 of 6 genes of a cell are seen on average, and no cell has more.
        assert 0 < entry["tokens_per_second"] <= 6 * entry["cells_per_second"] * 1.01
        assert 0.05 < entry["memory_gib"] < 100
    assert not any("cells_per_second" in entry for entry in trainer.state.log_history if "loss" not in entry)


def test_speed_is_of_all_processes_and_of_training_alone(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("xtrimogene.training.callbacks.perf_counter", lambda: now[0])
    throughput = Throughput()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    for _ in range(4):
        throughput.count({"input_ids": mask, "attention_mask": mask})
    now[0] += 6
    throughput.pause(2)
    three = SimpleNamespace(device=torch.device("cpu"), reduce=lambda counts: 3 * counts)
    figures = throughput.figures(three)
    assert (figures["cells_per_second"], figures["tokens_per_second"]) == (3 * 8 / 4, 3 * 20 / 4)
    now[0] += 1
    assert throughput.figures(three)["cells_per_second"] == 0


def test_an_order_of_ones_own_is_taken(panel, dataset, tiny_config, tmp_path):
    order = LengthGroupedSampler(dataset["length"], 2, seed=7)
    trainer = pretrained(tmp_path, panel, dataset, tiny_config, masking={"train_sampler": order}, save_strategy="no")
    assert [cell for batch in trainer.train_batches for cell in batch] == list(order)
    assert order.epoch == 1
    with pytest.raises(ValueError, match="max_tokens is 100 and a LengthGroupedSampler is given"):
        pretrained(tmp_path, panel, dataset, tiny_config, max_tokens=100, masking={"train_sampler": order})


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2"])
def test_accelerate_takes_the_configurations_that_are_shipped(name, monkeypatch):
    path = Path(xtrimogene.training.__file__).parent / "accelerate" / f"{name}.yaml"
    arguments, *_ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "--num_processes", "4", "train.py"])
    )
    chosen = {"ddp": arguments.multi_gpu, "fsdp2": arguments.use_fsdp, "deepspeed_zero2": arguments.use_deepspeed}
    assert [key for key, value in chosen.items() if value] == [name]
    assert (arguments.num_processes, arguments.mixed_precision) == (4, "bf16")
    if name == "deepspeed_zero2":
        assert arguments.zero_stage == 2
    if name == "fsdp2":
        for key, value in prepare_multi_gpu_env(arguments).items():
            monkeypatch.setenv(key, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert sorted(plugin.transformer_cls_names_to_wrap) == sorted(XTrimoGeneForPreTraining._no_split_modules)
