"""The command line on real cells: what goes in comes out, and every error is one line."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import yaml
import zarr
from scipy.sparse import save_npz
from typer.testing import CliRunner

import xtrimogene
from xtrimogene.cli import app
from xtrimogene.cli.output import scores_table
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import PRESETS

LABEL_KEY = "bulk_labels"
EMPTY = 7  # the cell that has no counts
COMMANDS = [
    "demo", "convert", "pretrain", "finetune", "embed", "enhance", "annotate", "evaluate", "compare", "inspect",
    "plan", "doctor", "convert-checkpoint",
]  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments, code=1):
    """Return the error, which has to be one line and no traceback."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in result.output
    return lines[0]


@pytest.fixture(scope="session")
def real_cells():
    """120 blood cells, 30 of each of 4 types, with raw values in X."""
    adata = sc.datasets.pbmc68k_reduced()
    labels = adata.obs[LABEL_KEY]
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == name)[:30] for name in labels.value_counts().index[:4]]))
    adata = adata[chosen]
    obs = adata.obs[[LABEL_KEY]].astype(str)
    obs["donor"] = [f"donor{number % 4}" for number in range(len(obs))]
    return anndata.AnnData(adata.raw.X.copy(), obs=obs, var=adata.raw.var[[]])


@pytest.fixture(scope="session")
def files(real_cells, tmp_path_factory):
    """Whole cells, the same with an empty one, and the same scaled."""
    folder = tmp_path_factory.mktemp("cells")
    real_cells.write_h5ad(folder / "whole.h5ad")
    with_empty = real_cells.copy()
    keep = np.ones(with_empty.n_obs)
    keep[EMPTY] = 0
    with_empty.X = with_empty.X.multiply(keep[:, None]).tocsr()
    with_empty.X.eliminate_zeros()
    with_empty.write_h5ad(folder / "empty.h5ad")
    scaled = real_cells.copy()
    scaled.X = scaled.X.toarray()
    sc.pp.scale(scaled)
    scaled.write_h5ad(folder / "scaled.h5ad")
    return folder


