"""Columns that count no RNA of genes take no part in genes and totals, in every format and command."""

import gzip
import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.io
from scipy import sparse
from typer.testing import CliRunner

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer, tl
from xtrimogene.cli import app
from xtrimogene.tokenization.columns_xtrimogene import gene_columns, kinds_of, types_of
from xtrimogene.tokenization.genes_xtrimogene import GeneTable

ANTIBODIES = ["CD3", "CD4", "CD8", "CD14", "CD19", "CD56", "HTO_1", "HTO_2", "CD45RA", "PD-1"]
BESIDE = {
    "antibodies": (ANTIBODIES, "10 Antibody Capture (CD3, CD4"),
    "spike-ins": ([f"ERCC-{i:05d}" for i in range(2, 94)], "92 spike-ins (ERCC-00002, ERCC-00003, ERCC-00004, ...)"),
    "probes": ([f"NegPrb{i}" for i in range(20)] + [f"Blank-{i}" for i in range(20)], "40 control probes (NegPrb0, "),
    "tallies": (["__no_feature", "__ambiguous", "N_unmapped"], "3 tallies of reads (__no_feature, __ambiguous, N_un"),
    "QC": (["total_counts", "n_genes", "percent_mito"], "3 QC values (total_counts, n_genes, percent_mito)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(shared):
    """60 real blood cells, raw counts by symbol; their median total is 1,302."""
    cells = anndata.read_h5ad(shared / "data/kang_ifnb/kang_ifnb.h5ad")[:60].copy()
    cells.uns.clear()
    return anndata.AnnData(cells.X.astype(np.float32), obs=cells.obs[["condition"]], var=cells.var[[]])


def beside(cells, kind):
    """Return cells with more columns, whose counts add up to 3,000 in each; the file says what antibodies are."""
    names = BESIDE[kind][0]
    extra = np.random.default_rng(0).multinomial(3_000, np.ones(len(names)) / len(names), cells.n_obs)
    var = pd.DataFrame(index=[*cells.var_names, *names])
    if kind == "antibodies":
        var["feature_types"] = ["Gene Expression"] * cells.n_vars + ["Antibody Capture"] * len(names)
    return anndata.AnnData(sparse.hstack([cells.X, extra.astype(np.float32)], format="csr"), obs=cells.obs, var=var)


def write(cells, path):
    """Write cells in a format, which its name tells."""
    types = ["Gene Expression"] * cells.n_vars
    if "feature_types" in cells.var:
        types = cells.var["feature_types"].astype(object).fillna("Gene Expression")
    ids = [f"id{place}" for place in range(cells.n_vars)]
    if path.suffix == ".h5ad":
        cells.write_h5ad(path)
    elif path.suffix == ".zarr":
        cells.write_zarr(path)
    elif path.suffix == ".csv":
        cells.to_df().to_csv(path)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            arrays = {"data": cells.X.data.astype(np.int32), "indices": cells.X.indices, "indptr": cells.X.indptr}
            arrays |= {"shape": np.array(cells.shape[::-1]), "barcodes": np.array(cells.obs_names, "S")}
            texts = {"id": ids, "name": cells.var_names, "feature_type": list(types), "genome": ["hg"] * len(ids)}
            for name, values in (
                arrays | {f"features/{key}": np.array(text, "S") for key, text in texts.items()}
            ).items():
                file[f"matrix/{name}"] = values
    else:
        path.mkdir()
        table = pd.DataFrame({0: ids, 1: cells.var_names, 2: list(types)})
        table.to_csv(path / "features.tsv.gz", sep="\t", header=False, index=False)
        pd.Series(cells.obs_names).to_csv(path / "barcodes.tsv.gz", header=False, index=False)
        with gzip.open(path / "matrix.mtx.gz", "wb") as file:
            scipy.io.mmwrite(file, cells.X.T.tocoo())
    return path


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("ending", [".h5ad", ".zarr", ".h5", "_mtx", ".csv", ""])
@pytest.mark.filterwarnings("ignore:Variable names:UserWarning")
def test_genes_and_totals_are_those_of_the_cells_without_them(plain, tokenizer, tmp_path, kind, ending):
    if (kind, ending) == ("antibodies", ".csv"):
        pytest.skip("a table does not say what an antibody is")
    expected, totals = tokenizer.read_counts(plain).read()
    assert np.median(totals) == 1302.5
    cells = beside(plain, kind)
    found = tokenizer.read_counts(write(cells, tmp_path / f"cells{ending}") if ending else cells)
    counts, sums = found.read()
    assert (counts != expected).nnz == 0
    np.testing.assert_array_equal(sums, totals)
    assert BESIDE[kind][1] in found.description
    num = len(BESIDE[kind][0])
    assert f"; left out {num} of {9_015 + num:,} columns: {num} " in found.description
    found.source.close()


def test_no_argument_brings_antibodies_back(plain, tokenizer):
    cells = beside(plain, "antibodies")
    cells.var["symbol"] = cells.var_names
    cells.layers["mine"] = cells.X.copy()
    cells.raw = cells
    del cells.raw.var["feature_types"]
    for options in (
        {"layer": "mine"},
        {"layer": "raw.X"},
        {"gene_column": "symbol"},
        {"gene_names": list(cells.var_names)},
    ):
        found = tokenizer.read_counts(cells, **options)
        assert np.median(found.read()[1]) == 1302.5, options
        assert "10 Antibody Capture" in found.description


def test_antibodies_of_other_values_do_not_hide_the_counts(plain, tokenizer):
    """Centred log-ratios of antibodies are negative fractions, with which the whole matrix was refused."""
    cells = beside(plain, "antibodies")
    dense = cells.X.toarray()
    dense[:, -10:] = np.random.default_rng(0).normal(size=(60, 10))
    cells.X = dense
    assert np.median(tokenizer.read_counts(cells).read()[1]) == 1302.5


@pytest.mark.parametrize(
    ("column", "values", "is_read", "said"),
    [
        ("feature_types", ["Gene Expression", "Antibody Capture", "Peaks"], [1, 0, 0], "1 Antibody Capture (b), 1 Pe"),
        ("feature_types", ["GEX", "ADT", "ATAC"], [1, 0, 0], "left out 2 of 3 columns"),
        ("feature_types", ["Gene Expression", "Something new", "Gene Expression"], [1, 0, 1], "1 Something new (b)"),
        ("modality", ["rna", "rna", "prot"], [1, 1, 0], "1 prot (c)"),
        ("Feature Type", ["Gene Expression", "Negative Control Probe", "Unassigned Codeword"], [1, 0, 0], "left out 2"),
        ("feature_biotype", ["gene", "spike-in", "gene"], [1, 0, 1], "1 spike-in (b)"),
        ("feature_type", ["protein_coding", "lncRNA", "antisense"], [1, 1, 1], ""),
        ("feature_type", ["gene", "pseudogene", "ncRNA_gene"], [1, 1, 1], ""),
        ("feature_type", ["protein_coding", "protein_coding", "ADT"], [1, 1, 0], "1 ADT (c)"),
        ("feature_types", ["Gene Expression", None, "Antibody Capture"], [1, 1, 0], "1 Antibody Capture (c)"),
        ("feature_types", [None, None, "Antibody Capture"], [1, 1, 0], "1 Antibody Capture (c)"),
        ("feature_types", ["v1", "v1", "v2"], [1, 1, 1], 'var["feature_types"] names no gene expression (v1, v2)'),
        ("highly_variable", ["Gene Expression", "ADT", "ADT"], [1, 1, 1], ""),
    ],
)  # fmt: skip
def test_what_a_file_says_of_its_columns(column, values, is_read, said):
    var = pd.DataFrame({column: values}, index=list("abc"))
    found = gene_columns({"var_names": list("abc")}, types_of(var))
    assert found.is_read.tolist() == [bool(read) for read in is_read]
    assert said in found.note
    assert bool(said) == bool(found.note)


def test_a_file_without_rna_is_refused(plain, tokenizer):
    cells = beside(plain, "antibodies")[:, -10:].copy()
    with pytest.raises(
        ValueError, match=r'var\["feature_types"\] says that all 10 columns are Antibody Capture and none'
    ):
        tokenizer.read_counts(cells)
    names = [f"ERCC-{i:05d}" for i in range(10)]
    with pytest.raises(ValueError, match="all 10 columns are spike-ins by their names, and none is a gene"):
        tokenizer.read_counts(cells.X, gene_names=names)


NO_GENES = {
    "spike-ins": """ERCC-00002 ERCC_00171 ERCC.00002 ERCC00095 ERCC92_ERCC-00002 SIRV403 Lambda phiX174 R1_101_1""",
    "control probes": """NegPrb12 NegControlProbe_00042 NegControlCodeword_0500 NegProbe-WTX Negative3 BLANK_0069
        Blank-37 blank12 antisense_ACTB UnassignedCodeword_0001 DeprecatedCodeword_0001 Intergenic_Region_12
        SystemControl4 FalseCode7 NEG_A POS_B(32)""",
    "tallies of reads": """__no_feature __ambiguous __too_low_aQual __not_aligned __alignment_not_unique no_feature
        X__no_feature N_unmapped N_multimapping N_noFeature N_ambiguous Unassigned_NoFeatures unmapped""",
    "QC values": """total_counts n_genes n_genes_by_counts log1p_total_counts total_counts_mt pct_counts_mt percent.mt
        pct_counts_in_top_50_genes percent_mito percent_ribo nCount_RNA nFeature_RNA nUMI nGene n_counts doublet_score
        S.Score G2M_score size_factors library_size sum detected subsets_Mito_percent total mito_frac leiden""",
    "guides": "sgRNA_TP53_1 non-targeting_00123 NonTargeting-4",
    "antibodies and tags": """HTO_1 HTO-A HTO1 ADT_CD4 adt:CD8 CD4_TotalSeqB CD3-TotalA CD4_PROT prot_CD19 Hashtag_3
        CMO301         CD8|pAbO CD3:UCHT1|CD3E|AHS0231|pAbO SampleTag01_hs|stAbO CD14-CTCTCATTGTAACTC IgG2a_isotype
        anti-human_CD45""",
}


@pytest.mark.parametrize("kind", NO_GENES)
def test_names_of_no_gene(kind):
    names = NO_GENES[kind].split()
    assert kinds_of(names, None) == [(place, kind) for place in range(len(names))]


def test_no_name_of_a_gene_or_transgene_is_one_of_them(tokenizer):
    table = GeneTable.load(tokenizer.gene_table_file)
    names = [*tokenizer.genes, *(name for claims in table._claims for name in claims)]
    names += [f"{gene}-1" for gene in tokenizer.genes]  # as scanpy makes repeated names unique
    names += ["EGFP", "eGFP", "mCherry", "tdTomato", "Cas9", "dCas9-KRAB", "WPRE", "hTERT-transgene", "nCoV-S", "HIV1"]
    assert len(names) > 150_000
    assert kinds_of(names, None) == []


def test_a_gene_of_the_panel_stays_whatever_it_is_called(tmp_path):
    panel = XTrimoGeneTokenizer.from_genes(["TP53", "ERCC-00002", "total_counts"], tmp_path)
    cells = panel.read_counts(np.array([[1, 2, 3, 4]]), gene_names=["TP53", "ERCC-00002", "total_counts", "n_genes"])
    assert cells.read()[1].tolist() == [6]
    assert "left out 1 of 4 columns: 1 QC values (n_genes)" in cells.description


def test_a_name_of_a_tag_counts_although_the_other_is_a_gene(tokenizer):
    names = {"var_names": ["CD4", "CD4_TotalSeqB", "ENSG00000141510", "TP53"], "var": ["CD4", "CD4", "n_genes", "sum"]}
    found = gene_columns(names, (), tokenizer.matcher.knows)
    assert found.is_read.tolist() == [True, False, True, True]


def test_counts_off_the_panel_are_told_and_warned_of(plain, tokenizer):
    assert tokenizer.read_counts(plain).description.endswith("; 6.3% of the counts are in columns off the panel")
    noise = np.full((60, 1), 2_000, np.float32)
    cells = anndata.AnnData(sparse.hstack([plain.X, noise], format="csr"), obs=plain.obs)
    cells.var_names = [*plain.var_names, "MYSTERY1"]
    found = tokenizer.read_counts(cells)
    assert "CAUTION: 59.1% of the counts are in columns off the panel" in found.description
    assert "56.4% in MYSTERY1" in found.description
    assert np.median(found.read()[1]) == 3302.5  # they stay in the total


# -- commands ---------------------------------------------------------------------------------------------------------


def write_multimodal(path, **modalities):
    with h5py.File(path, "w") as file:
        for name, cells in modalities.items():
            anndata.io.write_elem(file.require_group("mod"), name, cells)
    return path


def test_of_a_multimodal_file_the_rna_is_read(plain, tokenizer, tmp_path):
    expected, totals = tokenizer.read_counts(plain).read()
    protein = beside(plain, "antibodies")[:, -10:].copy()
    file = write_multimodal(tmp_path / "cells.h5mu", prot=protein, rna=plain)
    counts, sums = tokenizer.read_counts(file).read()
    assert (counts != expected).nnz == 0
    np.testing.assert_array_equal(sums, totals)
    succeed("convert", file, "-o", tmp_path / "corpus", "--min-genes", 0, "--obs", "condition")
    np.testing.assert_array_equal(pq.read_table(tmp_path / "corpus" / "data")["total"].to_numpy(), totals)
    assert json.loads(succeed("inspect", file, "--json").stdout)["median_total"] == np.median(totals)
    other = write_multimodal(tmp_path / "other.h5mu", prot=protein, atac=plain)
    with pytest.raises(ValueError, match="holds the modalities atac, prot, and 0 of them are called rna"):
        tokenizer.read_counts(other)


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_hidden_size": 8}
    sizes |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    XTrimoGeneForPreTraining(XTrimoGeneConfig(num_genes=tokenizer.num_genes, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def succeed(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize(
    "ending", [".h5ad", *(pytest.param(name, marks=pytest.mark.slow) for name in (".zarr", ".h5"))]
)
@pytest.mark.filterwarnings("ignore:Variable names:UserWarning")
def test_every_command_reads_the_same_numbers(plain, checkpoint, tmp_path, ending):
    cells = beside(plain[:12].copy(), "antibodies")
    spikes = beside(plain[:12].copy(), "spike-ins")[:, -92:]
    cells = anndata.concat([cells, spikes], axis=1, join="outer", merge="first")  # spike-ins have no type
    file = write(cells, tmp_path / f"cells{ending}")
    plain[:12].write_h5ad(tmp_path / "plain.h5ad")
    expected = tl.embed(plain[:12].copy(), checkpoint, copy=True).obsm["X_xtrimogene"]
    said = ("10 Antibody Capture (CD3, ", "92 spike-ins (ERCC-00002, ")

    def described(text):
        return all(part in text for part in said)

    out = tmp_path / "out.h5ad"
    made_by = json.loads(succeed("embed", file, "--model", checkpoint, "-o", out, "--json").stdout)["provenance"]
    assert described(made_by["counts"])
    done = anndata.read_h5ad(out)
    np.testing.assert_array_equal(done.obsm["X_xtrimogene"], expected)
    assert described(done.uns["X_xtrimogene"]["counts"])

    inspected = json.loads(succeed("inspect", file, "--json").stdout)
    totals = np.asarray(plain[:12].X.sum(axis=1)).ravel()
    assert inspected["median_total"] == np.median(totals)
    assert described(inspected["counts"])

    labels = ["--model", checkpoint, "--reference", tmp_path / "plain.h5ad", "--label-key", "condition"]
    succeed("annotate", tmp_path / "plain.h5ad", *labels, "-o", tmp_path / "known.h5ad")
    succeed("annotate", file, *labels, "-o", out, "--force")
    known, found = (anndata.read_h5ad(path).obs for path in (tmp_path / "known.h5ad", out))
    assert (found["xtrimogene_label"] == known["xtrimogene_label"]).all()
    np.testing.assert_array_equal(found["xtrimogene_probability"], known["xtrimogene_probability"])

    succeed("enhance", file, "--model", checkpoint, "-o", out, "--force")
    assert np.isnan(anndata.read_h5ad(out).layers["enhanced"][:, -102:]).all()

    assert described(" ".join(succeed("convert", file, "-o", tmp_path / "corpus", "--min-genes", 0).output.split()))
    table = pq.read_table(tmp_path / "corpus" / "data")
    np.testing.assert_array_equal(table["total"].to_numpy(), totals)
