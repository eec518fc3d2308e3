"""xTrimoGene for Hugging Face transformers: an efficient masked autoencoder for single-cell RNA-seq.

After `import xtrimogene`, `AutoModel.from_pretrained` and its siblings know the model type; `xtrimogene.tl` works on
AnnData.
Model classes are imported when first needed: transformers' share of that takes longer than everything else together.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from .modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from .records import VERSION as __version__
from .tokenization.tokenization_xtrimogene import XTrimoGeneTokenizer

if TYPE_CHECKING:
    from . import tl
    from .modeling_xtrimogene.modeling_perturbation import XTrimoGeneForPerturbationPrediction
    from .modeling_xtrimogene.modeling_synergy import XTrimoGeneForDrugSynergy
    from .modeling_xtrimogene.modeling_xtrimogene import (
        XTrimoGeneForPreTraining,
        XTrimoGeneForSequenceClassification,
        XTrimoGeneModel,
    )

__all__ = [
    "XTrimoGeneConfig",
    "XTrimoGeneForDrugSynergy",
    "XTrimoGeneForPerturbationPrediction",
    "XTrimoGeneForPreTraining",
    "XTrimoGeneForSequenceClassification",
    "XTrimoGeneModel",
    "XTrimoGeneTokenizer",
    "__version__",
    "tl",
]

MODELS: dict[str, Any] = {
    "XTrimoGeneModel": AutoModel,
    "XTrimoGeneForPreTraining": AutoModelForPreTraining,
    "XTrimoGeneForSequenceClassification": AutoModelForSequenceClassification,
}

# Tasks that no Auto class stands for.
HEADS = {
    "XTrimoGeneForDrugSynergy": ".modeling_xtrimogene.synergy_xtrimogene",
    "XTrimoGeneForPerturbationPrediction": ".modeling_xtrimogene.perturbation_xtrimogene",
}


def __getattr__(name: str) -> Any:
    if name == "tl":
        return importlib.import_module(".tl", __name__)
    if name in HEADS:
        return getattr(importlib.import_module(HEADS[name], __name__), name)
    if name in MODELS:
        module = importlib.import_module(".modeling_xtrimogene.modeling_xtrimogene", __name__)
        for model_class, auto_class in MODELS.items():
            auto_class.register(XTrimoGeneConfig, getattr(module, model_class), exist_ok=True)
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ModelClass:
    """Stands for a model class among transformers' Auto classes until it is first used."""

    def __init__(self, name: str):
        self.__name__ = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(__getattr__(self.__name__), attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Build the model."""
        return __getattr__(self.__name__)(*args, **kwargs)


AutoConfig.register("xtrimogene", XTrimoGeneConfig, exist_ok=True)
AutoTokenizer.register(XTrimoGeneConfig, XTrimoGeneTokenizer, exist_ok=True)
for model_class, auto_class in MODELS.items():
    # `auto_class.register` would look into the class, and so import it.
    auto_class._model_mapping.register(XTrimoGeneConfig, ModelClass(model_class), exist_ok=True)
