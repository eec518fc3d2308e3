#!/usr/bin/env python
"""Pre-train with transformers' Trainer on the cells of files or of a corpus, in the form of transformers' examples.

    accelerate launch training/run_pretraining.py --config tiny --files a.h5ad b.h5ad --output_dir model
    accelerate launch training/run_pretraining.py my_run.yaml

`python -m xtrimogene.training.run_pretraining` is the same on one device. `--help` lists all options, which a .json or
.yaml file names alike. `xtrimogene pretrain` does more: it compares with baselines and writes a card.
"""

from collections.abc import Sequence

from accelerate import PartialState
from transformers import set_seed

# Absolute imports, because `accelerate launch` runs this file as no part of a package.
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training.arguments import CellTrainingArguments, parsed
from xtrimogene.training.data.cells import open_cells
from xtrimogene.training.options import CellSource, FirstModel, HeldOut
from xtrimogene.training.pretraining import pretrain
from xtrimogene.training.starting import first_model
from xtrimogene.training.trainer import CellTrainer


def main(given: Sequence[str] | None = None) -> CellTrainer:
    """Pre-train, save the model into `output_dir`, and return its Trainer.

    Args:
        given: What is typed behind the name of the script; that of this process unless given.

    Raises:
        ValueError: If an option is unknown or outside of its range, or there are no cells to learn from.
    """
    # 1. Options: where the cells are, which model, what is masked, what is held out, how it is trained.
    kinds = (CellSource, FirstModel, Masking, HeldOut, CellTrainingArguments)
    source, first, masking, held_out, arguments = parsed(kinds, given)
    set_seed(arguments.seed)

    # 2. The model and its tokenizer, which gives each gene its id.
    model, tokenizer = first_model(first, arguments.device.type)

    # 3. Cells: raw counts of expressed genes, train | held out.
    cells = open_cells(source, held_out, tokenizer, arguments.seed, PartialState().print)
    train, test = (cells.dataset.select(rows) for rows in (cells.train, cells.held_out))

    # 4. Train: a Trainer whose collator masks genes and whose labels are their values.
    resume = arguments.resume_from_checkpoint or False
    trainer = pretrain(model, tokenizer, train, test, arguments=arguments, options=masking, resume=resume)

    # 5. Evaluate on held-out cells and save: `AutoModel.from_pretrained(output_dir)` loads it.
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
