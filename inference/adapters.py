"""Folders of PEFT that hold an adapter instead of a whole model: the base that they tune, and both as one model."""

import json
import os
from dataclasses import dataclass
from typing import Any

from .. import families
from .saved import Saved

SETTINGS, WEIGHTS, CONFIGURATION = "adapter_config.json", "adapter_model.safetensors", "config.json"
HEAD = "classifier.out_proj.weight"
CLASSES: dict[str, families.Ability] = {"SEQ_CLS": "classify", "FEATURE_EXTRACTION": "embed"}  # by PEFT's `task_type`


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that `PeftModel.save_pretrained` wrote, which names the checkpoint that it tunes.

    A `config.json` beside it, the configuration of the tuned model, says what labels are called; without one they are
    numbers. `xtrimogene finetune --peft lora` writes both, into `adapter`.

    Attributes:
        place: Where it is.
        base: Where the model is that the adapter tunes.
        architecture: Class of that model; None if the adapter does not say, and it is that of the base.
    """

    place: Saved
    base: Saved
    architecture: str | None

    @classmethod
    def find(cls, place: Saved) -> "AdapterFolder | None":
        """Return the adapter that is in a place; None if it is a whole model.

        Raises:
            ValueError: If the adapter names no base, or a folder that is not there.

        Example:
            >>> print(AdapterFolder.find(Saved.of("checkpoint")))
            None
        """
        path = place.path
        found = place.file(SETTINGS)
        if found is None:
            return None
        with open(found, encoding="utf-8") as file:
            settings = json.load(file)
        base = settings.get("base_model_name_or_path") or ""
        is_local = os.path.isdir(base) or (base.count("/") == 1 and not base.startswith((".", "/", "~")))
        if not is_local:
            raise ValueError(
                f"{path} is an adapter of {base or 'no named checkpoint'}, which is not here: write the folder of its "
                f"base into base_model_name_or_path of {SETTINGS}"
            )
        architecture = (settings.get("auto_mapping") or {}).get("base_model_class")
        ability, revision = CLASSES.get(settings.get("task_type") or ""), settings.get("revision")
        tuned = Saved.of(base if revision is None or os.path.isdir(base) else f"{base}@{revision}")
        if architecture is None and ability is not None:
            architecture = families.model_class(tuned.config(), ability).__name__
        return cls(place, tuned, architecture)

    @property
    def architectures(self) -> list[str]:
        """Names of the classes that tell what the tuned model can do."""
        return [self.architecture] if self.architecture else self.base.config().architectures or []

    def tokenizer(self) -> Any:
        """Return the tokenizer that is beside the adapter, or else that of its base."""
        return (self.base if self.place.file("tokenizer_config.json") is None else self.place).tokenizer()

    def load(self, task: str, **options: Any) -> Any:
        """Return the base with the adapter added to the weights of its layers.

        Args:
            task: What the model is for; `classify` needs a head in the adapter or its base.
            **options: Arguments of `from_pretrained` for the base.

        Raises:
            ImportError: If the package peft is not installed.
            ValueError: If cells are to be classified and no head was saved, or the adapter is a prompt.
        """
        try:
            from peft import PeftModel
        except ImportError as error:
            raise ImportError(
                f"{self.place.path} is an adapter and needs the package peft ({error}): pip install peft"
            ) from error

        names = self.head_names()
        is_told = self.place.file(CONFIGURATION) is not None
        config = (self.place if is_told else self.base).config()
        if names and not is_told:
            config.num_labels = names[1]
        member = class_named(self.architectures, config)
        model, found = member.from_pretrained(
            self.base.path, revision=self.base.revision, config=config, ignore_mismatched_sizes=bool(names),
            output_loading_info=True, **options,
        )  # fmt: skip
        if task == "classify" and not names and any(name.startswith("classifier.") for name in found["missing_keys"]):
            raise ValueError(
                f"{self.place.path} is an adapter without a classification head, and {self.base.path} has none: give "
                f"modules_to_save=['classifier'] when the adapter is made"
            )
        tuned: Any = PeftModel.from_pretrained(model, self.place.path, revision=self.place.revision)
        if tuned.active_peft_config.is_prompt_learning:
            kind = tuned.active_peft_config.peft_type.value
            raise ValueError(
                f"{self.place.path} is an adapter of the kind {kind}, which puts text before the input, and cells have "
                f"none: tune the layers, for instance with LoRA"
            )
        tuned.base_model.merge_adapter()
        return tuned.get_base_model()

    def head_names(self) -> tuple[str, int] | None:
        """Return the name of the weight of a saved classification head, and its number of labels; None without one."""
        from safetensors import safe_open

        file = self.place.file(WEIGHTS)
        if file is None:
            return None
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():
                if name.endswith(HEAD):
                    return name, weights.get_slice(name).get_shape()[0]
        return None


def class_named(architectures: list[str], config: Any) -> Any:
    """Return the class of the family with one of these names, or the encoder's."""
    for member in families.family_of(config).members:
        if families.named(member) in architectures:
            found = member.model_class
            return found.load() if isinstance(found, families.LazyClass) else found
    return families.model_class(config, "embed")
