"""Conversion of real files: every count as anndata and scanpy read it, whatever is interrupted or broken."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scanpy as sc
from scipy import sparse
from typer.testing import CliRunner

from xtrimogene.cli import app
from xtrimogene.tokenization import stored_cells as sources
from xtrimogene.tokenization.counts_xtrimogene import find_counts
from xtrimogene.training.data import convert
from xtrimogene.training.data.convert import convert_files
from xtrimogene.training.data.manifest import Manifest, read_manifest


@pytest.fixture
def to_corpus(tmp_path, tokenizer):
    """Convert into a folder of the test; all cells with counts are kept unless asked otherwise."""

    def make(*files, output="corpus", **options):
        options = {"min_genes": 0, "say": lambda line: None, **options}
        return convert_files(files, tmp_path / output, tokenizer=tokenizer, **options)

    return make


@pytest.fixture
def blood(tmp_path):
    """600 real blood cells of two batches as a file, and as AnnData."""
    adata = sc.datasets.pbmc68k_reduced()[:600]
    obs = pd.DataFrame({"batch": [f"b{i % 2}" for i in range(600)], "age": np.arange(600.0)}, index=adata.obs_names)
    obs.loc[obs.index[3], "age"] = np.nan
    adata = anndata.AnnData(adata.raw.X.copy(), obs=obs, var=adata.raw.var[[]])
    counts = find_counts(adata).rows(0, 600)  # the file holds their logarithms
    adata.X = counts
    adata.write_h5ad(tmp_path / "blood.h5ad")
    return tmp_path / "blood.h5ad", adata


def stored(folder):
    """Return the rows of a corpus, with counts as CSR on the panel."""
    table = pq.read_table(folder / "data")
    lengths = table["length"].to_numpy()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = table["input_ids"].combine_chunks().flatten().to_numpy()
    counts = table["counts"].combine_chunks().flatten().to_numpy()
    return sparse.csr_matrix((counts, ids, starts), shape=(len(table), 19264)), table


def assert_same_cells(folder, adata, tokenizer):
    """Compare a corpus of one file with AnnData in memory, cell by cell, through the tokenizer's own reading."""
    expected, totals = tokenizer.read_counts(adata).read()
    found, table = stored(folder)
    rows = table["source_row"].to_numpy()
    np.testing.assert_array_equal(rows, np.flatnonzero(np.diff(expected.indptr)))
    assert found.has_canonical_format
    assert (found != expected[rows]).nnz == 0
    np.testing.assert_array_equal(np.diff(found.indptr), np.diff(expected.indptr)[rows])
    np.testing.assert_array_equal(table["total"].to_numpy(), totals[rows])
    np.testing.assert_array_equal(table["cell_index"].to_numpy(), np.arange(len(rows)))
    assert table["cell_name"].to_pylist() == [str(adata.obs_names[row]) for row in rows]


def read_10x_v1(folder):
    return sc.read_10x_mtx(folder)


REAL = [
    "celllines_mixology_dev",
    "kang_ifnb",
    "pancreas_pdac_moncada7000",
    "pbmc_3chemistries",
    "pbmc_facs_zheng",
    "pbmc_frozen_donorA",
    "perturbseq_norman_mcfaline500",
]
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


