"""What every family's tokenizer does with a panel: ids of its tokens, counts read on it, padding, files."""

import anndata
import numpy as np
import pandas as pd
import pytest
from transformers import DataCollatorWithPadding

from xtrimogene import XTrimoGeneTokenizer
from xtrimogene.tokenization.expression_xtrimogene import ExpressionTokenizer

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


class Counts(ExpressionTokenizer):
    """A second family, whose values are counts as they are, with a token for each cell."""

    model_input_names = ["input_ids", "values", "attention_mask"]

    def __init__(self, *args, cell_name="<cell>", **kwargs):
        super().__init__(*args, tokens_behind_genes=(cell_name,), cell_name=cell_name, **kwargs)


def test_tokens_of_a_family_have_the_ids_behind_the_genes_and_padding_the_last(tmp_path):
    tokenizer = Counts.from_genes(GENES, tmp_path, cell_name="<c>")
    assert type(tokenizer) is Counts
    assert tokenizer.convert_tokens_to_ids([*GENES, "<c>"]) == list(range(7))
    assert (tokenizer.num_genes, tokenizer.pad_token_id, tokenizer.vocab_size, len(tokenizer)) == (6, 7, 8, 8)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = Counts.from_pretrained(tmp_path / "saved")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.convert_tokens_to_ids("ENSG00000167286") == 1


def test_real_cells_are_read_alike_by_every_family(shared, tokenizer):
    adata = anndata.read_h5ad(shared / "data" / "kang_ifnb" / "kang_ifnb.h5ad")[:40].copy()
    cells, same = Counts.default().read_counts(adata), tokenizer.read_counts(adata)
    (counts, totals), (others, other_totals) = cells.read(), same.read()
    assert (counts != others).nnz == 0
    np.testing.assert_array_equal(totals, other_totals)
    assert cells.match.to_dict() == same.match.to_dict()
    assert cells.description == same.description


def test_padding_is_that_of_the_family(tmp_path):
    tokenizer = Counts.from_genes(GENES, tmp_path)
    batch = tokenizer.pad([{"input_ids": [0, 3], "values": [2.0, 0.0]}, {"input_ids": [1], "values": [5.0]}])
    assert batch["input_ids"].tolist() == [[0, 3], [1, tokenizer.pad_token_id]]
    assert batch["values"].tolist() == [[2.0, 0.0], [5.0, 0.0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("label", ["B cell", "T cell"], "the column 'label' holds text, such as 'B cell', .*: give class ids"),
        ("counts", [[3.0, 1.0], [2.0]], "the column 'counts' holds rows of different lengths, .*DataCollatorForExp"),
    ],
)
def test_columns_that_are_no_numbers_of_cells_are_refused_where_a_collator_pads(tmp_path, name, column, message):
    tokenizer = Counts.from_genes(GENES, tmp_path)
    cells = [{"input_ids": [0, 3], "values": [2.0, 0.0]}, {"input_ids": [1], "values": [5.0]}]
    with pytest.raises(ValueError, match=message):
        DataCollatorWithPadding(tokenizer)([{**cell, name: each} for cell, each in zip(cells, column, strict=True)])


def test_texts_without_names_are_cells_without_genes(tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path)
    for texts in ([[]], [""]):
        assert dict(tokenizer(texts)) == {"input_ids": [[]], "attention_mask": [[]]}


@pytest.mark.parametrize("length", [1.5, "5"])
def test_a_length_is_a_whole_number(tmp_path, length):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path)
    with pytest.raises(ValueError, match=f"max_length is {length!r}: give a whole number"):
        tokenizer(pd.DataFrame([[3, 1]], columns=["CD3D", "LYZ"]), truncation=True, max_length=length)


def test_a_panel_that_repeats_a_gene_is_refused(tmp_path):
    (tmp_path / "genes.txt").write_text("TP53\nCD3D\nTP53\n")
    with pytest.raises(ValueError, match="has 3 lines and 2 different gene names"):
        XTrimoGeneTokenizer(tmp_path / "genes.txt")
