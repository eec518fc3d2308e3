#!/usr/bin/env python
"""The whole of pre-training as one loop of accelerate, to read and to change.

    accelerate launch training/run_pretraining_no_trainer.py --config tiny --files a.h5ad b.h5ad --output_dir model
    accelerate launch training/run_pretraining_no_trainer.py my_run.yaml

    cells  ->  batches with masked genes  ->  model  ->  squared error of the masked values  ->  AdamW  ->  checkpoint

From the same seed its losses are those of `run_pretraining.py`. What the Trainer adds: stop and go on, accumulated
batches, logging elsewhere, an average of the weights, batches with a budget of tokens.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import EvalPrediction, TrainerState, get_scheduler

# Absolute imports, because `accelerate launch` runs this file as no part of a package.
from xtrimogene.options import Option, Options, group
from xtrimogene.tokenization.collators import IGNORED
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training.arguments import has_only_cpu, is_decayed, parsed
from xtrimogene.training.data.cells import open_cells
from xtrimogene.training.data.sampler import CellBatches, ShuffledCells
from xtrimogene.training.objectives import objective_of
from xtrimogene.training.options import CellSource, Descent, FirstModel, HeldOut
from xtrimogene.training.starting import first_model, pretraining_rate


@group
class Run(Options):
    """How long is trained, and where the model goes.

    >>> Run(output_dir="model").max_steps
    1000
    """

    output_dir: Annotated[str, Option("Folder for the model.")]
    max_steps: Annotated[int, Option("Training steps.", least=1)] = 1000
    batch_size: Annotated[int, Option("Cells of a step on each device.", least=1)] = 16
    eval_steps: Annotated[int, Option("Steps between evaluations.", least=1)] = 100
    seed: Annotated[int, Option("Seed of everything random.")] = 42


def main(given: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Pre-train, save the model into `output_dir`, and return its log: the loss of each step, scores at evaluations.

    Args:
        given: What is typed behind the name of the script; that of this process unless given.

    Raises:
        ValueError: If an option is unknown or outside of its range, or there are no cells to learn from.
    """
    kinds = (CellSource, FirstModel, Masking, HeldOut, Descent, Run)
    source, first, masking, held_out, descent, run = parsed(kinds, given)
    accelerator = Accelerator(cpu=has_only_cpu())
    set_seed(run.seed)

    # The model, its tokenizer, and cells: raw counts of expressed genes, train | held out.
    model, tokenizer = first_model(first, accelerator.device.type)
    cells = open_cells(source, held_out, tokenizer, run.seed, accelerator.print)
    train, test = (cells.dataset.select(rows) for rows in (cells.train, cells.held_out))

    # Batches: each cell once an epoch on any number of processes. The collator masks genes of each anew each epoch.
    objective, num_processes = objective_of(model.config), accelerator.num_processes
    objective.begin(model, tokenizer, train, run.seed)
    collator = objective.collator(tokenizer, run.seed, masking)
    eval_collator = objective.eval_collator(tokenizer, run.seed, masking)
    batches = CellBatches(ShuffledCells(len(train), run.seed), run.batch_size, num_processes)
    train_loader = DataLoader(train, batch_sampler=batches, collate_fn=collator)
    test_loader = DataLoader(test, batch_size=run.batch_size, collate_fn=eval_collator)

    # AdamW, and a learning rate that rises and falls. Only matrices decay.
    named = dict(model.named_parameters())
    still = [weight for name, weight in named.items() if not is_decayed(name, weight)]
    decaying = [weight for name, weight in named.items() if is_decayed(name, weight)]
    groups = [{"params": decaying, "weight_decay": descent.weight_decay}, {"params": still, "weight_decay": 0.0}]
    rate = descent.learning_rate
    if rate is None:
        rate = pretraining_rate(first, accelerator.device.type)
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    schedule = get_scheduler(descent.schedule, optimizer, math.ceil(run.max_steps * descent.warmup), run.max_steps)
    # The schedule stays as it is: accelerate would step it once for each process.
    model, optimizer, train_loader, test_loader = accelerator.prepare(model, optimizer, train_loader, test_loader)

    log: list[dict[str, float]] = []
    step = epoch = 0
    model.train()
    while step < run.max_steps:
        train_loader.set_epoch(epoch)  # of the masks
        batches.set_epoch(epoch)  # of the order, which accelerate does not pass on where there are several processes
        for batch in train_loader:
            state, own = TrainerState(global_step=step), accelerator.unwrap_model(model)
            for callback in objective.callbacks():  # what a family changes between steps, such as random features
                callback.on_step_begin(None, state, None, model=own)
            # The loss is the mean over the masked genes of all processes, whose gradients DDP averages.
            num_masked = accelerator.reduce((batch["labels"] != IGNORED).sum())
            loss = model(**batch, num_items_in_batch=num_masked).loss * num_processes
            accelerator.backward(loss)
            if descent.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), descent.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            log.append({"step": step, "epoch": epoch, "loss": accelerator.reduce(loss.detach(), "mean").item()})
            if step % run.eval_steps == 0 or step == run.max_steps:
                log[-1] |= evaluate(model, test_loader, objective, accelerator)
                accelerator.print(json.dumps(log[-1]))
            if step == run.max_steps:
                break
        epoch += 1

    # `AutoModel.from_pretrained(output_dir)` loads it.
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(run.output_dir, state_dict=weights)
        tokenizer.save_pretrained(run.output_dir)
        Path(run.output_dir, "log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    accelerator.end_training()
    return log


@torch.no_grad()
def evaluate(model: Any, loader: Any, objective: Any, accelerator: Accelerator) -> dict[str, float]:
    """Return the scores of the masked values of held-out cells, which are masked alike each time.

    Args:
        model: Prepared by accelerate.
        loader: Held-out cells of this process.
        objective: Of the model's family.
        accelerator: Brings the values of all processes together.
    """
    model.eval()
    loader.set_epoch(0)
    parts = []
    for batch in loader:
        values = batch["labels"], model(**batch).logits.float()
        # Processes with too few cells were given some twice, which `gather_for_metrics` leaves out.
        values = accelerator.pad_across_processes(values, dim=1, pad_index=IGNORED)
        true, predicted = accelerator.gather_for_metrics(values)
        is_masked = true != IGNORED
        parts.append(torch.stack([true[is_masked], predicted[is_masked]]))
    model.train()
    true, predicted = torch.cat(parts, dim=1).cpu().numpy()
    scores = objective.scores(EvalPrediction(predictions=predicted, label_ids=true))
    return {f"eval_{name}": score for name, score in scores.items()}


if __name__ == "__main__":
    main()
