"""Decode genes: embeddings in the context of a cell, predicted expression, enhanced cells."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..atomic import check_room, size_text, whole_folder
from ..tokenization.counts_xtrimogene import columns_of, name_candidates
from ..tokenization.reading import ModelInput
from .cell_model import CellModel, check_cells
from .options import Decoding, Depth, Running
from .provenance import describe, provenance

if TYPE_CHECKING:
    from anndata import AnnData


def embed_genes(
    adata: "AnnData",
    model: str | os.PathLike | Any,
    output: str | os.PathLike,
    cells: ModelInput,
    how: Decoding,
    running: Running,
    *,
    what: Literal["gene", "expression"] = "gene",
    genes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write embeddings or predicted expression of genes in every cell into a zarr folder, cell by cell.

    The folder holds `embedding` `(cells, Q, E)` or `expression` `(cells, Q)`, float32, one chunk a cell, the names
    `cells` and `genes`, and the provenance as attributes: `zarr.open(output)["embedding"][0]` reads one cell. Cells
    without counts on the panel are NaN. An interrupted run leaves nothing under this name.

    `parity` computes what the scFoundation script does. In the script, genes depend on all cells of a forward pass.
    `batch_size` is then 1 unless given, as in its mode `gene`; give the number of cells for its mode `gene_batch`.

    Args:
        adata: Cells x genes with counts in `layers["counts"]`, `raw.X` or `X`; log1p-normalised values are undone.
        model: A checkpoint with its decoder: pre-trained, not fine-tuned.
        output: The folder. A folder that this function wrote is replaced; anything else there is an error.
        what: `gene`: embeddings of genes in the context of the cell; `expression`: predicted values, `log1p` of counts
            per 10,000.
        genes: Names of the genes wanted, or one; all of the panel unless given, 19,264 x 512 numbers a cell at the 100M
            size.
        cells: Where the values are and what they mean.
        how: Target depth, parity.
        running: Batch size, device, precision.

    Returns:
        The provenance, with the `shape` of the array, and `genes_without_column`: the genes asked for of which `adata`
        has no column. The model treats them as zero genes.

    Raises:
        ValueError: If no counts are found, too few genes are known, the model has no decoder, genes are unknown, the
            disk is too small, or `output` is something else.

    Example:
        >>> import zarr
        >>> made_by = xtrimogene.tl.embed_genes(adata, "checkpoint", "genes.zarr", genes=["TP53"])
        >>> zarr.open("genes.zarr")["embedding"][0].shape
        (1, 64)
    """
    import zarr
    from anndata.io import write_elem

    check_cells(adata, cells, how.target_depth)
    if what not in ("gene", "expression"):
        raise ValueError(f"what is {what!r}: give 'gene' or 'expression'")
    output = Path(output)
    check_genes_folder(output)
    loaded = CellModel.load(model, running, task="reconstruct", target_depth=how.target_depth, parity=how.parity)
    counts = loaded.read(adata, cells)
    genes = [genes] if isinstance(genes, str) else genes
    names = loaded.tokenizer.genes if genes is None else list(genes)
    gene_ids = None if genes is None else ids_of(loaded.tokenizer, names)
    made_by = provenance(loaded, counts)
    if gene_ids is not None:
        is_there = np.isin(gene_ids, counts.match.rows)
        made_by["genes_without_column"] = [name for name, known in zip(names, is_there, strict=True) if not known]
    if how.parity and running.batch_size == "auto":
        running = replace(running, batch_size=1)

    with whole_folder(output) as unfinished:
        group = zarr.create_group(unfinished)
        run, name = (loaded.decode, "embedding") if what == "gene" else (loaded.predict_expression, "expression")
        results = run(counts, gene_ids, running, make_results=partial(make_array, unfinished, name, output))
        write_elem(group, "cells", np.array(counts.cell_names))
        write_elem(group, "genes", np.array(names))
        group.attrs["xtrimogene"] = made_by
    return {**made_by, "shape": list(results.shape)}


def make_array(folder: Path, name: str, output: Path, shape: tuple[int, ...]) -> Any:
    """Return an empty zarr array, one chunk a cell, in a folder that will be called `output`.

    Raises:
        ValueError: If the disk has no room for it.
    """
    import zarr

    numbers = " x ".join(f"{size:,}" for size in shape)
    check_room(output, 4 * math.prod(shape), f"{numbers} numbers", "choose genes, or cells")
    # Embeddings are dense and noisy: compressing them takes time and saves little.
    return zarr.create_array(folder, name=name, shape=shape, chunks=(1, *shape[1:]), dtype="float32", compressors=None)


