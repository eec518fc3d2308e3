"""The model that a pre-training begins with, and its tokenizer: new ones of a size, or those of a checkpoint."""

from typing import Any

from transformers import AutoModelForPreTraining

from .. import families
from ..inference.saved import Saved
from ..modeling_xtrimogene.xpressor_xtrimogene import add_xpressor
from .options import FirstModel, NewModel


def first_model(first: FirstModel, device: str) -> tuple[Any, Any]:
    """Return the model and the tokenizer that a pre-training begins with.

    >>> model, tokenizer = first_model(FirstModel(config="tiny"), "cpu")
    >>> model.config.anchored, tokenizer.num_genes
    (True, 19264)

    Args:
        first: Size and kind of a new model, or a checkpoint.
        device: Type of the device, on which the size depends unless it is given.

    Raises:
        ValueError: If the checkpoint cannot be pre-trained or has latents already, there is no such size, or the model
            has no embedding whose batches could be mixed.
    """
    if not first.checkpoint:
        return new_model(first, size_of(first, device))
    model, tokenizer = continued(first.checkpoint)
    if first.num_latents:
        if "num_latents" not in type(model.config).__dataclass_fields__:
            raise ValueError(
                f"num_latents is {first.num_latents}, and {first.checkpoint} is a {type(model).__name__}, which has no "
                f"latents: leave it out"
            )
        add_xpressor(model, first.num_latents, pooling="xpressor")
    if first.mixing_weight:
        if "mixing_weight" not in type(model.config).__dataclass_fields__:
            raise ValueError(
                f"mixing_weight is {first.mixing_weight}, and {first.checkpoint} is a {type(model).__name__}, whose "
                f"batches are not mixed: leave it out"
            )
        model.config.mixing_weight = first.mixing_weight
        model.config.validate()
    return model, tokenizer


def size_of(new: NewModel, device: str) -> str:
    """Return the size of a new model, which on a CPU is small unless it is given."""
    return new.config or ("tiny" if device == "cpu" else "3M")


def pretraining_rate(first: FirstModel, device: str) -> float:
    """Return the largest learning rate that suits a model: that of its size if it is new, 1e-4 for a checkpoint."""
    if first.checkpoint:
        return 1e-4
    size = size_of(first, device)
    family = families.family_of_preset(size)
    return family.learning_rates.get(size, family.learning_rate)


def continued(checkpoint: str) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a checkpoint.

    Raises:
        ValueError: If it cannot be pre-trained.
    """
    saved = Saved.of(checkpoint)
    if "classify" in families.abilities(saved.config().architectures or []):
        raise ValueError(f"{checkpoint} is a classifier and has no decoder to train: give a pre-trained checkpoint")
    return saved.load(AutoModelForPreTraining), saved.tokenizer()


def new_model(new: NewModel, size: str) -> tuple[Any, Any]:
    """Return a new model of a size and its tokenizer.

    Raises:
        ValueError: If an option is given that models of this family do not have.
    """
    changes: dict[str, Any] = {} if new.decoder_context is None else {"decoder_context": new.decoder_context}
    if new.dropout is not None:
        changes |= {"hidden_dropout_prob": new.dropout, "attention_probs_dropout_prob": new.dropout}
    if new.num_latents:
        changes |= {"num_latents": new.num_latents, "pooling": "xpressor"}
    if new.mixing_weight:
        changes["mixing_weight"] = new.mixing_weight
    depth = {"depth_tokens": True} if new.depth_tokens else {}
    family = families.family_of_preset(size)
    if unknown := [name for name in (*depth, *changes) if name not in family.config.__dataclass_fields__]:
        raise ValueError(
            f"{unknown[0]} is {(depth | changes)[unknown[0]]!r}, and models of the size {size} have no such option: "
            f"leave it out, or take another of the sizes {', '.join(families.sizes())}"
        )
    config = family.configure(size, **depth, **changes)
    return families.model_class(config, "reconstruct")(config), family.tokenizer.default(**depth)
