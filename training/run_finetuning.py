#!/usr/bin/env python
"""Fine-tune a checkpoint to name cell types with transformers' Trainer, in the form of transformers' examples.

    accelerate launch training/run_finetuning.py --checkpoint model --file a.h5ad --label_key cell_type --output_dir out
    accelerate launch training/run_finetuning.py my_run.yaml

`python -m xtrimogene.training.run_finetuning` is the same on one device. `--help` lists all options, which a .json or
.yaml file names alike. `xtrimogene finetune` does more: it compares with baselines, calibrates and writes a card.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from accelerate import PartialState
from transformers import AutoTokenizer, set_seed

# Absolute imports, because `accelerate launch` runs this file as no part of a package.
from xtrimogene.options import Option, group
from xtrimogene.tokenization.reading import TrainingInput
from xtrimogene.training.arguments import CellTrainingArguments, parsed
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.data.labelled import read_labelled
from xtrimogene.training.finetuning import classifier_of, finetune
from xtrimogene.training.options import LabelledSplit, NewHead
from xtrimogene.training.trainer import CellTrainer


@group
class LabelledFile(TrainingInput, LabelledSplit):
    """Where the labelled cells are, and how they are split.

    >>> LabelledFile(file="a.h5ad", label_key="cell_type").test_share
    0.2
    """

    file: Annotated[str, Option("File with labelled cells.")]


@group
class Classifier(NewHead):
    """What is fine-tuned.

    >>> Classifier(checkpoint="model").checkpoint
    'model'
    """

    checkpoint: Annotated[str, Option("Pre-trained checkpoint, a folder or a name on the Hub.")]


def main(given: Sequence[str] | None = None) -> CellTrainer:
    """Fine-tune, save the classifier into `output_dir`, and return its Trainer.

    Args:
        given: What is typed behind the name of the script; that of this process unless given.

    Raises:
        ValueError: If an option is unknown or outside of its range, or the cells have no such labels.
    """
    # 1. Options: where the labelled cells are, which model, how it is trained.
    source, chosen, arguments = parsed((LabelledFile, Classifier, CellTrainingArguments), given)
    set_seed(arguments.seed)

    # 2. Labelled cells on the panel of the checkpoint, train | test.
    tokenizer = AutoTokenizer.from_pretrained(chosen.checkpoint)
    known = read_labelled(Path(source.file), tokenizer, source, source, arguments.seed, PartialState().print)
    dataset = cells_dataset(known.cells, known.ids)
    train, test = dataset.select(known.train), dataset.select(known.test)

    # 3. Train: the encoder of the checkpoint under a new head.
    model, share = classifier_of(chosen.checkpoint, known, chosen)
    PartialState().print(f"{share:.1%} of the weights learn")
    resume = arguments.resume_from_checkpoint or False
    trainer = finetune(model, tokenizer, train, test, arguments=arguments, resume=resume)

    # 4. Evaluate on held-out cells and save: `AutoModelForSequenceClassification.from_pretrained(output_dir)` loads it.
    # With `--peft lora` it is the adapter alone, for `PeftModel.from_pretrained(annotation_model(...), output_dir)`.
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
