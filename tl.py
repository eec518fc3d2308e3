"""Tools for AnnData, as in scanpy: they take `adata` and write their result into it."""

import copy as copying
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT_KEY = "X_xtrimogene"


def embed(
    adata: "AnnData",
    model: str | os.PathLike | Any,
    *,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    gene_column: str | None = None,
    pooling: Literal["all", "max", "mean", "S", "T"] | None = None,
    target_depth: float | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    key_added: str = DEFAULT_KEY,
    copy: bool = False,
    together: bool = False,
    progress: Any = None,
) -> "AnnData | None":
    """Write an embedding of every cell into `adata.obsm[key_added]`, in the order of the cells.

    Cells without counts on the panel get a NaN row; `adata.obs[key_added + "_empty"]` says which. Where the counts were
    found, how the genes were matched, and what model was used is written into `adata.uns[key_added]`.

    Args:
        adata: Cells x genes with counts in `layers["counts"]`, `raw.X` or `X`; log1p-normalised values are undone.
        model: Checkpoint folder or Hub name; or a loaded model.
        layer: Layer with the counts, if they are not found by themselves.
        gene_names: Names of the columns, if `adata` does not hold them.
        gene_column: Column of `adata.var` with the gene names.
        pooling: See `XTrimoGeneConfig`; that of the checkpoint unless given.
        target_depth: See `XTrimoGeneTokenizer.tokenize_counts`.
        batch_size: Cells at a time; `auto` fits them to the device. The embedding does not depend on it.
        device: `auto`, `cpu`, `cuda` or `mps`.
        dtype: In what a model from a folder computes; `auto` is bfloat16 on a GPU that has it, else float32.
        key_added: Where the result is written.
        copy: Return a changed copy instead of changing `adata`.
        together: See `run_cells`.
        progress: Called with the number of cells done after each batch.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: If no counts are found, or too few genes are known.
    """
    from .eval.inference import embed_cells

    if not hasattr(adata, "obsm"):
        raise TypeError(
            f"adata is a {type(adata).__name__}: read it first, e.g. anndata.read_h5ad(path), or use `xtrimogene embed`"
        )
    adata = adata.copy() if copy else adata
    loaded, tokenizer = load(model, device, dtype, pooling=pooling, target_depth=target_depth)
    cells = tokenizer.read_counts(adata, layer=layer, gene_names=gene_names, gene_column=gene_column)
    adata.obsm[key_added] = embed_cells(
        loaded,
        tokenizer,
        cells,
        batch_size=batch_size,
        target_depth=target_depth,
        together=together,
        progress=progress,
    )
    adata.obs[f"{key_added}_empty"] = np.isnan(adata.obsm[key_added]).any(axis=1)
    adata.uns[key_added] = provenance(loaded, cells, target_depth)
    return adata if copy else None


