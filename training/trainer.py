"""transformers' Trainer with the batches of `sampler.py` and the checkpoints of `checkpoints.py`.

A run that was killed resumes from its last checkpoint and ends with the results of an unbroken run. accelerate takes
care of several devices and of precision.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ..atomic import check_room
from ..inference.running import prefetch
from ..modeling_xtrimogene.host_xtrimogene import is_at_hand
from . import checkpoints
from .arguments import is_decayed
from .callbacks import SaveBehindEpoch, SetEpoch, WeightAverage
from .data.sampler import CellBatches, ShuffledCells, TokenBudgetBatches
from .throughput import Throughput, matmul_rate


class ReadAhead(DataLoader):
    """A loader in which a thread makes the next batch while the present one is used.

    Args:
        loader: The loader that it becomes.

    Example:
        >>> list(ReadAhead(DataLoader([1, 2, 3], batch_size=2)))
        [tensor([1, 2]), tensor([3])]
    """

    def __init__(self, loader: DataLoader):
        self.__dict__.update(loader.__dict__)

    def __iter__(self) -> Any:
        """Yield the batches; random numbers of torch are drawn here, as without a thread."""
        return prefetch(super().__iter__())


class CellTrainer(Trainer):
    """Trainer that shows each cell once an epoch, in random batches, and writes complete checkpoints without pickles.

    transformers' own batches repeat cells if there are several processes, and its checkpoints hold pickles and may be
    half-written.

    Args:
        *args: Arguments of `Trainer`.
        eval_collator: Collator for evaluation; the one for training unless given.
        train_sampler: Order of the cells, such as a `BalancedSampler`; random unless given.
        max_tokens: Largest number of tokens in a batch of one device, padding included (`TokenBudgetBatches`).
            `per_device_train_batch_size` is then the largest number of cells. Unless given, all batches have that many
            cells.
        ema: Decay of a moving average of the weights (`WeightAverage`). The average is evaluated, and the model holds
            it when training ends. No average is kept unless given.
        flops: Function from a batch to the FLOPs of a training step for each cell, `(B,)`; with it MFU is logged.
        **kwargs: Arguments of `Trainer`. Without `train_dataset` the Trainer can only evaluate and predict.

    Raises:
        ValueError: If both `train_sampler` and `max_tokens` are given, `ema` is not between 0 and 1, there are fewer
            cells than processes, or a cell has more tokens than `max_tokens`.

    Example:
        >>> import pandas as pd
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], "panel")
        >>> counts = pd.DataFrame([[5, 0, 1, 0], [0, 3, 0, 2], [4, 1, 0, 0], [0, 2, 1, 1]], columns=tokenizer.genes)
        >>> from xtrimogene.tokenization.collators import DataCollatorForMaskedExpression
        >>> from xtrimogene.training.arguments import CellTrainingArguments
        >>> from xtrimogene.training.data.dataset import cells_dataset
        >>> trainer = CellTrainer(
        ...     model=XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=4)),
        ...     args=CellTrainingArguments("run", max_steps=1, disable_tqdm=True),
        ...     data_collator=DataCollatorForMaskedExpression(tokenizer, seed=0),
        ...     train_dataset=cells_dataset(tokenizer.read_counts(counts)),
        ... )
        >>> trainer.train().global_step
        1
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        eval_collator: Any = None,
        train_sampler: Sampler[int] | None = None,
        max_tokens: int | None = None,
        ema: float | None = None,
        flops: Callable[[dict[str, Any]], torch.Tensor] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        # PrinterCallback prints to stdout, among the user's results. The log stays in `state.log_history`.
        self.remove_callback(PrinterCallback)
        self.eval_collator = eval_collator or self.data_collator
        self.throughput = Throughput(flops)
        self.max_tokens = max_tokens
        self.ema = None if ema is None else WeightAverage(ema)
        if self.train_dataset is None:  # to evaluate and predict only
            return
        self.decayed = {name for name, weight in self.model.named_parameters() if is_decayed(name, weight)}
        self.num_parameters = self.model.num_parameters()  # before FSDP spreads them over processes
        self.num_trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        # Only the fields of the class are hashed: saving adds others, such as the version of transformers.
        config = self.model.config
        fields = {name: getattr(config, name) for name in sorted(type(config).__annotations__) if hasattr(config, name)}
        self.config_hash = sha256(repr(fields).encode()).hexdigest()[:16]
        num_processes, seed = self.args.world_size, self.args.seed
        lengths = np.asarray(self.train_dataset["length"][:])
        if max_tokens is None:
            self.train_sampler: Any = train_sampler or ShuffledCells(len(lengths), seed)
            self.train_batches: Any = CellBatches(self.train_sampler, self._train_batch_size, num_processes)
        elif train_sampler is None:
            lengths = lengths + 2 * getattr(self.processing_class, "depth_tokens", False)
            self.train_sampler = self.train_batches = TokenBudgetBatches(
                lengths, max_tokens, self._train_batch_size, num_processes, seed
            )
        else:
            raise ValueError(
                f"max_tokens is {max_tokens:,} and a {type(train_sampler).__name__} is given: batches of a token "
                f"budget have an order of their own; give one of the two"
            )
        # The first batches are enough to tell one sampler from another.
        self.order_hash = sha256(repr([*islice(self.train_batches, 100)]).encode()).hexdigest()[:16]
        self.add_callback(SetEpoch(self.train_sampler))
        self.add_callback(SaveBehindEpoch())
        if self.ema is not None:
            self.add_callback(self.ema)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the names of the weights that decay, by their shapes before FSDP spread them over processes."""
        return [name for name, _ in model.named_parameters() if name in self.decayed]

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of batches of training cells."""
        if self.train_dataset is None:
            return super().get_train_dataloader()  # raises an error that says so
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.train_batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.ahead(self.accelerator.prepare(loader))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of held-out cells."""
        with self.evaluating():
            return self.ahead(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the loader of cells to predict."""
        with self.evaluating():
            return self.ahead(super().get_test_dataloader(test_dataset))

    def ahead(self, loader: Any) -> DataLoader:
        """Let a thread mask, collate and pin the next batch of accelerate's loader while a GPU computes.

        Where processes do it (`dataloader_num_workers`), and on a CPU, whose cores compute, there is no thread.
        """
        if not is_at_hand(self.args.device) and not self.args.dataloader_num_workers:
            loader.base_dataloader = ReadAhead(loader.base_dataloader)
        return loader

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Use the collator for evaluation instead of the one for training."""
        train_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            yield
        finally:
            self.data_collator = train_collator

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate with the average of the weights if one is kept; the time does not count for cells a second."""
        began = perf_counter()
        if self.ema is not None:
            self.ema.swap(self.model)
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            if self.ema is not None:
                self.ema.swap(self.model)
            self.throughput.pause(perf_counter() - began)

    # -- log ----------------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a batch, and count its cells and tokens."""
        self.throughput.count(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, and add to the loss: cells and tokens a second and MFU of all processes, peak memory of this process."""
        if "loss" in logs:
            logs |= self.throughput.figures(self.accelerator)
        super().log(logs, *args, **kwargs)

    # -- stop and go on -----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: A checkpoint folder; or True for the newest complete checkpoint in `output_dir`,
                from the beginning if there is none.
            **kwargs: Arguments of `Trainer.train`.

        Raises:
            ValueError: If the checkpoint is damaged or of a run with other settings, if `output_dir` holds checkpoints
                of an earlier run that is not resumed, or if weights are spread over processes by FSDP, DeepSpeed or
                `from_pretrained` and an average or checkpoints are asked for.
        """
        folder = self.args.output_dir
        if resume_from_checkpoint is True:
            found = checkpoints.newest_whole(folder)
            resume_from_checkpoint = None if found is None else str(found)
        elif resume_from_checkpoint:
            if wrong := checkpoints.damage(Path(resume_from_checkpoint)):
                raise ValueError(f"{resume_from_checkpoint} is no whole checkpoint: {wrong}")
        elif self.args.save_strategy != "no" and (old := checkpoints.checkpoints(folder)):
            raise ValueError(
                f"{folder} holds {old[0].name} of an earlier run: resume it, or choose another output_dir, or delete "
                f"its {len(old)} checkpoints"
            )
        if self.is_distributed_loading_by_transformers and (resume_from_checkpoint or self.args.save_strategy != "no"):
            raise ValueError(
                "the model was shared out by from_pretrained, and checkpoints do not hold its optimizer: pass "
                'save_strategy="no", or launch with FSDP by accelerate (training/accelerate/fsdp2.yaml)'
            )
        if self.ema is not None:
            if self.is_state_sharded or self.is_distributed_loading_by_transformers:
                raise ValueError(
                    f"ema is {self.ema.decay}, an average of whole weights, and FSDP or DeepSpeed shares them out: "
                    f"leave it out, or launch with training/accelerate/ddp.yaml"
                )
            self.ema.average = []  # drops the average of a training that failed
        if self.args.should_save and self.args.save_strategy != "no" and not self.is_state_sharded:
            self.check_room(1 if resume_from_checkpoint else 2)
        if resume_from_checkpoint:
            checkpoints.check_run(Path(resume_from_checkpoint), self.run_facts())
        if self.throughput.flops_of is not None:
            self.accelerator.wait_for_everyone()  # all measure at once, since processes may share cores
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, torch.float32)
            self.throughput.peak = matmul_rate(self.args.device, dtype)
        self.throughput.begin()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def check_room(self, number: int) -> None:
        """Refuse to begin where the disk has no room for so many checkpoints: one is written before an older one goes.

        Raises:
            ValueError: If it has not.
        """
        weights = sum(part.numel() * part.element_size() for part in self.model.parameters())
        averages = 0 if self.args.save_only_model else 2 * 4 * self.num_trained  # of gradients, by Adam
        advice = "choose another folder, or free some space"
        check_room(
            Path(self.args.output_dir), number * (weights + averages), f"{number} checkpoints of the run", advice
        )

    def run_facts(self) -> dict[str, Any]:
        """Return all settings that decide order, masks and steps; a run must have the same ones to resume."""
        names = (
            "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "learning_rate",
            "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "bf16",
        )  # fmt: skip
        return {
            **{name: getattr(self.args, name) for name in names},
            "max_tokens": self.max_tokens,
            "ema": None if self.ema is None else self.ema.decay,
            "sampler": type(self.train_sampler).__name__,
            **getattr(self.data_collator, "settings", {}),
            "parameters": self.num_parameters,
            "trained": self.num_trained,
            "hash of the configuration": self.config_hash,
            "cells": len(self.train_dataset),
            "hash of the cells": self.data_hash,
            "hash of the order": self.order_hash,
        }

    @cached_property
    def data_hash(self) -> str:
        """Hash of the order, sizes, labels and batches of the training cells; single counts do not go into it."""
        names = ["cell_index", "length", "total"]
        names += [name for name in ("labels", "batch") if name in self.train_dataset[0]]
        columns = (np.asarray(self.train_dataset[name][:]) for name in names)
        found = sha256(b"".join(column.tobytes() for column in columns))
        # All cells of a file measured the same genes, so 100 cells are enough to tell corpora apart.
        for row in np.linspace(0, len(self.train_dataset) - 1, 100).astype(int):
            found.update(self.train_dataset[int(row)].get("measured", b""))
        return found.hexdigest()[:16]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self._get_output_dir(trial)
        checkpoint = checkpoints.checkpoint_folder(folder, self.state.global_step)
        unfinished = checkpoint.with_name(checkpoints.UNFINISHED + checkpoint.name)
        is_writer = self.args.should_save
        if is_writer:
            checkpoints.begin(checkpoint)
        self.accelerator.wait_for_everyone()
        self.store_flos()
        self.save_model(str(unfinished), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(unfinished))
            self._save_scaler(str(unfinished))
            self._save_rng_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        best = self.state.best_global_step
        if best and ((path := checkpoints.checkpoint_folder(folder, best)) == checkpoint or path.is_dir()):
            self.state.best_model_checkpoint = str(path)
        if is_writer:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(unfinished / "trainer_state.json"))
            checkpoints.finish(unfinished, self.run_facts())
            checkpoints.remove_old(folder, checkpoint, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        # The original also pickles the arguments, with the user's token if that is among them.
        folder = output_dir or self.args.output_dir
        if not self.args.should_save and not self.is_distributed_loading_by_transformers:
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        shows_bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # saving draws a bar for each file, between those of the run
        model.save_pretrained(folder, state_dict=state_dict, is_main_process=self.args.should_save)
        if shows_bars:
            logging.enable_progress_bar()
        if self.args.should_save and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    @property
    def is_state_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed holds the optimizer, and so writes and reads its state."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_state_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            checkpoints.save_state(self.optimizer.state_dict(), Path(output_dir, "optimizer.safetensors"))
            checkpoints.save_state(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.safetensors"))
            if self.ema is not None:
                checkpoints.save_state(self.ema.average, Path(output_dir, "ema.safetensors"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.is_state_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            self.optimizer.load_state_dict(checkpoints.load_state(Path(checkpoint, "optimizer.safetensors")))
            self.lr_scheduler.load_state_dict(checkpoints.load_state(Path(checkpoint, "scheduler.safetensors")))
            self._load_average(checkpoint)

    def _load_average(self, checkpoint: str) -> None:
        if self.ema is not None:
            average = checkpoints.load_state(Path(checkpoint, "ema.safetensors"))
            self.ema.average = [weight.to(self.args.device) for weight in average]

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_average(self.state.best_model_checkpoint)

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self.args.should_save:
            checkpoints.save_state(scaler.state_dict(), Path(output_dir, "scaler.safetensors"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and checkpoint is not None:
            scaler.load_state_dict(checkpoints.load_state(Path(checkpoint, "scaler.safetensors")))

    def _save_rng_state(self, output_dir: str) -> None:
        # The sum of losses since the last log is saved too: the next log covers steps before and after the stop.
        state = {
            "random": checkpoints.random_state(self.args.device),
            "loss": self._tr_loss,
            "last_log": self._globalstep_last_logged,
        }
        checkpoints.save_state(state, self.process_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = checkpoints.load_state(self.process_file(checkpoint))
        checkpoints.set_random_state(state["random"], self.args.device)
        self._tr_loss = state["loss"].to(self.args.device)
        self._globalstep_last_logged = state["last_log"]
        # The mean loss that is reported at the end covers only the steps of this call.
        self._total_loss_scalar = -self._tr_loss.item()

    def process_file(self, folder: str) -> Path:
        """Return the file with the random state and loss of this process."""
        return Path(folder, f"process-{self.args.process_index}.safetensors")
