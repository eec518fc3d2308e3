"""What numbers mean: values and depths of each input type by hand, and what cannot be of that type."""

import anndata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from xtrimogene import XTrimoGeneTokenizer, tl
from xtrimogene.tokenization.panel_xtrimogene import target_depths

GENES = ["TP53", "CD3D", "MS4A1", "NKG7"]
COUNTS = np.array([[6, 2, 0, 2], [0, 30, 10, 0], [1, 1, 1, 1]], np.float32)
TOTALS = COUNTS.sum(1)
LOGS = np.log1p(COUNTS / TOTALS[:, None] * 1e4)


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    return XTrimoGeneTokenizer.from_genes(GENES, tmp_path_factory.mktemp("panel"), depth_tokens=True)


def rows(panel, matrix, target_depth=None, names=GENES, **options):
    """Return values on the panel (cells, 4), T and S of every cell."""
    cells = panel.read_counts(np.asarray(matrix, np.float32), gene_names=names, **options)
    batch = panel.tokenize_values(*cells.values(panel.target_sum), target_depth)
    dense = torch.zeros(cells.n_cells, panel.vocab_size).scatter(1, batch["input_ids"], batch["values"])
    return dense[:, :4].numpy(), dense[:, 4].numpy(), dense[:, 5].numpy()


@pytest.mark.parametrize(
    ("input_type", "matrix", "values", "depths"),
    [
        ("counts", COUNTS, LOGS, np.log10(TOTALS)),
        ("log", LOGS, LOGS, np.log10(LOGS.sum(1))),
        ("log-total", LOGS, LOGS, np.log10(TOTALS)),
        ("bulk", COUNTS, (bulk := np.log1p(COUNTS / TOTALS[:, None] * 10)), np.log10(bulk.sum(1))),
        ("bulk-log", LOGS, LOGS, LOGS.sum(1)),
    ],
)
def test_values_and_depths_by_hand(panel, input_type, matrix, values, depths):
    totals = TOTALS if input_type == "log-total" else None
    found, T, S = rows(panel, matrix, input_type=input_type, totals=totals)
    np.testing.assert_allclose(found, values, rtol=1e-6)
    np.testing.assert_allclose(S, depths, rtol=1e-6)
    np.testing.assert_array_equal(T, S)


def test_totals_count_columns_off_the_panel_unless_the_script_is_imitated(panel):
    wide, names = np.column_stack([COUNTS, [90, 0, 0]]), [*GENES, "NOVEL"]
    _, _, S = rows(panel, wide, names=names)
    np.testing.assert_allclose(S, np.log10([100, 40, 4]), rtol=1e-6)
    found, _, S = rows(panel, wide, names=names, parity=True)
    np.testing.assert_allclose(S, np.log10(TOTALS), rtol=1e-6)
    np.testing.assert_allclose(found, LOGS, rtol=1e-6)


def test_parity_matches_names_only_as_they_are_written(panel):
    renamed = ["LFS1", *GENES[1:]]  # an alias of TP53
    assert rows(panel, COUNTS, names=renamed)[0][0, 0] > 0
    assert rows(panel, COUNTS, names=renamed, parity=True)[0][0, 0] == 0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(4, 4), ("4", 4), ("t4.5", 4.5), ("f2", 3 + np.log10(2)), ("a1", 4), (None, 3), ("a-1", 2), (np.float32(4), 4)],
)
def test_target_depths(asked, expected):
    assert target_depths(np.array([3.0]), asked) == pytest.approx([expected])


@pytest.mark.parametrize("asked", ["x4", "t", "f0", "f-1", "tnan", "", "4,5", True])
def test_target_depths_that_mean_nothing(asked):
    with pytest.raises(ValueError, match="give log10 of a total count such as 4 or t4"):
        target_depths(np.array([3.0]), asked)


