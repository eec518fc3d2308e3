# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Tokenizer of TxFM: from a count matrix to a batch of measured genes, zeros among them.

    AnnData, CSR, array, DataFrame, file        (cells x columns)
        |  find the counts, match the columns to the panel, sum duplicates      (expression_xtrimogene)
        v
    PanelCounts                                 (cells x G), read in chunks
        |  log1p of counts per 100,000 on the panel, a token for each gene that has a column
        v
    input_ids, values, attention_mask           (B, L)

The id of a gene is its row on the panel, 0 ... G - 1; the last id is padding. A bulk sample is a cell with many counts.
Source: Kenyon-Dean et al. 2026, TxFM. That totals are sums over the panel is ours: so no value exceeds log(1 + L).
"""

import os
from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding

from .expression_xtrimogene import ExpressionTokenizer, is_text, refuse_arguments
from .panel_xtrimogene import PanelCounts


class TxFMTokenizer(ExpressionTokenizer):
    """Turn count matrices into batches of measured genes; turn gene names into ids and back.

    Args:
        vocab_file: Gene names of the panel, one a line; the line is the id.
        gene_table_file: Table of symbols, Ensembl ids, previous symbols and aliases, by which columns are matched.
            Without it, columns match by their exact name only.
        target_sum: Counts are normalised to this total before log1p.
        pad_token: Name of padding.
        **kwargs: Arguments of `PreTrainedTokenizer`.

    Example:
        >>> tokenizer = TxFMTokenizer.from_genes(["CD3D", "MS4A1", "NKG7"], "panel")
        >>> import pandas as pd
        >>> batch = tokenizer(pd.DataFrame({"CD3D": [3, 0], "NKG7": [0, 2]}))
        >>> batch["input_ids"]  # MS4A1 has no column: nobody knows whether these cells express it
        tensor([[0, 2],
                [0, 2]])
        >>> batch["values"].round(decimals=2)
        tensor([[11.5100,  0.0000],
                [ 0.0000, 11.5100]])
    """

    model_input_names = ["input_ids", "values", "attention_mask"]
    shows_zeros = True
    panel_totals = True

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        gene_table_file: str | os.PathLike | None = None,
        target_sum: float = 1e5,
        pad_token: str = "<pad>",
        **kwargs: Any,
    ):
        self.target_sum = target_sum
        super().__init__(vocab_file, gene_table_file, pad_token, target_sum=target_sum, **kwargs)

    def read_counts(
        self,
        data: Any,
        layer: str | None = None,
        gene_names: Sequence[str] | None = None,
        gene_column: str | None = None,
        **options: Any,
    ) -> PanelCounts:
        """Find the counts in `data` and match its columns to the panel.

        Args:
            data: AnnData (in memory or backed), scipy sparse matrix, array, DataFrame, or a path.
            layer: Where the counts are, if they are not found without it.
            gene_names: Names of the columns, if `data` does not hold them.
            gene_column: Column of `var` with the gene names.
            **options: Options of other families, which must have no effect: an `input_type` other than `counts`,
                `totals` and `parity` are refused.

        Raises:
            ValueError: If no counts are found, too few columns are genes of the panel, or other options are given.

        Example:
            >>> cells = TxFMTokenizer.default().read_counts(adata)
            >>> cells.n_cells, cells.match.n_matched
            (5, 738)
        """
        without_effect = {"totals": None, "parity": False}
        is_counts = {name for name in options if name == "input_type" and options[name] == "counts"}
        others = options.keys() - is_counts
        if given := [name for name in sorted(others) if options[name] is not without_effect.get(name, ())]:
            raise ValueError(
                f"{given[0]} is {options[given[0]]!r}, and {type(self).__name__} reads raw counts only: leave it out"
            )
        return super().read_counts(data, layer, gene_names, gene_column)

    def __call__(
        self,
        data: Any,
        *args: Any,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Tokenise all cells of `data` at once; for more than fit in memory use `xtrimogene embed`, or a corpus.

        Args:
            data: AnnData, scipy sparse matrix, array, DataFrame, or the path of a file or folder. Other text is gene
                names, separated by spaces, which become ids.
            *args: For text, arguments of `PreTrainedTokenizer`.
            padding: True: rows are padded to the longest cell, as counts are unless another is given; `max_length`: to
                `max_length`; `do_not_pad`: a list of rows, as `Dataset.map` takes; False: rows are packed, one after
                the other. Text is not padded unless it is given.
            truncation: Keep `max_length` tokens of a cell: its genes of the highest values, of equal ones those of
                lower ids.
            max_length: For `truncation` and for `padding="max_length"`; `model_max_length` of the tokenizer unless
                given.
            return_tensors: `pt` or `np`; for counts `pt` unless given, for text lists.
            **options: Where the counts are: `layer`, `gene_names`, `gene_column`, as in `read_counts`. For text,
                arguments of `PreTrainedTokenizer`.

        Returns:
            `input_ids`, `values` (log1p of counts per `target_sum`) and `attention_mask` (1 = token), `(B, L)`. Packed:
            `input_ids` and `values` `(tokens,)`, and `cu_seqlens` `(B + 1,)`, the start of each cell and the end of the
            last. A cell without counts has no token. Text: lists of `input_ids`, as in transformers.

        Raises:
            ValueError: If no counts are found, or `max_length` is missing, has no effect or is too small.
            KeyError: If a name in text is no gene of the panel, unless `unk_token` is set.

        Example:
            >>> batch = TxFMTokenizer.default()(adata)
            >>> batch["input_ids"].shape
            torch.Size([5, 738])
        """
        shape: dict[str, Any] = {"padding": padding, "truncation": truncation, "max_length": max_length}
        if is_text(data):
            return self.ids_of_text(data, *args, **shape, return_tensors=return_tensors, **options)
        refuse_arguments(args, (), ("layer", "gene_names", "gene_column"))  # `read_counts` checks the options
        values, depths = self.cell_values(self.read_counts(data, **options))
        return self.ids_of_counts(values, depths, None, **shape, return_tensors=return_tensors)


TxFMTokenizer.register_for_auto_class("AutoTokenizer")
