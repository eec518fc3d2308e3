# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""What models of all families share: saving with code, loading, precision, padding; and classifiers of cells.

Letters: B cells, L tokens, D width of a cell embedding, C classes.
"""

import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from huggingface_hub import ResolvedRevision, snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple, logging
from transformers.utils.hub import resolve_revision

from .added_genes_xtrimogene import grow_panel
from .anchor_xtrimogene import BagOfGenes, CellDecoder, ValueDecoder, is_of_anchor, refuse_half_an_anchor
from .card_xtrimogene import CARD, new_card
from .heads_xtrimogene import FeatureNorm, LinearAnchor, XTrimoGeneClassificationHead
from .host_xtrimogene import is_at_hand, sent
from .precision_xtrimogene import in_float32
from .sharing_xtrimogene import INDEX, WEIGHTS, push_folder
from .varlen_xtrimogene import VARLEN

if TYPE_CHECKING:  # transformers saves the files that are named in imports, and loads this one with a pipeline only
    from .pipelines_xtrimogene import CellPipeline  # noqa: F401

logger = logging.get_logger(__name__)
IGNORED = -100  # label of padding, as everywhere in transformers
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
# Task -> how `pipeline(task, model=..., trust_remote_code=True)` finds our pipeline in a saved folder.
PIPELINES: dict[str, dict[str, Any]] = {
    "cell-embedding": {"impl": "pipelines_xtrimogene.CellEmbeddingPipeline", "pt": ["AutoModel"]},
    "cell-annotation": {
        "impl": "pipelines_xtrimogene.CellAnnotationPipeline",
        "pt": ["AutoModelForSequenceClassification"],
    },
}
# What a run leaves beside the weights, and is true of these weights only.
OF_A_RUN = (CARD, "metrics.json", INDEX, "*.safetensors", "*.png")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class CellPreTrainedModel(PreTrainedModel):
    """Base class of the models of a family.

    A family sets `auto_map`, which lets users without the package load a saved folder, `own_classes`, the names of its
    model classes, and `pipelines`, the tasks of `PIPELINES` that a model can do.
    """

    auto_map: ClassVar[dict[str, str]]
    pipelines: ClassVar[tuple[str, ...]] = ("cell-embedding",)
    own_classes: ClassVar[frozenset[str]]
    _keep_in_fp32_modules_strict: Any
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights of the layers. In half precision all other weights stay in float32."""
        return min(
            (part.dtype for part in self.parameters() if part.is_floating_point()), key=lambda dtype: dtype.itemsize
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set the initial values of parts that all families have; a table of all is in the method of a family."""
        super()._init_weights(module)
        if isinstance(module, FeatureNorm):
            init.zeros_(module.mean)
            init.ones_(module.std)
        elif isinstance(module, LinearAnchor):
            for part in module.buffers():
                init.zeros_(part)
        elif isinstance(module, BagOfGenes):
            init.normal_(module.components, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, CellDecoder):
            if module.batch_bias is not None:
                init.zeros_(module.batch_bias.weight)
                init.ones_(module.is_expressed)
            if isinstance(module, ValueDecoder):
                init.zeros_(module.value_offset)
                init.ones_(module.value_slope)

    def is_token(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return which of `input_ids` are no padding, bool `(B, L)`: by the mask, or by their id without a mask.

        Raises:
            ValueError: If the mask has another shape.
        """
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}: give 1 for a "
                f"token and 0 for padding in the shape of input_ids; every token of a cell attends to all others"
            )
        return input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()

    def post_init(self) -> None:
        """Finish the model, as all models of transformers do, and keep of the list of float32 parts those it has."""
        super().post_init()
        names = list(self.state_dict())
        self._keep_in_fp32_modules_strict = {
            part
            for part in self._keep_in_fp32_modules_strict
            if any(re.search(rf"(?:^|\.){part}(?:\.|$)", name) for name in names)
        }

    def packs(self, device: torch.device, **kwargs: Any) -> bool:
        """Return whether to compute without padding: on CPU and GPU, unless attention is asked for.

        With gradients, states of all layers that are asked for are not packed either: gradients flow through them.

        Args:
            device: Device of the batch.
            **kwargs: Arguments of the forward pass, such as `output_hidden_states`.
        """
        names = ("output_attentions", *(["output_hidden_states"] if torch.is_grad_enabled() else []))
        looks_inside = any(kwargs.get(name, getattr(self.config, name, False)) for name in names)
        chosen = self.config._attn_implementation
        is_packable = chosen in ("sdpa", VARLEN) or "flash" in chosen or (chosen == "eager" and device.type == "cpu")
        is_here = device.type in ("cpu", "cuda") and not torch.compiler.is_compiling()
        return is_here and is_packable and not looks_inside

    def add_genes(self, new: int | torch.Tensor) -> Self:
        """Add genes to the panel of the model, in place, behind those that it has, and return the model.

        Ids of depth tokens and padding move behind the new genes; the tokenizer follows by `tokenizer.with_genes`.
        Make an optimizer after this, since weights are replaced. The table of `added_genes_xtrimogene` says how each
        row of a new gene begins. Outputs for old genes stay what they were, except where all genes are attended to
        (`decoder_context="all"`) or share the counts of a cell (anchored models, latents), because there are more.

        Args:
            new: Number of genes, which begin as the mean of the others; or their vectors `(N, D)`, as wide as the gene
                table; or with `config.protein_size` embeddings of their proteins, `(N, protein_size)`.

        Raises:
            ValueError: If the model has no panel, the vectors have another width, or a gene has no protein.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
            >>> model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=50))
            >>> _ = model.add_genes(2)
            >>> model.config.num_genes, model.config.pad_token_id, model.get_input_embeddings().weight.shape
            (52, 52, torch.Size([53, 64]))
        """
        self.check_panel()
        grow_panel(self, new)
        return self

    def check_panel(self) -> None:
        """Refuse a model whose genes are those of another checkpoint.

        Raises:
            ValueError: If the configuration has no number of genes.
        """
        if "num_genes" not in type(self.config).__dataclass_fields__:
            raise ValueError(
                f"{type(self).__name__} has no panel of its own: add the genes to the checkpoint that it is made from, "
                f"and train it again"
            )

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Return the gene table; refuse another number of ids, which are rows of the panel, in all parts of the model.

        Raises:
            ValueError: If another number of ids is asked for, or the model has no panel.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
            >>> model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=50))
            >>> model.resize_token_embeddings(60)
            Traceback (most recent call last):
            ValueError: new_num_tokens is 60, and the model has 51 ids, ...
        """
        current = getattr(self.config, "vocab_size", None)
        if new_num_tokens not in (None, current) or pad_to_multiple_of is not None:
            self.check_panel()
            wanted = current if new_num_tokens is None else new_num_tokens
            raise ValueError(
                f"new_num_tokens is {wanted}, and the model has {current} ids, of which the first are genes and the "
                f"last is padding: add genes by model.add_genes(number) and tokenizer.with_genes(names, folder)"
            )
        return self.get_input_embeddings()

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Save weights, configuration and code, so that every Auto class can load the folder without the package.

        For a class that a user derived from these models, transformers copies the file of that class; loading it needs
        whatever that file imports. A class defined in a notebook has no file: its own `from_pretrained` loads it.
        """
        self.config.auto_map = dict(self.auto_map)
        is_own = type(self).__name__.removeprefix("FSDP") in self.own_classes
        if not is_own:
            # transformers adds the derived class. The files of our other models are not saved beside it.
            self.config.auto_map = {"AutoConfig": self.auto_map["AutoConfig"]}
        if self.pipelines and is_own:
            self.config.custom_pipelines = {task: dict(PIPELINES[task]) for task in self.pipelines}
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        # They belong to the folder: a configuration that is read has none either.
        self.config.__dict__.pop("custom_pipelines", None)
        # safetensors writes files that their owner alone can read. The others are as the user's umask says.
        for described in list(Path(save_directory).glob("*config.json"))[:1]:  # that of an adapter, if one is saved
            for path in Path(save_directory).glob("*.safetensors"):
                path.chmod(stat.S_IMODE(described.stat().st_mode))
        return saved

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **options: Any) -> Any:
        """Push weights, configuration, code and card to the Hub in one commit; push the tokenizer too.

        If the weights are those that were loaded, the card, pictures, metrics and calibration of the folder, or of the
        commit on the Hub, that they were loaded from are pushed with them. `xtrimogene push` pushes a folder as it is,
        with its tokenizer. What people wrote by hand into the card on the Hub stays.

        Args:
            repo_id: The repository, `user/name`; it is made if there is none.
            max_shard_size: Weights are split into files of at most this size.
            **options: `private`, `token`, `revision` (a branch), `commit_message`, `commit_description`, `create_pr`.

        Returns:
            The commit: text with its address, and `oid`, its hash.

        Raises:
            ValueError: If a file holds a secret or a path of this machine, or `private` is set and the repository is
                public.

        Example:
            >>> from transformers import AutoModel
            >>> AutoModel.from_pretrained("checkpoint").push_to_hub("me/blood", private=True)  # doctest: +SKIP
        """
        with TemporaryDirectory() as place:
            folder = Path(place) / repo_id.split("/")[-1]
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            add_run(folder, origin_of(self.config), self.base_model_prefix)
            if not (folder / CARD).is_file():
                (folder / CARD).write_text(new_card(repo_id, type(self).__name__), encoding="utf-8")
            return push_folder(folder, repo_id, **options).commit

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model; warn if a derived class saved it, whose code is not used here.

        Of a model from the Hub, `config._commit_hash` is the commit that it was loaded from.

        Raises:
            ValueError: If the folder is anchored and lacks a part of its anchor, such as the components of the bag of
                genes. Other weights that it lacks are new, and transformers lists them in a warning.
        """
        is_told = kwargs.pop("output_loading_info", False)
        folder = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        asked = {name: kwargs[name] for name in ("token", "local_files_only", "cache_dir") if name in kwargs}
        revision = resolve_revision(folder, kwargs.get("revision"), **asked)
        if revision is not None:
            kwargs["revision"] = revision
        loaded, found = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if isinstance(revision, ResolvedRevision):
            loaded.config._commit_hash = revision.resolved  # is not saved
        if folder is not None and any(is_of_anchor(name) for name in found["missing_keys"]):
            hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            saved = PreTrainedConfig.get_config_dict(folder, **hub)[0]
            refuse_half_an_anchor(str(folder), saved, found["missing_keys"], loaded.state_dict())
        saved_by = loaded.config.architectures or []
        if cls.__name__ in cls.own_classes and not cls.own_classes.issuperset(saved_by):
            warnings.warn(
                f"the checkpoint was saved by {saved_by[0]}, and {cls.__name__} takes its weights without its code: "
                f"load it with {saved_by[0]}.from_pretrained",
                stacklevel=2,
            )
        return (loaded, found) if is_told else loaded


def origin_of(config: Any) -> Path:
    """Return the folder that a model was loaded from; of one from the Hub, what its commit has of `OF_A_RUN`."""
    commit = getattr(config, "_commit_hash", None)
    if commit is None or os.path.isdir(config.name_or_path):
        return Path(config.name_or_path)
    return Path(snapshot_download(config.name_or_path, revision=commit, allow_patterns=list(OF_A_RUN)))


def add_run(folder: Path, origin: Path, prefix: str) -> None:
    """Copy card, pictures, metrics and calibration into `folder` from the folder of the same weights, if it is that.

    Weights are the same if their values are, whatever precision they are stored in. An encoder that is pushed without
    its decoder is the same model, and one without its classification head is another.

    Args:
        folder: The model that is pushed.
        origin: What it was loaded from.
        prefix: Of the names of the encoder's weights in models with a head.
    """
    old, new = weight_files(origin), weight_files(folder)
    names = {name: name if name in old else f"{prefix}.{name}" for name in new}
    kept = set(names.values())
    has_its_head = all(name in kept for name in old if name.startswith("classifier."))
    if not kept <= set(old) or not has_its_head:
        return
    if not all(equal_values(stored(new[name], name), stored(old[its], its)) for name, its in names.items()):
        return
    for pattern in OF_A_RUN:
        for file in origin.glob(pattern):
            if file.name != INDEX and file not in old.values() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)


def weight_files(folder: Path) -> dict[str, Path]:
    """Return name of each weight of a checkpoint -> the file that holds it; nothing if there are no weights."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return {name: folder / file for name, file in index["weight_map"].items()}
    if not (folder / WEIGHTS).is_file():
        return {}
    with safe_open(folder / WEIGHTS, "pt") as weights:
        return dict.fromkeys(weights.keys(), folder / WEIGHTS)


