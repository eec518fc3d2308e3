"""Files in every format are read in parts, as scanpy reads them whole."""

import anndata
import pytest
import scanpy as sc

FIXTURES = {
    "h5ad/pbmc68k_reduced_counts_700x765.h5ad": anndata.read_h5ad,
    "h5ad/variant_csc_float64_60.h5ad": anndata.read_h5ad,
    "h5ad/variant_dense_lognorm_X_counts_in_layer_60.h5ad": anndata.read_h5ad,
    "10x_h5/cellranger_v1.2.0_hg19_chr21.h5": sc.read_10x_h5,
    "10x_h5/cellranger_v3.0.0_chr21.h5": sc.read_10x_h5,
    "10x_h5/real_pbmc_182cells_GRCh38_36601genes.h5": sc.read_10x_h5,
    "10x_mtx_v1_tiny": sc.read_10x_mtx,
    "10x_mtx_v3_chr21": sc.read_10x_mtx,
    "10x_mtx_v3_scminer": sc.read_10x_mtx,
    "baron_pancreas_10cells_19264_scfoundation_demo.csv.gz": lambda path: sc.read_csv(path, first_column_names=True),
}


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.filterwarnings("ignore:Variable names:UserWarning")
def test_formats_as_scanpy_reads_them(assert_same_cells, shared, to_corpus, tmp_path, tokenizer, name):
    path = shared / "data" / "format_fixtures" / name
    to_corpus(path)
    assert_same_cells(tmp_path / "corpus", FIXTURES[name](path), tokenizer)
