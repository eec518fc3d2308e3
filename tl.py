"""Tools for AnnData, as in scanpy: they take `adata` and write their result into it."""

import copy as copying
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

    from .tokenization.panel_xtrimogene import InputType

DEFAULT_KEY = "X_xtrimogene"
FULL_BYTES = 4  # of float32; what is narrower is half precision or quantised


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
            (`precision_xtrimogene.py`, `eval/benchmarks/precision.py`).
        key_added: Where the result is written.
        copy: Return a changed copy instead of changing `adata`.
        together: See `run_cells`.
        progress: Called with the number of cells done after each batch.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: If no counts are found, too few genes are known, or values cannot be of the input type.
    """
    from .eval.inference import embed_cells

    check_cells(adata)
    adata = adata.copy() if copy else adata
    found = prepare(
        adata, model, layer, gene_names, gene_column, input_type, total_key, target_depth, parity,
        device=device, dtype=dtype, pooling=pooling,
    )  # fmt: skip
    adata.obsm[key_added] = embed_cells(
        found.model,
        found.tokenizer,
        found.cells,
        batch_size=batch_size,
        target_depth=found.target_depth,
        together=together,
        progress=progress,
    )
    describe(adata, key_added, found, parity)
    return adata if copy else None


def embed_genes(
    adata: "AnnData",
    model: str | os.PathLike | Any,
    output: str | os.PathLike,
    *,
    what: Literal["gene", "expression"] = "gene",
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    gene_column: str | None = None,
    input_type: "InputType" = "counts",
    total_key: str | None = None,
    target_depth: float | str | None = None,
    parity: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    progress: Any = None,
) -> dict[str, Any]:
    """Write what the decoder gives for genes in every cell into a zarr folder, cell by cell as it comes.

    The folder holds `embedding` `(cells, Q, E)` or `expression` `(cells, Q)`, float32, one chunk a cell, the names
    `cells` and `genes`, and the provenance as attributes: `zarr.open(output)["embedding"][0]` reads one cell. Cells
    without counts on the panel are NaN. An interrupted run leaves nothing under this name.

    Args:
        adata: See `embed`.
        model: A checkpoint with its decoder: pre-trained, not fine-tuned.
        output: The folder; one that this function wrote is replaced, anything else refused.
        what: `gene`: embeddings of genes in the context of the cell; `expression`: predicted values, `log1p` of counts
            per 10,000.
        genes: Names of the genes wanted, or one; all of the panel unless given, 19,264 x 512 numbers a cell at the 100M
            size.
        layer: See `embed`.
        gene_names: See `embed`.
        gene_column: See `embed`.
        input_type: See `embed`.
        total_key: See `embed`.
        target_depth: See `embed`.
        parity: See `embed`. In the script genes depend on all cells that share a forward pass: `batch_size` is then 1
            unless given (its `gene`); give the number of cells for its `gene_batch`.
        batch_size: See `embed`.
        device: See `embed`.
        dtype: See `embed`.
        progress: See `embed`.

    Returns:
        The provenance, with the `shape` of the array, and `genes_without_column`: those asked for that no column of
        `adata` holds, which the model takes for zero.

    Raises:
        ValueError: See `embed`; if the model has no decoder, genes are unknown, the disk is too small, or `output` is
            something else.
    """
    import shutil

    import zarr
    from anndata.io import write_elem

    from .eval import inference
    from .training.folders import whole_folder

    check_cells(adata)
    if what not in ("gene", "expression"):
        raise ValueError(f"what is {what!r}: give 'gene' or 'expression'")
    output = Path(output)
    check_genes_folder(output)
    found = prepare(
        adata, model, layer, gene_names, gene_column, input_type, total_key, target_depth, parity,
        device=device, dtype=dtype, task="reconstruct",
    )  # fmt: skip
    genes = [genes] if isinstance(genes, str) else genes
    names = found.tokenizer.genes if genes is None else list(genes)
    gene_ids = None if genes is None else ids_of(found.tokenizer, names)
    array_name = "embedding" if what == "gene" else "expression"
    made_by = provenance(found.model, found.cells, found.target_depth, parity)
    if gene_ids is not None:
        is_there = np.isin(gene_ids, found.cells.match.rows)
        made_by["genes_without_column"] = [name for name, known in zip(names, is_there, strict=True) if not known]

    def make_results(shape: tuple[int, ...]) -> Any:
        needed, free = 4 * math.prod(shape), shutil.disk_usage(output.absolute().parent).free
        if needed > free:
            raise ValueError(
                f"{' x '.join(f'{size:,}' for size in shape)} numbers are {needed / 2**30:,.1f} GiB, and "
                f"{output.absolute().parent} has {free / 2**30:,.1f} GiB free: choose genes, or cells"
            )
        # Embeddings are dense and noisy: compressing them takes time and saves little.
        return zarr.create_array(
            unfinished, name=array_name, shape=shape, chunks=(1, *shape[1:]), dtype="float32", compressors=None
        )

    with whole_folder(output) as unfinished:
        group = zarr.create_group(unfinished)
        run = inference.embed_genes if what == "gene" else inference.predict_expression
        results = run(
            found.model,
            found.tokenizer,
            found.cells,
            gene_ids,
            batch_size=1 if parity and batch_size == "auto" else batch_size,
            target_depth=found.target_depth,
            progress=progress,
            make_results=make_results,
        )
        write_elem(group, "cells", np.array(found.cells.cell_names))
        write_elem(group, "genes", np.array(names))
        group.attrs["xtrimogene"] = made_by
    return {**made_by, "shape": list(results.shape)}


def enhance(
    adata: "AnnData",
    model: str | os.PathLike | Any,
    *,
    target_depth: float | str | None = None,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    gene_column: str | None = None,
    input_type: "InputType" = "counts",
    total_key: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    key_added: str = "enhanced",
    copy: bool = False,
    progress: Any = None,
) -> "AnnData | None":
    """Predict the expression of every gene in every cell, as if it had been read to `target_depth`.

    Writes `layers[key_added]`, predicted `log1p` of counts per 10,000 as dense float32 (NaN for columns that are no
    genes of the panel), and `obsm["X_" + key_added]`, the embedding. Models without depth tokens denoise at the depth
    of the cell. Cells without counts on the panel are NaN, see `obs["X_" + key_added + "_empty"]`.

    A prediction is the model's opinion, not a measurement: do not test differential expression on it, since the model
    has smoothed over what it takes for noise.

    Args:
        adata: See `embed`.
        model: A checkpoint with its decoder: pre-trained, not fine-tuned; of scFoundation the entry `rde`.
        target_depth: See `XTrimoGeneTokenizer.tokenize_counts`; above the depth of a cell it is enhanced.
        layer: See `embed`.
        gene_names: See `embed`.
        gene_column: See `embed`.
        input_type: See `embed`.
        total_key: See `embed`.
        batch_size: See `embed`.
        device: See `embed`.
        dtype: See `embed`.
        key_added: Name of the layer.
        copy: See `embed`.
        progress: See `embed`.

    Returns:
        None, or with `copy=True` the changed copy.

    Raises:
        ValueError: See `embed`; if the model has no decoder, or the layer does not fit into memory.

    Source: scFoundation, read-depth enhancement.
    """
    import psutil

    from .eval.inference import predict_expression
    from .tokenization.counts_xtrimogene import columns_of, name_candidates

    check_cells(adata)
    adata = adata.copy() if copy else adata
    found = prepare(
        adata, model, layer, gene_names, gene_column, input_type, total_key, target_depth, False,
        device=device, dtype=dtype, task="reconstruct",
    )  # fmt: skip
    # The counts may be those of `raw`, with other columns: the layer's are matched for themselves.
    own = adata if gene_column is None or gene_column in adata.var else adata.raw
    candidates = name_candidates(own, gene_names, gene_column, "")
    names = {where: [str(name) for name in listed] for where, listed in candidates.items()}
    num_names = len(next(iter(names.values())))
    if num_names != adata.n_vars:
        raise ValueError(
            f"{num_names:,} names of genes are given, and adata has {adata.n_vars:,} columns: a layer needs one "
            f"for each, e.g. adata = adata.raw.to_adata()"
        )
    matcher = found.tokenizer.matcher
    is_read = columns_of(adata, own, names, matcher.knows).is_read
    gene_rows = np.full(adata.n_vars, -1)
    chosen = {where: list(compress(listed, is_read)) for where, listed in names.items()}
    gene_rows[is_read] = matcher.best_match(chosen).rows
    is_gene = gene_rows >= 0
    gene_ids, place = np.unique(gene_rows[is_gene], return_inverse=True)
    needed = 4 * adata.n_obs * (len(gene_ids) + adata.n_vars + found.model.config.pooled_size)
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"the layer of {adata.n_obs:,} cells x {adata.n_vars:,} columns is dense: with the predictions "
            f"{needed / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free: give fewer cells or columns, "
            f"or write predictions to disk with tl.embed_genes(..., what='expression') (`xtrimogene embed "
            f"--output-type expression`)"
        )
    predicted = predict_expression(
        found.model,
        found.tokenizer,
        found.cells,
        gene_ids.astype(np.int64),
        with_embedding=True,
        batch_size=batch_size,
        target_depth=found.target_depth,
        progress=progress,
    )
    width = predicted.shape[1] - len(gene_ids)
    values = np.full(adata.shape, np.nan, np.float32)
    for start in range(0, len(values), 1024):  # all at once would be a third table of this size
        rows = slice(start, start + 1024)
        values[rows, is_gene] = predicted[rows, width:][:, place]
    key = f"X_{key_added}"
    adata.layers[key_added] = values
    adata.obsm[key] = predicted[:, :width].copy()
    describe(adata, key, found)
    return adata if copy else None


def check_genes_folder(output: Path) -> None:
    """Refuse an output that is there and that `embed_genes` did not write.

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
    layer: str | None,
    gene_names: Sequence[str] | None,
    gene_column: str | None,
    input_type: "InputType",
    total_key: str | None,
    target_depth: float | str | None,
    parity: bool,
    **options: Any,
) -> Prepared:
    """Load the model and find the cells; arguments of `embed`, options of `load`.

    Raises:
        ValueError: See `embed`.
    """
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
    loaded, tokenizer = load(model, target_depth=target_depth, parity=parity, **options)
    if parity and not tokenizer.depth_tokens:
        raise ValueError(
            f"parity is that of scFoundation, whose models have depth tokens, and {loaded.config.name_or_path} has "
            f"none: leave it out"
        )
    if parity and target_depth is None and not input_type.startswith("bulk"):
        target_depth = "t4"
    cells = tokenizer.read_counts(
        adata,
        layer=layer,
        gene_names=gene_names,
        gene_column=gene_column,
        input_type=input_type,
        totals=totals,
        parity=parity,
    )
    return Prepared(loaded, tokenizer, cells, target_depth)