@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore:Variable names:UserWarning")
def test_real_files_as_anndata_reads_them(shared, to_corpus, tmp_path, tokenizer, name):
    path = shared / "data" / name / f"{name}.h5ad"
    done = to_corpus(path, shard_cells=900)
    adata = anndata.read_h5ad(path)
    assert_same_cells(tmp_path / "corpus", adata, tokenizer)
    # And not through our own code: totals are all counts of the file, and those on the panel none but its columns.
    found, table = stored(tmp_path / "corpus")
    sums = np.asarray(adata.X.sum(axis=1), np.float64).ravel()[table["source_row"].to_numpy()]
    np.testing.assert_array_equal(table["total"].to_numpy(), sums)
    names = {gene: row for row, gene in enumerate(tokenizer.genes)}
    same = [(names[gene], column) for column, gene in enumerate(adata.var_names) if gene in names]
    if (
        same
        and adata.var_names.is_unique
        and not any("duplicates" in s.genes["summary"] for s in done.manifest.sources)
    ):
        ours, theirs = (list(places) for places in zip(*same, strict=True))
        assert (found[:, ours] != adata.X[table["source_row"].to_numpy()][:, theirs]).nnz == 0
    assert len(done.manifest.shards) == -(-adata.n_obs // 900)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.filterwarnings("ignore:Variable names:UserWarning")
def test_formats_as_scanpy_reads_them(shared, to_corpus, tmp_path, tokenizer, name):
    path = shared / "data" / "format_fixtures" / name
    to_corpus(path)
    assert_same_cells(tmp_path / "corpus", FIXTURES[name](path), tokenizer)


@pytest.mark.parametrize("kind", ["parquet", "file", "arrow"])
def test_tahoe_schema_holds_the_cells_it_was_made_of(shared, to_corpus, tmp_path, tokenizer, kind):
    folder = shared / "data" / "format_fixtures" / "tahoe_schema_from_kang"
    path = {
        "parquet": folder,
        "file": folder / "data" / "train-00001-of-00002.parquet",
        "arrow": folder / "arrow_dataset",
    }
    to_corpus(path[kind], obs=["sample", "cell_line_id"])
    found, table = stored(tmp_path / "corpus")
    kang = anndata.read_h5ad(shared / "data" / "kang_ifnb" / "kang_ifnb.h5ad")
    expected, totals = tokenizer.read_counts(kang).read()
    places = kang.obs_names.get_indexer([name.split("_", 1)[1] for name in table["cell_name"].to_pylist()])
    if (places < 0).any():
        places = kang.obs_names.get_indexer(table["cell_name"].to_pylist())
    assert len(table) == (150 if kind == "file" else 300)
    assert (found != expected[places]).nnz == 0
    np.testing.assert_array_equal(table["total"].to_numpy(), totals[places])
    assert set(table["sample"].to_pylist()) <= {"smp_kang_ctrl", "smp_kang_stim"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "geneformer_schema_from_pbmc_facs",
            "input_ids and no values.*Geneformer's rank tokens: ranks do not tell counts",
        ),
        (
            "10x_h5/cellranger_v1.2.0_multiple_genomes.h5",
            "holds 2 genomes, another_genome, hg19_chr21: take the human one",
        ),
        (
            "bulk_gdsc_10lines_19264_scfoundation_demo.csv.gz",
            "fractions up to 13.5 from which counts cannot be recovered",
        ),
    ],
)
def test_what_holds_no_counts_is_refused_with_the_reason(shared, to_corpus, name, reason):
    done = to_corpus(shared / "data" / "format_fixtures" / name)
    assert [source.state for source in done.manifest.sources] == ["failed"]
    with pytest.raises(ValueError, match=reason):
        to_corpus(shared / "data" / "format_fixtures" / name, strict=True, output="strict")


def write_old_lists(adata, folder):
    """Write cells as our own corpus has them, lists of ids and counts beside `genes.txt`."""
    import datasets

    folder.mkdir()
    (folder / "genes.txt").write_text("\n".join(adata.var_names) + "\n")
    rows = np.split(adata.X.indices, adata.X.indptr[1:-1]), np.split(adata.X.data, adata.X.indptr[1:-1])
    columns = {"input_ids": rows[0], "values": rows[1], "batch": adata.obs["batch"].to_list()}
    datasets.Dataset.from_dict(columns | {"cell_id": list(adata.obs_names)}).to_parquet(folder / "cells.parquet")


