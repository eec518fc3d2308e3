"""xTrimoGene for Hugging Face transformers: an efficient masked autoencoder for single-cell RNA-seq.

After `import xtrimogene`, `AutoModel.from_pretrained` and its siblings know the model type; `xtrimogene.tl` works on AnnData.
"""

import importlib
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer

from .modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from .modeling_xtrimogene.modeling_xtrimogene import (
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
    XTrimoGeneModel,
)
from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

__version__ = "0.1.0"
__all__ = [
    "XTrimoGeneConfig",
    "XTrimoGeneForPreTraining",
    "XTrimoGeneForSequenceClassification",
    "XTrimoGeneModel",
    "XTrimoGeneTokenizer",
    "tl",
]

AutoConfig.register("xtrimogene", XTrimoGeneConfig, exist_ok=True)
AutoModel.register(XTrimoGeneConfig, XTrimoGeneModel, exist_ok=True)
AutoModelForPreTraining.register(XTrimoGeneConfig, XTrimoGeneForPreTraining, exist_ok=True)
AutoModelForSequenceClassification.register(
    XTrimoGeneConfig, XTrimoGeneForSequenceClassification, exist_ok=True
)
AutoTokenizer.register(XTrimoGeneConfig, XTrimoGeneTokenizer, exist_ok=True)


def __getattr__(name: str) -> Any:
    """Load `xtrimogene.tl` when first used: it is not needed to load a model."""
    if name == "tl":
        return importlib.import_module(".tl", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
