"""xTrimoGene for Hugging Face transformers: an efficient masked autoencoder for single-cell RNA-seq.

After `import xtrimogene`, `AutoModel.from_pretrained` and its siblings know the model types; `xtrimogene.tl` works on
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

from .modeling_xtrimogene.configuration_perturbation import XTrimoGenePerturbationConfig
from .modeling_xtrimogene.configuration_synergy import XTrimoGeneSynergyConfig
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
    "XTrimoGenePerturbationConfig",
    "XTrimoGeneSynergyConfig",
    "XTrimoGeneTokenizer",
    "__version__",
    "tl",
]

# Model class -> its file, its configuration and the Auto class that loads it.
MODELS: dict[str, tuple[str, Any, Any]] = {
    "XTrimoGeneModel": ("modeling_xtrimogene", XTrimoGeneConfig, AutoModel),
    "XTrimoGeneForPreTraining": ("modeling_xtrimogene", XTrimoGeneConfig, AutoModelForPreTraining),
    "XTrimoGeneForSequenceClassification": (
        "modeling_xtrimogene", XTrimoGeneConfig, AutoModelForSequenceClassification
    ),
    "XTrimoGeneForPerturbationPrediction": ("modeling_perturbation", XTrimoGenePerturbationConfig, AutoModel),
    "XTrimoGeneForDrugSynergy": ("modeling_synergy", XTrimoGeneSynergyConfig, AutoModel),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "tl":
        return importlib.import_module(".tl", __name__)
    if name in MODELS:
        file, config_class, auto_class = MODELS[name]
        model_class = getattr(importlib.import_module(f".modeling_xtrimogene.{file}", __name__), name)
        auto_class.register(config_class, model_class, exist_ok=True)
        return model_class
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


for config_class in (XTrimoGeneConfig, XTrimoGenePerturbationConfig, XTrimoGeneSynergyConfig):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoTokenizer.register(config_class, XTrimoGeneTokenizer, exist_ok=True)
for model_class, (_, config_class, auto_class) in MODELS.items():
    # `auto_class.register` would look into the class, and so import it.
    auto_class._model_mapping.register(config_class, ModelClass(model_class), exist_ok=True)