def enhance(
    adata: "AnnData",
    model: str | os.PathLike | Any,
    cells: ModelInput,
    how: Depth,
    running: Running,
    *,
    key_added: str = "enhanced",
    copy: bool = False,
) -> "AnnData | None":
    """Predict the expression of every gene in every cell, as if it had been read to `target_depth`.

    Writes `layers[key_added]`, predicted `log1p` of counts per 10,000 as dense float32 (NaN for columns that are no
    genes of the panel), and `obsm["X_" + key_added]`, the embedding. Models without depth tokens denoise at the depth
    of the cell. Cells without counts on the panel are NaN, see `obs["X_" + key_added + "_empty"]`.

    A prediction is the model's opinion, not a measurement: do not test differential expression on it, since the model
    has smoothed over what it takes for noise.

    Args:
        adata: Cells x genes with counts in `layers["counts"]`, `raw.X` or `X`; log1p-normalised values are undone.
        model: A checkpoint with its decoder: pre-trained, not fine-tuned; of scFoundation the entry `rde`.
        key_added: Name of the layer.
        copy: Return a changed copy instead of changing `adata`.
        cells: Where the values are and what they mean.
        how: Target depth; above the depth of a cell it is enhanced.
        running: Batch size, device, precision.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: If no counts are found, too few genes are known, the model has no decoder, or the layer does not fit
            into memory.

    Source: scFoundation, read-depth enhancement.

    Example:
        >>> xtrimogene.tl.enhance(adata, "checkpoint")
        >>> adata.layers["enhanced"].shape
        (5, 765)
    """
    check_cells(adata, cells, how.target_depth)
    adata = adata.copy() if copy else adata
    loaded = CellModel.load(model, running, task="reconstruct", target_depth=how.target_depth)
    counts = loaded.read(adata, cells)
    gene_rows = panel_ids(adata, loaded.tokenizer.matcher, cells)
    is_gene = gene_rows >= 0
    gene_ids, place = np.unique(gene_rows[is_gene], return_inverse=True)
    check_memory(adata, len(gene_ids) + loaded.model.config.pooled_size)
    predicted = loaded.predict_expression(counts, gene_ids.astype(np.int64), running, with_embedding=True)
    width = predicted.shape[1] - len(gene_ids)
    values = np.full(adata.shape, np.nan, np.float32)
    for start in range(0, len(values), 1024):  # in parts, to save the memory of a third table of this size
        rows = slice(start, start + 1024)
        values[rows, is_gene] = predicted[rows, width:][:, place]
    key = f"X_{key_added}"
    adata.layers[key_added] = values
    adata.obsm[key] = predicted[:, :width].copy()
    describe(adata, key, loaded, counts)
    return adata if copy else None


def panel_ids(adata: "AnnData", matcher: Any, cells: ModelInput) -> np.ndarray:
    """Return the panel id of each column of `adata.X`, -1 for columns that are no genes of the panel, `(columns,)`.

    They are matched separately, because the counts may come from `raw`, which has other columns.

    Raises:
        ValueError: If the number of names is not the number of columns.
    """
    own = adata if cells.gene_column is None or cells.gene_column in adata.var else adata.raw
    candidates = name_candidates(own, cells.gene_names, cells.gene_column, "")
    names = {where: [str(name) for name in listed] for where, listed in candidates.items()}
    num_names = len(next(iter(names.values())))
    if num_names != adata.n_vars:
        raise ValueError(
            f"{num_names:,} names of genes are given, and adata has {adata.n_vars:,} columns: a layer needs one "
            f"for each, e.g. adata = adata.raw.to_adata()"
        )
    is_read = columns_of(adata, own, names, matcher.knows).is_read
    gene_rows = np.full(adata.n_vars, -1)
    chosen = {where: list(compress(listed, is_read)) for where, listed in names.items()}
    # One gene will do: the counts have been matched, and X may hold few chosen genes of a small panel.
    gene_rows[is_read] = matcher.best_match(chosen, min_share=1e-9).rows
    return gene_rows


def check_memory(adata: "AnnData", num_predicted: int) -> None:
    """Refuse a layer that does not fit into memory beside `num_predicted` numbers a cell.

    Raises:
        ValueError: If it does not.
    """
    import psutil

    needed = 4 * adata.n_obs * (num_predicted + adata.n_vars)
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"the layer of {adata.n_obs:,} cells x {adata.n_vars:,} columns is dense: with the predictions "
            f"{size_text(needed)} of memory, and {size_text(free)} are free: give fewer cells or columns, or write "
            f"predictions to disk with tl.embed_genes(..., what='expression') (`xtrimogene embed --output-type "
            f"expression`)"
        )


def check_genes_folder(output: Path) -> None:
    """Refuse an output that exists and was not written by `embed_genes`.

    Raises:
        ValueError: If it is a file, or a folder with something else.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not is_genes_folder(output)):
        raise ValueError(f"{output} exists and is no folder of gene embeddings: choose another output")


def is_genes_folder(folder: Path) -> bool:
    """Return whether `embed_genes` wrote a folder."""
    import zarr

    try:
        return "xtrimogene" in zarr.open_group(folder, mode="r").attrs
    except (FileNotFoundError, ValueError, KeyError):
        return False


def ids_of(tokenizer: Any, genes: Sequence[str]) -> np.ndarray:
    """Return the ids of genes under any of their names, int64.

    Raises:
        ValueError: If some are not on the panel, or there are none.
    """

    def id_of(gene: str) -> int:
        try:
            index = tokenizer.convert_tokens_to_ids(gene)
        except KeyError:
            return -1
        return index if index < tokenizer.num_genes else -1

    ids = np.array([id_of(gene) for gene in genes], np.int64)
    unknown = [gene for gene, index in zip(genes, ids, strict=True) if index < 0]
    if unknown or not len(ids):
        raise ValueError(
            f"{len(unknown)} of {len(genes)} genes asked for are not among the {tokenizer.num_genes:,} of the panel: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; give symbols or Ensembl ids"
        )
    return ids
