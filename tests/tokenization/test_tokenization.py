"""Count matrices become ragged batches; every kind of input gives the same one; the tokenizer travels as a folder."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from transformers import AutoTokenizer, DataCollatorWithPadding

from xtrimogene import XTrimoGeneTokenizer

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


@pytest.fixture
def small(tmp_path):
    return XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel")


COUNTS = np.array([[0, 3, 0, 1, 0, 0], [5, 0, 0, 0, 0, 5], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 5]], np.float32)


def test_a_batch_by_hand(small):
    batch = small(COUNTS, gene_names=GENES)
    pad = small.pad_token_id
    assert batch["input_ids"].tolist() == [
        [1, 3, pad, pad, pad, pad],
        [0, 5, pad, pad, pad, pad],
        [pad] * 6,
        [0, 1, 2, 3, 4, 5],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [2, 2, 0, 6]
    torch.testing.assert_close(batch["values"][0, :2], torch.tensor([7500.0, 2500.0]).log1p())
    assert not batch["values"][batch["attention_mask"] == 0].any()


def test_depth_tokens_stand_behind_the_genes_of_cells_that_have_any(tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path, depth_tokens=True)
    batch = tokenizer(COUNTS, gene_names=GENES)
    T, S = tokenizer.convert_tokens_to_ids(["<T>", "<S>"])
    assert (T, S, tokenizer.pad_token_id) == (6, 7, 8)
    assert batch["input_ids"][0, :4].tolist() == [1, 3, T, S]
    torch.testing.assert_close(batch["values"][0, 2:4], torch.tensor([4.0, 4.0]).log10())
    assert batch["attention_mask"].sum(1).tolist() == [4, 4, 0, 8]  # the empty cell has no depth either
    deeper = tokenizer(COUNTS, gene_names=GENES, target_depth=4)
    assert deeper["values"][0, 2].item() == 4
    assert deeper["values"][0, 3].item() == batch["values"][0, 3].item()


def test_packed_rows_hold_the_same_tokens(small):
    padded = small(COUNTS, gene_names=GENES, return_tensors="np")
    packed = small(COUNTS, gene_names=GENES, padding=False, return_tensors="np")
    is_token = padded["attention_mask"].astype(bool)
    assert packed["cu_seqlens"].tolist() == [0, 2, 4, 4, 10]
    np.testing.assert_array_equal(packed["input_ids"], padded["input_ids"][is_token])
    np.testing.assert_array_equal(packed["values"], padded["values"][is_token])


def test_totals_include_columns_that_are_not_on_the_panel(small):
    counts = np.array([[3.0, 1.0, 6.0]])
    batch = small(counts, gene_names=["CD3D", "TP53", "NOT-A-GENE"])
    torch.testing.assert_close(batch["values"][0], torch.tensor([1000.0, 3000.0]).log1p())


def test_every_kind_of_input_gives_the_same_batch(small, tmp_path):
    import anndata

    names = [f"cell{i}" for i in range(4)]
    adata = anndata.AnnData(sparse.csr_matrix(COUNTS), pd.DataFrame(index=names), pd.DataFrame(index=GENES))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    frame = pd.DataFrame(COUNTS, index=names, columns=GENES)
    frame.to_csv(tmp_path / "cells.csv")
    expected = small(COUNTS, gene_names=GENES)
    sources = {
        "AnnData": adata,
        "backed": anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r"),
        "h5ad path": tmp_path / "cells.h5ad",
        "h5ad name": str(tmp_path / "cells.h5ad"),
        "csv": tmp_path / "cells.csv",
        "DataFrame": frame,
    }
    batches = {name: small(source) for name, source in sources.items()}
    for name, matrix in {"CSR": sparse.csr_matrix(COUNTS), "CSC": sparse.csc_matrix(COUNTS),
                         "COO": sparse.coo_matrix(COUNTS), "tensor": torch.from_numpy(COUNTS)}.items():  # fmt: skip
        batches[name] = small(matrix, gene_names=GENES)
    for name, batch in batches.items():
        for key in expected:
            assert torch.equal(batch[key], expected[key]), (name, key)


def test_columns_are_matched_by_name_not_by_place(small):
    order = [4, 0, 5, 2, 1, 3]
    shuffled = small(COUNTS[:, order], gene_names=[GENES[i] for i in order])
    plain = small(COUNTS, gene_names=GENES)
    for key in plain:
        assert torch.equal(shuffled[key], plain[key])


def test_ensembl_ids_aliases_and_duplicates_reach_the_same_gene(small):
    named = small(np.array([[2.0, 1.0, 1.0]]), gene_names=["ENSG00000167286.10", "GRCh38_CD3D", "TP53"])
    assert named["input_ids"].tolist() == [[0, 1]]
    torch.testing.assert_close(named["values"][0], torch.tensor([2500.0, 7500.0]).log1p())


def test_real_cells_match_scanpys_normalisation(tokenizer, shared):
    import anndata
    import scanpy as sc

    adata = anndata.read_h5ad(shared / "data" / "pbmc_facs_zheng" / "pbmc_facs_zheng.h5ad")[:50].copy()
    batch = tokenizer(adata)
    cells = tokenizer.read_counts(adata)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    rows = cells.match.rows
    expected = np.zeros((50, tokenizer.num_genes), np.float32)
    np.add.at(expected.T, rows[rows >= 0], adata.X.toarray().T[rows >= 0])
    ours = torch.zeros(50, tokenizer.num_genes + 1)
    ours.scatter_(1, batch["input_ids"], batch["values"])
    # Two columns that are one gene are summed before the logarithm, not after.
    once = np.bincount(rows[rows >= 0], minlength=tokenizer.num_genes) <= 1
    np.testing.assert_allclose(ours[:, :-1].numpy()[:, once], expected[:, once], atol=1e-5)
    assert cells.match.n_matched > 13_000


def test_reading_in_chunks_is_reading_at_once(tokenizer, pbmc):
    cells = tokenizer.read_counts(pbmc)
    whole, totals = cells.read()
    parts = [cells.read(start, start + 97) for start in range(0, cells.n_cells, 97)]
    assert (whole != sparse.vstack([counts for counts, _ in parts])).nnz == 0
    np.testing.assert_array_equal(totals, np.concatenate([totals for _, totals in parts]))
    assert whole.shape == (700, tokenizer.num_genes)
    assert cells.cell_names == list(pbmc.obs_names)


def test_gene_names_as_text(tokenizer):
    assert tokenizer.convert_tokens_to_ids("A1BG") == 0
    assert tokenizer("A1BG ZZZ3")["input_ids"] == [0, 19263]  # lists without padding, as everywhere in transformers
    assert tokenizer(["A1BG ZZZ3", "CD3D"])["attention_mask"] == [[1, 1], [1]]
    ragged = tokenizer(["A1BG ZZZ3", "CD3D"], padding=True, return_tensors="pt")
    assert ragged["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert tokenizer("A1BG ZZZ3 CD3D", truncation=True, max_length=2)["input_ids"] == [0, 19263]
    assert tokenizer.convert_tokens_to_ids("ENSG00000167286") == tokenizer.convert_tokens_to_ids("CD3D")
    assert tokenizer.decode([0, 19263]) == "A1BG ZZZ3"
    with pytest.raises(KeyError, match="'NOT-A-GENE' is not among the 19264 genes"):
        tokenizer.convert_tokens_to_ids("NOT-A-GENE")


def test_text_that_is_a_path_is_read_as_one(small, tmp_path):
    from scipy.io import mmwrite

    folder = tmp_path / "10x"
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", sparse.coo_matrix(COUNTS.T.astype(int)))
    (folder / "genes.tsv").write_text("".join(f"ENSG{i}\t{gene}\n" for i, gene in enumerate(GENES)))
    (folder / "barcodes.tsv").write_text("a\nb\nc\nd\n")
    expected = small(COUNTS, gene_names=GENES)
    for path in (folder, str(folder), f"{folder}/"):
        assert torch.equal(small(path)["values"], expected["values"])
    with pytest.raises(ValueError, match=r"and no matrix\.mtx: give a 10x mtx folder"):
        small(f"{tmp_path}/")
    (tmp_path / "cells.loom").touch()
    with pytest.raises(ValueError, match=r"cells\.loom ends in '\.loom'; accepted are"):
        small(str(tmp_path / "cells.loom"))


@pytest.mark.parametrize("depth", [False, True])
def test_ids_are_those_of_the_model(depth):
    from xtrimogene import XTrimoGeneConfig

    tokenizer = XTrimoGeneTokenizer.default(depth_tokens=depth)
    config = XTrimoGeneConfig.preset("3M", depth_tokens=depth)
    assert len(tokenizer) == tokenizer.vocab_size == config.vocab_size
    assert tokenizer.pad_token_id == config.pad_token_id
    if depth:
        assert tokenizer.convert_tokens_to_ids(["<T>", "<S>"]) == [config.target_token_id, config.source_token_id]


def test_saved_folder_loads_and_gives_the_same_batch(tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "a", depth_tokens=True, target_sum=1e5)
    tokenizer.save_pretrained(tmp_path / "b")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "b")
    loaded.save_pretrained(tmp_path / "b")  # onto itself
    loaded = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert type(loaded) is XTrimoGeneTokenizer
    assert (loaded.depth_tokens, loaded.target_sum, loaded.genes) == (True, 1e5, GENES)
    names = ["ENSG00000167286", *GENES[2:], "TP53"]
    before, after = (each(COUNTS, gene_names=names) for each in (tokenizer, loaded))
    for key in before:
        assert torch.equal(before[key], after[key])


def test_a_tokenizer_outlives_its_folder(tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    assert tokenizer.convert_tokens_to_ids(["ENSG00000167286"]) == [1]  # CD3D, by the table of gene names
    tokenizer.save_pretrained(tmp_path / "b")
    assert AutoTokenizer.from_pretrained(tmp_path / "b").convert_tokens_to_ids(["ENSG00000167286"]) == [1]


def test_pad_serves_transformers_own_collator(small):
    examples = [
        {"input_ids": [1, 3], "values": [1.0, 2.0], "labels": 1},
        {"input_ids": [0], "values": [3.0], "labels": 0},
    ]
    batch = DataCollatorWithPadding(small)(examples)
    assert batch["input_ids"].tolist() == [[1, 3], [0, small.pad_token_id]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    one = small.pad({"input_ids": [1, 3], "values": [1.0, 2.0]}, return_tensors="pt")
    assert one["input_ids"].tolist() == [[1, 3]]
    with pytest.raises(
        ValueError, match=r"1 of 2 cells have another number of ids than of values, .* number 1 with 1 and 2"
    ):
        small.pad([examples[0], {"input_ids": [0], "values": [3.0, 1.0], "labels": 0}])


def test_padding_of_padded_examples_stays_padding(small):
    batch = small(COUNTS, gene_names=GENES, return_tensors="np")
    again = DataCollatorWithPadding(small)([{key: batch[key][row] for key in batch} for row in (0, 3)])
    assert again["attention_mask"].sum(1).tolist() == [2, 6]
    assert again["input_ids"][0].tolist() == batch["input_ids"][0].tolist()


RAGGED = [{"input_ids": [1, 3, 4], "values": [1.0, 2.0, 3.0]}, {"input_ids": [0], "values": [4.0]}]


@pytest.mark.parametrize(
    ("asked", "left", "right"),
    [
        ({}, 0, 3),
        ({"padding": "longest"}, 0, 3),
        ({"pad_to_multiple_of": 8}, 0, 8),
        ({"padding": "max_length", "max_length": 5}, 0, 5),
        ({"padding": "max_length", "max_length": 5, "pad_to_multiple_of": 4}, 0, 8),
        ({"padding_side": "left"}, 3, 0),
        ({"padding_side": "left", "pad_to_multiple_of": 8}, 8, 0),
    ],
    ids=str,
)
def test_padding_is_done_as_asked_for(small, asked, left, right):
    width, pad = left or right, small.pad_token_id
    batch = small.pad(RAGGED, return_tensors="pt", **asked)
    for row, example in enumerate(RAGGED):
        length = len(example["input_ids"])
        place = slice(width - length, width) if left else slice(length)
        for key, padding, tokens in (
            ("input_ids", pad, example["input_ids"]),
            ("values", 0.0, example["values"]),
            ("attention_mask", 0, [1] * length),
        ):
            expected = [padding] * width
            expected[place] = tokens
            assert batch[key][row].tolist() == expected


def test_padding_arguments_reach_transformers_collator_and_the_tokenizer(small, tmp_path):
    assert DataCollatorWithPadding(small, pad_to_multiple_of=8)(RAGGED)["values"].shape == (2, 8)
    assert DataCollatorWithPadding(small, "max_length", 5)(RAGGED)["input_ids"].shape == (2, 5)
    with pytest.raises(ValueError, match="padding is False, and 2 cells of 1 to 3 tokens are no one tensor"):
        DataCollatorWithPadding(small, padding=False)(RAGGED)
    unpadded = small.pad(RAGGED, padding=False)
    assert [row.tolist() for row in unpadded["input_ids"]] == [[1, 3, 4], [0]]
    assert [row.tolist() for row in unpadded["values"]] == [[1.0, 2.0, 3.0], [4.0]]
    assert small.pad(RAGGED[:1], padding=False, return_tensors="pt")["attention_mask"].tolist() == [[1, 1, 1]]
    assert "attention_mask" not in small.pad(RAGGED, return_attention_mask=False)
    small.save_pretrained(tmp_path / "saved")
    left = AutoTokenizer.from_pretrained(tmp_path / "saved", padding_side="left", model_max_length=7)
    assert left(COUNTS, gene_names=GENES)["input_ids"][0].tolist() == [small.pad_token_id] * 4 + [1, 3]
    assert left.pad(RAGGED, padding="max_length")["input_ids"][1].tolist() == [small.pad_token_id] * 6 + [0]


def test_padding_that_cannot_be_done_is_refused(small):
    with pytest.raises(ValueError, match="max_length is 2, and 1 of 2 cells have more tokens, the longest 3: no gene"):
        small.pad(RAGGED, padding="max_length", max_length=2)
    with pytest.raises(ValueError, match="neither max_length nor the tokenizer's model_max_length is set"):
        small.pad(RAGGED, padding="max_length")
    with pytest.raises(ValueError, match="padding_side is 'top'"):
        small.pad(RAGGED, padding_side="top")
    with pytest.raises(ValueError, match="is not a valid PaddingStrategy"):
        small.pad(RAGGED, padding="some")


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_model_gives_the_same_wherever_padding_stands(tiny_config, tokenizer, pbmc, attention):
    from xtrimogene import XTrimoGeneForPreTraining

    torch.manual_seed(0)
    config = tiny_config(num_genes=tokenizer.num_genes, attn_implementation=attention)
    model = XTrimoGeneForPreTraining(config).eval()
    cells = tokenizer(pbmc[:5], return_tensors="np")
    examples = [{key: cells[key][row] for key in cells} for row in range(5)]
    gene_ids = torch.arange(0, tokenizer.num_genes, 97)

    def outputs(**asked):
        batch = tokenizer.pad(examples, return_tensors="pt", **asked)
        pooled = model.model(**batch).pooler_output
        return pooled, model.model.contextual_gene_embeddings(**batch, gene_ids=gene_ids)

    for one, other in zip(outputs(), outputs(padding_side="left", pad_to_multiple_of=64), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_unknown_arguments_are_refused(small):
    for arguments in ({"layers": "counts"}, {"add_special_tokens": True}, {"stride": 2}):
        with pytest.raises(TypeError, match="counts are tokenised with layer, gene_names"):
            small(COUNTS, gene_names=GENES, **arguments)


def test_few_columns_are_said(tokenizer, pbmc):
    assert "of 765 columns only, whose sum is taken for the cell's total" in tokenizer.read_counts(pbmc).description


def test_no_text_gives_no_tokens(tokenizer):
    for given, shape in (("", (1, 0)), ([""], (1, 0)), (["LYZ", ""], (2, 1))):
        batch = tokenizer(given, padding=True, return_tensors="pt")
        assert batch["input_ids"].shape == shape
        assert batch["attention_mask"].sum() == (2 if shape[1] else 0) / 2
    assert tokenizer("")["input_ids"] == []
    assert tokenizer(["LYZ", ""])["input_ids"][1] == []
    assert tokenizer([])["input_ids"] == []


def test_names_that_are_no_genes_become_padding_where_that_is_asked_for(tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel", unk_token="<pad>")
    batch = tokenizer([f"{GENES[1]} NOT-A-GENE {GENES[0]}", GENES[2]], padding=True)
    assert batch["input_ids"][0] == [1, tokenizer.pad_token_id, 0]
    assert batch["attention_mask"] == [[1, 0, 1], [1, 0, 0]]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").unk_token_id == tokenizer.pad_token_id
    with pytest.raises(ValueError, match="unk_token is '<unk>', and models have no row for it: give '<pad>'"):
        XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel", unk_token="<unk>")


def test_rows_of_cells_without_padding_are_what_datasets_map_takes(small):
    from datasets import Dataset

    padded = small(COUNTS, gene_names=GENES)
    rows = small(COUNTS, gene_names=GENES, padding="do_not_pad")
    assert [len(row) for row in rows["input_ids"]] == padded["attention_mask"].sum(1).tolist() == [2, 2, 0, 6]
    cells = Dataset.from_dict({"counts": COUNTS.tolist()})
    mapped = cells.map(
        lambda batch: small(np.array(batch["counts"]), gene_names=GENES, padding="do_not_pad"),
        batched=True, batch_size=3, remove_columns="counts",
    )  # fmt: skip
    assert mapped.column_names == ["input_ids", "values", "attention_mask"]
    again = small.pad([mapped[number] for number in range(4)], return_tensors="pt")
    for name, column in padded.items():
        assert torch.equal(again[name], column), name
    with pytest.raises(ValueError, match=r"cells of different lengths are no one tensor of 'pt'"):
        small(COUNTS, gene_names=GENES, padding="do_not_pad", return_tensors="pt")


@pytest.mark.parametrize("depth_tokens", [False, True])
def test_truncation_keeps_the_genes_of_the_highest_values(tmp_path, depth_tokens):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path / "panel", depth_tokens=depth_tokens)
    counts = np.array([[5.0, 1, 3, 3, 0, 9], [0, 0, 1, 0, 0, 0]])
    most = 3 + 2 * depth_tokens
    options = {"gene_names": GENES, "truncation": True, "max_length": most}
    cut = tokenizer(counts, **options)
    assert cut["input_ids"][0, :3].tolist() == [0, 2, 5]  # of the equal ones, the lower id
    assert cut["attention_mask"].sum(1).tolist() == [most, 1 + 2 * depth_tokens]
    if depth_tokens:
        assert cut["input_ids"][0, 3:].tolist() == [6, 7]
    whole = tokenizer(counts, gene_names=GENES)
    assert cut["values"][0, 1] == whole["values"][0, 2]  # the total of the cell is that of all its genes
    padded = tokenizer(counts, gene_names=GENES, padding="max_length", truncation=True, max_length=most)
    assert padded["input_ids"].shape == (2, most)
    tokenizer.model_max_length = most
    assert torch.equal(tokenizer(counts, gene_names=GENES, truncation=True)["input_ids"], cut["input_ids"])
    packed = tokenizer(counts, padding=False, **options)
    assert packed["cu_seqlens"].tolist() == [0, most, most + 1 + 2 * depth_tokens]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 3}, "max_length is 3, and cells are neither cut nor padded to it: give truncation=True"),
        ({"truncation": True}, "truncation is True, and max_length is not set: give at least 1"),
        ({"truncation": True, "max_length": 0}, "max_length is 0: give at least 1"),
        ({"truncation": "lowest"}, "truncation is 'lowest': give True or False"),
        ({"padding": "shortest"}, "padding is 'shortest': give True, False, 'max_length' or 'do_not_pad'"),
        ({"padding": "max_length", "max_length": 3}, "or tokenise counts with truncation=True, which keeps"),
    ],
)
def test_lengths_that_cannot_be_are_refused(small, options, message):
    with pytest.raises(ValueError, match=message):
        small(COUNTS, gene_names=GENES, **options)
