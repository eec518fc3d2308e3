"""Embed every cell of an AnnData."""

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..modeling_xtrimogene.precision_xtrimogene import dtype_of_products
from ..released import chosen
from ..tokenization.reading import ModelInput
from .cell_model import CellModel, check_cells
from .familiarity import FULL_BYTES, Familiarity
from .options import Embedding, Running
from .provenance import describe

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT_KEY = "X_xtrimogene"


def embed(
    adata: "AnnData",
    model: str | os.PathLike | Any | None,
    cells: ModelInput,
    how: Embedding,
    running: Running,
    *,
    key_added: str = DEFAULT_KEY,
    copy: bool = False,
    say: Callable[[str], None] = print,
) -> "AnnData | None":
    """Write an embedding of every cell into `adata.obsm[key_added]`, in the order of the cells.

    Cells without counts on the panel get a NaN row and are marked in `adata.obs[key_added + "_empty"]`. The slot of the
    counts, the match of the genes and the model are written into `adata.uns[key_added]`.

    Cells that lie farther from the cells that the model was pre-trained on than 95 % of held-out cells do are marked in
    `adata.obs[key_added + "_unfamiliar"]` (`inference/familiarity.py`). If they are many, a warning says so. Older
    checkpoints, models that are not anchored and bfloat16 do not tell.

    `parity` computes what the scFoundation script does. Genes match only as they are written. Totals are those of the
    panel's genes. Values of 102 and 103 are taken for mask and padding. The target depth is `t4` unless given.

    Args:
        adata: Cells x genes with counts in `layers["counts"]`, `raw.X` or `X`; log1p-normalised values are undone.
        model: Checkpoint folder, Hub name or name of a checkpoint of `xtrimogene.checkpoint`; or a loaded model. The
            checkpoint `small`, which comes with the package, unless given.
        key_added: Where the result is written.
        copy: Return a changed copy instead of changing `adata`.
        say: Called with one line of text if no model is given: which it is, and what it knows.
        cells: Where the values are and what they mean.
        how: Pooling, target depth, parity.
        running: Batch size, device, precision.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: If no counts are found, too few genes are known, or values cannot be of the input type.

    Example:
        >>> import xtrimogene, scanpy
        >>> from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel, XTrimoGeneTokenizer
        >>> adata = scanpy.datasets.pbmc68k_reduced()[:5].copy()
        >>> XTrimoGeneModel(XTrimoGeneConfig.preset("tiny")).save_pretrained("checkpoint")
        >>> _ = XTrimoGeneTokenizer.default().save_pretrained("checkpoint")
        >>> xtrimogene.tl.embed(adata, "checkpoint")
        >>> adata.obsm["X_xtrimogene"].shape
        (5, 64)
        >>> xtrimogene.tl.embed(adata)
        Model: small, which comes with xtrimogene. It was trained on ...
        >>> adata.obs["X_xtrimogene_unfamiliar"].dtype
        dtype('bool')
    """
    check_cells(adata, cells, how.target_depth)
    model = chosen(model, "embed", say)
    adata = adata.copy() if copy else adata
    loaded = CellModel.load(model, running, pooling=how.pooling, target_depth=how.target_depth, parity=how.parity)
    counts = loaded.read(adata, cells)
    adata.obsm[key_added] = loaded.embed(counts, running)
    describe(adata, key_added, loaded, counts)
    tell_unfamiliar(adata, key_added, loaded)
    return adata if copy else None


def tell_unfamiliar(adata: "AnnData", key: str, loaded: CellModel) -> None:
    """Write into `obs` which cells are unlike those that a model was pre-trained on, if its checkpoint tells.

    Args:
        adata: Cells with the embedding `obsm[key]` and its provenance.
        key: Name of the embedding.
        loaded: The model that made it.
    """
    is_full = dtype_of_products(loaded.model).itemsize >= FULL_BYTES
    is_tuned = bool(loaded.adapter)  # what holds of the base does not hold of what an adapter tuned
    familiarity = Familiarity.load(loaded.model) if is_full and not is_tuned else None
    if familiarity is None:
        if f"{key}_unfamiliar" in adata.obs:  # of an earlier call
            del adata.obs[f"{key}_unfamiliar"]
        return
    is_unfamiliar = familiarity.is_unfamiliar(adata.obsm[key])
    adata.obs[f"{key}_unfamiliar"] = is_unfamiliar
    is_there = ~np.isnan(adata.obsm[key]).any(axis=1)
    adata.uns[key]["unfamiliar"] = about = familiarity.described(is_unfamiliar[is_there])
    if doubt := about.get("doubt"):
        warnings.warn(doubt, stacklevel=3)
