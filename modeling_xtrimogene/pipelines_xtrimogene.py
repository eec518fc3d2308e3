# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Pipelines of transformers for cells: `cell-embedding` and `cell-annotation`.

    AnnData, path or list of {gene: count}  ->  batches of cells of like length  ->  one result for each cell, in order

Letters: B cells of a batch, D width of a cell embedding, C labels.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline

CHUNK = 2048  # cells read at a time; batches are formed of cells of like length within a chunk
TOKENS = 16_384  # of a batch, unless a batch size is given
READING = ("layer", "gene_names", "gene_column")
INPUTS = "an AnnData, the path of a file with cells (such as .h5ad) or a list of {gene: count}, one for each cell"


class CellPipeline(ChunkPipeline):
    """Base class of the pipelines for cells: reads cells, runs the model over them, and keeps their order.

    No result depends on the other cells or on the batch size.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __call__(self, cells: Any, **options: Any) -> Any:
        """Return one result for each cell, in the order of the cells.

        Args:
            cells: An AnnData with raw counts, the path of a file with cells (.h5ad, 10x .h5, .csv and others), or a
                list with a dictionary `{gene: count}` for each cell. Of a cell in a dictionary, the genes that it
                names were measured, and no others; its total is that of its counts.
            **options: `batch_size`, which changes no result; `layer`, `gene_names` and `gene_column`, which say where
                the counts are, as in `read_counts` of the tokenizer; and options of the results.

        Raises:
            TypeError: If `cells` is something else, or there is no such option.
            ValueError: If no counts are found, or too few genes are known.
        """
        read, run, shown = self._sanitize_parameters(**options)
        read, run, shown = self._preprocess_params | read, self._forward_params | run, self._postprocess_params | shown
        return self.run_single(cells, read, run, shown)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide options into those of reading, of running and of the results."""
        reading = {name: options.pop(name) for name in (*READING, "batch_size") if name in options}
        unknown = set(options) - {*self.own_options, "num_workers"}
        if unknown:
            known = ", ".join((*READING, "batch_size", *self.own_options))
            raise TypeError(f"{self.task or type(self).__name__} has no option {sorted(unknown)[0]!r}: it has {known}")
        return reading, {}, {name: options[name] for name in self.own_options if name in options}

    own_options: tuple[str, ...] = ()

    def preprocess(self, cells: Any, batch_size: int | None = None, **where: Any) -> Iterator[dict[str, Any]]:
        """Yield batches of cells as the model takes them, with `rows`, the places of their cells.

        Args:
            cells: The cells.
            batch_size: Cells of a batch; as many as have 16,384 tokens together unless given.
            **where: Where the counts are.
        """
        batch_size = batch_size or self._batch_size
        if isinstance(cells, list):
            parts = [(rows, counts, {"gene_names": genes}) for rows, counts, genes in by_genes(cells)]
        else:
            check_kind(cells)
            parts = [(None, cells, where)]
        for rows, data, options in parts:
            found = self.tokenizer.read_counts(data, **options)
            for start in range(0, found.n_cells, CHUNK):
                values, depths = self.tokenizer.cell_values(found, start, start + CHUNK)
                lengths = np.diff(values.indptr)
                order = np.argsort(-lengths, kind="stable")
                while len(order):
                    size = batch_size or max(TOKENS // max(int(lengths[order[0]]), 1), 1)
                    taken, order = order[:size], order[size:]
                    batch = self.tokenizer.tokenize_values(values[taken], depths[taken])
                    yield {"rows": start + taken if rows is None else rows[start + taken], **batch}

    def get_inference_context(self) -> Any:
        """Return the context of the forward pass, which keeps no gradients."""
        return torch.inference_mode

    def in_order(self, outputs: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Return the results `(cells, ...)` of all batches as float32, in the order of the cells."""
        if not outputs:
            return torch.empty(0, 0)
        rows = torch.from_numpy(np.concatenate([output["rows"] for output in outputs]))
        results = torch.cat([output["results"].float() for output in outputs])
        return torch.empty_like(results).index_copy_(0, rows, results)


class CellEmbeddingPipeline(CellPipeline):
    """Embed cells: `pipeline("cell-embedding", model=...)`.

    Options of a call are `batch_size`, `layer`, `gene_names`, `gene_column`, and `return_tensors`. The result is a list
    of D numbers for each cell, or with `return_tensors=True` a float32 tensor `(cells, D)`. Cells without counts on the
    panel get NaN.

    Example:
        >>> from transformers import pipeline
        >>> embed = pipeline("cell-embedding", model="checkpoint", device="cpu")
        >>> embed(adata, return_tensors=True).shape
        torch.Size([5, 64])
        >>> len(embed([{"CD3D": 3, "NKG7": 1}, {"MS4A1": 2, "CD79A": 4}]))
        2
    """

    own_options = ("return_tensors",)

    def _forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = batch.pop("rows")
        return {"rows": rows, "results": self.model.base_model(**batch).pooler_output}

    def postprocess(self, outputs: Sequence[Mapping[str, Any]], return_tensors: bool = False) -> Any:
        """Return the embedding of each cell."""
        embeddings = self.in_order(outputs)
        return embeddings if return_tensors else embeddings.tolist()


class CellAnnotationPipeline(CellPipeline):
    """Name the type of each cell: `pipeline("cell-annotation", model=...)` with a fine-tuned annotator.

    Options of a call are `batch_size`, `layer`, `gene_names`, `gene_column`, and `top_k`. The result is
    `{"label": ..., "score": ...}` for each cell; with `top_k` a list of its `top_k` most probable labels, with
    `top_k=None` of all. The score is the probability that the model gives, without the calibration of `xtrimogene
    annotate`, which also tells unknown cells. The label and the score of a cell without counts on the panel are None.

    Raises:
        ValueError: If the model was not fine-tuned to name cells.

    Example:
        >>> from transformers import pipeline
        >>> annotate = pipeline("cell-annotation", model="annotator")  # doctest: +SKIP
        >>> annotate("cells.h5ad")[0]  # doctest: +SKIP
        {'label': 'B cell', 'score': 0.98}
    """

    own_options = ("top_k",)

    def __init__(self, model: Any, **options: Any):
        saved_by = getattr(model.config, "architectures", None) or [type(model).__name__]
        if not hasattr(model, "classify") or not any(name.endswith("Classification") for name in saved_by):
            raise ValueError(
                f"{model.config.name_or_path or 'the model'} is a {saved_by[0]} and knows no cell types: fine-tune it "
                f"first with `xtrimogene finetune`, or use pipeline('cell-embedding')"
            )
        super().__init__(model=model, **options)

    def _forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = batch.pop("rows")
        return {"rows": rows, "results": self.model(**batch).logits.float().softmax(-1)}

    def postprocess(self, outputs: Sequence[Mapping[str, Any]], top_k: int | None = 1) -> list[Any]:
        """Return the label of each cell with its probability, or a list of its `top_k` labels."""
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}: give the number of labels of a cell, or None for all")
        names = self.model.config.id2label
        scores, ids = self.in_order(outputs).sort(dim=-1, descending=True, stable=True)
        results = []
        for own_scores, own_ids in zip(scores.tolist(), ids.tolist(), strict=True):
            pairs = list(zip(own_ids, own_scores, strict=True))[: top_k or len(own_ids)]
            is_empty = any(score != score for score in own_scores)
            ranked = [
                {"label": None, "score": None} if is_empty else {"label": names[index], "score": score}
                for index, score in pairs
            ]
            results.append(ranked[0] if top_k == 1 else ranked[:1] if is_empty else ranked)
        return results


def by_genes(cells: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Return the cells that name the same genes together: their places, their counts and the genes.

    Args:
        cells: A dictionary `{gene: count}` for each cell.

    Returns:
        For each set of genes the places of its cells `(B,)`, their counts, float32 `(B, genes)`, and the genes.

    Raises:
        TypeError: If a cell is no dictionary.
        ValueError: If a cell names no genes.

    Example:
        >>> by_genes([{"CD3D": 3, "NKG7": 1}, {"MS4A1": 2}, {"NKG7": 5, "CD3D": 0}])[0]
        (array([0, 2]), array([[3., 1.],
               [0., 5.]], dtype=float32), ['CD3D', 'NKG7'])
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, cell in enumerate(cells):
        if not isinstance(cell, Mapping):
            raise TypeError(f"cell {place} of {len(cells)} is a {type(cell).__name__}: give {INPUTS}")
        if not cell:
            raise ValueError(
                f"cell {place} of {len(cells)} names no genes: give the counts of those that were measured"
            )
        groups.setdefault(tuple(sorted(map(str, cell))), []).append(place)
    return [
        (np.array(places), np.array([[cells[place][gene] for gene in genes] for place in places], np.float32), [*genes])
        for genes, places in groups.items()
    ]


def check_kind(cells: Any) -> None:
    """Refuse what is neither an AnnData nor the path of a file.

    Raises:
        TypeError: If it is something else.
        ValueError: If there is no such file.
    """
    if isinstance(cells, (str, os.PathLike)):
        if not os.path.exists(cells):
            raise ValueError(f"{os.fspath(cells)} does not exist: give {INPUTS}")
    elif not hasattr(cells, "obsm"):
        raise TypeError(f"cells are a {type(cells).__name__}: give {INPUTS}")
