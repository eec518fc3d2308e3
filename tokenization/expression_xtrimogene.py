# Copyright 2026 the xTrimoGene-HF authors. Licensed under the Apache License, Version 2.0.
"""Base class of expression tokenizers: a panel of genes, their names, counts on the panel, and padding.

    genes.txt, gene_table.tsv.gz      the panel: the line is the id; other names of its genes
        |  after the genes come the ids of a family's own tokens, then padding
        v
    names <-> ids      columns of any file -> PanelCounts      ids and values of cells -> a padded batch

A family subclasses `ExpressionTokenizer` and defines the tokens of a cell (`tokenization_xtrimogene`).
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from huggingface_hub import ModelCard
from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import LARGE_INTEGER, TOKENIZER_CONFIG_FILE
from transformers.utils import PaddingStrategy

from .counts_xtrimogene import CountSource, find_counts
from .genes_xtrimogene import GeneMatcher, GeneTable
from .panel_xtrimogene import PanelCounts, log_depths, normalize

VOCAB_FILES = {"vocab_file": "genes.txt", "gene_table_file": "gene_table.tsv.gz"}
# Pipelines for text -> ours. A pipeline for text would label the first cell of a data set only.
CELL_PIPELINES = {
    "text-classification": "cell-annotation",
    "sentiment-analysis": "cell-annotation",
    "feature-extraction": "cell-embedding",
}
FILE_ENDINGS = (".h5ad", ".h5", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".npz", ".npy")


class ExpressionTokenizer(PreTrainedTokenizer):
    """A panel of genes, with the methods that do not depend on how a family makes tokens of a cell.

    Args:
        vocab_file: Gene names of the panel, one a line; the line is the id.
        gene_table_file: Table of symbols, Ensembl ids, previous symbols and aliases, by which columns are matched.
            Without it, columns match by their exact name only.
        pad_token: Name of padding, which has the last id.
        unk_token: The name of padding, if names that are no genes of the panel are to become padding, which models do
            not look at; unless given, they are an error.
        tokens_behind_genes: Names of tokens that are no genes; their ids follow those of the genes.
        **kwargs: Arguments of `PreTrainedTokenizer`, and those of the subclass, which are saved.

    Raises:
        ValueError: If the panel repeats a gene or has empty lines, or `unk_token` is anything but padding.
    """

    vocab_files_names = VOCAB_FILES
    padding_side = "right"
    target_sum: float = 1e4  # counts are normalised to this total before log1p
    depth_tokens: bool = False  # whether T (target depth) and S (source depth) follow the genes of each cell
    shows_zeros: bool = False  # whether genes that were measured and not expressed have tokens too, of value 0
    panel_totals: bool = False  # whether cells are normalised by their sum over the panel, not over all columns

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        gene_table_file: str | os.PathLike | None = None,
        pad_token: str = "<pad>",
        tokens_behind_genes: Sequence[str] = (),
        unk_token: str | None = None,
        **kwargs: Any,
    ):
        if unk_token is not None and str(unk_token) != str(pad_token):
            raise ValueError(
                f"unk_token is {str(unk_token)!r}, and models have no row for it: give {str(pad_token)!r}, and names "
                f"that are no genes of the panel become padding, or leave it out, and they are an error"
            )
        self.genes = Path(vocab_file).read_text(encoding="utf-8").split("\n")
        while self.genes and not self.genes[-1]:
            self.genes.pop()
        if len(set(self.genes)) != len(self.genes) or not all(self.genes):
            raise ValueError(
                f"{vocab_file} has {len(self.genes)} lines and {len(set(self.genes) - {''})} different gene names: "
                f"each line is one gene, its line number the id; remove repeated and empty lines"
            )
        self.gene_table_file = gene_table_file
        # Read here and unpacked when first needed, so that the folder of a tokenizer may go away.
        self._gene_table = None if gene_table_file is None else Path(gene_table_file).read_bytes()
        self._names = [*self.genes, *tokens_behind_genes, str(pad_token)]
        self._ids = {name: index for index, name in enumerate(self._names)}
        self._matcher: GeneMatcher | None = None
        kwargs.pop("special_tokens_pattern", None)
        super().__init__(pad_token=pad_token, unk_token=unk_token, special_tokens_pattern="none", **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a tokenizer from a folder or from the Hub, as all tokenizers of transformers.

        Raises:
            ValueError: If it is loaded for a pipeline that takes text.
        """
        task = kwargs.get("_from_pipeline")
        if task in CELL_PIPELINES:
            raise ValueError(
                f"pipeline({task!r}) takes text, and would give a result for one cell of a data set only: use "
                f"pipeline({CELL_PIPELINES[task]!r}), with `import xtrimogene` or trust_remote_code=True"
            )
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_genes(cls, genes: Sequence[str], folder: str | os.PathLike, **kwargs: Any) -> Self:
        """Return a tokenizer for a panel of your own, matched through the packaged gene table.

        Args:
            genes: Gene names; their order gives the ids.
            folder: Where its files are written, such as the checkpoint folder.
            **kwargs: Arguments of the class, such as `depth_tokens=True`.

        Example:
            >>> tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(["CD3D", "MS4A1", "NKG7"], "panel")
            >>> tokenizer.convert_tokens_to_ids(["NKG7", "ENSG00000156738"])  # MS4A1 by its Ensembl id
            [2, 1]
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / VOCAB_FILES["vocab_file"]).write_text("\n".join(genes) + "\n", encoding="utf-8")
        shutil.copyfile(packaged(VOCAB_FILES["gene_table_file"]), folder / VOCAB_FILES["gene_table_file"])
        vocab_file, gene_table_file = (folder / name for name in VOCAB_FILES.values())
        return cls(vocab_file, gene_table_file, **kwargs)

    @classmethod
    def default(cls, **kwargs: Any) -> Self:
        """Return the tokenizer of the published panel of 19,264 genes.

        Args:
            **kwargs: Arguments of the class, such as `depth_tokens=True`.

        Example:
            >>> xtrimogene.XTrimoGeneTokenizer.default().num_genes
            19264
        """
        vocab_file, gene_table_file = (packaged(name) for name in VOCAB_FILES.values())
        return cls(vocab_file, gene_table_file, **kwargs)

    def with_genes(self, genes: Sequence[str], folder: str | os.PathLike) -> Self:
        """Return a tokenizer whose panel has further genes behind those of this one, as a model after `add_genes`.

        Args:
            genes: Names of the new genes. Names that the gene table does not know match by themselves.
            folder: Where its files are written, such as the checkpoint folder.

        Raises:
            ValueError: If a gene is on the panel already.

        Example:
            >>> tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(["CD3D", "MS4A1"], "panel")
            >>> longer = tokenizer.with_genes(["Cd3d"], "longer")
            >>> longer.num_genes, longer.pad_token_id
            (3, 3)
        """
        panel = [*self.genes, *genes]
        if repeated := sorted({gene for gene in genes if panel.count(gene) > 1}):
            raise ValueError(f"{repeated[0]} is on the panel already or is given twice: leave it out")
        self.save_pretrained(folder)
        (Path(folder) / VOCAB_FILES["vocab_file"]).write_text("\n".join(panel) + "\n", encoding="utf-8")
        config_file = Path(folder) / TOKENIZER_CONFIG_FILE
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config.pop("added_tokens_decoder", None)  # the id of padding, which is another now
        config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")
        return type(self).from_pretrained(folder)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Upload what `push_to_hub` has saved; a card without library and task gets those of our models."""
        path = Path(working_dir) / "README.md"
        card = ModelCard.load(path)
        card.data.library_name = card.data.library_name or "transformers"
        card.data.pipeline_tag = card.data.pipeline_tag or "feature-extraction"
        card.save(path)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    # -- names and ids ------------------------------------------------------------------------------------------------

    @property
    def num_genes(self) -> int:
        """Number of genes `G` of the panel."""
        return len(self.genes)

    @property
    def vocab_size(self) -> int:
        """Number of ids: of genes, of the tokens after them, and of padding."""
        return len(self._names)

    def get_vocab(self) -> dict[str, int]:
        """Return name -> id of genes, tokens and padding."""
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        row = self._ids.get(token)
        if row is None:
            row = int(self.matcher.match([token], min_share=0.0).rows[0])
        if row < 0 and self.unk_token is None:
            raise KeyError(f"{token!r} is not among the {self.num_genes} genes of this panel, by any of its names")
        return row if row >= 0 else self._ids[str(self.unk_token)]

    def _convert_id_to_token(self, index: int) -> str:
        return self._names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join gene names by spaces."""
        return " ".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the panel and the gene table into a folder, and return their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        vocab_file = Path(save_directory) / (prefix + VOCAB_FILES["vocab_file"])
        vocab_file.write_text("\n".join(self.genes) + "\n", encoding="utf-8")
        saved = [str(vocab_file)]
        if self._gene_table is not None:
            table_file = Path(save_directory) / (prefix + VOCAB_FILES["gene_table_file"])
            table_file.write_bytes(self._gene_table)
            saved.append(str(table_file))
        return tuple(saved)

    # -- counts -------------------------------------------------------------------------------------------------------

    @property
    def matcher(self) -> GeneMatcher:
        """Matches column names to the panel; built when first needed."""
        if self._matcher is None:
            table = GeneTable.load(BytesIO(self._gene_table)) if self._gene_table else GeneTable.empty()
            self._matcher = GeneMatcher(self.genes, table)
        return self._matcher

    def find_columns(
        self,
        data: Any,
        layer: str | None = None,
        gene_names: Sequence[str] | None = None,
        gene_column: str | None = None,
        as_given: bool = False,
    ) -> CountSource:
        """Find the counts in `data` without matching its columns to the panel.

        Args:
            data: AnnData (in memory or backed), scipy sparse matrix, array, DataFrame, or a path.
            layer: Where the counts are, if they are not found without it.
            gene_names: Names of the columns, if `data` does not hold them.
            gene_column: Column of `var` with the gene names.
            as_given: Take the values of `layer`, or of `X`, as they are, whatever they mean.

        Raises:
            ValueError: If no counts are found.
        """
        return find_counts(
            data,
            layer=layer,
            gene_names=gene_names,
            gene_column=gene_column,
            as_given=as_given,
            is_gene=lambda name: self.matcher.knows(name),  # reads the table only if a name needs it
        )

    def read_counts(
        self,
        data: Any,
        layer: str | None = None,
        gene_names: Sequence[str] | None = None,
        gene_column: str | None = None,
    ) -> PanelCounts:
        """Find the counts in `data` and match its columns to the panel.

        Args:
            data: AnnData (in memory or backed), scipy sparse matrix, array, DataFrame, or a path.
            layer: Where the counts are, if they are not found without it.
            gene_names: Names of the columns, if `data` does not hold them.
            gene_column: Column of `var` with the gene names.

        Raises:
            ValueError: If no counts are found, or too few columns are genes of the panel.

        Example:
            >>> tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
            >>> cells = tokenizer.read_counts(adata)
            >>> counts, totals = cells.read(0, 2)
            >>> counts.shape
            (2, 19264)
        """
        source = self.find_columns(data, layer, gene_names, gene_column)
        match = self.matcher.best_match(source.name_candidates, row_names=source.cell_names)
        return PanelCounts(source, match, self.num_genes, self.panel_totals)

    def normalize(self, counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """Return log1p of counts per `target_sum`, float32, computed in float64."""
        return normalize(counts, totals, self.target_sum)

    def packed_values(self, counts: np.ndarray, lengths: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """Return the values of the counts of cells, float32, packed.

        Args:
            counts: Raw counts of the expressed genes of all cells, one cell after the other.
            lengths: Number of expressed genes of each cell, `(B,)`.
            totals: Total count of each cell, `(B,)`; the sum of its counts is taken if `panel_totals` is set.

        Example:
            >>> tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
            >>> tokenizer.packed_values(np.array([3.0, 1.0]), np.array([1, 1]), np.array([4e3, 4e3])).round(2)
            array([2.14, 1.25], dtype=float32)
        """
        rows = np.repeat(np.arange(len(lengths)), lengths)
        if self.panel_totals:
            totals = np.bincount(rows, counts, minlength=len(lengths))
        return self.normalize(counts, totals[rows])

    def values_of(self, counts: Any, totals: np.ndarray, measured: np.ndarray | None) -> Any:
        """Return the values of cells on the panel as CSR `(cells, G)`; zeros are stored if they have tokens.

        Args:
            counts: Raw counts on the panel, CSR `(cells, G)`.
            totals: Total count of each cell, `(cells,)`.
            measured: Whether each gene was measured, bool `(G,)`; all were if None.
        """
        lengths = np.diff(counts.indptr)
        values = self.packed_values(counts.data, lengths, totals)
        if not self.shows_zeros:
            return type(counts)((values, counts.indices, counts.indptr), shape=counts.shape)
        panel = np.arange(self.num_genes) if measured is None else np.flatnonzero(measured)
        ids, values, lengths = with_zeros(counts.indices, values, lengths, [panel] * len(lengths), self.num_genes)
        return type(counts)((values, ids, np.concatenate([[0], np.cumsum(lengths)])), shape=counts.shape)

    def cell_values(self, cells: PanelCounts, start: int = 0, stop: int | None = None) -> tuple[Any, np.ndarray]:
        """Return what `tokenize_values` takes for cells `start ... stop`: values, CSR `(cells, G)`, and source depths.

        Args:
            cells: Cells, from `read_counts`.
            start: First cell.
            stop: One after the last cell; all cells unless given.
        """
        if cells.input_type != "counts":
            return cells.values(self.target_sum, start, stop)
        counts, totals = cells.read(start, stop)
        return self.values_of(counts, totals, cells.measured), log_depths(totals)

    def tokenize_counts(
        self,
        counts: Any,
        totals: np.ndarray,
        target_depth: float | str | None = None,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
    ) -> BatchEncoding:
        """Turn raw counts on the panel into a batch.

        Args:
            counts: CSR of raw counts, `(cells, G)`, as `PanelCounts.read` returns them.
            totals: Total count of each cell, `(cells,)`.
            target_depth: T, the depth to predict for: log10 of a total count, as 4 or `t4`; `f2` for twice the depth of
                the cell, `a1` for ten times; the depth of the cell unless given.
            padding: True: rows are padded to the longest; False: rows are packed, one after the other; `do_not_pad`: a
                list of rows.
            return_tensors: `pt` or `np`.

        Returns:
            `input_ids`, `values` (log1p of counts per `target_sum`) and `attention_mask` (1 = token), `(B, L)`. Packed:
            `input_ids` and `values` `(tokens,)`, and `cu_seqlens` `(B + 1,)`, the start of each cell and the end of the
            last. A cell without counts has no token.

        Example:
            >>> tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
            >>> counts, totals = tokenizer.read_counts(adata).read(0, 2)
            >>> len(tokenizer.tokenize_counts(counts, totals)["input_ids"])
            2
        """
        values = self.values_of(counts, totals, None)
        return self.tokenize_values(values, log_depths(totals), target_depth, padding, return_tensors)

    def tokenize_values(
        self,
        values: Any,
        source_depths: np.ndarray,
        target_depth: float | str | None = None,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
    ) -> BatchEncoding:
        """Turn values on the panel into a batch of the family's tokens; arguments as of `tokenize_counts`.

        Args:
            values: CSR of values, `(cells, G)`, as `cell_values` gives them; each stored entry is a token.
            source_depths: log10 of the total count of each cell, `(cells,)`, NaN where there are no counts.
            target_depth: T, as in `tokenize_counts`.
            padding: True pads rows to the longest; False packs them, one after the other; `do_not_pad` gives a list.
            return_tensors: `pt` or `np`.

        Raises:
            ValueError: If a target depth is given, and the family has no tokens of depth.
        """
        if target_depth is not None:
            raise ValueError(
                f"target_depth is {target_depth!r}, and {type(self).__name__} has no tokens of depth: leave it out"
            )
        return self.batch_of(values.indices, values.data, np.diff(values.indptr), padding, return_tensors)

    def batch_of(
        self, ids: np.ndarray, values: np.ndarray, lengths: np.ndarray, padding: bool | str, return_tensors: str | None
    ) -> BatchEncoding:
        """Return packed tokens of cells of the given lengths as a batch: padded, as rows, or with bounds of cells."""
        if padding == "do_not_pad":
            rows = cell_rows(ids.astype(np.int64), lengths)
            masks = [np.ones(len(row), np.int64) for row in rows]
            return BatchEncoding({"input_ids": rows, "values": cell_rows(values, lengths), "attention_mask": masks})
        if not padding:
            starts = np.concatenate([[0], np.cumsum(lengths)])
            packed = {
                "input_ids": ids.astype(np.int64),
                "values": values,
                "cu_seqlens": starts.astype(np.int32),
            }
            return BatchEncoding(packed, tensor_type=return_tensors)
        batch = self.pad_rows(cell_rows(ids, lengths), cell_rows(values, lengths))
        return BatchEncoding(batch, tensor_type=return_tensors)

    # -- padding ------------------------------------------------------------------------------------------------------

    def pad_rows(
        self,
        ids: Sequence[np.ndarray],
        values: Sequence[np.ndarray],
        num_tokens: int = 0,
        multiple: int = 1,
        padding_side: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the ids and values of cells as a batch.

        Args:
            ids: Ids of each cell.
            values: Values of each cell, as many as ids.
            num_tokens: Least number of columns; the batch has at least one, and as many as the longest cell has tokens.
            multiple: The number of columns is a multiple of it.
            padding_side: `right` or `left` of the tokens; the tokenizer's own side unless given.

        Returns:
            `input_ids`, `values` and `attention_mask` (1 = token, 0 = padding), arrays `(B, L)`.

        Raises:
            ValueError: If a cell has another number of ids than of values, or there is no such side.

        Example:
            >>> tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
            >>> ids, values = [np.array([3, 7]), np.array([5])], [np.array([1.5, 0.5]), np.array([2.0])]
            >>> tokenizer.pad_rows(ids, values)["input_ids"]
            array([[    3,     7],
                   [    5, 19264]])
        """
        if uneven := [row for row, pair in enumerate(zip(ids, values, strict=True)) if len(pair[0]) != len(pair[1])]:
            raise ValueError(
                f"{len(uneven)} of {len(ids)} cells have another number of ids than of values, the first is number "
                f"{uneven[0]} with {len(ids[uneven[0]])} and {len(values[uneven[0]])}: each gene has one value"
            )
        side = padding_side or self.padding_side
        if side not in ("right", "left"):
            raise ValueError(f"padding_side is {side!r}: give 'right' or 'left'")
        num_tokens = max(num_tokens, 1, *map(len, ids))
        num_tokens += -num_tokens % multiple
        shape = len(ids), num_tokens
        batch: dict[str, np.ndarray] = {
            "input_ids": np.full(shape, self.pad_token_id, np.int64),
            "values": np.zeros(shape, np.float32),
            "attention_mask": np.zeros(shape, np.int64),
        }
        for row, (own_ids, own_values) in enumerate(zip(ids, values, strict=True)):
            start = 0 if side == "right" else num_tokens - len(own_ids)
            place = slice(start, start + len(own_ids))
            batch["input_ids"][row, place], batch["values"][row, place] = own_ids, own_values
            batch["attention_mask"][row, place] = 1
        return batch

    def ids_of_text(self, data: Any, *args: Any, padding: Any, **options: Any) -> BatchEncoding:
        """Return the ids of gene names in text, as `PreTrainedTokenizer` does; of no text, none."""
        if not isinstance(data, str):
            if not data:
                return BatchEncoding({"input_ids": [], "attention_mask": []})
            data = [text or "" for text in data]
        return super().__call__(data, *args, padding=False if padding is None else padding, **options)

    def _pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        padded = super()._pad(encoded_inputs, *args, **kwargs)
        if "attention_mask" in padded:  # a name that became padding is no token, wherever it stands
            both = zip(padded["input_ids"], padded["attention_mask"], strict=True)
            padded["attention_mask"] = [0 if index == self.pad_token_id else is_token for index, is_token in both]
        return padded

    def ids_of_counts(
        self,
        values: Any,
        source_depths: np.ndarray,
        target_depth: float | str | None,
        padding: bool | str | None,
        truncation: bool | str | None,
        max_length: int | None,
        return_tensors: str | None,
    ) -> BatchEncoding:
        """Return a batch of cells; arguments as of `__call__`, and values and depths as of `tokenize_values`.

        Raises:
            ValueError: If `max_length` is missing, has no effect or is too small, or `padding` or `truncation` are none
                of their values.
        """
        padding = True if padding in (None, "longest") else padding
        if padding not in (True, False, "max_length", "do_not_pad"):
            raise ValueError(f"padding is {padding!r}: give True, False, 'max_length' or 'do_not_pad'")
        if truncation not in (True, False, None, "longest_first", "only_first", "do_not_truncate"):
            raise ValueError(f"truncation is {truncation!r}: give True or False")
        is_cut = truncation not in (False, None, "do_not_truncate")
        if max_length is not None and not is_cut and padding != "max_length":
            raise ValueError(
                f"max_length is {max_length:,}, and cells are neither cut nor padded to it: give truncation=True, "
                f"padding='max_length', or both"
            )
        most = self.model_max_length if max_length is None else max_length
        if not isinstance(max_length, (int, np.integer, type(None))):
            raise ValueError(f"max_length is {max_length!r}: give a whole number of tokens")
        if is_cut:
            least = 1 + 2 * self.depth_tokens
            if not least <= most <= LARGE_INTEGER:
                given = "is not set" if most > LARGE_INTEGER else f"is {most}"
                raise ValueError(f"truncation is {truncation!r}, and max_length {given}: give at least {least}")
            values = highest_values(values, most - 2 * self.depth_tokens)
        if padding == "do_not_pad" and return_tensors is not None:
            raise ValueError(
                f"padding is 'do_not_pad', and cells of different lengths are no one tensor of {return_tensors!r}: "
                f"leave return_tensors out, or give padding=True"
            )
        tensors = "pt" if return_tensors is None else return_tensors
        if padding != "max_length":
            return self.tokenize_values(values, source_depths, target_depth, padding, tensors)
        rows = self.tokenize_values(values, source_depths, target_depth, "do_not_pad", None)
        return self.pad(rows, "max_length", max_length, return_tensors=tensors)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad a list of unpadded examples `{input_ids, values, ...}`, or one; other keys are stacked.

        This is what `DataCollatorWithPadding` calls. Arguments mean what they mean in transformers.

        Args:
            encoded_inputs: The examples; padding of an earlier call is removed first.
            padding: True or `longest` pads to the longest, `max_length` to `max_length`; False does not pad.
            max_length: For `max_length`; `model_max_length` of the tokenizer unless given.
            pad_to_multiple_of: The padded length is a multiple of it.
            padding_side: `right` or `left`, that of the tokenizer unless given. No output of the models depends on it.
            return_attention_mask: False omits the mask.
            return_tensors: `pt` or `np`; lists of arrays, if rows are not padded, unless given.
            verbose: Whether transformers' own warnings are shown.

        Raises:
            ValueError: If a cell is longer than `max_length`, or none is set, or rows of different lengths are not
                padded and `return_tensors` is set.

        Example:
            >>> tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
            >>> cells = [{"input_ids": [3, 7], "values": [1.5, 0.5]}, {"input_ids": [5], "values": [2.0]}]
            >>> tokenizer.pad(cells)["attention_mask"].tolist()
            [[1, 1], [1, 0]]
        """
        if isinstance(encoded_inputs, Mapping):
            columns = dict(encoded_inputs)
            if not len(columns["input_ids"]) or np.ndim(columns["input_ids"][0]) == 0:
                columns = {key: [value] for key, value in columns.items()}
        else:
            columns = {key: [example[key] for example in encoded_inputs] for key in encoded_inputs[0]}
        if "values" not in columns:  # gene names without expression
            return super().pad(
                encoded_inputs,
                padding,
                max_length,
                pad_to_multiple_of,
                padding_side,
                return_attention_mask,
                return_tensors,
                verbose,
            )
        rows = [np.asarray(row) for row in columns.pop("input_ids")]
        values = [np.asarray(row) for row in columns.pop("values")]
        if "attention_mask" in columns:  # examples that were padded before
            masks = [np.asarray(mask, bool) for mask in columns.pop("attention_mask")]
            rows = [row[mask] for row, mask in zip(rows, masks, strict=True)]
            values = [row[mask] for row, mask in zip(values, masks, strict=True)]
        strategy = PaddingStrategy("longest" if padding is True else padding or "do_not_pad")
        longest = max(map(len, rows))
        num_tokens = 0
        if strategy is PaddingStrategy.MAX_LENGTH:
            num_tokens = self.model_max_length if max_length is None else max_length
            check_max_length(rows, num_tokens)
        batch: dict[str, Any]
        if strategy is PaddingStrategy.DO_NOT_PAD:
            batch = {"input_ids": rows, "values": values, "attention_mask": [np.ones(len(row), int) for row in rows]}
        else:
            batch = self.pad_rows(rows, values, num_tokens, pad_to_multiple_of or 1, padding_side)
        if return_attention_mask is False:
            del batch["attention_mask"]
        batch.update({key: column_array(key, column) for key, column in columns.items()})
        if strategy is PaddingStrategy.DO_NOT_PAD and return_tensors is not None:
            if min(map(len, rows)) < longest:
                raise ValueError(
                    f"padding is False, and {len(rows)} cells of {min(map(len, rows)):,} to {longest:,} tokens are no "
                    f"one tensor: give padding=True, or leave return_tensors out"
                )
            batch = {key: np.asarray(column) for key, column in batch.items()}
        return BatchEncoding(batch, tensor_type=return_tensors)


def column_array(key: str, column: Sequence[Any]) -> np.ndarray:
    """Return a column of examples that are padded, beside ids and values, as an array of numbers.

    Raises:
        ValueError: If it holds text, or rows of different lengths.

    Example:
        >>> column_array("label", [2, 0])
        array([2, 0])
    """
    if isinstance(column[0], str):
        raise ValueError(
            f"the column {key!r} holds text, such as {column[0]!r}, and models take numbers: give class ids, which "
            f"model.config.label2id has of names, or remove the column"
        )
    if np.ndim(column[0]) == 1 and len({len(row) for row in column}) > 1:
        raise ValueError(
            f"the column {key!r} holds rows of different lengths, which are not padded: remove it, or give the Trainer "
            f"a collator that reads it, as DataCollatorForExpression does of cells_dataset"
        )
    return np.asarray(column)


def check_max_length(rows: Sequence[np.ndarray], num_tokens: int) -> None:
    """Refuse to pad cells to a number of tokens that nobody set, or that is too small for one of them.

    Raises:
        ValueError: If it is so.
    """
    if num_tokens > LARGE_INTEGER:
        raise ValueError(
            "padding is 'max_length', and neither max_length nor the tokenizer's model_max_length is set: give "
            "max_length, or padding=True to pad to the longest cell"
        )
    longest = max(map(len, rows))
    if longest > num_tokens:
        raise ValueError(
            f"max_length is {num_tokens:,}, and {sum(len(row) > num_tokens for row in rows)} of {len(rows)} "
            f"cells have more tokens, the longest {longest:,}: no gene is cut off, allow at least as many, or tokenise "
            f"counts with truncation=True, which keeps the highest values"
        )


def highest_values(values: Any, most: int) -> Any:
    """Return cells with at most so many entries, those of the highest values; of equal values, those of lower ids.

    Args:
        values: CSR of values, `(cells, G)`, ids ascending.
        most: Largest number of entries of a cell.

    Example:
        >>> from scipy import sparse
        >>> highest_values(sparse.csr_matrix([[3.0, 1.0, 2.0, 2.0]]), 2).toarray()
        array([[3., 0., 2., 0.]])
    """
    lengths = np.diff(values.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((values.indices, -values.data, rows))  # by cell, in each from the highest value down
    is_kept = np.empty(len(order), bool)
    is_kept[order] = np.arange(len(order)) - values.indptr[rows] < most
    starts = np.concatenate([[0], np.cumsum(np.minimum(lengths, most))])
    return type(values)((values.data[is_kept], values.indices[is_kept], starts), shape=values.shape)


def cell_rows(packed: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Return the part of a packed array that belongs to each cell.

    >>> cell_rows(np.array([3, 7, 5]), np.array([2, 1]))
    [array([3, 7]), array([5])]
    """
    bounds = [0, *np.cumsum(lengths).tolist()]
    return [packed[start:end] for start, end in pairwise(bounds)]