@pytest.fixture(scope="session")
def checkpoint(real_cells, tmp_path_factory, measured_genes):
    """A new model of the measured genes only, so that it is quick."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    genes = measured_genes(real_cells.var_names)
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder)
    sizes = PRESETS["tiny"] | {"hidden_size": 32, "decoder_hidden_size": 32}
    xtrimogene.XTrimoGeneForPreTraining(xtrimogene.XTrimoGeneConfig(num_genes=len(genes), **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def annotator(files, checkpoint, tmp_path_factory):
    """What `finetune` wrote, and what it printed as JSON."""
    folder = tmp_path_factory.mktemp("model") / "annotator"
    result = succeed(
        "finetune", files / "empty.h5ad", "--label-key", LABEL_KEY, "--group-key", "donor", "--model", checkpoint,
        "-o", folder, "--epochs", 1, "--test-share", 0.25, "--class-weights", "balanced", "--drop-empty", "--json",
    )  # fmt: skip
    return folder, json.loads(result.stdout), result.stderr


# -- help -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_holds_an_example(command):
    assert f"Example: xtrimogene {command}" in " ".join(succeed(command, "--help").stdout.split())


def test_help_lists_all_commands():
    text = succeed("--help").stdout
    assert all(command in text for command in COMMANDS)


def test_version():
    assert succeed("--version").stdout == f"xtrimogene {xtrimogene.__version__}\n"


def test_help_imports_nothing_heavy():
    """The package itself imports transformers; the command line adds nothing to that."""
    code = """
        import importlib.util, os, sys
        path, folder = sys.argv[1], os.path.dirname(sys.argv[1])
        spec = importlib.util.spec_from_file_location("alone", path, submodule_search_locations=[folder])
        module = sys.modules["alone"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.app.registered_commands
        heavy = {"torch", "transformers", "datasets", "scanpy", "anndata", "pandas", "numpy"} & set(sys.modules)
        assert not heavy, heavy
    """
    path = sys.modules["xtrimogene.cli"].__file__
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), path], check=True)


# -- inspect, doctor ------------------------------------------------------------------------------------------


def test_inspect_says_what_is_there(files):
    found = json.loads(succeed("inspect", files / "empty.h5ad", "--json").stdout)
    assert (found["cells"], found["columns"], found["empty_cells"]) == (120, 765, 1)
    assert (found["slot"], found["state"]) == ("X", "log1p")
    assert found["genes"]["n_matched"] > 700
    assert found["obs"][LABEL_KEY]["values"] == 4
    assert any("--label-key" in command for command in found["next"])
    text = succeed("inspect", files / "empty.h5ad").stdout
    assert "120 cells x 765 columns" in text
    assert "Next: xtrimogene embed" in text


def test_inspect_shows_slots_of_what_cannot_be_used(files):
    result = run("inspect", files / "scaled.h5ad", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["slots"]["X"].startswith("scaled: ")
    assert "no counts found" in found["problem"]
    assert found["next"] == []


def test_inspect_reads_csv(real_cells, tmp_path):
    real_cells[:20].to_df().to_csv(tmp_path / "cells.csv")
    found = json.loads(succeed("inspect", tmp_path / "cells.csv", "--json").stdout)
    assert (found["cells"], found["obs"]) == (20, {})


def test_inspect_shows_the_shape_of_what_is_no_matrix(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(5))
    result = run("inspect", tmp_path / "one.npy", "--json")
    assert result.exit_code == 1
    assert "array has 1 dimensions, shape (5,)" in json.loads(result.stdout)["problem"]
    assert "(5,)" in run("inspect", tmp_path / "one.npy").stdout


def test_inspect_of_an_array_says_that_it_names_no_genes(tmp_path):
    np.save(tmp_path / "one.npy", np.ones((2, 5)))
    problem = json.loads(run("inspect", tmp_path / "one.npy", "--json").stdout)["problem"]
    assert "does not name its columns; pass them, or save AnnData with var_names as .h5ad" in problem


def test_inspect_of_another_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = np.ones(3)
    assert "other.h5ad holds x and no obs or var" in fail("inspect", tmp_path / "other.h5ad")


def test_doctor_knows_versions_and_devices():
    found = json.loads(succeed("doctor", "--json").stdout)
    assert {"python", "torch", "transformers"} <= set(found["versions"])
    assert "cpu" in found["devices"]
    assert found["problems"] == []
    assert "All is well" in succeed("doctor").stdout


@pytest.mark.parametrize("is_there", [True, False])
def test_doctor_says_what_can_compute_the_decoder(monkeypatch, is_there):
    import importlib.util

    find_spec = importlib.util.find_spec
    spec = object() if is_there else None
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *_: spec if name == "performer_pytorch" else find_spec(name, *_)
    )
    found = json.loads(succeed("doctor", "--json").stdout)
    assert found["favor_backends"] == ["native", "performer-pytorch"][: 1 + is_there]
    assert found["problems"] == []


def test_doctor_warns_of_old_versions(monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["torch>=999", "rich>=13"])
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["problems"]) == 1


# -- embed, annotate ------------------------------------------------------------------------------------------


def test_embed_keeps_cells_order_and_content(files, checkpoint, tmp_path):
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


def test_cells_that_stay_in_their_file_come_out_with_all_they_had(real_cells, checkpoint, tmp_path):
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


def test_counts_in_a_layer_need_no_x(real_cells, checkpoint, tmp_path):
    given = anndata.AnnData(obs=real_cells.obs[:9], var=real_cells.var, layers={"counts": real_cells.X[:9]})
    given.write_h5ad(tmp_path / "cells.h5ad")
    succeed("embed", tmp_path / "cells.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    assert np.isfinite(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_xtrimogene"]).all()


def test_two_processes_embed_as_one(files, checkpoint, tmp_path):
    one, two = tmp_path / "one.h5ad", tmp_path / "two.h5ad"
    succeed("embed", files / "empty.h5ad", "-m", checkpoint, "-o", one)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    typed = ["-m", "xtrimogene.cli", "embed", files / "empty.h5ad", "-m", checkpoint, "-o", two, "--device", "cpu"]
    done = subprocess.run([*launch, *map(str, typed), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cells"] == 120  # said once
    np.testing.assert_allclose(
        anndata.read_h5ad(two).obsm["X_xtrimogene"], anndata.read_h5ad(one).obsm["X_xtrimogene"], atol=1e-5
    )


def test_embed_prints_tables_for_people_and_nothing_when_quiet(files, checkpoint, tmp_path):
    arguments = ["embed", files / "whole.h5ad", "--model", checkpoint, "--key-added", "E", "--pooling", "all"]
    result = succeed(*arguments, "-o", tmp_path / "a.h5ad")
    assert "cells/s" in result.stdout
    assert "matched" in result.stdout
    assert "120/120 cells" in result.stderr
    assert anndata.read_h5ad(tmp_path / "a.h5ad").obsm["E"].shape == (120, 64)
    assert succeed(*arguments, "-o", tmp_path / "b.h5ad", "--quiet").output == ""


def test_embed_writes_over_only_with_force(files, checkpoint, tmp_path):
    output = tmp_path / "out.h5ad"
    output.write_text("mine")
    arguments = ["embed", files / "whole.h5ad", "--model", checkpoint, "-o", output]
    assert "--force" in fail(*arguments)
    assert output.read_text() == "mine"
    succeed(*arguments, "--force")
    assert "X_xtrimogene" in anndata.read_h5ad(output).obsm


def test_embed_reads_csv(real_cells, checkpoint, tmp_path):
    real_cells[:10].to_df().to_csv(tmp_path / "cells.csv")
    succeed("embed", tmp_path / "cells.csv", "--model", checkpoint, "-o", tmp_path / "out.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "out.h5ad").obs_names) == list(real_cells.obs_names[:10])


def test_embed_writes_genes_and_expression_as_zarr(files, checkpoint, tmp_path):
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


def test_embed_reads_arrays_whose_columns_are_named(real_cells, checkpoint, tmp_path):
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


def test_enhance_adds_a_layer_and_an_embedding(files, checkpoint, tmp_path):
    output = tmp_path / "out.h5ad"
    result = json.loads(succeed("enhance", files / "empty.h5ad", "-m", checkpoint, "-o", output, "--json").stdout)
    assert (result["cells"], result["empty_cells"]) == (120, 1)
    adata = anndata.read_h5ad(output)
    assert np.flatnonzero(np.isnan(adata.layers["enhanced"]).all(1)).tolist() == [EMPTY]
    whole = xtrimogene.tl.embed(anndata.read_h5ad(files / "empty.h5ad"), checkpoint, copy=True).obsm["X_xtrimogene"]
    np.testing.assert_allclose(adata.obsm["X_enhanced"], whole, atol=1e-5)
    error = fail("enhance", files / "empty.h5ad", "-m", checkpoint, "--target-depth", "f4", "-o", tmp_path / "b.h5ad")
    assert "has no depth tokens" in error


def test_annotate_by_a_fine_tuned_model(files, annotator, tmp_path):
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


def test_annotate_by_a_model_without_calibration_says_that_unknown_cells_are_not_told(files, annotator, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(annotator[0], older, ignore=shutil.ignore_patterns("calibration.safetensors"))
    result = succeed("annotate", files / "whole.h5ad", "--model", older, "-o", tmp_path / "out.h5ad")
    assert "Unknown cells are not told: no calibration" in result.stdout
    assert "xtrimogene_unknown" not in anndata.read_h5ad(tmp_path / "out.h5ad").obs


def test_annotate_by_a_reference(files, checkpoint, tmp_path):
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


# -- pretrain, finetune, demo ---------------------------------------------------------------------------------


def test_finetune_writes_model_scores_and_card(annotator):
    folder, result, notes = annotator
    annotation = result["metrics"]["annotation of held-out cells"]
    assert list(annotation) == ["xTrimoGene", "logistic regression", "k-NN on PCA"]
    assert result["metrics"]["cells"] == {"train": 89, "test": 30, "types": 4}
    calibration = result["metrics"]["calibration"]
    assert calibration["cells"] == {"to calibrate with": 15, "that these scores are of": 15}
    assert 0 <= calibration["calibration error"] <= 1
    assert (folder / "calibration.safetensors").exists()
    assert json.loads((folder / "metrics.json").read_text()) == result["metrics"]
    assert "1 of 120 cells have no counts on the panel and are left out" in notes
    card = (folder / "README.md").read_text()
    assert "xtrimogene finetune" in card
    assert "--label-key bulk_labels" in card
    assert (folder / "confusion.png").stat().st_size > 0
    assert not list(folder.glob("*.bin"))


def test_pretrain_on_two_files(files, tmp_path):
    output = tmp_path / "checkpoint"
    result = succeed(
        "pretrain", files / "whole.h5ad", files / "empty.h5ad", "-o", output, "--max-steps", 2, "--batch-size", 4,
        "--drop-empty", "--json",
    )  # fmt: skip
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["cells"] == {"train": 227, "held out": 12}
    assert (metrics["steps"], metrics["learning rate"]) == (2, 2e-3)
    assert {"xTrimoGene", "gene mean"} <= set(metrics["masked values of held-out cells"])
    assert "2/2 steps" in result.stderr
    assert {"loss.png", "README.md", "metrics.json", "genes.txt", "model.safetensors"} <= {
        file.name for file in output.iterdir()
    }


def test_pretrain_continues_and_masks_cells_of_all_files_apart(files, checkpoint, tmp_path, monkeypatch):
    seen = {}

    def pretrain(model, tokenizer, train, held_out, **kwargs):
        seen["index"] = np.sort(np.concatenate([train["cell_index"], held_out["cell_index"]]))
        seen["width"] = model.config.hidden_size
        raise ValueError("enough")

    monkeypatch.setattr("xtrimogene.training.pretraining.pretrain", pretrain)
    whole = files / "whole.h5ad"
    assert run("pretrain", whole, whole, "-o", tmp_path, "--checkpoint", checkpoint).exit_code == 1
    np.testing.assert_array_equal(seen["index"], np.arange(240))
    assert seen["width"] == 32


def test_pretrain_on_a_corpus(files, checkpoint, tmp_path):
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    succeed("convert", files / "whole.h5ad", "-o", corpus, "-m", checkpoint, "--min-genes", 0, "--obs", "donor")
    result = succeed(
        "pretrain", "--corpus", corpus, "-o", output, "--checkpoint", checkpoint, "--max-steps", 2, "--batch-size", 4,
        "--validation-by", "donor", "--balance-by", "donor", "--json",
    )  # fmt: skip
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["cells"] == {"train": 90, "held out": 30}  # one of four donors
    assert metrics["steps"] == 2
    assert not (output / "checkpoints").exists()  # the run has ended
    again = ["pretrain", "--corpus", corpus, "-o", output, "--checkpoint", checkpoint, "--resume"]
    assert "has ended, so there is nothing to resume" in fail(*again)
    assert "whole.h5ad" in (output / "README.md").read_text()


def test_tensorboard_gets_the_whole_log_and_keeps_it(files, checkpoint, tmp_path):
    pytest.importorskip("tensorboard", reason="needs TensorBoard to read what was written for it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    typed = ["pretrain", files / "whole.h5ad", "-o", tmp_path / "out", "--checkpoint", checkpoint, "--max-steps", 3]
    typed += ["--batch-size", 4, "--report-to", "tensorboard", "--ema", 0.9, "--json"]
    for again in ([], ["--force"]):  # the events of the earlier run go with it
        assert json.loads(succeed(*typed, *again).stdout)["metrics"]["ema"] == 0.9
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    names = ("loss", "learning_rate", "grad_norm", "cells_per_second", "tokens_per_second", "mfu", "memory_gib")
    for name in names:
        points = events.Scalars(f"train/{name}")
        assert [point.step for point in points] == [1, 2, 3]
        assert all(point.value >= 0 for point in points)
    assert "eval/loss" in events.Tags()["scalars"]
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1


def test_options_of_pretrain_come_from_a_file_and_what_is_typed_wins(files, checkpoint, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(succeed("pretrain", "--max-steps", 3, "--schedule", "linear", "--print-config").stdout)
    options = yaml.safe_load(recipe.read_text())
    assert options["schedule"] == "linear"
    assert options["zero_ratio"] == 0.03
    assert options["unmeasured"] == "ignore"
    recipe.write_text(yaml.safe_dump(options | {"zero_ratio": 0.5, "unmeasured": "zero", "batch_size": "7"}))
    typed = ["pretrain", files / "whole.h5ad", "-o", tmp_path / "out", "--config", recipe, "--checkpoint", checkpoint]
    metrics = json.loads(succeed(*typed, "--batch-size", 4, "--json").stdout)["metrics"]
    assert (metrics["steps"], metrics["zero_ratio"], metrics["batch size"]) == (3, 0.5, 4)
    assert metrics["unmeasured"] == "zero"

    # Epochs that are typed stand in the place of the file's steps: 114 cells, 16 a step.
    again = succeed(*typed, "--force", "--batch-size", 16, "--epochs", 1, "--json")
    assert json.loads(again.stdout)["metrics"]["steps"] == 8

    recipe.write_text("batchsize: 4")
    assert "unknown option 'batchsize'" in fail(*typed, "--force", code=2)
    recipe.write_text("a: [1\n\tb")
    assert "recipe.yaml is no YAML" in fail(*typed, "--force", code=2)
    assert "none.yaml does not exist" in fail("pretrain", "--config", tmp_path / "none.yaml", code=2)


def test_plan_says_what_pretraining_takes():
    plans = json.loads(succeed("plan", "--cells", 1e6, "--expressed", 300, "--json").stdout)["plans"]
    assert [found["preset"] for found in plans] == ["3M", "10M", "100M"]
    assert plans[0]["cost"] < plans[1]["cost"] < plans[2]["cost"]
    assert plans[2]["parameters"] == pytest.approx(119.25e6, rel=0.001)


def test_pretrain_takes_counts_and_names_from_where_it_is_told(files, tmp_path):
    cells = anndata.read_h5ad(files / "empty.h5ad")
    cells.layers["mine"], cells.var["name"] = cells.X.copy(), cells.var_names
    cells.X, cells.var_names = -cells.X, [f"column {number}" for number in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    result = succeed(
        "pretrain", tmp_path / "cells.h5ad", "-o", tmp_path / "out", "--layer", "mine", "--gene-column", "name",
        "--max-steps", 1, "--batch-size", 2, "--drop-empty", "--json",
    )  # fmt: skip
    assert sum(json.loads(result.stdout)["metrics"]["cells"].values()) == 119
    assert 'counts recovered from log1p-normalised layers["mine"]' in result.stderr


def run_demo(folder, epochs):
    result = succeed(
        "demo", "-o", folder, "--pretrain-epochs", epochs[0], "--finetune-epochs", epochs[1], "--device", "cpu"
    )
    assert "★" in result.stdout
    assert "logistic regression" in result.stdout
    assert "gene mean" in result.stdout
    assert "Next: xtrimogene annotate" in result.stdout
    assert "train_runtime" not in result.output  # the Trainer's own lines
    assert (folder / "annotator" / "README.md").is_file()
    return json.loads((folder / "metrics.json").read_text())


def test_demo_of_one_epoch(tmp_path, monkeypatch):
    cells = sc.datasets.pbmc68k_reduced()
    common = cells.obs[LABEL_KEY].value_counts().index[:3]
    cells = cells[cells.obs[LABEL_KEY].isin(common)][:50].copy()
    monkeypatch.setattr("scanpy.datasets.pbmc68k_reduced", lambda: cells.copy())
    monkeypatch.setattr(
        "xtrimogene.eval.report.pictures.umap", lambda panels, labels, path, seed: path.write_bytes(b"png")
    )
    run_demo(tmp_path / "demo", (1, 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "holds files already" in fail("demo", "-o", tmp_path / "mine")


@pytest.mark.slow
def test_whole_demo(tmp_path):
    metrics = run_demo(tmp_path / "demo", (30, 10))
    recovery = metrics["masked values of held-out cells"]
    assert recovery["xTrimoGene"]["pearson"] > recovery["gene mean"]["pearson"] - 0.02
    assert metrics["annotation of held-out cells"]["xTrimoGene"]["accuracy"] > 0.6


def test_scores_mark_the_best_also_when_a_baseline_wins():
    table = scores_table("", {"ours": {"a": 0.5, "b": 0.9}, "theirs": {"a": 0.6, "b": float("nan")}})
    assert [list(column.cells) for column in table.columns[1:]] == [
        ["0.500", "[bold green]★ 0.600[/]"],
        ["[bold green]★ 0.900[/]", "-"],
    ]
    assert "ours does not win: a." in table.caption


# -- errors ---------------------------------------------------------------------------------------------------


def test_missing_file(checkpoint, files, tmp_path):
    assert "similar names there: whole.h5ad" in fail(
        "embed", files / "whol.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad"
    )
    assert "does not exist" in fail("inspect", tmp_path / "none.h5ad")


def test_folder_without_checkpoint(files, tmp_path):
    (tmp_path / "weights.bin").touch()
    error = fail("embed", files / "whole.h5ad", "--model", tmp_path, "-o", tmp_path / "out.h5ad", code=2)
    assert "config.json" in error
    assert "weights.bin" in error
    error = fail("embed", files / "whole.h5ad", "--model", tmp_path / "none", "-o", tmp_path / "out.h5ad", code=2)
    assert "does not exist" in error


def test_folder_without_checkpoint_is_refused_in_the_words_of_tl(files, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json") as refused:
        xtrimogene.inference.cell_model.CellModel.load(tmp_path)
    arguments = ["embed", files / "whole.h5ad", "--model", tmp_path, "-o", tmp_path / "out.h5ad"]
    assert str(refused.value) in fail(*arguments, code=2)


def test_a_copy_that_does_not_fit_is_refused_before_anything_is_computed(files, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
    error = fail("embed", files / "empty.h5ad", "-m", checkpoint, "-o", tmp_path / "out.h5ad")
    assert "will hold all of" in error
    assert "has 0.0 GiB free: choose another --output" in error
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_an_error_with_a_reason_and_leaves_what_was_there(files, checkpoint, tmp_path):
    """A limit of the size of files stands for the disk: the copy fits, what is added does not."""
    output = tmp_path / "out.h5ad"
    output.write_text("as it was")
    size = (files / "empty.h5ad").stat().st_size
    code = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 1000}, {size + 1000}))
        from xtrimogene.cli import app
        app({["embed", str(files / "empty.h5ad"), "-m", str(checkpoint), "-o", str(output), "--force"]})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode  # 1, or what HDF5 makes of it when it closes the file a second time at exit
    assert "Error: " in done.stderr
    assert "out.h5ad could not be written:" in done.stderr
    assert output.read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5ad"]


def test_a_job_that_is_told_to_stop_leaves_nothing_half_written(files, checkpoint, tmp_path):
    output = tmp_path / "out.h5ad"
    code = f"""
        import os, signal
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # all is written, but under another name
        from xtrimogene.cli import app
        app({["embed", str(files / "empty.h5ad"), "-m", str(checkpoint), "-o", str(output)]})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not any(tmp_path.iterdir())


def test_the_program_runs_in_a_thread(files):
    with ThreadPoolExecutor() as threads:
        assert threads.submit(succeed, "inspect", files / "whole.h5ad", "--json").result().exit_code == 0


def test_output_that_cannot_be_written_is_refused_before_anything_is_read(checkpoint, tmp_path):
    (tmp_path / "folder.h5ad").mkdir()
    (tmp_path / "file").touch()
    none = tmp_path / "none.h5ad"
    for_file = [["embed", none, "--model", checkpoint], ["annotate", none, "--model", checkpoint]]
    for_folder = [["demo"], ["pretrain", none], ["finetune", none, "--label-key", "x", "--model", checkpoint]]
    for arguments in for_file:
        assert "is a folder, and --output a file" in fail(*arguments, "-o", tmp_path / "folder.h5ad", "--force")
        assert "file is a file: choose another" in fail(*arguments, "-o", tmp_path / "file" / "a.h5ad")
    for arguments in for_folder:
        assert "is a file, and --output a folder" in fail(*arguments, "-o", tmp_path / "file", "--force")
        assert "file is a file: choose another" in fail(*arguments, "-o", tmp_path / "file" / "new", "--force")


def test_table_with_text_or_on_its_side(real_cells, checkpoint, tmp_path):
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


def test_missing_label_key(files, checkpoint, tmp_path):
    whole = files / "whole.h5ad"
    error = fail("finetune", whole, "--label-key", "cell_type", "--model", checkpoint, "-o", tmp_path)
    assert "bulk_labels, donor" in error
    reference = ["--reference", whole, "--label-key", "cell_type", "-o", tmp_path / "out.h5ad"]
    assert "bulk_labels, donor" in fail("annotate", whole, "--model", checkpoint, *reference)


def test_pretrained_model_knows_no_types(files, checkpoint, tmp_path):
    error = fail("annotate", files / "whole.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad")
    assert "knows no cell types" in error


def test_unknown_device(files, checkpoint, tmp_path):
    arguments = ["embed", files / "whole.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad"]
    assert "device 'abacus' is not on this machine" in fail(*arguments, "--device", "abacus")


def test_scaled_data(files, checkpoint, tmp_path):
    error = fail("embed", files / "scaled.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad")
    assert "scaled" in error
    assert not (tmp_path / "out.h5ad").exists()


def test_pooling_that_the_model_lacks(files, checkpoint, tmp_path):
    arguments = ["embed", files / "whole.h5ad", "--model", checkpoint, "-o", tmp_path / "out.h5ad"]
    assert "needs depth tokens" in fail(*arguments, "--pooling", "S")


def test_empty_cells_are_never_dropped_silently(files, checkpoint, tmp_path):
    error = fail("pretrain", files / "empty.h5ad", "-o", tmp_path / "out", "--checkpoint", checkpoint)
    assert "1 of 120 cells have no counts" in error
    assert "--drop-empty" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed"],
        ["embed", "a.h5ad", "--unknown"],
        ["pretrain", "a.h5ad", "-o", "out", "--epochs", "1", "--max-steps", "1"],
        ["pretrain", "a.h5ad", "-o", "out", "--batch-size", "many"],
        ["pretrain", "a.h5ad", "-o", "out", "--zero-ratio", "2"],
    ],
)
def test_usage_errors_are_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fail(*arguments, code=2)


def test_errors_in_json(files, tmp_path):
    result = run("inspect", tmp_path / "none.h5ad", "--json")
    assert result.exit_code == 1
    assert "does not exist" in json.loads(result.stdout)["error"]
    assert result.stderr == ""


def test_debug_shows_the_error_itself(tmp_path):
    assert isinstance(run("--debug", "inspect", tmp_path / "none.h5ad").exception, FileNotFoundError)
