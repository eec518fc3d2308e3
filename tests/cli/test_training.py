"""`pretrain` and `finetune` on real cells."""

import json

import anndata
import numpy as np
import pytest
from transformers import AutoTokenizer

from xtrimogene.atomic import file_hash
from xtrimogene.eval.measures.corpus_pca import CorpusPCA
from xtrimogene.eval.measures.trained_on import TrainedOn
from xtrimogene.modeling_xtrimogene.sharing_xtrimogene import check_folder


def test_finetune_writes_model_scores_and_card(annotator, files):
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
    assert f"`{file_hash(files / 'empty.h5ad')[:16]}...`" in card
    assert "| hardware |" in card
    assert "calibration.safetensors" in check_folder(folder), "what a run writes can be pushed"
    assert (folder / "confusion.png").stat().st_size > 0
    assert not list(folder.glob("*.bin"))


def test_pretrain_on_two_files(succeed, files, tmp_path):
    output = tmp_path / "checkpoint"
    result = succeed(
        "pretrain", files / "whole.h5ad", files / "empty.h5ad", "-o", output, "--max-steps", 2, "--batch-size", 4,
        "--drop-empty", "--json",
    )  # fmt: skip
    metrics = json.loads(result.stdout)["metrics"]
    trained_on = metrics["cells"].pop("trained on")
    assert sum(trained_on.values()) == 227
    assert all(f"| {name} | {number} |" in (output / "README.md").read_text() for name, number in trained_on.items())
    assert metrics["cells"] == {"train": 227, "held out": 12}
    assert (metrics["steps"], metrics["learning rate"]) == (2, 2e-3)
    assert {"xTrimoGene", "gene mean"} <= set(metrics["masked values of held-out cells"])
    assert "2/2 steps" in result.stderr
    assert {"loss.png", "README.md", "metrics.json", "genes.txt", "model.safetensors"} <= {
        *check_folder(output)
    }  # what a run writes can be pushed


def test_pretrain_continues_and_masks_cells_of_all_files_apart(run, files, checkpoint, tmp_path, monkeypatch):
    seen = {}

    def pretrain(model, tokenizer, train, held_out, **kwargs):
        seen["index"] = np.sort(np.concatenate([train["cell_index"], held_out["cell_index"]]))
        seen["width"] = model.config.hidden_size
        raise ValueError("enough")

    monkeypatch.setattr("xtrimogene.recipes.pretrain.pretrain", pretrain)
    whole = files / "whole.h5ad"
    assert run("pretrain", whole, whole, "-o", tmp_path, "--checkpoint", checkpoint).exit_code == 1
    np.testing.assert_array_equal(seen["index"], np.arange(240))
    assert seen["width"] == 32


def test_pretrain_on_a_corpus(succeed, fail, files, checkpoint, tmp_path):
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    succeed("convert", files / "whole.h5ad", "-o", corpus, "-m", checkpoint, "--min-genes", 0, "--obs", "donor")
    result = succeed(
        "pretrain", "--corpus", corpus, "-o", output, "--checkpoint", checkpoint, "--max-steps", 2, "--batch-size", 4,
        "--validation-by", "donor", "--balance-by", "donor", "--json",
    )  # fmt: skip
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["cells"] == {"train": 90, "held out": 30, "trained on": {"whole.h5ad": 90}}  # one of four donors
    assert metrics["steps"] == 2
    assert not (output / "checkpoints").exists()  # the run has ended
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert CorpusPCA.load(output, tokenizer).num_cells == 90
    assert TrainedOn.load(output, tokenizer) is None  # the checkpoint that it went on from does not say
    again = ["pretrain", "--corpus", corpus, "-o", output, "--checkpoint", checkpoint, "--resume"]
    assert "has ended, so there is nothing to resume" in fail(*again)
    assert "whole.h5ad" in (output / "README.md").read_text()


def test_tensorboard_gets_the_whole_log_and_keeps_it(succeed, files, checkpoint, tmp_path):
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


