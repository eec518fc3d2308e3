"""Conversion of real files: every count as anndata and scanpy read it, whatever is interrupted or broken."""

import errno
import json
import os
import signal
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from xtrimogene.cli import app
from xtrimogene.training.data import convert
from xtrimogene.training.data.convert import convert_files
from xtrimogene.training.data.manifest import read_manifest

REAL = [
    "celllines_mixology_dev",
    "kang_ifnb",
    "pancreas_pdac_moncada7000",
    "pbmc_3chemistries",
    "pbmc_facs_zheng",
    "pbmc_frozen_donorA",
    "perturbseq_norman_mcfaline500",
]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore:Variable names:UserWarning")
def test_real_files_as_anndata_reads_them(stored, assert_same_cells, shared, to_corpus, tmp_path, tokenizer, name):
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


# -- whole, or continued ----------------------------------------------------------------------------------------------


def content(folder):
    """Return the bytes of every file of a corpus."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# One interpreter imports everything; each conversion is a copy of it that is killed before its n-th writing step.
INTERRUPTED = """
import itertools, os, signal, sys, traceback
import scanpy
from xtrimogene import XTrimoGeneTokenizer
from xtrimogene.training.data import convert, shards
output, *files = sys.argv[1:]
tokenizer = XTrimoGeneTokenizer.default()
def kill_at(module, name, steps, when):
    function = getattr(module, name)
    def run(*args, **kwargs):
        if next(steps) == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(module, name, run)
def convert_until(when):
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        steps = itertools.count(1)
        for module, name in ((shards, "file_hash"), (shards, "sync_folder"), (convert, "table_of")):
            kill_at(module, name, steps, when)
        convert.convert_files(files, output, tokenizer=tokenizer, shard_cells=128, min_genes=150)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
print([convert_until(when) for when in (1, 3, 8, 16, 60)])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system on which processes can be copied")
def test_a_killed_conversion_goes_on_and_ends_as_one_that_was_not(blood, shared, to_corpus, tmp_path):
    kang = shared / "data" / "format_fixtures" / "h5ad" / "pbmc68k_reduced_counts_700x765.h5ad"
    files = [str(blood[0]), str(kang)]
    to_corpus(*files, output="whole", shard_cells=128, min_genes=150)
    expected = content(tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "killed"), *files]
    done = subprocess.run(command, capture_output=True, text=True)
    codes = json.loads(done.stdout.splitlines()[-1])
    assert set(codes) == {0, -signal.SIGKILL}, done.stderr
    assert codes.count(-signal.SIGKILL) >= 3
    assert codes[-1] == 0
    found = content(tmp_path / "killed")
    expected["README.md"] = expected["README.md"].replace(b"# whole", b"# killed")
    assert found == expected


def test_a_finished_corpus_stays_and_more_files_are_appended(stored, blood, to_corpus, tmp_path, shared):
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
def test_a_broken_file_is_named_and_the_rest_is_converted(stored, blood, to_corpus, tmp_path, shared, make, reason):
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


def test_a_column_that_some_files_lack_is_null_there(blood, to_corpus, stored, tmp_path):
    adata = blood[1]
    adata[:50].copy().write_h5ad(tmp_path / "with.h5ad")
    lacking = adata[50:90].copy()
    del lacking.obs["batch"]
    lacking.write_h5ad(tmp_path / "lacking.h5ad")
    said = []
    done = to_corpus(tmp_path / "with.h5ad", tmp_path / "lacking.h5ad", obs=["batch", "age"], say=said.append)
    _, table = stored(tmp_path / "corpus")
    assert not done.failed
    assert table["batch"].to_pylist() == [f"b{i % 2}" for i in range(50)] + [None] * 40
    assert table["age"].to_pylist()[50] == "50.0"
    assert "obs has no column 'batch' in 1 of 2 files, null there: lacking.h5ad" in said
    assert "null here" in done.manifest.sources[1].description
    with pytest.raises(ValueError, match=r"obs column 'batch' is not in lacking\.h5ad; its columns are age"):
        to_corpus(tmp_path / "with.h5ad", tmp_path / "lacking.h5ad", obs=["batch"], strict=True, output="strict")
    with pytest.raises(ValueError, match=r"obs column 'bach' is in none of 2 files; .*its columns are"):
        to_corpus(tmp_path / "with.h5ad", tmp_path / "lacking.h5ad", obs=["bach"], output="misspelt")
    assert not (tmp_path / "misspelt").exists()


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
