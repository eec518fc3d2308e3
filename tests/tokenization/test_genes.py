"""Names of genes reach their panel row, or visibly do not."""

import csv
from pathlib import Path

import numpy as np
import pytest

from xtrimogene.tokenization import genes_xtrimogene
from xtrimogene.tokenization.genes_xtrimogene import GeneMatcher, GeneTable

TOKENIZATION = Path(genes_xtrimogene.__file__).parent
SHARED = Path(__file__).resolve().parents[2].parent / "shared"
VOCAB = SHARED / "data" / "gene_vocab"
needs_vocab = pytest.mark.skipif(not VOCAB.is_dir(), reason="the gene lists of the shared data are not here")


@pytest.fixture(scope="module")
def table() -> GeneTable:
    return GeneTable.load(TOKENIZATION / "gene_table.tsv.gz")


@pytest.fixture(scope="module")
def panel() -> list[str]:
    return (TOKENIZATION / "genes.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def matcher(panel: list[str], table: GeneTable) -> GeneMatcher:
    return GeneMatcher(panel, table)


@pytest.fixture
def small_table() -> GeneTable:
    """Five genes whose names collide in every way."""
    return GeneTable(
        [
            (["NEW1"], ["ENSG00000000001"], ["OLD1", "BOTH"], ["NICK1", "SHARED"]),
            (["NEW2"], ["ENSG00000000002"], ["OLD2"], ["NICK2", "SHARED", "BOTH", "HALF"]),
            (["OUTSIDE"], ["ENSG00000000003"], ["GONE"], ["HALF"]),
            (["THIRD"], ["ENSG00000000004"], [], ["GONE", "OUTSIDE"]),
            (["C1orf9"], [], [], []),
        ]
    )


def test_the_panel_is_the_published_one(panel):
    assert len(panel) == len(set(panel)) == 19264
    assert (panel[0], panel[1], panel[103], panel[-1]) == ("A1BG", "A1CF", "ABLIM1", "ZZZ3")
    assert (TOKENIZATION / "gene_table.tsv.gz").stat().st_size < 600_000


def test_the_panel_matches_itself_in_order(matcher, panel):
    match = matcher.match(panel)
    assert np.array_equal(match.rows, np.arange(19264))
    assert match.rows.dtype == np.int32
    assert (match.n_by_alias, match.n_by_ensembl, match.n_summed, match.n_absent) == (0, 0, 0, 0)


def test_the_table_knows_the_panel(panel, table):
    assert sum(table.find(name) is not None for name in panel) / len(panel) >= 0.998


@needs_vocab
@pytest.mark.parametrize(("column", "least"), [("ensembl_gene_id", 0.996), ("hgnc_symbol", 0.993)])
def test_panel_genes_are_found_by_every_annotation(matcher, column, least):
    with open(VOCAB / "scfoundation_19264_to_hgnc_ensembl.tsv") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row[column]]
    match = matcher.match([row[column] for row in rows])
    assert np.array_equal(match.rows, [int(row["index"]) for row in rows])
    assert match.n_matched / match.n_panel >= least


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("TP53", "TP53"),
        ("ENSA", "ENSA"),
        ("ENSG00000141510", "TP53"),
        ("ENSG00000141510.18", "TP53"),
        ("ENST00000269305", None),
        ("ENSP00000269305", None),
        ("AC000068.10", None),
        ("GRCh38_TP53", "TP53"),
        ("hg19_ENSG00000141510", "TP53"),
        ("GRCh38______ENSG00000141510.5", "TP53"),
        ("hg38_C1orf112", "C1orf112"),
        ("mm10_TP53", None),
        ("mm10___TP53", None),
        ("ENSMUSG00000059552", None),
        ("TP53_ENSG00000141510", "TP53"),
        ("ENSG00000141510.18_TP53", "TP53"),
        ("ENSG00000182378.14_PAR_Y", "PLCXD1"),
        ("RP11-309M23.1_ENSG00000237531", None),
        ("MARCH1", "MARCHF1"),
        ("SEPT2", "SEPTIN2"),
        ("SEP15", "SELENOF"),
        ("1-Mar", "MARCHF1"),
        ("Mar-01", "MARCHF1"),
        ("2-Sep", "SEPTIN2"),
        ("15-Sep", "SELENOF"),
        ("2024-03-01", "MARCHF1"),
        ("2024-09-02 00:00:00", "SEPTIN2"),
        ("1-Dec", None),  # DEC1 is DELEC1, which is not on the panel; BHLHE40 only has it for an alias
        ("DEC1", None),
        ("C1ORF112", "C1orf112"),
        ("C20ORF194", "DNAAF9"),
        ("Actb", None),
        ("actb", None),
        ("WDR92", "DNAAF10"),
        ("ATP5A1", "ATP5F1A"),
        ("DELEC1", None),
        ("MT-ND1", "MT-ND1"),
        ("MT-ND1__chrM", "MT-ND1__chrM"),
        ("ENSG00000198888", "MT-ND1"),
        (" TP53 ", "TP53"),
    ],
)
def test_one_name(matcher, panel, name, gene):
    row = matcher.match([name], min_share=0).rows[0]
    assert (panel[row] if row >= 0 else None) == gene