@pytest.mark.parametrize("kind", ["zarr", "csc", "dense", "layer", "raw", "csv", "tsv.gz", "R", "mtx", "lists"])
def test_the_same_cells_in_every_format(blood, to_corpus, tmp_path, tokenizer, kind, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 1 << 14)  # several blocks and buckets, as for large files
    monkeypatch.setattr(sources, "BUCKET_ROWS", 100)
    adata = blood[1]
    other = adata.copy()
    made = tmp_path / f"made.{kind if kind in ('zarr', 'csv', 'tsv.gz') else 'h5ad'}"
    if kind == "zarr":
        other.write_zarr(made)
    elif kind == "csc":
        other.X = sparse.csc_matrix(other.X)
        other.write_h5ad(made)
    elif kind == "dense":
        other.X = other.X.toarray()
        other.write_h5ad(made)
    elif kind == "layer":
        other.layers["counts"] = sparse.csc_matrix(other.X)
        sc.pp.log1p(other)
        other.write_h5ad(made)
    elif kind == "raw":
        other.raw = other.copy()
        other = other[:, :100].copy()
        other.X = other.X.toarray() * 0.37 - 1  # scaled
        other.write_h5ad(made)
    elif kind in ("csv", "tsv.gz"):
        other.to_df().to_csv(made, sep="," if kind == "csv" else "\t")
    elif kind == "R":  # one title fewer than columns
        made = tmp_path / "made.csv"
        other.to_df().to_csv(made)
        made.write_text(made.read_text().removeprefix(","))
    elif kind == "mtx":
        made = tmp_path / "made"
        made.mkdir()
        entries = sparse.coo_matrix(other.X.T)
        order = np.random.default_rng(0).permutation(entries.nnz)  # in no order at all
        with gzip.open(made / "matrix.mtx.gz", "wt") as file:
            file.write("%%MatrixMarket matrix coordinate integer general\n%\n")
            file.write(f"{entries.shape[0]} {entries.shape[1]} {entries.nnz}\n")
            for row, column, value in zip(entries.row[order], entries.col[order], entries.data[order], strict=True):
                file.write(f"{row + 1} {column + 1} {int(value)}\n")
        pd.DataFrame({"id": other.var_names, "name": other.var_names, "kind": "Gene Expression"}).to_csv(
            made / "features.tsv.gz", sep="\t", header=False, index=False
        )
        pd.Series(other.obs_names).to_csv(made / "barcodes.tsv.gz", sep="\t", header=False, index=False)
    elif kind == "lists":
        made = tmp_path / "lists"
        write_old_lists(other, made)
    to_corpus(made, shard_cells=256, strict=True)
    assert_same_cells(tmp_path / "corpus", adata, tokenizer)


def test_columns_of_obs_are_kept_as_text(blood, to_corpus, tmp_path):
    path, adata = blood
    to_corpus(path, obs=["batch", "age"], shard_cells=250)
    table = stored(tmp_path / "corpus")[1]
    assert table["batch"].to_pylist() == adata.obs["batch"].to_list()
    assert table["age"].to_pylist()[:5] == ["0.0", "1.0", "2.0", None, "4.0"]
    with pytest.raises(ValueError, match=r"'nope' is not in blood.h5ad; its columns are batch, age"):
        to_corpus(path, obs=["nope"], strict=True, output="other")
    with pytest.raises(ValueError, match="'total' has the name of a column of the corpus"):
        to_corpus(path, obs=["total"], output="another")


