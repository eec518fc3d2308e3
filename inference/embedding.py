"""Embed every cell of an AnnData."""

import os
from typing import TYPE_CHECKING, Any

from ..tokenization.reading import ModelInput
from .cell_model import CellModel, check_cells
from .options import Embedding, Running
from .provenance import describe

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT_KEY = "X_xtrimogene"


def embed(
    adata: "AnnData",
    model: str | os.PathLike | Any,
    cells: ModelInput,
    how: Embedding,
    running: Running,
    *,
    key_added: str = DEFAULT_KEY,
    copy: bool = False,
) -> "AnnData | None":
    """Write an embedding of every cell into `adata.obsm[key_added]`, in the order of the cells.

    Cells without counts on the panel get a NaN row and are marked in `adata.obs[key_added + "_empty"]`. The slot of the
    counts, the match of the genes and the model are written into `adata.uns[key_added]`.

    `parity` computes what the scFoundation script does. Genes match only as they are written. Totals are those of the
    panel's genes. Values of 102 and 103 are taken for mask and padding. The target depth is `t4` unless given.

    Args:
        adata: Cells x genes with counts in `layers["counts"]`, `raw.X` or `X`; log1p-normalised values are undone.
        model: Checkpoint folder or Hub name; or a loaded model.
        key_added: Where the result is written.
        copy: Return a changed copy instead of changing `adata`.
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
    """
    check_cells(adata, cells, how.target_depth)
    adata = adata.copy() if copy else adata
    loaded = CellModel.load(model, running, pooling=how.pooling, target_depth=how.target_depth, parity=how.parity)
    counts = loaded.read(adata, cells)
    adata.obsm[key_added] = loaded.embed(counts, running)
    describe(adata, key_added, loaded, counts)
    return adata if copy else None