@pytest.mark.parametrize(
    ("input_type", "matrix", "totals", "message"),
    [
        ("log", COUNTS, None, "9 whole numbers up to 30 are no logarithms; give input type counts"),
        ("log", LOGS * 2, None, "log1p of counts per 10,000 is at most 9.21"),
        ("log", -LOGS, None, "9 values are negative"),
        ("log", LOGS / np.log(10), None, "looks like logarithms to the base 10, and log1p"),
        ("log-total", LOGS, None, "'log-total' and no totals are given"),
        ("log", LOGS, TOTALS, "'log' and 3 totals are given"),
        ("counts", COUNTS, TOTALS, "'counts' and 3 totals are given"),
        ("log-total", LOGS, TOTALS[:2], "2 totals for 3 cells"),
        ("log-total", LOGS, TOTALS * np.nan, "3 of them negative or missing"),
        (
            "log-total",
            LOGS,
            LOGS[:, 0],
            r"by the totals given \(median .* of the values are those of counts: these are",
        ),
        ("log-total", LOGS, np.full(3, 1e4), r"by the totals given \(median 1e\+04\) .* not the totals of before"),
        ("log-total", LOGS, (COUNTS > 0).sum(1), "not the totals of before normalising"),
        (
            "log",
            np.log1p(COUNTS / TOTALS[:, None] * 10),
            None,
            r"sums to 10 \(median, largest 10\), and log1p of counts",
        ),
        ("bulk-log", COUNTS * 1.5, None, "values up to 45 are no logarithms; give input type bulk"),
        ("bulk", LOGS, None, "look like logarithms; give input type bulk-log"),
        ("bulk-log", COUNTS, None, "are no logarithms; give input type bulk"),
        ("tpm", COUNTS, None, "give one of counts, log, log-total, bulk, bulk-log"),
    ],
)
def test_what_cannot_be_of_its_type_is_refused(panel, input_type, matrix, totals, message):
    with pytest.raises(ValueError, match=message):
        rows(panel, matrix, input_type=input_type, totals=totals)


@pytest.mark.parametrize("asked", [10_000, "t10000", "f1e10", -4, "a-4"])
def test_depths_that_are_no_logarithm_of_a_total(asked):
    with pytest.raises(ValueError, match="10,000 counts are t4"):
        target_depths(np.array([3.0, np.nan]), asked)


def test_columns_of_one_gene_are_summed_as_expression_not_as_logarithms(panel):
    halves = np.column_stack([np.log1p(np.expm1(LOGS[:, :1]) / 2)] * 2 + [LOGS[:, 1:]])
    names = [GENES[0], *GENES]
    found, _, _ = rows(panel, halves, names=names, input_type="log")
    np.testing.assert_allclose(found, LOGS, rtol=1e-6)
    found, _, _ = rows(panel, np.column_stack([COUNTS[:, :1], COUNTS]), names=names, input_type="counts")
    assert found[0, 0] == pytest.approx(np.log1p(12 / 16 * 1e4))


def test_the_tokenizer_takes_every_type(panel):
    batch = panel(LOGS.astype(np.float32), gene_names=GENES, input_type="log-total", totals=TOTALS)
    same = panel(COUNTS, gene_names=GENES)
    torch.testing.assert_close(batch["values"], same["values"])
    assert torch.equal(batch["input_ids"], same["input_ids"])


def test_matrices_in_which_scipy_does_not_compute(panel):
    for dtype in (np.float16, np.uint8, np.int8, np.int64):  # True and False are no counts: test_files.py
        cells = panel.read_counts(COUNTS.astype(dtype), gene_names=GENES)
        np.testing.assert_array_equal(cells.read()[0].toarray(), COUNTS.astype(dtype).astype(np.float32))


def test_recoverable_counts_are_pointed_out(panel):
    cells = panel.read_counts(LOGS.astype(np.float32), gene_names=GENES, input_type="log")
    assert "counts can be recovered from them: input type counts does it" in cells.description


def test_bulk_samples_without_counts_do_not_move_the_median(panel):
    with_empty = np.vstack([COUNTS, np.zeros((4, 4))])
    found, _, _ = rows(panel, with_empty, input_type="bulk")
    np.testing.assert_allclose(found[:3], bulk, rtol=1e-6)
    assert not found[3:].any()


def test_values_are_those_of_the_layer_asked_for(panel):
    adata = anndata.AnnData(csr_matrix(COUNTS), layers={"logs": csr_matrix(LOGS)})
    adata.var_names = GENES
    cells = panel.read_counts(adata, layer="logs", input_type="bulk-log")
    np.testing.assert_allclose(cells.values(1e4)[0].toarray(), LOGS, rtol=1e-6)
    with pytest.raises(ValueError, match="X: 9 whole numbers"):  # not the layer with counts, but X
        panel.read_counts(adata, input_type="log").values(1e4)


def test_columns_of_totals_that_are_none(panel, tmp_path):
    adata = anndata.AnnData(csr_matrix(LOGS))
    adata.obs["kind"] = list("abc")
    for key in ("depth", "kind"):
        with pytest.raises(ValueError, match=f"total_key is '{key}', and obs has the columns kind: name one"):
            tl.embed(adata, "nowhere", input_type="log-total", total_key=key)
    with pytest.raises(ValueError, match=r"total_key names no column .* obs has kind"):
        tl.embed(adata, "nowhere", input_type="log-total")
    with pytest.raises(ValueError, match="target_depth is 't4', and bulk samples have none"):
        tl.embed(adata, "nowhere", input_type="bulk", target_depth="t4")
