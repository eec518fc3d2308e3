"""xTrimoGene for Hugging Face transformers: an efficient masked autoencoder for single-cell RNA-seq.

After `import xtrimogene`, `AutoModel.from_pretrained` and the other Auto classes know the model types, and `pipeline`
knows the tasks `cell-embedding` and `cell-annotation`. `xtrimogene.tl` has functions for AnnData, and
`xtrimogene.checkpoint` gives checkpoints that come with the package. Model classes are imported on first use, because
importing them takes longer than the rest.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .pipelines import register_pipelines
from .records import VERSION as __version__
from .released import checkpoint

if TYPE_CHECKING:
    from . import tl
    from .modeling_xtrimogene.configuration_perturbation import XTrimoGenePerturbationConfig
    from .modeling_xtrimogene.configuration_synergy import XTrimoGeneSynergyConfig
    from .modeling_xtrimogene.configuration_txfm import TxFMConfig
    from .modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
    from .modeling_xtrimogene.modeling_perturbation import XTrimoGeneForPerturbationPrediction
    from .modeling_xtrimogene.modeling_synergy import XTrimoGeneForDrugSynergy
    from .modeling_xtrimogene.modeling_txfm import TxFMForPreTraining, TxFMForSequenceClassification, TxFMModel
    from .modeling_xtrimogene.modeling_xtrimogene import (
        XTrimoGeneForPreTraining,
        XTrimoGeneForSequenceClassification,
        XTrimoGeneModel,
    )
    from .tokenization.collators import DataCollatorForExpression, DataCollatorForMaskedExpression
    from .tokenization.tokenization_txfm import TxFMTokenizer
    from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer
    from .training.arguments import CellTrainingArguments
    from .training.data.dataset import cells_dataset

__all__ = [
    "CellTrainingArguments",
    "DataCollatorForExpression",
    "DataCollatorForMaskedExpression",
    "TxFMConfig",
    "TxFMForPreTraining",
    "TxFMForSequenceClassification",
    "TxFMModel",
    "TxFMTokenizer",
    "XTrimoGeneConfig",
    "XTrimoGeneForDrugSynergy",
    "XTrimoGeneForPerturbationPrediction",
    "XTrimoGeneForPreTraining",
    "XTrimoGeneForSequenceClassification",
    "XTrimoGeneModel",
    "XTrimoGenePerturbationConfig",
    "XTrimoGeneSynergyConfig",
    "XTrimoGeneTokenizer",
    "__version__",
    "cells_dataset",
    "checkpoint",
    "tl",
]

LAZY = {  # the module of each name that is imported when it is first asked for
    "CellTrainingArguments": ".training.arguments",
    "DataCollatorForExpression": ".tokenization.collators",
    "DataCollatorForMaskedExpression": ".tokenization.collators",
    "TxFMConfig": ".modeling_xtrimogene.configuration_txfm",
    "TxFMTokenizer": ".tokenization.tokenization_txfm",
    "XTrimoGeneConfig": ".modeling_xtrimogene.configuration_xtrimogene",
    "XTrimoGenePerturbationConfig": ".modeling_xtrimogene.configuration_perturbation",
    "XTrimoGeneSynergyConfig": ".modeling_xtrimogene.configuration_synergy",
    "XTrimoGeneTokenizer": ".tokenization.tokenization_xtrimogene",
    "cells_dataset": ".training.data.dataset",
}


def is_command_line() -> bool:
    """Return whether this process is the program `xtrimogene`, also started as `python -m xtrimogene`."""
    program, started = Path((sys.argv or [""])[0]), sys.orig_argv
    is_module = "-m" in started and started[started.index("-m") + 1 :][:1] in (["xtrimogene"], ["xtrimogene.cli"])
    return is_module or (program.stem == "xtrimogene" and program.suffix in ("", ".exe"))


# This tells the Auto classes of the model types. The program does it in `cli/process.py`, when a command begins to
# work: an error of typing need not wait seconds for torch.
if not is_command_line():
    from . import families  # noqa: F401


def __getattr__(name: str) -> Any:
    if name == "tl":
        return importlib.import_module(".tl", __name__)
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name], __name__), name)
    from .families import FAMILIES, LazyClass

    for family in FAMILIES.values():
        for member in family.members:
            if isinstance(member.model_class, LazyClass) and member.model_class.__name__ == name:
                return member.model_class.load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_pipelines()