def test_each_name_is_decided_for_itself(matcher, panel):
    match = matcher.match(["TP53", "ENSG00000146648.5", "MARCH1", "hg19_ACTB", "LINC01128"])
    assert [panel[row] for row in match.rows[:4]] == ["TP53", "EGFR", "MARCHF1", "ACTB"]
    assert (match.rows[4], match.n_by_ensembl, match.n_by_alias, match.n_unmatched) == (-1, 1, 1, 1)


def test_names_of_one_gene_share_its_row(matcher):
    match = matcher.match(["MARCHF1", "MARCH1", "ENSG00000145416", "1-Mar", "TP53"])
    assert len(set(match.rows[:4])) == 1
    assert (match.n_matched, match.n_summed) == (2, 3)


def test_names_made_unique_are_summed_only_beside_their_base(matcher, panel):
    beside = matcher.match(["TBCE", "TBCE-1", "NAA60", "NAA60.1", "NKX2-1"])
    assert [panel[row] for row in beside.rows] == ["TBCE", "TBCE", "NAA60", "NAA60", "NKX2-1"]
    alone = matcher.match(["TP53", "TBCE-1", "NAA60.1"])
    assert alone.rows[1:].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("OLD1", 0),
        ("NICK2", 1),
        ("BOTH", 0),  # previous symbol of one gene, alias of another
        ("SHARED", -1),  # alias of two panel genes
        ("HALF", 1),  # alias of two genes, one on the panel
        ("OUTSIDE", -1),  # a gene's own symbol is never an alias of a panel gene
        ("GONE", -1),  # nor is a previous symbol of a gene outside
        ("C1ORF9", 3),
    ],
)
def test_the_strongest_claim_decides(small_table, name, row):
    matcher = GeneMatcher(["NEW1", "NEW2", "THIRD", "C1orf9"], small_table)
    assert matcher.match([name], min_share=0).rows.tolist() == [row]


def test_the_panel_may_use_old_names_and_ensembl_ids(small_table):
    matcher = GeneMatcher(["OLD1", "ENSG00000000002.7", "MINE"], small_table)
    names = ["NEW1", "ENSG00000000001", "NEW2", "ENSG00000000002", "OLD2", "MINE"]
    assert matcher.match(names).rows.tolist() == [0, 0, 1, 1, 1, 2]


def test_two_panel_names_of_one_gene_keep_their_rows(small_table):
    matcher = GeneMatcher(["OLD1", "NEW1"], small_table)
    assert matcher.match(["OLD1", "NEW1", "NICK1", "ENSG00000000001"]).rows.tolist() == [0, 1, 1, 1]


def test_without_a_table_names_match_as_written():
    match = GeneMatcher(["TP53", "EGFR"], GeneTable.empty()).match(["EGFR", "ENSG00000141510"])
    assert match.rows.tolist() == [1, -1]


def test_summary_and_record(matcher):
    match = matcher.match(["TP53", "MARCH1", "MARCHF1", "mm10_Actb", "ENSG00000146648"])
    assert match.summary() == (
        "matched 3/19,264 genes (0.0 %) · 1 by Ensembl id · 1 by alias · 19,261 absent (zero-filled) · "
        "1 duplicates summed · 1 columns not on the panel · 1 of them another species"
    )
    assert match.to_dict() == {
        "n_names": 5,
        "n_panel": 19264,
        "n_matched": 3,
        "n_by_ensembl": 1,
        "n_by_alias": 1,
        "n_other_species": 1,
        "source": "gene_names",
        "n_absent": 19261,
        "n_unmatched": 1,
        "n_summed": 1,
    }