def stored(file: Path, name: str) -> torch.Tensor:
    """Return a weight from a file."""
    with safe_open(file, "pt") as weights:
        return weights.get_tensor(name)


def equal_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors hold the same values; a value that is rounded is another."""
    return one.shape == other.shape and torch.equal(one.double(), other.double())


class ClassifiesCells:
    """What the classifiers of all families do with the embeddings of cells; a family's class adds its encoder.

    The encoder is `self.model`, and the head is `self.classifier`.
    """

    # The decoder of a pre-trained checkpoint is left behind on purpose.
    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"^head\."]  # also `cell_decoder`
    pipelines: ClassVar[tuple[str, ...]] = ("cell-embedding", "cell-annotation")
    config: Any
    model: Any
    classifier: nn.Module
    training: bool

    def add_classifier(self) -> None:
        """Add the classification head that the configuration describes.

        Raises:
            ValueError: If there is not one class weight for each label.
        """
        config = self.config
        self.num_labels = config.num_labels
        if config.class_weights is not None and len(config.class_weights) != config.num_labels:
            raise ValueError(
                f"class_weights has {len(config.class_weights)} entries for {config.num_labels} labels: "
                f"give one weight for each label, in the order of id2label"
            )
        self.classifier = XTrimoGeneClassificationHead(config)
        self.is_checked = False  # set by the first training step, which checks the head

    def train_last_layers(self, layers: nn.ModuleList, norm: nn.Module, trainable_layers: int) -> None:
        """Train only the last `trainable_layers` of the encoder's layers, the final norm and the classifier.

        In an anchored model, the path from the encoder into the embedding learns with these layers.

        Raises:
            ValueError: If the encoder has fewer layers.
        """
        if not 0 <= trainable_layers <= len(layers):
            raise ValueError(f"trainable_layers is {trainable_layers}, the encoder has {len(layers)} layers")
        self.model.requires_grad_(False)
        for layer in layers[len(layers) - trainable_layers :]:
            layer.requires_grad_(True)
        norm.requires_grad_(trainable_layers > 0)
        if self.model.bag is not None:
            self.model.bag.from_encoder.requires_grad_(trainable_layers > 0)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        known_ids: torch.Tensor | None = None,
        known_values: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify cells.

        Args:
            input_ids: Ids of the tokens of each cell, from the family's tokenizer. Shape `(B, L)`.
            values: Their values. Shape `(B, L)`.
            attention_mask: 1 = token, 0 = padding, shape `(B, L)`; all but `pad_token_id` are tokens unless given.
            labels: Class ids `(B,)`; for regression numbers `(B,)` or `(B, C)`; for multi-label 0/1 `(B, C)`.
            known_ids: Where the encoder is shown only some genes, as in the training of TxFM: all expressed genes of
                the cell, padded with `pad_token_id`. The regression that the head adds to reads them. Shape `(B, E)`.
            known_values: Their values, shape `(B, E)`.
            num_items_in_batch: Labels over which the loss is averaged; those of this call unless given.
            lengths: Tokens of each cell, B numbers of the host: without them it waits for a GPU to count (`CellBatch`).
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `logits` `(B, C)`, and with labels the `loss`, a scalar.

        Raises:
            ValueError: In training, if a cell has no tokens.

        Source: arXiv:2311.15156, section 4 (annotation); head as released by scFoundation.

        Example:
            >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneForSequenceClassification
            >>> config = XTrimoGeneConfig.preset("tiny", num_genes=50, num_labels=3)
            >>> model = XTrimoGeneForSequenceClassification(config).eval()
            >>> input_ids, values = torch.tensor([[3, 7, 11]]), torch.tensor([[1.2, 0.7, 2.5]])
            >>> model(input_ids, values).logits.shape
            torch.Size([1, 3])
        """
        if self.training and (empty := self.number_of_empty(input_ids, attention_mask, lengths)):
            raise ValueError(
                f"{empty} of {len(input_ids)} cells of a batch have no tokens"
                f": remove empty cells before training, e.g. scanpy.pp.filter_cells(adata, min_counts=1)"
            )
        if self.training and not self.is_checked:
            self.is_checked = True
            if not self.classifier.is_begun:
                logger.warning(
                    "The classification head begins without statistics of its features, or without the regression that "
                    "it adds to: it learns worse so. Call begin_head(model, tokenizer, dataset) of "
                    "xtrimogene.training.finetuning before training; finetune does."
                )
        if known_ids is None and known_values is None:
            known = input_ids, values, attention_mask
        else:
            known = known_ids, known_values, None
            kwargs |= {"known_ids": known_ids, "known_values": known_values}
        encoded = self.model(input_ids, values, attention_mask, lengths=lengths, **{**kwargs, "return_dict": True})
        logits_BC = self.classify(encoded.pooler_output, *known)
        return SequenceClassifierOutput(
            loss=None if labels is None else self.task_loss(logits_BC, labels, num_items_in_batch),
            logits=logits_BC,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def number_of_empty(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, lengths: Sequence[int] | None
    ) -> int:
        """Return how many cells have no tokens, from their lengths if these are given."""
        if lengths is None or len(lengths) != len(input_ids):
            lengths = self.model.is_token(input_ids, attention_mask).sum(1).tolist()
        return sum(not length for length in lengths)

    def classify(
        self,
        pooled: torch.Tensor,
        input_ids: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return logits `(B, C)` for cell embeddings `(B, D)` and the tokens `(B, L)` of the same cells.

        What else a batch holds is not read.
        """
        return in_float32(self.classifier, pooled, input_ids, values, self.model.is_token(input_ids, attention_mask))

    def task_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Return the loss of the kind of labels (`problem_of`): a sum divided by `num_items_in_batch`.

        The library's regression loss takes a mean instead, which is wrong under gradient accumulation.

        Raises:
            TypeError: If labels are no tensor.
            ValueError: If labels are of another shape or kind than the model's, or there is no such class.
        """
        logits = logits.float()
        problem = problem_of(self.config, labels)
        check_labels(labels, logits, problem)
        if problem == "single_label_classification":
            weights = self.config.class_weights
            weights_C = None if weights is None else sent(weights, logits.device, logits.dtype)
            losses = nn.functional.cross_entropy(
                logits, labels.view(-1).long(), weights_C, ignore_index=IGNORED, reduction="none"
            )
        else:
            labels = labels.view(logits.shape).float()
            if problem == "regression":
                losses = (logits - labels).square()
            else:
                losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            losses = losses.masked_fill(labels == IGNORED, 0)
        count = (labels != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / count


def problem_of(config: Any, labels: torch.Tensor) -> str:
    """Return the kind of labels: that of the configuration, else what the labels look like, as in transformers.

    One label of a model is a number; int and long are ids of classes, and other numbers are 0 or 1 for each label.

    Raises:
        TypeError: If labels are no tensor.
        ValueError: If the configuration names another kind.
    """
    if not isinstance(labels, torch.Tensor):
        raise TypeError(
            f"labels is a {type(labels).__name__}: give a tensor of class ids (B,); model.config.label2id has those "
            f"of names"
        )
    if config.problem_type is not None:
        if config.problem_type not in PROBLEMS:
            raise ValueError(f"problem_type is {config.problem_type!r}: give one of {', '.join(PROBLEMS)}")
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    is_id = labels.dtype in (torch.long, torch.int)
    return "single_label_classification" if is_id else "multi_label_classification"


def check_labels(labels: torch.Tensor, logits: torch.Tensor, problem: str) -> None:
    """Refuse labels `(B,)` or `(B, C)` that do not fit logits `(B, C)`.

    Raises:
        ValueError: If their shape does not fit the kind of labels, they are no class ids, or there is no such class.
    """
    (num_cells, num_labels), is_one = logits.shape, problem == "single_label_classification"
    width = 1 if is_one else num_labels
    if tuple(labels.shape) not in ((num_cells, width), *([(num_cells,)] if width == 1 else [])):
        wanted = f"({num_cells},)" if is_one else f"({num_cells}, {num_labels})"
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)} for {num_cells} cells and {num_labels} labels: "
            f"{problem} needs {wanted}"
        )
    if not is_one:
        return
    if labels.is_floating_point() or labels.dtype is torch.bool:
        raise ValueError(
            f"labels are {labels.dtype} numbers, and {problem} needs class ids: give whole numbers, or set "
            f"problem_type to 'regression' or 'multi_label_classification'"
        )
    if is_at_hand(labels.device) and not torch.compiler.is_compiling():
        is_class = ((labels >= 0) & (labels < num_labels)) | (labels == IGNORED)
        if not is_class.all():
            raise ValueError(
                f"labels hold {int(labels[~is_class][0])}, and the model has {num_labels} labels: ids are 0 to "
                f"{num_labels - 1}, and {IGNORED} for cells without a label"
            )


def check_masked(labels: torch.Tensor, masked_ids: torch.Tensor | None) -> None:
    """Refuse labels `(B, M)` of masked genes without the ids of their genes.

    Raises:
        ValueError: If there are no ids, or they have another shape.
    """
    if masked_ids is None or labels.shape != masked_ids.shape:
        given = "none" if masked_ids is None else tuple(masked_ids.shape)
        raise ValueError(
            f"labels {tuple(labels.shape)} need masked_ids of the same shape, got {given}: "
            f"both come from DataCollatorForMaskedExpression"
        )
