"""The demonstration: a model is pre-trained, fine-tuned and reported on."""

import json

import pytest
import scanpy as sc
import torch

LABEL_KEY = "bulk_labels"


def run_demo(succeed, folder, epochs):
    result = succeed(
        "demo", "-o", folder, "--pretrain-epochs", epochs[0], "--finetune-epochs", epochs[1], "--device", "cpu"
    )
    assert "★" in result.stdout
    assert "logistic regression" in result.stdout
    assert "gene mean" in result.stdout
    assert "Next: xtrimogene annotate" in result.stdout
    assert "train_runtime" not in result.output  # the Trainer's own lines
    assert (folder / "annotator" / "README.md").is_file()
    assert (folder / "annotator" / "calibration.safetensors").is_file()
    return json.loads((folder / "metrics.json").read_text())


def test_demo_of_one_epoch(succeed, fail, tmp_path, monkeypatch):
    cells = sc.datasets.pbmc68k_reduced()
    common = cells.obs[LABEL_KEY].value_counts().index[:3]
    cells = cells[cells.obs[LABEL_KEY].isin(common)][:50].copy()
    monkeypatch.setattr("scanpy.datasets.pbmc68k_reduced", lambda: cells.copy())
    monkeypatch.setattr(
        "xtrimogene.recipes.demo.TEST_SHARE", 0.5
    )  # half of the held-out cells calibrate: 10 are needed
    threads = torch.get_num_threads()

    def drawn(panels, labels, path, seed):
        path.write_bytes(b"png")
        torch.set_num_threads(threads + 1)  # as numba does when it draws

    monkeypatch.setattr("xtrimogene.eval.report.maps.umap", drawn)
    try:
        metrics = run_demo(succeed, tmp_path / "demo", (1, 1))
        assert metrics["torch threads"] == threads
        assert metrics["calibration"]["cells"]["to calibrate with"] >= 10
    finally:
        torch.set_num_threads(threads)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "holds files already" in fail("demo", "-o", tmp_path / "mine")


@pytest.mark.slow
def test_whole_demo(succeed, tmp_path):
    metrics = run_demo(succeed, tmp_path / "demo", (30, 10))
    recovery = metrics["masked values of held-out cells"]
    assert recovery["xTrimoGene"]["pearson"] > recovery["gene mean"]["pearson"] - 0.02
    assert metrics["annotation of held-out cells"]["xTrimoGene"]["accuracy"] > 0.6
