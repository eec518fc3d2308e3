# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Tokenizer of xTrimoGene: count matrix in, batch of expressed genes out.

    AnnData, CSR, array, DataFrame, file        (cells x columns)
        |  find the counts, match the columns to the panel, sum duplicates      (expression_xtrimogene)
        v
    PanelCounts                                 (cells x G), read in chunks
        |  log1p of counts per 10,000, zeros dropped, T and S appended
        v
    input_ids, values, attention_mask           (B, L)

Ids are rows of the panel: gene g = g, then T = G, S = G + 1 where the model has depth tokens, then padding.
Source: arXiv:2311.15156, section 3.1; scFoundation for normalisation and depth tokens.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchEncoding

from .expression_xtrimogene import ExpressionTokenizer, cell_rows, is_text
from .genes_xtrimogene import GeneMatcher, GeneTable
from .panel_xtrimogene import INPUT_TYPES, InputType, PanelCounts, PanelValues, target_depths


class XTrimoGeneTokenizer(ExpressionTokenizer):
    """Turn count matrices into batches of expressed genes; turn gene names into ids and back.

    Args:
        vocab_file: See `ExpressionTokenizer`.
        gene_table_file: See `ExpressionTokenizer`.
        depth_tokens: Whether T (target depth) and S (source depth) follow the genes of each cell.
        target_sum: Counts are normalised to this total before log1p.
        pad_token: Name of padding.
        **kwargs: Of `PreTrainedTokenizer`.
    """

    model_input_names = ["input_ids", "values", "attention_mask"]

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        gene_table_file: str | os.PathLike | None = None,
        depth_tokens: bool = False,
        target_sum: float = 1e4,
        pad_token: str = "<pad>",
        **kwargs: Any,
    ):
        self.depth_tokens = depth_tokens
        self.target_sum = target_sum
        super().__init__(
            vocab_file,
            gene_table_file,
            pad_token,
            ("<T>", "<S>") if depth_tokens else (),
            depth_tokens=depth_tokens,
            target_sum=target_sum,
            **kwargs,
        )

    def read_counts(
        self,
        data: Any,
        layer: str | None = None,
        gene_names: Sequence[str] | None = None,
        gene_column: str | None = None,
        input_type: InputType = "counts",
        totals: np.ndarray | None = None,
        parity: bool = False,
    ) -> PanelCounts:
        """Find the counts in `data`, or the values that `input_type` names, and match its columns to the panel.

        Args:
            data: AnnData (in memory or backed), scipy sparse matrix, array, DataFrame, or a path.
            layer: Where the counts are, if they are not found by themselves.
            gene_names: Names of the columns, if `data` does not hold them.
            gene_column: Column of `var` with the gene names.
            input_type: What the numbers mean, see `panel_xtrimogene`. Values that are no counts are those of `layer`,
                or of `X`.
            totals: For `log-total` the total count of each cell, `(cells,)`.
            parity: As the scFoundation script: names match only as they are written, and the total of a cell is that
                of the panel's genes. Columns that are no RNA are left out all the same where the file says so, as in
                no file that the script can read; by their names it makes no difference to such a total.

        Raises:
            ValueError: If no counts are found, or too few columns are genes of the panel; see `PanelValues` for other
                input types.
        """
        if input_type not in INPUT_TYPES:
            raise ValueError(f"input_type is {input_type!r}: give one of {', '.join(INPUT_TYPES)}")
        as_given = input_type != "counts"
        source = self.find_columns(data, layer, gene_names, gene_column, as_given)
        matcher = GeneMatcher(self.genes, GeneTable.empty()) if parity else self.matcher
        try:
            match = matcher.best_match(source.name_candidates, row_names=source.cell_names)
        except ValueError as error:
            if not parity:
                raise
            raise ValueError(
                f"{error}. With parity, symbols match only as they are written: name their column, or leave parity out"
            ) from error
        if as_given or totals is not None:
            return PanelValues(source, match, self.num_genes, input_type, totals, self.target_sum, parity)
        return PanelCounts(source, match, self.num_genes, panel_totals=parity)

    def __call__(
        self,
        data: Any,
        *args: Any,
        layer: str | None = None,
        gene_names: Sequence[str] | None = None,
        gene_column: str | None = None,
        input_type: InputType = "counts",
        totals: np.ndarray | None = None,
        target_depth: float | str | None = None,
        padding: bool = True,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchEncoding:
        """Tokenise all cells of `data` at once; for more than fit in memory use `read_counts` and `tokenize_counts`.

        Args:
            data: See `read_counts`. Text (gene names separated by spaces) becomes ids as with any tokenizer; text that
                names a file or folder which exists is a path.
            *args: For text, see `PreTrainedTokenizer`.
            layer: See `read_counts`.
            gene_names: See `read_counts`.
            gene_column: See `read_counts`.
            input_type: See `read_counts`.
            totals: See `read_counts`.
            target_depth: See `tokenize_counts`.
            padding: See `tokenize_counts`.
            return_tensors: See `tokenize_counts`.
            **kwargs: For text, see `PreTrainedTokenizer`.

        Returns:
            See `tokenize_counts`.
        """
        if is_text(data):
            return_tensors = return_tensors if padding else None
            return super().__call__(data, *args, padding=padding, return_tensors=return_tensors, **kwargs)
        if args or kwargs or padding not in (True, False):
            unknown = ", ".join([*map(repr, args), *kwargs] or [f"padding={padding!r}"])
            raise TypeError(
                f"counts are tokenised with layer, gene_names, gene_column, input_type, totals, target_depth, padding "
                f"(True or False) and return_tensors, not with {unknown}"
            )
        cells = self.read_counts(data, layer, gene_names, gene_column, input_type, totals)
        return self.tokenize_values(*cells.values(self.target_sum), target_depth, padding, return_tensors)

    def tokenize_values(
        self,
        values: Any,
        source_depths: np.ndarray,
        target_depth: float | str | None = None,
        padding: bool = True,
        return_tensors: str | None = "pt",
    ) -> BatchEncoding:
        """Turn values on the panel into a batch, as they are.

        Args:
            values: CSR of values, `(cells, G)`, as `PanelCounts.values` gives them.
            source_depths: S of each cell, `(cells,)`, NaN where there are no counts.
            target_depth: See `tokenize_counts`.
            padding: See `tokenize_counts`.
            return_tensors: See `tokenize_counts`.

        Returns:
            See `tokenize_counts`.
        """
        ids, numbers, lengths = values.indices, values.data, np.diff(values.indptr)
        if self.depth_tokens:
            # A cell with nothing on the panel has no token at all, so that it is seen to be empty.
            source_depths = np.where(lengths > 0, source_depths, np.nan)
            ids, numbers, lengths = self.append_depth_tokens(ids, numbers, lengths, source_depths, target_depth)
        if not padding:
            starts = np.concatenate([[0], np.cumsum(lengths)])
            packed = {
                "input_ids": ids.astype(np.int64),
                "values": numbers,
                "cu_seqlens": starts.astype(np.int32),
            }
            return BatchEncoding(packed, tensor_type=return_tensors)
        batch = self.pad_rows(cell_rows(ids, lengths), cell_rows(numbers, lengths))
        return BatchEncoding(batch, tensor_type=return_tensors)

    def append_depth_tokens(
        self,
        ids: np.ndarray,
        values: np.ndarray,
        lengths: np.ndarray,
        source_depths: np.ndarray,
        target_depth: float | str | np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the packed rows with T and S behind the genes of each cell.

        Args:
            ids: Genes, `(tokens,)`.
            values: Their values, `(tokens,)`.
            lengths: Genes of each cell, `(cells,)`.
            source_depths: S of each cell; one that is NaN gets no T and no S.
            target_depth: See `tokenize_counts`; or T of each cell.

        Source: scFoundation.
        """
        has_depth = ~np.isnan(source_depths)
        wanted_depths = (
            target_depth if isinstance(target_depth, np.ndarray) else target_depths(source_depths, target_depth)
        )
        places = np.repeat(np.cumsum(lengths)[has_depth], 2)
        ids = np.insert(ids, places, np.tile([self.num_genes, self.num_genes + 1], int(has_depth.sum())))
        depths = np.column_stack([wanted_depths, source_depths])[has_depth].ravel()
        return ids, np.insert(values, places, depths.astype(np.float32)), lengths + 2 * has_depth


XTrimoGeneTokenizer.register_for_auto_class("AutoTokenizer")
