"""Parameter-efficient tuning: which weights of a model learn, and which stay as they are.

| `peft` | what learns |
|---|---|
| `none` | all weights |
| `xpressor` | the Xpressor, the decoder of its latents, the head of a classifier, `W_p` of an anchored model |
| `lora` | low-rank updates of the attention's projections (arXiv:2106.09685), and the same head and `W_p` |
"""

from pathlib import Path
from typing import Any, Literal

from .. import families

Peft = Literal["none", "xpressor", "lora"]
# The last of these is 0 at first in an anchored model. If it were frozen, nothing that is learned would show.
OF_XPRESSOR = ("xpressor.", "latent_decoder.", "classifier.", "bag.from_encoder.")
LORA_RANK, LORA_ALPHA = 8, 16  # an update is alpha / rank times the product of its factors
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
ADAPTER = "adapter"  # folder of an adapter alone, inside of that of the tuned model


def freeze_for_tuning(model: Any, peft: Peft) -> tuple[Any, float]:
    """Choose which weights of a model learn, in place; return the model and the trained share of its weights.

    Args:
        model: Any model of this package. With `xpressor` it has latents (`add_xpressor`).
        peft: What learns; see the table of this module. With `lora` the result is a `PeftModel` around the model:
            `save_pretrained` then writes the adapter alone, which `PeftModel.from_pretrained(model, folder)` loads.

    Raises:
        ValueError: If the model has no latents to train, or its family can have none.
        ImportError: If the package peft is needed and not installed.

    Example:
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForSequenceClassification
        >>> config = XTrimoGeneConfig.preset("tiny", num_genes=50, num_latents=4, pooling="xpressor", num_labels=2)
        >>> model, share = freeze_for_tuning(XTrimoGeneForSequenceClassification(config), "xpressor")
        >>> model.model.encoder.norm.weight.requires_grad, model.model.xpressor.latents.requires_grad
        (False, True)
    """
    check_peft(model.config, peft, f"this {type(model).__name__}")
    if peft == "lora":
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise ImportError(f"peft is 'lora' and needs the package peft ({error}): pip install peft") from error
        whole = ["classifier"] if hasattr(model, "classifier") else []
        whole += ["from_encoder"] if model.config.anchored else []
        lora = LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LORA_TARGETS, modules_to_save=whole or None
        )
        model = get_peft_model(model, lora)
    elif peft == "xpressor":
        if not model.config.num_latents:
            raise ValueError(
                "peft is 'xpressor' and num_latents of the model is 0, so that nothing would learn: give it latents by "
                "add_xpressor(model), or choose peft 'lora'"
            )
        prefix = f"{model.base_model_prefix}."
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.removeprefix(prefix).startswith(OF_XPRESSOR))
    return model, trained_share(model)


def check_peft(config: Any, peft: Peft, name: str) -> None:
    """Refuse to train latents of a family that can have none.

    Args:
        config: Configuration of the model.
        peft: What is to learn.
        name: What the message calls the model.

    Raises:
        ValueError: If it is so.

    Example:
        >>> from xtrimogene import TxFMConfig
        >>> check_peft(TxFMConfig(), "xpressor", "checkpoint")
        Traceback (most recent call last):
        ValueError: peft is 'xpressor', and checkpoint is of the family TxFM, which has no latents: ...
    """
    if peft == "xpressor" and "num_latents" not in type(config).__dataclass_fields__:
        raise ValueError(
            f"peft is 'xpressor', and {name} is of the family {families.family_of(config).about.name}, which has no "
            f"latents: choose peft 'lora', or trainable_layers, which trains its last layers"
        )


def trained_share(model: Any) -> float:
    """Return the share of a model's weights that learn, from 0 to 1."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return trained / sum(weight.numel() for weight in model.parameters())


def save_tuned(model: Any, folder: Path) -> None:
    """Save a tuned model: whole, and of a `PeftModel` the adapter alone too, in `folder/adapter`.

    The weights of a `PeftModel` are then those of the whole model, with the adapter's updates added to them. The
    configuration beside the adapter says what its labels are called.
    """
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / ADAPTER)
        model.get_base_model().config.save_pretrained(folder / ADAPTER)
        model = model.merge_and_unload()
    model.save_pretrained(folder)