def test_pretrain_takes_counts_and_names_from_where_it_is_told(succeed, files, tmp_path):
    cells = anndata.read_h5ad(files / "empty.h5ad")
    cells.layers["mine"], cells.var["name"] = cells.X.copy(), cells.var_names
    cells.X, cells.var_names = -cells.X, [f"column {number}" for number in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    result = succeed(
        "pretrain", tmp_path / "cells.h5ad", "-o", tmp_path / "out", "--layer", "mine", "--gene-column", "name",
        "--max-steps", 1, "--batch-size", 2, "--drop-empty", "--json",
    )  # fmt: skip
    numbers = json.loads(result.stdout)["metrics"]["cells"]
    assert numbers["train"] + numbers["held out"] == 119
    # Beside the checkpoint lies what it was trained on: no held-out cell is among it.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    known = TrainedOn.load(tmp_path / "out", tokenizer)
    assert known.share_of(tokenizer.read_counts(files / "empty.h5ad")) == f"{numbers['train']} of 120"
    assert CorpusPCA.load(tmp_path / "out", tokenizer).num_cells == numbers["train"]
    assert 'counts recovered from log1p-normalised layers["mine"]' in result.stderr


def test_empty_cells_are_never_dropped_silently(fail, files, checkpoint, tmp_path):
    error = fail("pretrain", files / "empty.h5ad", "-o", tmp_path / "out", "--checkpoint", checkpoint)
    assert "1 of 120 cells have no counts" in error
    assert "--drop-empty" in error


@pytest.mark.slow  # four commands
def test_a_txfm_is_pre_trained_fine_tuned_names_types_and_is_evaluated(succeed, files, tmp_path, measured_genes):
    from xtrimogene import TxFMConfig, TxFMForPreTraining, TxFMTokenizer
    from xtrimogene.eval.evaluate import run_plan

    whole, first, model, annotator = (
        files / "whole.h5ad",
        tmp_path / "first",
        tmp_path / "model",
        tmp_path / "annotator",
    )
    genes = measured_genes(anndata.read_h5ad(whole).var_names)  # few, so that it is quick
    TxFMTokenizer.from_genes(genes, tmp_path / "panel").save_pretrained(first)
    config = TxFMConfig.preset("txfm-tiny", num_genes=len(genes), num_visible=64, inference_passes=2)
    TxFMForPreTraining(config).save_pretrained(first)
    result = succeed(
        "pretrain", whole, "-o", model, "--checkpoint", first, "--max-steps", 2, "--batch-size", 4, "--json"
    )
    assert json.loads(result.stdout)["metrics"]["steps"] == 2
    card = (model / "README.md").read_text()
    assert "A TxFM pre-trained on 114 cells of whole.h5ad" in card
    assert "arxiv.org/abs/2311.15156" not in card  # the paper of another family
    assert "kenyondean2026txfm" in card
    succeed("embed", whole, "-m", model, "-o", tmp_path / "embedded.h5ad")
    embedded = anndata.read_h5ad(tmp_path / "embedded.h5ad").obsm["X_xtrimogene"]
    assert embedded.shape == (120, 64)
    assert np.isfinite(embedded).all()
    succeed("finetune", whole, "--label-key", "bulk_labels", "--model", model, "-o", annotator, "--epochs", 1, "--json")
    assert "A TxFM fine-tuned on" in (annotator / "README.md").read_text()
    succeed("annotate", whole, "-m", annotator, "-o", tmp_path / "annotated.h5ad")
    named = anndata.read_h5ad(tmp_path / "annotated.h5ad").obs
    right = (named["xtrimogene_label"].astype(str) == named["bulk_labels"].astype(str)).mean()
    assert right > 0.6  # it begins at a logistic regression on the values of genes
    tasks = [
        {"task": "embedding", "data": str(whole), "label_key": "bulk_labels"},
        {"task": "recovery", "data": str(whole), "sparsities": [0.9], "num_test": 20},
    ]
    found = run_plan(tasks, {"txfm": model}, tmp_path / "report", seeds=[0], device="cpu", say=lambda line: None)
    scores = [{each["method"] for each in result["scores"]} for result in found["results"]]
    assert all("txfm" in methods for methods in scores)
