"""The files of the panel are those that their sources give."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from xtrimogene.tokenization import genes_xtrimogene

TOKENIZATION = Path(genes_xtrimogene.__file__).parent

SHARED = Path(__file__).resolve().parents[2].parent / "shared"

VOCAB = SHARED / "data" / "gene_vocab"

needs_vocab = pytest.mark.skipif(not VOCAB.is_dir(), reason="the gene lists of the shared data are not here")


@needs_vocab
def test_the_files_are_built_from_their_sources(tmp_path):
    names = (
        "OS_scRNA_gene_index.19264.tsv",
        "hgnc_complete_set_reduced.tsv.gz",
        "GENCODEv44_Gene_id2name.csv.gz",
        "scfoundation_19264_to_hgnc_ensembl.tsv",
    )
    script = [sys.executable, TOKENIZATION / "build_gene_table.py", *(VOCAB / name for name in names)]
    subprocess.run([*script, "--out", tmp_path], check=True)
    assert (tmp_path / "genes.txt").read_bytes() == (TOKENIZATION / "genes.txt").read_bytes()
    built, packaged = (gzip.decompress((at / "gene_table.tsv.gz").read_bytes()) for at in (tmp_path, TOKENIZATION))
    assert built == packaged
