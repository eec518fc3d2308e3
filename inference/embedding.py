"""Embed every cell of an AnnData."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from .cell_model import CellModel, check_cells
from .provenance import describe

if TYPE_CHECKING:
    from anndata import AnnData

    from ..tokenization.panel_xtrimogene import InputType


DEFAULT_KEY = "X_xtrimogene"


def embed(
    adata: "AnnData",
    model: str | os.PathLike | Any,
    *,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    gene_column: str | None = None,
    input_type: "InputType" = "counts",
    total_key: str | None = None,
    pooling: Literal["all", "max", "mean", "S", "T"] | None = None,
    target_depth: float | str | None = None,
    parity: bool = False,
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
        input_type: What the numbers mean: `counts`, or scFoundation's other inputs, `log`, `log-total`, `bulk` and
            `bulk-log` (table in `tokenization/panel_xtrimogene.py`), which are those of `layer` or of `X`.
        total_key: For `log-total` the column of `adata.obs` with the total count of each cell.
        pooling: See `XTrimoGeneConfig`; that of the checkpoint unless given.
        target_depth: See `XTrimoGeneTokenizer.tokenize_counts`.
        parity: Compute what the scFoundation script does, with its oddities: genes match only as they are written,
            totals are those of the panel's genes, values of 102 and 103 are taken for mask and padding, and the target
            depth is `t4` unless given. Of those of its results that depend on the other cells of a batch, see
            `embed_genes`.
        batch_size: Cells at a time; `auto` fits them to the device. The embedding does not depend on it.
        device: `auto`, `cpu`, `cuda` or `mps`.
        dtype: In what the layers of a model from a folder compute; `auto` is float32. bfloat16 is faster where the
            processor has it, and moves an embedding by some tenths of the spread of the cells
            (`precision_xtrimogene.py`, `eval/cost/benchmarks/precision.py`).
        key_added: Where the result is written.
        copy: Return a changed copy instead of changing `adata`.
        together: See `run_cells`.
        progress: Called with the number of cells done after each batch.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: If no counts are found, too few genes are known, or values cannot be of the input type.
    """
    check_cells(adata)
    adata = adata.copy() if copy else adata
    loaded = CellModel.load(model, device, dtype, pooling=pooling, target_depth=target_depth, parity=parity)
    cells = loaded.read(
        adata, layer=layer, gene_names=gene_names, gene_column=gene_column, input_type=input_type, total_key=total_key
    )
    adata.obsm[key_added] = loaded.embed(cells, batch_size=batch_size, together=together, progress=progress)
    describe(adata, key_added, loaded, cells)
    return adata if copy else None