def test_quality_control_is_scanpys_and_counted(shared, to_corpus, tmp_path):
    path = shared / "data" / "format_fixtures" / "10x_h5" / "real_pbmc_182cells_GRCh38_36601genes.h5"
    done = to_corpus(path, min_genes=2000, max_mt_percent=5)
    adata = sc.read_10x_h5(path)
    adata.var["mt"] = adata.var_names.str.startswith("MT-")
    sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False, inplace=True)
    has_genes = (adata.obs["n_genes_by_counts"] >= 2000).to_numpy()
    is_healthy = (adata.obs["pct_counts_mt"] <= 5).to_numpy()
    assert 0 < (has_genes & is_healthy).sum() < has_genes.sum() < 182
    np.testing.assert_array_equal(
        stored(tmp_path / "corpus")[1]["source_row"].to_numpy(), np.flatnonzero(has_genes & is_healthy)
    )
    (source,) = done.manifest.sources
    assert source.left_out == {
        "fewer than 2000 genes": int((~has_genes).sum()),
        "more than 5 % mitochondrial counts": int((has_genes & ~is_healthy).sum()),
        "no counts on the panel": 0,
    }
    assert source.cells_kept + sum(source.left_out.values()) == source.cells == 182


def test_a_share_of_mitochondrial_counts_needs_mitochondrial_genes(blood, to_corpus, tmp_path):
    adata = blood[1][:, [not name.startswith("MT-") for name in blood[1].var_names]].copy()
    adata.write_h5ad(tmp_path / "none.h5ad")
    with pytest.raises(ValueError, match=r"none of 7.. columns is mitochondrial"):
        to_corpus(tmp_path / "none.h5ad", max_mt_percent=5, strict=True)


# -- whole, or continued ----------------------------------------------------------------------------------------------


def content(folder):
    """Return the bytes of every file of a corpus."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from xtrimogene import XTrimoGeneTokenizer
from xtrimogene.training.data import convert
when, output, *files = sys.argv[1:]
calls = 0
def kill_at(name, function):
    def run(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(when):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(convert, name, run)
for name in ("file_hash", "sync_folder", "table_of"):  # before and after each step that writes
    kill_at(name, getattr(convert, name))
convert.convert_files(files, output, tokenizer=XTrimoGeneTokenizer.default(), shard_cells=128, min_genes=150)
"""


