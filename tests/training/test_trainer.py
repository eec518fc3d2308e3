"""The Trainer's own parts: what it refuses, what it logs, and what it does without training cells."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import TrainerCallback

import xtrimogene.training.trainer
from xtrimogene import TxFMConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer, families
from xtrimogene.modeling_xtrimogene import host_xtrimogene
from xtrimogene.modeling_xtrimogene.flops_xtrimogene import step_flops
from xtrimogene.tokenization.collators import DataCollatorForExpression, DataCollatorForMaskedExpression
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training.arguments import CellTrainingArguments
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.data.sampler import ShuffledCells
from xtrimogene.training.finetuning import annotation_model, annotation_scores
from xtrimogene.training.pretraining import pretrain
from xtrimogene.training.throughput import Throughput
from xtrimogene.training.trainer import CellTrainer

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
        args=CellTrainingArguments(folder, use_cpu=True, disable_tqdm=True, **changes),
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


def test_matrices_alone_decay_in_models_of_both_families(panel, dataset, tiny_config, tmp_path):
    of_txfm = TxFMConfig.preset("txfm-tiny", num_genes=len(GENES), loss="nb")
    for config, vectors in (
        (tiny_config(num_genes=len(GENES), anchored=True), ["value_slope", "norm1.weight", "batch_bias.weight"]),
        (of_txfm, ["scale1", "scale2", "cls_vector", "norm1.weight", "log_dispersion"]),
    ):
        model = families.model_class(config, "reconstruct")(config)
        model.set_num_batches(2)
        arguments = CellTrainingArguments(tmp_path, use_cpu=True, weight_decay=0.1)
        found = CellTrainer(model=model, args=arguments, data_collator=list, train_dataset=dataset)
        decayed, still = (group["params"] for group in found.create_optimizer().param_groups)
        assert len(decayed) + len(still) == len(list(model.parameters()))
        names = {id(weight): name for name, weight in model.named_parameters()}
        assert any(names[id(weight)].endswith("gene_embedding.weight") for weight in decayed)
        still = [names[id(weight)] for weight in still]
        assert [end for end in vectors if not any(name.endswith(end) for name in still)] == []


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
    arguments = CellTrainingArguments(folder, **{**arguments, **changes})
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
        ({"max_tokens": 12}, "max_tokens None, now 12, sampler 'ShuffledCells', now 'TokenBudgetBatches'"),
        ({"masking": {"options": Masking(expressed_ratio=0.5)}}, "expressed_ratio 0.3, now 0.5"),
        ({"masking": {"ema": 0.9}}, "ema None, now 0.9"),
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


def test_a_thread_masks_ahead_of_a_gpu_and_the_run_is_the_same(panel, dataset, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(host_xtrimogene, "AT_HAND", ())
    collate, threads = DataCollatorForMaskedExpression.__call__, set()

    def noted(self, examples):
        threads.add(threading.current_thread() is threading.main_thread())
        return collate(self, examples)

    monkeypatch.setattr(DataCollatorForMaskedExpression, "__call__", noted)
    torch.manual_seed(0)
    ahead = pretrained(tmp_path / "ahead", panel, dataset, tiny_config)
    assert threads == {False}
    threads.clear()
    monkeypatch.setattr(xtrimogene.training.trainer, "ReadAhead", lambda loader: loader)
    torch.manual_seed(0)
    plain = pretrained(tmp_path / "plain", panel, dataset, tiny_config)
    assert threads == {True}
    for one, other in zip(ahead.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


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
    arguments = CellTrainingArguments(
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
        assert 0 < entry["mfu"] < 1
    assert not any("cells_per_second" in entry for entry in trainer.state.log_history if "loss" not in entry)


def test_flops_are_those_of_all_batches_of_a_step(panel, dataset, tiny_config, tmp_path, monkeypatch):
    batches, counted = [], []
    collate, figures = DataCollatorForMaskedExpression.__call__, Throughput.figures

    def recorded(self, examples):
        batches.append(collate(self, examples))
        return batches[-1]

    def figures_of(self, accelerator):
        counted.append(self.flops.item())
        return figures(self, accelerator)

    monkeypatch.setattr(DataCollatorForMaskedExpression, "__call__", recorded)
    monkeypatch.setattr(Throughput, "figures", figures_of)
    changes = {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "save_strategy": "no"}
    trainer = pretrained(tmp_path, panel, dataset, tiny_config, **changes)
    cells = [
        (int(mask.sum()), int((labels != -100).sum()))
        for batch in batches
        for mask, labels in zip(batch["attention_mask"], batch["labels"], strict=True)
    ]
    assert len(counted) == 2
    assert len(cells) == 7
    assert sum(counted) == pytest.approx(sum(step_flops(trainer.model.config, *numbers) for numbers in cells))


def test_fine_tuning_has_no_mfu(panel, dataset, tiny_config, tmp_path):
    config = tiny_config(num_genes=len(GENES))
    classifier = trainer(tmp_path, config, DataCollatorForExpression(panel), dataset, max_steps=1, logging_steps=1)
    classifier.train()
    assert classifier.state.log_history[0]["cells_per_second"] > 0
    assert "mfu" not in classifier.state.log_history[0]


class Recorder(TrainerCallback):
    """Keeps the weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        self.weights.append({name: weight.detach().clone() for name, weight in kwargs["model"].named_parameters()})


