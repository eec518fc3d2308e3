# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Tokenizer of xTrimoGene: from a count matrix to a batch of expressed genes.

    AnnData, CSR, array, DataFrame, file        (cells x columns)
        |  find the counts, match the columns to the panel, sum duplicates      (expression_xtrimogene)
        v
    PanelCounts                                 (cells x G), read in chunks
        |  log1p of counts per 10,000, zeros dropped, T and S appended
        v
    input_ids, values, attention_mask           (B, L)

The id of a gene is its row on the panel, 0 ... G - 1. With depth tokens, T has the id G and S the id G + 1. The last id
is padding.
Source: arXiv:2311.15156, section 3.1; scFoundation for normalisation and depth tokens.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchEncoding

from .expression_xtrimogene import ExpressionTokenizer, is_text, refuse_arguments
from .genes_xtrimogene import GeneMatcher, GeneTable
from .panel_xtrimogene import INPUT_TYPES, InputType, PanelCounts, PanelValues, target_depths

READING_OPTIONS = ("layer", "gene_names", "gene_column", "input_type", "totals")  # of `read_counts`


class XTrimoGeneTokenizer(ExpressionTokenizer):
    """Turn count matrices into batches of expressed genes; turn gene names into ids and back.

    Args:
        vocab_file: Gene names of the panel, one a line; the line is the id.
        gene_table_file: Table of symbols, Ensembl ids, previous symbols and aliases, by which columns are matched.
            Without it, columns match by their exact name only.
        depth_tokens: Whether T (target depth) and S (source depth) follow the genes of each cell.
        target_sum: Counts are normalised to this total before log1p.
        pad_token: Name of padding.
        **kwargs: Arguments of `PreTrainedTokenizer`.

    Example:
        >>> tokenizer = XTrimoGeneTokenizer.from_genes(["CD3D", "MS4A1", "NKG7"], "panel")
        >>> batch = tokenizer(np.array([[3, 0, 1], [0, 2, 2]]), gene_names=["CD3D", "MS4A1", "NKG7"])
        >>> batch["input_ids"]
        tensor([[0, 2],
                [1, 2]])
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
            layer: Where the counts are, if they are not found without it.
            gene_names: Names of the columns, if `data` does not hold them.
            gene_column: Column of `var` with the gene names.
            input_type: Meaning of the numbers: `counts`, `log` (log1p of counts per 10,000), `log-total` (the same,
                with `totals`), `bulk` or `bulk-log`. Values that are not counts are taken from `layer`, or from `X`.
            totals: For `log-total` the total count of each cell, `(cells,)`.
            parity: As the scFoundation script: names match only as they are written, and the total of a cell is the sum
                over the panel's genes. Columns that are no RNA are left out here too; the script cannot read files
                that have such types of columns.

        Raises:
            ValueError: If no counts are found, too few columns are genes of the panel, totals are missing, or values
                cannot be of the input type.

        Example:
            >>> cells = XTrimoGeneTokenizer.default().read_counts(adata)
            >>> cells.n_cells, cells.match.n_matched
            (5, 738)
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
        target_depth: float | str | None = None,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Tokenise all cells of `data` at once; for more than fit in memory use `read_counts` and `tokenize_counts`.

        Args:
            data: AnnData, scipy sparse matrix, array, DataFrame, or the path of a file or folder. Other text is gene
                names, separated by spaces, which become ids.
            *args: For text, arguments of `PreTrainedTokenizer`.
            target_depth: T, the depth to predict for: log10 of a total count, as 4 or `t4`; `f2` for twice the depth of
                the cell, `a1` for ten times; the depth of the cell unless given.
            padding: True: rows are padded to the longest cell, as counts are unless another is given; `max_length`: to
                `max_length`; `do_not_pad`: a list of rows, as `Dataset.map` takes; False: rows are packed, one after
                the other. Text is not padded unless it is given.
            truncation: Keep `max_length` tokens of a cell: its genes of the highest values, of equal ones those of
                lower ids, and T and S.
            max_length: For `truncation` and for `padding="max_length"`; `model_max_length` of the tokenizer unless
                given.
            return_tensors: `pt` or `np`; for counts `pt` unless given, for text lists.
            **options: Where the counts are and what they mean: `layer`, `gene_names`, `gene_column`, `input_type`,
                `totals`, as in `read_counts`. For text, arguments of `PreTrainedTokenizer`.

        Returns:
            `input_ids`, `values` (log1p of counts per `target_sum`) and `attention_mask` (1 = token), `(B, L)`. Packed:
            `input_ids` and `values` `(tokens,)`, and `cu_seqlens` `(B + 1,)`, the start of each cell and the end of the
            last. A cell without counts has no token. Text: lists of `input_ids`, as in transformers.

        Raises:
            ValueError: If no counts are found, or `max_length` is missing, has no effect or is too small.
            KeyError: If a name in text is no gene of the panel, unless `unk_token` is set.

        Example:
            >>> batch = XTrimoGeneTokenizer.default()(adata)
            >>> sorted(batch)
            ['attention_mask', 'input_ids', 'values']
        """
        shape: dict[str, Any] = {"padding": padding, "truncation": truncation, "max_length": max_length}
        if is_text(data):
            return self.ids_of_text(data, *args, **shape, return_tensors=return_tensors, **options)
        refuse_arguments(args, options, (*READING_OPTIONS, "target_depth"))
        values, depths = self.read_counts(data, **options).values(self.target_sum)
        return self.ids_of_counts(values, depths, target_depth, **shape, return_tensors=return_tensors)

    def tokenize_values(
        self,
        values: Any,
        source_depths: np.ndarray,
        target_depth: float | str | None = None,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
    ) -> BatchEncoding:
        """Turn values on the panel into a batch, without normalising them.

        Args:
            values: CSR of values, `(cells, G)`, as `PanelCounts.values` returns them.
            source_depths: S of each cell, `(cells,)`, NaN for cells without counts.
            target_depth: T, the depth to predict for: log10 of a total count, as 4 or `t4`; `f2` for twice the depth of
                the cell, `a1` for ten times; the depth of the cell unless given.
            padding: True: rows are padded to the longest; False: rows are packed, one after the other; `do_not_pad`: a
                list of rows.
            return_tensors: `pt` or `np`.

        Returns:
            `input_ids`, `values` and `attention_mask` (1 = token), `(B, L)`. Packed: `input_ids` and `values`
            `(tokens,)`, and `cu_seqlens` `(B + 1,)`, the start of each cell and the end of the last. A cell without
            counts has no token.

        Example:
            >>> tokenizer = XTrimoGeneTokenizer.default()
            >>> values, depths = tokenizer.read_counts(adata).values(tokenizer.target_sum)
            >>> len(tokenizer.tokenize_values(values, depths)["input_ids"])
            5
        """
        ids, numbers, lengths = values.indices, values.data, np.diff(values.indptr)
        if self.depth_tokens:
            # A cell without counts on the panel gets no depth tokens, so that it has no tokens and counts as empty.
            source_depths = np.where(lengths > 0, source_depths, np.nan)
            ids, numbers, lengths = self.append_depth_tokens(ids, numbers, lengths, source_depths, target_depth)
        return self.batch_of(ids, numbers, lengths, padding, return_tensors)

    def append_depth_tokens(
        self,
        ids: np.ndarray,
        values: np.ndarray,
        lengths: np.ndarray,
        source_depths: np.ndarray,
        target_depth: float | str | np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return packed ids and values with T and S after the genes of each cell, and the new lengths.

        Args:
            ids: Genes, `(tokens,)`.
            values: Values of the genes, `(tokens,)`.
            lengths: Number of genes of each cell, `(cells,)`.
            source_depths: S of each cell, `(cells,)`; cells with NaN get no T and no S.
            target_depth: log10 of a total count, as 4 or `t4`; `f2` for twice the depth of the cell, `a1` for ten
                times; or T of each cell, `(cells,)`. The depth of the cell unless given.

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