def describe(adata: "AnnData", key: str, found: Prepared, parity: bool = False) -> None:
    """Write beside the embedding `obsm[key]` which cells are empty, and where it comes from."""
    adata.obs[f"{key}_empty"] = np.isnan(adata.obsm[key]).any(axis=1)
    adata.uns[key] = provenance(found.model, found.cells, found.target_depth, parity)


def check_cells(adata: Any) -> None:
    """Refuse what is no AnnData.

    Raises:
        TypeError: If it is none.
    """
    if not hasattr(adata, "obsm"):
        raise TypeError(
            f"adata is a {type(adata).__name__}: read it first, e.g. anndata.read_h5ad(path), or use `xtrimogene embed`"
        )


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


def annotate(
    query: "AnnData",
    model: str | os.PathLike | Any,
    *,
    reference: "AnnData | None" = None,
    label_key: str | None = None,
    n_neighbors: int = 15,
    unknown_threshold: float = 0.05,
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

    Writes into `obs`, each name after `key_added` and an underscore:

    * `label`: the best label; missing for cells without counts.
    * `probability`: that it is right, calibrated, and lower the farther a cell lies from what was learned
      (`eval/rejection.py`).
    * `second_label`: the next best; where no other label has any probability, that of the next nearest type.
    * `unknown`: whether the cell is of no known type: it fits no label, or lies far from all types. False for cells
      without counts.

    Calibration needs labelled cells that the labels were not learned from. `xtrimogene finetune` holds some out and
    stores what they tell beside the model. Of a reference each fifth is judged by the others, which embeds no cell
    twice. Where there is no calibration, as in folders of older versions, in references of fewer than 10 cells, and
    where a fine-tuned model computes in another precision than when it was calibrated, `probability` is not calibrated
    and `unknown` is not written; `uns[key_added]["unknown"]` says why.

    Args:
        query: See `embed`.
        model: Checkpoint folder or Hub name, or a loaded model.
        reference: Labelled cells.
        label_key: Column of `reference.obs` with the labels.
        n_neighbors: Reference cells that vote.
        unknown_threshold: Share of cells of known types that may be called unknown; 0: none is. It holds for cells like
            those calibrated with. In data of another laboratory or chemistry far more are, half of the cells or all.
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
        ValueError: If labels are asked for that nobody gave, the threshold is no share, or the stored calibration is
            of another model.
    """
    import pandas as pd

    from .eval import rejection
    from .eval.inference import embed_cells
    from .eval.neighbors import label_probabilities
    from .modeling_xtrimogene.precision_xtrimogene import dtype_of_products

    rejection.check_share(unknown_threshold)
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
        of_reference = embed_cells(loaded, tokenizer, known, **options)
        embeddings = embed_cells(loaded, tokenizer, cells, **options)
        probabilities, names = label_probabilities(of_reference, labels, embeddings, n_neighbors)
        num_known = int((~np.isnan(of_reference).any(axis=1)).sum())
        calibration, missing = None, f"no calibration: the reference has {num_known} cells with counts"
        if num_known >= rejection.LEAST_CELLS:
            calibration = rejection.Calibration.cross_fit(of_reference, labels, n_neighbors)
    else:
        loaded, tokenizer = load(model, device, dtype, task="annotate")
        cells = tokenizer.read_counts(query, layer=layer, gene_column=gene_column)
        names = [loaded.config.id2label[index] for index in range(loaded.config.num_labels)]
        path = loaded.config.name_or_path
        calibration = rejection.Calibration.load(path)
        missing = f"no calibration: {path} has no {rejection.FILE}; `xtrimogene finetune` writes one"
        if calibration is not None and calibration.names != names:
            raise ValueError(
                f"{rejection.FILE} of {path} is for the labels {', '.join(calibration.names)}, and the model has "
                f"{', '.join(names)}: fine-tune again, or delete that file"
            )
        computed_in = dtype_of_products(loaded)
        if calibration is not None and computed_in.itemsize < FULL_BYTES:
            name = str(computed_in).removeprefix("torch.")
            calibration = None
            missing = (
                f"no calibration: {rejection.FILE} of {path} holds for float32, and this is {name}: choose float32"
            )
            warnings.warn(f"{missing}; probabilities are not calibrated, and unknown cells are not told", stacklevel=2)
        probabilities, embeddings = rejection.classify_cells(loaded, tokenizer, cells, **options)
    is_empty = np.isnan(probabilities).any(axis=1)
    applied = None if calibration is None else calibration.apply(probabilities, embeddings, unknown_threshold)
    best, second = best_labels(probabilities, embeddings, calibration)
    query.obs[f"{key_added}_label"] = pd.Categorical.from_codes(best, names)
    query.obs[f"{key_added}_probability"] = probabilities.max(axis=1)
    query.obs[f"{key_added}_second_label"] = pd.Categorical.from_codes(second, names)
    if calibration is None or applied is None:
        about: dict[str, Any] = {"note": missing}
        if f"{key_added}_unknown" in query.obs:  # of an earlier call
            del query.obs[f"{key_added}_unknown"]
    else:
        query.obs[f"{key_added}_probability"] = applied.probabilities.max(axis=1)
        query.obs[f"{key_added}_unknown"] = applied.is_unknown
        about = {
            "threshold": unknown_threshold,
            "calibrated on": calibration.source,
            "temperature": calibration.temperature,
            "accuracy on these cells": calibration.accuracy,
        }
        if doubts := calibration.doubts(applied.is_unknown[~is_empty], unknown_threshold):
            about["doubts"] = doubts
            for doubt in doubts:
                warnings.warn(doubt, stacklevel=2)
    query.uns[key_added] = provenance(loaded, cells, None) | {"unknown": about}
    return query if copy else None


def best_labels(probabilities: np.ndarray, embeddings: np.ndarray, calibration: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the best and the second label of each cell, -1 where there is none.

    They are ordered by the probabilities as they come: calibrated ones keep the order, but no label has none. Labels
    without any probability are ordered by how near their type is, which the calibration tells.

    Args:
        probabilities: `(cells, C)`, NaN for cells without counts.
        embeddings: Of the same cells, `(cells, D)`.
        calibration: Of the annotator, or None.
    """
    num_cells, num_labels = probabilities.shape
    is_there = ~np.isnan(probabilities).any(axis=1)
    nearness = np.zeros((num_cells, num_labels))
    knows_types = calibration is not None and len(calibration.space.means) == num_labels
    if knows_types:
        nearness[is_there] = -calibration.space.type_distances(embeddings[is_there])
    order = np.lexsort((-nearness, -np.nan_to_num(probabilities)))
    best = np.where(is_there, order[:, 0], -1)
    if num_labels < 2:
        return best, np.full(num_cells, -1)
    is_known = is_there & (knows_types | (np.take_along_axis(probabilities, order[:, 1:2], axis=1)[:, 0] > 0))
    return best, np.where(is_known, order[:, 1], -1)


def reference_labels(reference: "AnnData", label_key: str | None) -> np.ndarray:
    """Return the labels of the reference cells as text.

    Raises:
        ValueError: If there is no such column, or labels are missing (also as the text `nan`, or blank) or differ by
            blanks only.
    """
    from .training.labels import every_label

    if label_key is None or label_key not in reference.obs:
        raise ValueError(
            f"label_key is {label_key!r}, and the reference has the columns "
            f"{', '.join(reference.obs.columns) or 'none'}: name the one with the cell types"
        )
    return every_label(reference.obs[label_key], label_key, "reference")


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


def provenance(model: Any, cells: Any, target_depth: float | str | None, parity: bool = False) -> dict[str, Any]:
    """Return what is written into `uns`: model, counts, genes, versions."""
    import torch
    import transformers

    from . import __version__
    from .modeling_xtrimogene.precision_xtrimogene import dtype_of_products

    settings = {
        "model": model.config.name_or_path,
        "revision": getattr(model.config, "_commit_hash", None) or "",
        "pooling": model.config.pooling,
        "dtype": str(dtype_of_products(model)).removeprefix("torch."),
        "target_depth": "cell" if target_depth is None else target_depth,
        "input_type": cells.input_type,
        "parity": parity,
        "counts": cells.description,
        "genes": cells.match.to_dict(),
        "xtrimogene": __version__,
        "transformers": transformers.__version__,
        "torch": str(torch.__version__),  # its own class is no text for AnnData's writer
    }
    return settings