def test_the_average_of_the_weights_is_evaluated_and_is_the_model(panel, dataset, tiny_config, tmp_path):
    model, recorder = XTrimoGeneForPreTraining(tiny_config(num_genes=len(GENES))), Recorder()
    frozen = next(name for name, _ in model.named_parameters())
    model.get_parameter(frozen).requires_grad_(False)
    changes = {"learning_rate": 0.1, "eval_strategy": "steps", "eval_steps": 3, "max_steps": 6}
    arguments = CellTrainingArguments(
        tmp_path, per_device_train_batch_size=2, disable_tqdm=True, use_cpu=True, **changes
    )
    trainer = pretrain(model, panel, dataset, dataset, arguments=arguments, ema=0.3, callbacks=[recorder])

    average, *steps = recorder.weights
    half_way = None
    for step, weights in enumerate(steps, 1):
        decay = min(0.3, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
        half_way = average if step == 3 else half_way
    assert len(steps) == 6
    assert decay == 0.3
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), average[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(model.get_parameter(frozen), recorder.weights[0][frozen])
    assert not torch.allclose(model.head.weight, steps[-1]["head.weight"], rtol=1e-3)
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged[1], rel=1e-6)
    model.load_state_dict(half_way, strict=False)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged[0], rel=1e-4)
    model.load_state_dict(steps[-1], strict=False)
    assert trainer.evaluate()["eval_loss"] != pytest.approx(logged[1], rel=1e-3)


def test_the_best_model_is_the_average_of_its_step(panel, dataset, tiny_config, tmp_path):
    model = XTrimoGeneForPreTraining(tiny_config(num_genes=len(GENES)))
    changes = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    changes |= {"load_best_model_at_end": True, "metric_for_best_model": "mse", "greater_is_better": False}
    changes |= {"learning_rate": 1.0, "lr_scheduler_type": "constant"}  # so large that the last step is not the best
    arguments = CellTrainingArguments(
        tmp_path, per_device_train_batch_size=2, disable_tqdm=True, use_cpu=True, seed=1, **changes
    )
    trainer = pretrain(model, panel, dataset, dataset, arguments=arguments, ema=0.3)
    scores = [entry["eval_mse"] for entry in trainer.state.log_history if "eval_mse" in entry]
    assert trainer.evaluate()["eval_mse"] == pytest.approx(min(scores), rel=1e-5)
    assert min(scores) < scores[-1]


def test_what_is_no_average_of_whole_weights_is_refused(panel, dataset, tiny_config, tmp_path):
    for ema in (0.0, 1.0, 9.0):
        with pytest.raises(ValueError, match=f"ema is {ema}: it is the decay of an average, above 0 and below 1"):
            pretrained(tmp_path, panel, dataset, tiny_config, masking={"ema": ema})
    sharded = CellTrainer(
        model=XTrimoGeneForPreTraining(tiny_config(num_genes=len(GENES))),
        args=CellTrainingArguments(tmp_path, use_cpu=True),
        data_collator=DataCollatorForMaskedExpression(panel),
        train_dataset=dataset,
        ema=0.9,
    )
    sharded.is_distributed_loading_by_transformers = True
    with pytest.raises(ValueError, match=r"ema is 0.9, an average of whole weights, and FSDP or DeepSpeed shares them"):
        sharded.train()


def test_an_order_of_ones_own_is_taken(panel, dataset, tiny_config, tmp_path):
    order = ShuffledCells(len(dataset), seed=7)
    trainer = pretrained(tmp_path, panel, dataset, tiny_config, masking={"train_sampler": order}, save_strategy="no")
    assert [cell for batch in trainer.train_batches for cell in batch] == list(order)
    assert order.epoch == 1
    with pytest.raises(ValueError, match="max_tokens is 100 and a ShuffledCells is given"):
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
        layers = {"XTrimoGeneEncoderLayer", "XTrimoGeneDecoderLayer"}  # accelerate refuses those that a model lacks
        assert set(plugin.transformer_cls_names_to_wrap) == layers < set(XTrimoGeneForPreTraining._no_split_modules)