def with_zeros(
    ids: np.ndarray, values: np.ndarray, lengths: np.ndarray, panels: Sequence[np.ndarray], num_genes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add the genes that were measured and not expressed, with the value 0; return packed ids, values and lengths.

    A cell without expressed genes stays empty.

    Args:
        ids: Expressed genes, packed.
        values: Their values, packed.
        lengths: Number of expressed genes of each cell, `(B,)`.
        panels: Ids of the measured genes of each cell, ascending; expressed genes that are not among them are left out.
        num_genes: Number of genes `G` of the panel.

    Example:
        >>> with_zeros(np.array([2]), np.array([1.5]), np.array([1]), [np.array([0, 2])], num_genes=3)
        (array([0, 2]), array([0. , 1.5]), array([2]))
    """
    found = []
    row = np.zeros(num_genes, values.dtype)
    for own, own_values, panel in zip(cell_rows(ids, lengths), cell_rows(values, lengths), panels, strict=True):
        row[own] = own_values
        found.append(row[panel] if len(own) else row[:0].copy())
        row[own] = 0
    shown = [panel[: len(each)] for panel, each in zip(panels, found, strict=True)]
    numbers = np.array([len(each) for each in found], np.int64)
    return np.concatenate([*shown, ids[:0]]), np.concatenate([*found, values[:0]]), numbers


def pad_right(rows: Sequence[Sequence[float] | np.ndarray], padding: float, dtype: type[np.generic]) -> np.ndarray:
    """Return rows as one array, padded on the right to the longest, and to one column at least.

    >>> pad_right([[3, 7], [5]], padding=-1, dtype=np.int64)
    array([[ 3,  7],
           [ 5, -1]])
    """
    padded = np.empty((len(rows), max(map(len, rows), default=1) or 1), dtype)
    for line, row in zip(padded, rows, strict=True):  # each number is written once, as `np.full` first would not
        line[: len(row)] = row
        line[len(row) :] = padding
    return padded


def is_text(data: Any) -> bool:
    """Return whether `data` is gene names, or none, rather than counts or the path of a file or folder with counts."""
    if isinstance(data, str):
        return not (data.lower().endswith(FILE_ENDINGS) or os.path.exists(data))
    while isinstance(data, (list, tuple)):
        if not data or isinstance(data[0], str):
            return True
        data = data[0]
    return False


def refuse_arguments(args: Sequence[Any], options: Iterable[str], taken: Sequence[str]) -> None:
    """Refuse arguments of a tokenizer of text where counts are tokenised.

    Raises:
        TypeError: If there are any beside the options `taken`.
    """
    others = [name for name in options if name not in taken]
    if args or others:
        raise TypeError(
            f"counts are tokenised with {', '.join(taken)}, padding, truncation, max_length and return_tensors, not "
            f"with {', '.join([*map(repr, args), *others])}"
        )


def packaged(name: str) -> Path:
    """Return the path of a data file beside this module.

    >>> packaged("genes.txt").name
    'genes.txt'
    """
    path = Path(__file__).with_name(name)
    if not path.exists():
        raise FileNotFoundError(
            f"{name} is not beside {Path(__file__).name}: only the installed package carries it; "
            f"load a saved tokenizer with AutoTokenizer.from_pretrained(folder)"
        )
    return path
