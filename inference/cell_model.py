"""A checkpoint and its tokenizer on a device, and the cells to run them on."""

import copy as copying
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from anndata import AnnData

    from ..tokenization.reading import ModelInput
    from .options import Running


@dataclass
class Prepared:
    """Model, tokenizer and cells, ready to run."""

    model: Any
    tokenizer: Any
    cells: Any
    target_depth: float | str | None


def prepare(
    adata: "AnnData",
    model: str | os.PathLike | Any,
    source: "ModelInput",
    running: "Running",
    target_depth: float | str | None,
    *,
    parity: bool = False,
    pooling: str | None = None,
    task: Literal["embed", "annotate", "reconstruct"] = "embed",
) -> Prepared:
    """Load the model and find the cells.

    Args:
        adata: Cells.
        model: Checkpoint folder or Hub name; or a loaded model.
        source: Where the values are and what they mean.
        running: Device and precision.
        target_depth: Depth that the target token says.
        parity: Whether to compute what the scFoundation script does.
        pooling: Of the embedding; that of the checkpoint unless given.
        task: What the model is to do.

    Raises:
        ValueError: If no counts are found, too few genes are known, values cannot be of the input type, or the model
            cannot do the task.
    """
    input_type, total_key = source.input_type, source.total_key
    totals = None
    if input_type == "log-total" and total_key is None:
        raise ValueError(
            f"input_type is 'log-total', and total_key names no column with the total count of each cell; obs has "
            f"{', '.join(map(str, adata.obs)) or 'none'}"
        )
    if input_type.startswith("bulk") and target_depth is not None:
        raise ValueError(
            f"target_depth is {target_depth!r}, and bulk samples have none: T is S, as in scFoundation; leave it out"
        )
    if total_key is not None:
        if total_key not in adata.obs or adata.obs[total_key].dtype.kind not in "iuf":
            raise ValueError(
                f"total_key is {total_key!r}, and obs has the columns {', '.join(map(str, adata.obs)) or 'none'}: name "
                f"one that holds numbers, the total count of each cell"
            )
        totals = adata.obs[total_key].to_numpy()
    loaded, tokenizer = load(
        model, running.device, running.dtype, pooling=pooling, task=task, target_depth=target_depth, parity=parity
    )
    if parity and not tokenizer.depth_tokens:
        raise ValueError(
            f"parity is that of scFoundation, whose models have depth tokens, and {loaded.config.name_or_path} has "
            f"none: leave it out"
        )
    if parity and target_depth is None and not input_type.startswith("bulk"):
        target_depth = "t4"
    cells = tokenizer.read_counts(
        adata,
        layer=source.layer,
        gene_names=source.gene_names,
        gene_column=source.gene_column,
        input_type=input_type,
        totals=totals,
        parity=parity,
    )
    return Prepared(loaded, tokenizer, cells, target_depth)


def check_cells(adata: Any) -> None:
    """Refuse what is no AnnData.

    Raises:
        TypeError: If it is none.
    """
    if not hasattr(adata, "obsm"):
        raise TypeError(
            f"adata is a {type(adata).__name__}: read it first, e.g. anndata.read_h5ad(path), or use `xtrimogene embed`"
        )


def check_checkpoint(path: str) -> None:
    """Refuse a folder that cannot be a checkpoint; what is no folder may be a Hub name.

    Raises:
        ValueError: If it has no config.json.
    """
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise ValueError(
            f"{path} has no config.json, it holds {', '.join(sorted(os.listdir(path))[:5]) or 'nothing'}: a checkpoint "
            f"is a folder written by save_pretrained, `xtrimogene pretrain` or `xtrimogene finetune`"
        )


def load(
    model: str | os.PathLike | Any,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    pooling: str | None = None,
    task: Literal["embed", "annotate", "reconstruct"] = "embed",
    target_depth: float | str | None = None,
    parity: bool = False,
) -> tuple[Any, Any]:
    """Return model and tokenizer of a checkpoint, on the device and ready for inference.

    Raises:
        ValueError: If the folder holds no checkpoint, or no classifier or decoder where one is needed.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForPreTraining,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    from .devices import pick_device, pick_dtype

    if hasattr(model, "get_base_model"):  # of peft: its adapters stay inside
        model = model.get_base_model()
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model.config.name_or_path
    if not path:
        raise ValueError(
            f"this {type(model).__name__} was not loaded from a folder, so its tokenizer is not known: save both with "
            f"save_pretrained and give the folder"
        )
    check_checkpoint(path)
    if isinstance(model, (str, os.PathLike)):
        architectures = AutoConfig.from_pretrained(path).architectures or ["model"]
    else:
        architectures = [type(model).__name__]
    if task == "annotate" and "XTrimoGeneForSequenceClassification" not in architectures:
        raise ValueError(
            f"{path} is a {', '.join(architectures)} and knows no cell types: give a labelled reference "
            f"(reference=..., label_key=...), or fine-tune it first with `xtrimogene finetune`"
        )
    if task == "reconstruct" and "XTrimoGeneForPreTraining" not in architectures:
        raise ValueError(
            f"{path} is a {', '.join(architectures)}, and genes are predicted by XTrimoGeneForPreTraining: give the "
            f"folder of a pre-trained checkpoint, or a model loaded with AutoModelForPreTraining"
        )
    if parity and dtype == "bfloat16":
        raise ValueError("dtype is bfloat16, and parity is that of float32: leave one of them out")
    if pooling not in (None, "all", "max", "mean", "S", "T"):
        raise ValueError(f"pooling is {pooling!r}: give all, max, mean, S or T")
    if isinstance(model, (str, os.PathLike)):
        place = pick_device(device)
        number = pick_dtype(dtype)
        classes = {"annotate": AutoModelForSequenceClassification, "reconstruct": AutoModelForPreTraining}
        changes = {"sentinel_values": True, "favor_stabilizer": "batch"} if parity else {}
        number = torch.float32 if parity else number
        loaded = classes.get(task, AutoModel).from_pretrained(path, dtype=number, **changes).to(place)
    else:  # a model that was given stays as it is: what changes is a copy that shares its weights
        if parity:
            raise ValueError(f"parity needs the folder of a checkpoint, and a loaded {type(model).__name__} was given")
        loaded = copying.copy(model.base_model if task == "embed" else model)
    if task != "annotate" and target_depth is not None and not loaded.config.depth_tokens:
        raise ValueError(
            f"target_depth is {target_depth}, but {path} has no depth tokens and cannot use it: leave it out"
        )
    if pooling is not None:
        loaded.config = copying.deepcopy(loaded.config)
        loaded.config.pooling = pooling
        loaded.config.validate()
    tokenizer = AutoTokenizer.from_pretrained(path)
    ours, theirs = (loaded.config.vocab_size, loaded.config.pad_token_id), (len(tokenizer), tokenizer.pad_token_id)
    if ours != theirs:
        raise ValueError(
            f"model and tokenizer of {path} do not belong together: the model has {ours[0]} ids and padding {ours[1]}, "
            f"the tokenizer {theirs[0]} and {theirs[1]}: save both of one training run into one folder"
        )
    return loaded, tokenizer
