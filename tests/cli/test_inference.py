"""`embed`, `enhance` and `annotate` on real cells: what goes in comes out."""

import json
import shutil
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.sparse import save_npz

import xtrimogene
from xtrimogene.released import knows

LABEL_KEY = "bulk_labels"

EMPTY = 7  # the cell that has no counts


def test_embed_keeps_cells_order_and_content(succeed, files, checkpoint, tmp_path):
    output = tmp_path / "new" / "out.h5ad"
    result = json.loads(succeed("embed", files / "empty.h5ad", "--model", checkpoint, "-o", output, "--json").stdout)
    given, got = anndata.read_h5ad(files / "empty.h5ad"), anndata.read_h5ad(output)
    assert list(got.obs_names) == list(given.obs_names)
    assert (got.X != given.X).nnz == 0
    embedding = got.obsm["X_xtrimogene"]
    assert embedding.shape == (120, 64) == tuple(result["shape"])  # maximum and mean, 32 wide each
    assert np.flatnonzero(np.isnan(embedding).any(axis=1)).tolist() == [EMPTY]
    assert np.flatnonzero(got.obs["X_xtrimogene_empty"]).tolist() == [EMPTY]
    assert result["empty_cells"] == 1
    assert got.uns["X_xtrimogene"]["genes"]["n_matched"] == result["provenance"]["genes"]["n_matched"]

    in_thirteens = tmp_path / "thirteens.h5ad"
    succeed("embed", files / "empty.h5ad", "-m", checkpoint, "-o", in_thirteens, "--batch-size", 13, "--quiet")
    np.testing.assert_allclose(anndata.read_h5ad(in_thirteens).obsm["X_xtrimogene"], embedding, atol=1e-5)


def test_checkpoints_of_the_package_are_used_where_none_is_named_and_a_line_says_so(succeed, fail, files, tmp_path):
    result = succeed("embed", files / "whole.h5ad", "-o", tmp_path / "embedded.h5ad")
    assert f"Model: small, which comes with xtrimogene. {knows('small')}" in result.stderr
    found = anndata.read_h5ad(tmp_path / "embedded.h5ad")
    share = found.obs["X_xtrimogene_unfamiliar"].mean()
    assert f"{share:.1%} lie far from the cells that the model was trained on" in " ".join(result.stdout.split())
    succeed("embed", files / "whole.h5ad", "-o", tmp_path / "named.h5ad", "--model", "small")
    again = anndata.read_h5ad(tmp_path / "named.h5ad")
    np.testing.assert_allclose(again.obsm["X_xtrimogene"], found.obsm["X_xtrimogene"], atol=1e-5)
    error = fail("embed", files / "whole.h5ad", "--model", "large", "-o", tmp_path / "a.h5ad", code=2)
    assert "large does not exist; give a checkpoint folder" in error
    assert "small" in error.split("such as owner/model, or ")[1]


def test_cells_that_stay_in_their_file_come_out_with_all_they_had(succeed, real_cells, checkpoint, tmp_path):
    given = real_cells[:20].copy()
    given.raw = given
    given.layers["counts"] = given.X.tocsc()
    given.obsm["mine"], given.uns["mine"] = np.ones((20, 2)), {"a": 1}
    given.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    (tmp_path / "cells.h5ad").chmod(0o444)
    succeed("embed", tmp_path / "cells.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    got = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert got.obsm["X_xtrimogene"].shape == (20, 64)
    assert set(got.uns) == {"mine", "X_xtrimogene"}
    for stored in (got.X, got.raw.X, got.layers["counts"]):
        assert (stored != given.X).nnz == 0
    pd.testing.assert_frame_equal(got.obs.drop(columns="X_xtrimogene_empty").astype(str), given.obs.astype(str))
    pd.testing.assert_frame_equal(got.var, given.var)
    np.testing.assert_array_equal(got.obsm["mine"], given.obsm["mine"])


def test_counts_in_a_layer_need_no_x(succeed, real_cells, checkpoint, tmp_path):
    given = anndata.AnnData(obs=real_cells.obs[:9], var=real_cells.var, layers={"counts": real_cells.X[:9]})
    given.write_h5ad(tmp_path / "cells.h5ad")
    succeed("embed", tmp_path / "cells.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    assert np.isfinite(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_xtrimogene"]).all()