def test_the_best_candidate_is_taken_and_named(matcher):
    ids = ["ENSG00000141510", "ENSG00000146648", "ENSG00000145416"]
    match = matcher.best_match(
        {"var_names": ["0", "1", "2"], 'var["gene_ids"]': ids, 'var["symbol"]': ["TP53", "nan", "x"]}
    )
    assert (match.source, match.n_matched) == ('var["gene_ids"]', 3)
    assert matcher.best_match({"first": ["TP53"], "second": ["EGFR"]}).source == "first"
    with pytest.raises(ValueError, match=r"(?s)a: .*only count the columns.*\nb: 1 of 2 gene names are empty"):
        matcher.best_match({"a": ["0", "1"], "b": ["TP53", "nan"]})


def test_genes_in_the_rows_are_seen_where_the_columns_match_none(matcher):
    cells = {"var_names": ["AAACCTGAGAAGGCCT-1", "AAACCTGAGACAGACC-1"]}
    with pytest.raises(ValueError, match=r"3 row names reach 2 of 19,264 panel genes.*transpose it to cells x genes"):
        matcher.best_match(cells, row_names=["TP53", "EGFR", "x"])
    with pytest.raises(ValueError, match=r"^var_names: 2 gene names reach only 0"):
        matcher.best_match(cells, row_names=["one", "two", "three"])
    assert matcher.best_match({"var_names": ["TP53"]}, row_names=["EGFR", "CD3D"]).n_matched == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "0 gene names"),
        (["TP53", "None", "nan", "", float("nan"), None], "5 of 6 gene names are empty, 'None' or 'nan'"),
        (["0", "1", "2", "3"], "the index of names was lost"),
        (["7157", "1956", "672"], "Entrez"),
        (["Actb", "Gapdh", "Trp53", "Cd3e", "mt-Nd1"], "80% look like mouse or rat symbols"),
        (["ENSMUSG00000059552", "ENSMUSG00000029580"], "mouse genes"),
        (["mm10_Actb", "mm10_Gapdh"], "mouse genes"),
        (["ENSRNOG00000010756"], "rat genes"),
        (["ENSDARG00000035559"], "genes of another species"),
        (["ENST00000269305.9", "ENST00000275493"], "transcripts"),
        (["ENSP00000269305"], "proteins"),
        (["AAACCTGAGAAGGCCT-1", "AAACCTGAGACAGACC-1"], "cell barcodes .*transpose"),
        (["1007_s_at", "1053_at"], "microarray probes"),
        (["foo", "bar"], r"not the names of human genes \(foo, bar\)"),
    ],
)
def test_names_that_cannot_be_matched(matcher, names, message):
    with pytest.raises(ValueError, match=message):
        matcher.match(names)


def test_the_share_is_of_the_smaller_side(matcher, small_table):
    few = GeneMatcher(["NEW1"], small_table)
    assert few.match(["NEW1", *(f"other{i}" for i in range(100))]).n_matched == 1
    with pytest.raises(ValueError, match=r"10 gene names reach only 1 of 19,264 panel genes \(min_share=0.2\)"):
        matcher.match(["TP53", *(f"other{i}" for i in range(9))])


@pytest.mark.parametrize("panel", [[], ["TP53", "TP53"]])
def test_a_panel_needs_different_names(panel):
    with pytest.raises(ValueError, match=f"panel has {len(panel)} names"):
        GeneMatcher(panel, GeneTable.empty())


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("pbmc_facs_zheng", 0.960),
        ("pancreas_pdac_moncada7000", 0.960),
        ("celllines_mixology_dev", 0.845),
        ("pbmc_3chemistries", 0.944),
        ("pbmc_frozen_donorA", 0.966),
        ("kang_ifnb", 0.934),
        ("perturbseq_norman_mcfaline500", 0.980),
    ],
)
def test_share_of_counts_matched_in_real_data(matcher, name, share):
    path = SHARED / "data" / name / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"{name} of the shared data is not here")
    adata = pytest.importorskip("anndata").read_h5ad(path)
    totals = np.asarray(adata.X.sum(axis=0)).ravel()
    assert totals[matcher.match(adata.var_names).rows >= 0].sum() / totals.sum() >= share
