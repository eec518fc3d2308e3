"""The tokenizer of TxFM: which genes have tokens, and what their values are."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from transformers import AutoTokenizer

from xtrimogene import TxFMTokenizer
from xtrimogene.inference.running import batches
from xtrimogene.tokenization.collators import DataCollatorForExpression
from xtrimogene.tokenization.panel_xtrimogene import InMemory
from xtrimogene.training.data.dataset import cells_dataset, expression

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


@pytest.fixture
def tokenizer(tmp_path):
    return TxFMTokenizer.from_genes(GENES, tmp_path / "panel")


@pytest.fixture
def counts():
    """Three cells of four of the six genes and of a column that is no gene; the last is empty."""
    columns = ["NKG7", "TP53", "XYZ", "LYZ", "CD3D"]
    return pd.DataFrame([[3, 0, 90, 1, 0], [0, 2, 0, 0, 2], [0, 0, 5, 0, 0]], columns=columns, dtype=np.float32)


def test_each_measured_gene_is_a_token_zeros_among_them(tokenizer, counts):
    batch = tokenizer(counts, return_tensors="np")
    assert batch["input_ids"].tolist() == [[0, 1, 3, 4], [0, 1, 3, 4], [6, 6, 6, 6]]
    assert batch["attention_mask"].tolist() == [[1] * 4, [1] * 4, [0] * 4]  # an empty cell has no token
    expected = np.log1p(1e5 * np.array([[0, 0, 3 / 4, 1 / 4], [2 / 4, 2 / 4, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(batch["values"], expected, rtol=1e-6)


def test_a_cell_sums_to_the_library_size_on_the_panel(tokenizer, counts):
    values = tokenizer(counts, return_tensors="np")["values"][:2]
    np.testing.assert_allclose(np.expm1(values.astype(np.float64)).sum(1), 1e5, rtol=1e-5)
    assert values.max() <= np.log1p(1e5)


def test_counts_read_in_parts_and_in_memory_give_the_same_tokens(tokenizer, counts):
    whole = tokenizer(counts, return_tensors="np")
    cells = tokenizer.read_counts(counts)
    for start in range(3):
        part = tokenizer.tokenize_values(*tokenizer.cell_values(cells, start, start + 1), return_tensors="np")
        number = whole["attention_mask"][start].sum()
        np.testing.assert_array_equal(part["input_ids"][0, :number], whole["input_ids"][start, :number])
        np.testing.assert_array_equal(part["values"][0, :number], whole["values"][start, :number])
    in_memory = InMemory(cells.read()[0], cells.measured)
    again, _ = tokenizer.cell_values(in_memory)
    np.testing.assert_array_equal(again.toarray(), tokenizer.cell_values(cells)[0].toarray())


def test_batches_of_inference_hold_every_measured_gene(tokenizer, counts):
    cells = tokenizer.read_counts(counts)
    found = {row: batch for rows, batch in batches(tokenizer, cells, "cpu", 1, None) for row in rows.tolist()}
    assert [int(found[row]["attention_mask"].sum()) for row in range(3)] == [4, 4, 0]


def test_cells_that_do_not_say_what_was_measured_have_all_genes(tokenizer):
    values, _ = tokenizer.cell_values(InMemory(sparse.csr_matrix([[0, 4.0, 0, 0, 0, 1.0]])))
    assert values.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert tokenizer.tokenize_counts(sparse.csr_matrix([[0, 4.0, 0, 0, 0, 1.0]]), np.array([5.0]))[
        "attention_mask"
    ].sum() == 6  # fmt: skip


def test_the_collator_of_tasks_shows_every_measured_gene(tokenizer, counts):
    dataset = cells_dataset(tokenizer.read_counts(counts.iloc[:2]), labels=[1, 0])
    batch = DataCollatorForExpression(tokenizer)(dataset.__getitems__([0, 1]))
    expected = tokenizer(counts.iloc[:2])
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    np.testing.assert_allclose(batch["values"], expected["values"])
    assert batch["labels"].tolist() == [1, 0]


def test_totals_of_a_corpus_that_another_tokenizer_made_do_not_count(tokenizer, counts):
    dataset = cells_dataset(tokenizer.read_counts(counts.iloc[:2]))
    other = dataset.to_list()
    for cell in other:
        cell["total"] = 1e6  # over all columns of its file
    from datasets import Dataset

    same = Dataset.from_list(other, features=dataset.features).with_format("numpy")
    np.testing.assert_array_equal(expression(same, tokenizer).toarray(), expression(dataset, tokenizer).toarray())


def test_a_saved_tokenizer_is_loaded_by_its_auto_class(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (type(again), again.target_sum, again.genes, again.pad_token_id) == (TxFMTokenizer, 1e5, GENES, 6)


def test_gene_names_become_ids(tokenizer):
    assert tokenizer("NKG7 TP53", return_tensors=None)["input_ids"] == [3, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_type": "log"}, "input_type is 'log', and TxFMTokenizer reads raw counts only"),
        ({"totals": np.ones(3)}, "totals is .*, and TxFMTokenizer reads raw counts only"),
        ({"parity": True}, "parity is True, and TxFMTokenizer reads raw counts only"),
    ],
)
def test_values_that_are_no_counts_are_refused(tokenizer, counts, options, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.read_counts(counts, **options)


def test_options_without_effect_may_be_said(tokenizer, counts):
    said = "".join(["co", "unts"])  # equal to the name of the input type, and another object
    assert tokenizer.read_counts(counts, input_type=said, totals=None, parity=False).n_cells == 3


def test_a_target_depth_is_refused(tokenizer, counts):
    with pytest.raises(ValueError, match="target_depth is 't4', and TxFMTokenizer has no tokens of depth"):
        tokenizer.tokenize_values(*tokenizer.cell_values(tokenizer.read_counts(counts)), "t4")


def test_other_arguments_are_refused(tokenizer, counts):
    with pytest.raises(TypeError, match="not with 'more'"):
        tokenizer(counts, "more")