@pytest.mark.slow  # three interpreters import everything
def test_two_processes_embed_as_one(succeed, files, checkpoint, tmp_path):
    one, two = tmp_path / "one.h5ad", tmp_path / "two.h5ad"
    succeed("embed", files / "empty.h5ad", "-m", checkpoint, "-o", one)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    typed = ["-m", "xtrimogene.cli", "embed", files / "empty.h5ad", "-m", checkpoint, "-o", two, "--device", "cpu"]
    done = subprocess.run([*launch, *map(str, typed), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cells"] == 120  # said once
    np.testing.assert_allclose(
        anndata.read_h5ad(two).obsm["X_xtrimogene"], anndata.read_h5ad(one).obsm["X_xtrimogene"], atol=1e-5
    )


def test_embed_reads_csv(succeed, real_cells, checkpoint, tmp_path):
    real_cells[:10].to_df().to_csv(tmp_path / "cells.csv")
    succeed("embed", tmp_path / "cells.csv", "--model", checkpoint, "-o", tmp_path / "out.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "out.h5ad").obs_names) == list(real_cells.obs_names[:10])


def test_embed_writes_genes_and_expression_as_zarr(succeed, fail, files, checkpoint, tmp_path):
    output = tmp_path / "genes.zarr"
    command = ("embed", files / "empty.h5ad", "-m", checkpoint, "--output-type", "gene", "--genes", "LYZ,CD3D")
    result = json.loads(succeed(*command, "-o", output, "--json").stdout)
    assert (result["array"], result["shape"]) == ("embedding", [120, 2, 32])
    whole = zarr.open(output, mode="r")["embedding"][:]
    assert np.flatnonzero(np.isnan(whole).any((1, 2))).tolist() == [EMPTY]
    (tmp_path / "genes.txt").write_text("CD3D\n")
    command = (*command[:-1], tmp_path / "genes.txt")
    assert "holds files already" in fail(*command, "-o", output)
    succeed(*command, "-o", output, "--force")
    np.testing.assert_allclose(zarr.open(output, mode="r")["embedding"][:], whole[:, 1:], atol=1e-5)
    assert "name it so" in fail(*command, "-o", tmp_path / "out.h5ad", code=2)
    zarr.open_group(tmp_path / "other.zarr").create_array("x", shape=(1,), dtype="int8")
    assert "is no folder of gene embeddings" in fail(*command, "-o", tmp_path / "other.zarr", "--force")
    many = ",".join(xtrimogene.XTrimoGeneTokenizer.from_pretrained(checkpoint).genes[:90])
    succeed(*command[:-1], many, "-o", tmp_path / "many.zarr")
    assert "which is no file" in fail(*command[:-1], "absent.txt", "-o", tmp_path / "b.zarr")
    assert "leave out --pooling" in fail(*command, "--pooling", "max", "-o", tmp_path / "a.zarr", code=2)
    assert "name one of them" in fail(*command[:4], "--genes", "LYZ", "-o", tmp_path / "a.h5ad", code=2)


def test_embed_reads_arrays_whose_columns_are_named(succeed, fail, real_cells, checkpoint, tmp_path):
    cells = real_cells[:10]
    expected = xtrimogene.tl.embed(cells, checkpoint, copy=True).obsm["X_xtrimogene"]
    counts = xtrimogene.XTrimoGeneTokenizer.from_pretrained(checkpoint).read_counts(cells).source.rows(0, 10)
    save_npz(tmp_path / "cells.npz", counts)
    np.save(tmp_path / "cells.npy", counts.toarray())
    (tmp_path / "names.txt").write_text("\n".join(cells.var_names))
    for name in ("cells.npz", "cells.npy"):
        command = ("embed", tmp_path / name, "-m", checkpoint, "-o", tmp_path / f"{name}.h5ad")
        assert "give --gene-names" in fail(*command)
        assert "765 columns of genes, and" in fail(*command, "--gene-names", "panel")
        assert "is no file" in fail(*command, "--gene-names", tmp_path / "none.txt")
        succeed(*command, "--gene-names", tmp_path / "names.txt")
        found = anndata.read_h5ad(tmp_path / f"{name}.h5ad").obsm["X_xtrimogene"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    cells.to_df().to_csv(tmp_path / "cells.csv")
    command = ("embed", tmp_path / "cells.csv", "-m", checkpoint, "-o", tmp_path / "a.h5ad")
    assert "names its genes itself" in fail(*command, "--gene-names", "panel")


def test_enhance_adds_a_layer_and_an_embedding(succeed, fail, files, checkpoint, tmp_path):
    output = tmp_path / "out.h5ad"
    result = json.loads(succeed("enhance", files / "empty.h5ad", "-m", checkpoint, "-o", output, "--json").stdout)
    assert (result["cells"], result["empty_cells"]) == (120, 1)
    adata = anndata.read_h5ad(output)
    assert np.flatnonzero(np.isnan(adata.layers["enhanced"]).all(1)).tolist() == [EMPTY]
    whole = xtrimogene.tl.embed(anndata.read_h5ad(files / "empty.h5ad"), checkpoint, copy=True).obsm["X_xtrimogene"]
    np.testing.assert_allclose(adata.obsm["X_enhanced"], whole, atol=1e-5)
    error = fail("enhance", files / "empty.h5ad", "-m", checkpoint, "--target-depth", "f4", "-o", tmp_path / "b.h5ad")
    assert "has no depth tokens" in error


def test_annotate_by_a_fine_tuned_model(succeed, files, annotator, tmp_path):
    output = tmp_path / "out.h5ad"
    result = json.loads(
        succeed("annotate", files / "empty.h5ad", "--model", annotator[0], "-o", output, "--json").stdout
    )
    obs = anndata.read_h5ad(output).obs
    assert np.flatnonzero(obs["xtrimogene_label"].isna()).tolist() == [EMPTY]
    assert result["unlabelled"] == 1
    assert sum(row["cells"] for row in result["labels"].values()) == 119
    assert set(result["labels"]) <= set(obs[LABEL_KEY])
    assert {"xtrimogene_probability", "xtrimogene_second_label"} <= set(obs)
    assert result["unknown"] == obs["xtrimogene_unknown"].sum() == 0  # 15 cells to calibrate with cannot tell 1 in 20
    text = succeed(
        "annotate", files / "empty.h5ad", "--model", annotator[0], "-o", tmp_path / "half.h5ad",
        "--unknown-threshold", 0.5,
    ).stdout  # fmt: skip
    num_unknown = anndata.read_h5ad(tmp_path / "half.h5ad").obs["xtrimogene_unknown"].sum()
    assert num_unknown > 0
    assert f"{num_unknown} cells unknown, threshold 0.5, told by 15 held-out cells" in text


def test_annotate_draws_a_page(succeed, fail, files, annotator, tmp_path):
    command = ("annotate", files / "empty.h5ad", "--model", annotator[0], "-o", tmp_path / "out.h5ad", "--report")
    text = succeed(*command, tmp_path / "new" / "page.html").stdout
    html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert f"Report: {tmp_path / 'new' / 'page.html'}" in text.replace("\n", "")
    assert "Cell types of empty.h5ad" in html
    assert "xtrimogene annotate empty.h5ad" in html
    assert "15 held-out cells" in html
    assert "page.html exists: choose another --report" in fail(
        *command, tmp_path / "new" / "page.html", "-o", tmp_path / "other.h5ad"
    )
    assert "--report is page.txt: name it so that it ends in .html" in fail(*command, "page.txt", "--force", code=2)


def test_annotate_by_a_model_without_calibration_says_that_unknown_cells_are_not_told(
    succeed, files, annotator, tmp_path
):
    older = tmp_path / "older"
    shutil.copytree(annotator[0], older, ignore=shutil.ignore_patterns("calibration.safetensors"))
    result = succeed("annotate", files / "whole.h5ad", "--model", older, "-o", tmp_path / "out.h5ad")
    assert "Unknown cells are not told: no calibration" in result.stdout
    assert "xtrimogene_unknown" not in anndata.read_h5ad(tmp_path / "out.h5ad").obs


def test_annotate_by_a_reference(succeed, files, checkpoint, tmp_path):
    result = succeed(
        "annotate", files / "empty.h5ad", "--model", checkpoint, "--reference", files / "whole.h5ad",
        "--label-key", LABEL_KEY, "--n-neighbors", 1, "-o", tmp_path / "out.h5ad",
    )  # fmt: skip
    obs = anndata.read_h5ad(tmp_path / "out.h5ad").obs.drop(
        index=anndata.read_h5ad(files / "empty.h5ad").obs_names[EMPTY]
    )
    # Each cell is its own nearest neighbour.
    assert (obs["xtrimogene_label"].astype(str) == obs[LABEL_KEY].astype(str)).all()
    assert "none: no counts" in result.stdout
    assert "told by 120 reference cells, cross-fitted in 5 folds" in " ".join(result.stdout.split())


def test_missing_file(fail, checkpoint, files, tmp_path):
    assert "similar names there: whole.h5ad" in fail(
        "embed", files / "whol.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad"
    )
    assert "does not exist" in fail("inspect", tmp_path / "none.h5ad")


def test_table_with_text_or_on_its_side(run, fail, real_cells, checkpoint, tmp_path):
    counts = xtrimogene.XTrimoGeneTokenizer.default().read_counts(real_cells).source.rows(0, 100).toarray()
    frame = pd.DataFrame(counts, real_cells.obs_names[:100], real_cells.var_names)
    frame.assign(type="B").to_csv(tmp_path / "text.csv")
    frame.T.to_csv(tmp_path / "turned.csv")
    arguments = ["--model", checkpoint, "-o", tmp_path / "out.h5ad"]
    error = fail("embed", tmp_path / "text.csv", *arguments)
    assert "text.csv has 1 of 766 columns that hold no numbers: type; leave them out" in error
    assert "765 row names reach" in fail("embed", tmp_path / "turned.csv", *arguments, "--quiet")
    problem = json.loads(run("inspect", tmp_path / "turned.csv", "--json").stdout)["problem"]
    assert "transpose it to cells x genes" in problem


def test_missing_label_key(fail, files, checkpoint, tmp_path):
    whole = files / "whole.h5ad"
    error = fail("finetune", whole, "--label-key", "cell_type", "--model", checkpoint, "-o", tmp_path)
    assert "bulk_labels, donor" in error
    reference = ["--reference", whole, "--label-key", "cell_type", "-o", tmp_path / "out.h5ad"]
    assert "bulk_labels, donor" in fail("annotate", whole, "--model", checkpoint, *reference)


def test_pretrained_model_knows_no_types(fail, files, checkpoint, tmp_path):
    error = fail("annotate", files / "whole.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad")
    assert "knows no cell types" in error


def test_unknown_device(fail, files, checkpoint, tmp_path):
    arguments = ["embed", files / "whole.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad"]
    assert "device 'abacus' is not on this machine" in fail(*arguments, "--device", "abacus")


def test_scaled_data(fail, files, checkpoint, tmp_path):
    error = fail("embed", files / "scaled.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad")
    assert "scaled" in error
    assert not (tmp_path / "out.h5ad").exists()


def test_pooling_of_an_anchored_model(fail, files, checkpoint, tmp_path):
    arguments = ["embed", files / "whole.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad"]
    assert "checkpoint is anchored: its embedding adds" in fail(*arguments, "--pooling", "max")
    assert not (tmp_path / "out.h5ad").exists()


# -- inputs that went wrong for people: a result, or a line that names the file and what is wrong ---------------------

READ = [
    "cite.h5ad", "counts_of_variable_genes_only.h5ad", "ercc.h5ad", "layers_only.h5ad", "mtx_geo_genes_gz",
    "mtx_one_column", "mtx_starsolo", "mtx_two_columns", "nullable_strings.h5ad", "odd_labels.h5ad", "semicolons.csv",
    "uns_log1p_text.h5ad",
]  # fmt: skip
REFUSED = {
    "index_negative.h5ad": "X/indices holds -4 at place 5",
    "index_too_large.h5ad": "X/indices holds 1,000,000 at place 5",
    "indptr_broken.h5ad": "X/indptr holds 10,000,000 at place 3",
    "obs_without_column.h5ad": "obs lists the column 'condition' and does not hold it",
    "truncated.csv.gz": "ends too early",
}


@pytest.fixture(scope="module")
def wrong_inputs(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong_inputs")
    subprocess.run([sys.executable, shared / "cases" / "make_inputs.py", folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", READ)
def test_it_is_inspected_and_embedded(wrong_inputs, succeed, checkpoint, tmp_path, name):
    assert "cells" in succeed("inspect", wrong_inputs / name, "--json").stdout
    succeed("embed", wrong_inputs / name, "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    embedding = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_xtrimogene"]
    assert len(embedding) >= 20
    assert np.isfinite(embedding).all()


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_line_that_names_it(wrong_inputs, fail, run, checkpoint, tmp_path, name):
    line = fail("embed", wrong_inputs / name, "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    assert name in line
    assert REFUSED[name] in line
    assert run("inspect", wrong_inputs / name).exit_code == 1
    assert "was not expected" not in line


OTHERS = ["htseq.h5ad", "plain.h5ad", "probes.h5ad", "qc_columns.h5ad"]
NEEDS_LABELS = ("finetune", "evaluate")


def with_types(path, copy):
    """Copy an .h5ad, and give every other cell one of two types, if it names none."""
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        names = list(file["obs"].attrs["column-order"])
        if "cell_type" in names:
            return copy
        number = len(anndata.io.read_elem(file["obs"][file["obs"].attrs["_index"]]))
        anndata.io.write_elem(file["obs"], "cell_type", pd.Categorical(["B", "T"] * (number // 2)))
        file["obs"].attrs["column-order"] = [*names, "cell_type"]
    return copy


@pytest.mark.slow  # minutes: every input, by every command that reads cells
@pytest.mark.parametrize("command", ["annotate", "enhance", "convert", "pretrain", "finetune", "adapt", "evaluate"])
@pytest.mark.parametrize("name", [*READ, *OTHERS, *REFUSED])
def test_every_command_answers_it_with_a_result_or_a_line(
    wrong_inputs, run, checkpoint, tmp_path, monkeypatch, name, command
):
    monkeypatch.chdir(tmp_path)
    path = wrong_inputs / name
    if command in NEEDS_LABELS and name.endswith(".h5ad") and name != "odd_labels.h5ad":
        path = with_types(path, tmp_path / name)
    known = with_types(wrong_inputs / "plain.h5ad", tmp_path / "known.h5ad")
    trained, of_file = (["--model", checkpoint, "-o", output] for output in ("out", "out.h5ad"))
    embedding = ["--task", "embedding", "--data", path, "--label-key", "cell_type", "-o", "report"]
    arguments = {
        "annotate": ["annotate", path, *of_file, "--reference", known, "--label-key", "cell_type"],
        "enhance": ["enhance", path, *of_file],
        "convert": ["convert", path, *trained, "--min-genes", 0],
        "pretrain": ["pretrain", path, "--checkpoint", checkpoint, "-o", "out", "--max-steps", 1, "--drop-empty"],
        "finetune": ["finetune", path, *trained, "--label-key", "cell_type", "--epochs", 1],
        "adapt": ["adapt", path, *trained, "--drop-empty"],
        "evaluate": ["evaluate", checkpoint, *embedding, "--seeds", 0],
    }[command]  # fmt: skip
    result = run(*arguments)
    assert "Traceback" not in result.output
    assert "was not expected" not in result.output
    lacks_labels = command in NEEDS_LABELS and not name.endswith(".h5ad")
    # Nothing reads the column that is listed and not there if no column of obs is asked for.
    is_refused = name in REFUSED and (command, name) != ("convert", "obs_without_column.h5ad")
    if is_refused or lacks_labels or (command in NEEDS_LABELS and name == "odd_labels.h5ad"):
        assert result.exit_code == 1
        assert name in [line for line in result.stderr.splitlines() if line.strip()][-1]
    else:
        assert result.exit_code == 0, result.output


def test_folders_of_10x_give_the_same_counts_whatever_their_files_are_called(wrong_inputs):
    tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
    folders = ("mtx_geo_genes_gz", "mtx_two_columns", "mtx_starsolo")
    of_folders = [tokenizer.read_counts(wrong_inputs / name).read()[0] for name in folders]
    assert of_folders[0].nnz > 0
    for counts in of_folders[1:]:
        assert (counts != of_folders[0]).nnz == 0


def test_text_with_missing_values_comes_back(wrong_inputs, succeed, checkpoint, tmp_path):
    succeed("embed", wrong_inputs / "nullable_strings.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    paths = wrong_inputs / "nullable_strings.h5ad", tmp_path / "out.h5ad"
    before, after = (anndata.read_h5ad(path).obs for path in paths)
    for column in before:
        assert before[column].astype(str).tolist() == after[column].astype(str).tolist()