def annotate(
    query: "AnnData",
    model: str | os.PathLike | Any,
    *,
    reference: "AnnData | None" = None,
    label_key: str | None = None,
    n_neighbors: int = 15,
    layer: str | None = None,
    gene_column: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    key_added: str = "xtrimogene",
    copy: bool = False,
    together: bool = False,
    progress: Any = None,
) -> "AnnData | None":
    """Write a cell type for every cell into `query.obs`; the query needs no labels.

    With a `reference`, labels are those of the nearest reference cells in the embedding of `model`, without training.
    Without one, `model` is a fine-tuned classifier that knows its labels.

    Writes `obs[key_added + "_label"]` (missing for cells without counts) and `obs[key_added + "_probability"]`.

    Args:
        query: See `embed`.
        model: Checkpoint folder or Hub name, or a loaded model.
        reference: Labelled cells.
        label_key: Column of `reference.obs` with the labels.
        n_neighbors: Reference cells that vote.
        layer: See `embed`.
        gene_column: See `embed`.
        batch_size: See `embed`.
        device: See `embed`.
        dtype: See `embed`.
        key_added: Beginning of the names of the columns written.
        copy: See `embed`.
        together: See `run_cells`.
        progress: See `embed`.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: If labels are asked for that nobody gave.
    """
    import pandas as pd

    from .eval.inference import class_probabilities, embed_cells
    from .eval.neighbors import label_probabilities

    query = query.copy() if copy else query
    options = {"batch_size": batch_size, "together": together, "progress": progress}
    if reference is None and label_key is not None:
        raise ValueError(
            f"label_key is {label_key!r}, but there is no reference to take labels from: give reference=..."
        )
    if reference is not None:
        labels = reference_labels(reference, label_key)
        loaded, tokenizer = load(model, device, dtype)
        known = tokenizer.read_counts(reference, layer=layer, gene_column=gene_column)
        cells = tokenizer.read_counts(query, layer=layer, gene_column=gene_column)
        probabilities, names = label_probabilities(
            embed_cells(loaded, tokenizer, known, **options),
            labels,
            embed_cells(loaded, tokenizer, cells, **options),
            n_neighbors,
        )
    else:
        loaded, tokenizer = load(model, device, dtype, task="annotate")
        cells = tokenizer.read_counts(query, layer=layer, gene_column=gene_column)
        probabilities = class_probabilities(loaded, tokenizer, cells, **options)
        names = [loaded.config.id2label[index] for index in range(loaded.config.num_labels)]
    is_empty = np.isnan(probabilities).any(axis=1)
    best = np.where(is_empty, -1, np.nan_to_num(probabilities).argmax(axis=1))
    query.obs[f"{key_added}_label"] = pd.Categorical.from_codes(best, names)
    query.obs[f"{key_added}_probability"] = probabilities.max(axis=1)
    query.uns[key_added] = provenance(loaded, cells, None)
    return query if copy else None


def reference_labels(reference: "AnnData", label_key: str | None) -> np.ndarray:
    """Return the labels of the reference cells as text.

    Raises:
        ValueError: If there is no such column, or labels are missing.
    """
    if label_key is None or label_key not in reference.obs:
        raise ValueError(
            f"label_key is {label_key!r}, and the reference has the columns "
            f"{', '.join(reference.obs.columns) or 'none'}: name the one with the cell types"
        )
    labels = reference.obs[label_key]
    if labels.isna().any():
        raise ValueError(
            f"reference.obs[{label_key!r}] has no label for {labels.isna().sum()} of {len(labels)} cells: "
            f"keep labelled cells only, e.g. reference[reference.obs[{label_key!r}].notna()]"
        )
    return labels.astype(str).to_numpy()


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
    task: Literal["embed", "annotate"] = "embed",
    target_depth: float | None = None,
) -> tuple[Any, Any]:
    """Return model and tokenizer of a checkpoint, on the device and ready for inference.

    Raises:
        ValueError: If the folder holds no checkpoint, or no classifier where one is needed.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    from .eval.inference import pick_device, pick_dtype

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
    if isinstance(model, (str, os.PathLike)):
        place = pick_device(device)
        number = pick_dtype(dtype, place)
        loaded = (AutoModelForSequenceClassification if task == "annotate" else AutoModel).from_pretrained(path)
        loaded = loaded.to(place, number)
    else:  # a model that was given stays as it is: what changes is a copy that shares its weights
        loaded = copying.copy(model if task == "annotate" else model.base_model)
    if task == "embed" and target_depth is not None and not loaded.config.depth_tokens:
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


def provenance(model: Any, cells: Any, target_depth: float | None) -> dict[str, Any]:
    """Return what is written into `uns`: model, counts, genes, versions."""
    import torch
    import transformers

    from . import __version__

    settings = {
        "model": model.config.name_or_path,
        "revision": getattr(model.config, "_commit_hash", None) or "",
        "pooling": model.config.pooling,
        "dtype": str(model.dtype).removeprefix("torch."),
        "target_depth": "cell" if target_depth is None else target_depth,
        "counts": cells.description,
        "genes": cells.match.to_dict(),
        "xtrimogene": __version__,
        "transformers": transformers.__version__,
        "torch": str(torch.__version__),  # its own class is no text for AnnData's writer
    }
    return settings