def test_a_killed_conversion_goes_on_and_ends_as_one_that_was_not(blood, shared, to_corpus, tmp_path):
    kang = shared / "data" / "format_fixtures" / "h5ad" / "pbmc68k_reduced_counts_700x765.h5ad"
    files = [str(blood[0]), str(kang)]
    to_corpus(*files, output="whole", shard_cells=128, min_genes=150)
    expected = content(tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    num_kills = 0
    for when in (1, 2, 3, 6, 8, 13, 16, 60):
        command = [sys.executable, "-c", INTERRUPTED, str(when), str(tmp_path / "killed"), *files]
        status = subprocess.run(command, capture_output=True, text=True)
        num_kills += status.returncode == -signal.SIGKILL
        assert status.returncode in (0, -signal.SIGKILL), status.stderr
    assert num_kills >= 5
    assert status.returncode == 0
    found = content(tmp_path / "killed")
    expected["README.md"] = expected["README.md"].replace(b"# whole", b"# killed")
    assert found == expected


def test_a_finished_corpus_stays_and_more_files_are_appended(blood, to_corpus, tmp_path, shared):
    path = blood[0]
    to_corpus(path, shard_cells=256)
    before = content(tmp_path / "corpus")
    lines = []
    again = to_corpus(path, shard_cells=256, say=lines.append, verify=True)
    assert (again.num_new, content(tmp_path / "corpus")) == (0, before)
    assert lines == ["blood.h5ad: is in the corpus with 600 cells"]
    more = shared / "data" / "format_fixtures" / "h5ad" / "variant_csc_float64_60.h5ad"
    added = to_corpus(path, more, shard_cells=256)
    assert added.num_new == 60
    _, table = stored(tmp_path / "corpus")
    np.testing.assert_array_equal(table["cell_index"].to_numpy(), np.arange(660))
    assert table["source"].to_pylist() == ["blood.h5ad"] * 600 + ["variant_csc_float64_60.h5ad"] * 60
    after = content(tmp_path / "corpus")
    assert all(after[name] == data for name, data in before.items() if name.startswith("data/"))


def test_files_of_one_name_are_told_by_their_folders(blood, to_corpus, tmp_path):
    for folder, cells in {"a": slice(0, 100), "b": slice(100, 250)}.items():
        (tmp_path / folder).mkdir()
        blood[1][cells].write_h5ad(tmp_path / folder / "cells.h5ad")
    done = to_corpus(tmp_path / "a" / "cells.h5ad", tmp_path / "b" / "cells.h5ad")
    assert [(source.name, source.cells_kept) for source in done.manifest.sources] == [
        ("a/cells.h5ad", 100),
        ("b/cells.h5ad", 150),
    ]
    assert to_corpus(tmp_path / "b" / "cells.h5ad").num_new == 0


# -- faults -----------------------------------------------------------------------------------------------------------


def break_h5ad(name, change):
    """Return a function that writes a broken copy of a file."""

    def write(path, folder):
        broken = folder / f"{name}.h5ad"
        adata = anndata.read_h5ad(path)
        changed = change(adata)
        (adata if changed is None else changed).write_h5ad(broken)
        return broken

    return write


def with_value(value):
    def change(adata):
        adata.X = adata.X.astype(np.float32)
        adata.X.data[adata.X.indptr[500] + 3] = value

    return change


def renamed(adata):
    adata.var_names = [f"thing{i}" for i in range(adata.n_vars)]


def truncated(path, folder):
    broken = folder / "truncated.h5ad"
    broken.write_bytes(path.read_bytes()[:-5000])
    return broken


def damaged(path, folder):
    """Overwrite what lies in the middle of the counts, which readers notice when they come there."""
    broken = folder / "damaged.h5ad"
    adata = anndata.read_h5ad(path)
    adata.write_h5ad(broken, compression="gzip")
    with h5py.File(broken) as file:
        chunk = file["X/data"].id.get_chunk_info(file["X/data"].id.get_num_chunks() - 1)
    with broken.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\x00" * chunk.size)
    return broken


def empty(path, folder):
    (folder / "empty.h5ad").write_bytes(b"")
    return folder / "empty.h5ad"


def text(path, folder):
    (folder / "text.h5ad").write_text("not HDF5 at all")
    return folder / "text.h5ad"


def cut_mtx(path, folder):
    (folder / "cut").mkdir()
    (folder / "cut" / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n2 2 3\n1 1 4\n")
    (folder / "cut" / "genes.tsv").write_text("ENSG00000141510\tTP53\nENSG00000167286\tCD3D\n")
    (folder / "cut" / "barcodes.tsv").write_text("one\ntwo\n")
    return folder / "cut"


def no_format(path, folder):
    (folder / "cells.rds").write_bytes(b"RDX3")
    return folder / "cells.rds"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (truncated, "truncated"),
        (damaged, "."),
        (empty, "has 0 bytes"),
        (text, "cannot be read as HDF5"),
        (cut_mtx, "has 1 of its 3 entries: it is cut off"),
        (no_format, "ends in '.rds'; readable are .h5ad"),
        (break_h5ad("nan", with_value(np.nan)), "1 values are NaN or infinite"),
        (break_h5ad("negative", with_value(-1)), r"1 values are negative \(smallest -1\)"),
        (break_h5ad("huge", with_value(1e12)), r"a count of 1e\+12 cannot be read exactly"),
        (break_h5ad("unnamed", renamed), "reach only 0 of 19,264 panel genes"),
        (break_h5ad("none", lambda adata: adata[:0].copy()), "0 cells"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_file_is_named_and_the_rest_is_converted(blood, to_corpus, tmp_path, shared, make, reason):
    (tmp_path / "broken").mkdir()
    broken = make(blood[0], tmp_path / "broken")
    good = shared / "data" / "format_fixtures" / "h5ad" / "variant_csc_float64_60.h5ad"
    lines = []
    done = to_corpus(broken, good, shard_cells=128, say=lines.append)
    (failed,) = done.failed
    assert failed.name == broken.name
    with pytest.raises(ValueError, match=reason):
        to_corpus(broken, output="strict", strict=True, shard_cells=128)
    assert lines[0].startswith(f"Not converted: {broken.name}")
    assert "\n" not in lines[0]
    # Nothing of it is left, though its first cells had been read.
    assert set(stored(tmp_path / "corpus")[1]["source"].to_pylist()) == {good.name}
    assert read_manifest(tmp_path / "corpus").num_cells == 60
    # Mended, it is converted as if nothing had been.
    if broken.suffix == ".h5ad":
        broken.write_bytes(blood[0].read_bytes())
        assert to_corpus(broken, good, shard_cells=128).num_new == 600
        assert read_manifest(tmp_path / "corpus").num_cells == 660


def test_cells_of_the_same_name_are_kept_and_counted(blood, to_corpus, tmp_path):
    adata = blood[1]
    adata.obs_names = [f"cell{i % 590}" for i in range(600)]
    adata.write_h5ad(tmp_path / "repeated.h5ad")
    lines = []
    done = to_corpus(tmp_path / "repeated.h5ad", say=lines.append)
    assert (done.num_new, done.manifest.sources[0].repeated_names) == (600, 10)
    assert "10 cells repeat the name of another, and are kept" in lines[0]


@pytest.mark.parametrize("calls", [0, 2, 5])
def test_a_full_disk_stops_with_one_error_and_the_command_goes_on_later(blood, to_corpus, tmp_path, monkeypatch, calls):
    to_corpus(blood[0], output="whole", shard_cells=128)
    fsync, count = os.fsync, []

    def full(descriptor):
        count.append(descriptor)
        if len(count) > calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(convert.os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot be written \(No space left on device\); the shards before it are"):
            to_corpus(blood[0], shard_cells=128)
    to_corpus(blood[0], shard_cells=128)
    whole, found = content(tmp_path / "whole"), content(tmp_path / "corpus")
    assert {name: data for name, data in found.items() if name != "README.md"} == {
        name: data for name, data in whole.items() if name != "README.md"
    }


def edit_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"cells": 128', '"cells": 127', 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "data" / "cells-00001.parquet").unlink(), "lacks 1 of 5 shards, data/cells-00001"),
        (lambda folder: os.truncate(folder / "data" / "cells-00002.parquet", 100), "cells-00002.parquet has 100 bytes"),
        (edit_manifest, "was changed after it was written"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is no manifest of a corpus"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json, so it is no corpus"),
    ],
    ids=["deleted", "truncated", "edited", "half", "none"],
)
def test_a_damaged_corpus_is_refused_by_reader_and_converter(blood, to_corpus, tmp_path, change, reason):
    to_corpus(blood[0], shard_cells=128)
    change(tmp_path / "corpus")
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        to_corpus(blood[0], shard_cells=128)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        read_manifest(tmp_path / "corpus")


def test_a_changed_shard_is_seen_with_verify(blood, to_corpus, tmp_path):
    to_corpus(blood[0], shard_cells=128)
    with (tmp_path / "corpus" / "data" / "cells-00003.parquet").open("r+b") as file:
        file.seek(200)
        file.write(b"\x00\x01\x02")
    assert to_corpus(blood[0], shard_cells=128).num_new == 0
    with pytest.raises(ValueError, match=r"cells-00003.parquet does not give the sha256"):
        to_corpus(blood[0], shard_cells=128, verify=True)


def test_other_options_files_panels_and_folders_are_refused(blood, to_corpus, tmp_path, tokenizer):
    from xtrimogene import XTrimoGeneTokenizer

    path, adata = blood
    to_corpus(path)
    with pytest.raises(ValueError, match="was made with min_genes 0, now 5: give the same options"):
        to_corpus(path, min_genes=5)
    small = XTrimoGeneTokenizer.from_genes(tokenizer.genes[:500], tmp_path / "panel")
    with pytest.raises(ValueError, match="made for a panel of 19,264 genes, and this one has 500"):
        convert_files([path], tmp_path / "corpus", tokenizer=small, min_genes=0)
    with pytest.raises(ValueError, match=r"made for a panel of 19,264 genes.*the tokenizer has 500"):
        read_manifest(tmp_path / "corpus", small)
    panel = (tmp_path / "corpus" / "genes.txt").read_text()
    (tmp_path / "corpus" / "genes.txt").write_text(panel.replace("TP53\n", "TP35\n"))
    with pytest.raises(ValueError, match=r"genes.txt is not the panel that the corpus was made for"):
        read_manifest(tmp_path / "corpus", tokenizer)
    (tmp_path / "link.h5ad").symlink_to(path)
    for spelling in (path, tmp_path / "corpus" / ".." / path.name, tmp_path / "link.h5ad"):
        with pytest.raises(ValueError, match="is given twice"):
            to_corpus(path, spelling)
    with pytest.raises(FileNotFoundError, match=r"similar names there: blood.h5ad"):
        to_corpus(tmp_path / "blod.h5ad")
    adata[:500].write_h5ad(path)
    with pytest.raises(ValueError, match=r"bytes, and blood.h5ad of the corpus other"):
        to_corpus(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds thesis.tex and no manifest.json, so it is no corpus"):
        to_corpus(path, output="other")
    with pytest.raises(ValueError, match="is a file, and --output a folder"):
        to_corpus(path, output="blood.h5ad")


def test_a_half_converted_corpus_is_not_read(blood, to_corpus, tmp_path):
    to_corpus(blood[0], shard_cells=128)
    file = tmp_path / "corpus" / "manifest.json"
    manifest = Manifest.from_json(file.read_text(), "")
    manifest.sources[0].state, manifest.sources[0].cells_read = "converting", 512
    manifest.shards.pop()
    file.write_text(manifest.to_json())
    with pytest.raises(ValueError, match=r"is not finished: 512 of 600 cells of blood.h5ad were read; repeat"):
        read_manifest(tmp_path / "corpus")
    other = blood[0].with_name("other.h5ad")
    blood[1][:50].write_h5ad(other)
    with pytest.raises(ValueError, match="was interrupted after 512 of 600 cells and is not given"):
        to_corpus(other, shard_cells=128)
    assert to_corpus(other, blood[0], shard_cells=128).num_new == 88 + 50
    np.testing.assert_array_equal(stored(tmp_path / "corpus")[1]["cell_index"].to_numpy(), np.arange(650))


# -- command line -----------------------------------------------------------------------------------------------------


def test_the_command(blood, tmp_path):
    (tmp_path / "broken.h5ad").write_text("nothing")
    arguments = ["convert", str(blood[0]), str(tmp_path / "broken.h5ad"), "-o", str(tmp_path / "out"), "--obs", "batch"]
    result = CliRunner().invoke(app, [*arguments, "--min-genes", "100", "--json", "--quiet"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["cells"] == found["new_cells"] == sum(shard["cells"] for shard in found["shards"])
    assert [source["state"] for source in found["sources"]] == ["complete", "failed"]
    result = CliRunner().invoke(app, [*arguments, "--min-genes", "100"])
    assert result.exit_code == 1
    assert "Error: 1 of 2 files could not be converted: broken.h5ad ends in '.h5ad'" in result.stderr
    result = CliRunner().invoke(app, [*arguments, "--min-genes", "100", "--strict"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: broken.h5ad ends in '.h5ad'")
    result = CliRunner().invoke(app, [*arguments[:2], *arguments[3:], "--min-genes", "100"])
    assert result.exit_code == 0
    assert "0 new cells" in result.stdout
