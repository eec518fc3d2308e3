"""xTrimoGene for Hugging Face transformers: an efficient masked autoencoder for single-cell RNA-seq.

After `import xtrimogene`, `AutoModel.from_pretrained` and the other Auto classes know the model types, and `pipeline`
knows the tasks `cell-embedding` and `cell-annotation`. `xtrimogene.tl` has functions for AnnData, and
`xtrimogene.checkpoint` gives checkpoints that come with the package. Model classes are imported on first use, because
importing them takes longer than the rest.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .families import FAMILIES, LazyClass
from .modeling_xtrimogene.configuration_perturbation import XTrimoGenePerturbationConfig
from .modeling_xtrimogene.configuration_synergy import XTrimoGeneSynergyConfig
from .modeling_xtrimogene.configuration_txfm import TxFMConfig
from .modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from .pipelines import register_pipelines
from .records import VERSION as __version__
from .released import checkpoint
from .tokenization.tokenization_txfm import TxFMTokenizer
from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

if TYPE_CHECKING:
    from . import tl
    from .modeling_xtrimogene.modeling_perturbation import XTrimoGeneForPerturbationPrediction
    from .modeling_xtrimogene.modeling_synergy import XTrimoGeneForDrugSynergy
    from .modeling_xtrimogene.modeling_txfm import TxFMForPreTraining, TxFMForSequenceClassification, TxFMModel
    from .modeling_xtrimogene.modeling_xtrimogene import (
        XTrimoGeneForPreTraining,
        XTrimoGeneForSequenceClassification,
        XTrimoGeneModel,
    )
    from .tokenization.collators import DataCollatorForExpression, DataCollatorForMaskedExpression
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

LAZY = {  # what a training of one's own needs, and the module of each
    "CellTrainingArguments": ".training.arguments",
    "DataCollatorForExpression": ".tokenization.collators",
    "DataCollatorForMaskedExpression": ".tokenization.collators",
    "cells_dataset": ".training.data.dataset",
}


def __getattr__(name: str) -> Any:
    if name == "tl":
        return importlib.import_module(".tl", __name__)
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name], __name__), name)
    for family in FAMILIES.values():
        for member in family.members:
            if isinstance(member.model_class, LazyClass) and member.model_class.__name__ == name:
                return member.model_class.load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_pipelines()
