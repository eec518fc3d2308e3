"""Real cells in bfloat16: the neighbours, labels and unknown cells of float32, and the calibration made in it."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import xtrimogene
from xtrimogene.eval.cost.benchmarks.precision import app, compare, neighbors_shared
from xtrimogene.options import build
from xtrimogene.recipes.finetune import finetune_file
from xtrimogene.recipes.options import Finetuning

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 1,
    "decoder_head_dim": 8,
    "pooling": "all",
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}


@pytest.fixture(scope="module")
def pretrained(pbmc, tmp_path_factory, measured_genes):
    """A new model of the measured genes only: a processor without products in bfloat16 is slow."""
    folder = tmp_path_factory.mktemp("pretrained")
    genes = measured_genes(pbmc.raw.var_names)
    torch.manual_seed(0)
    config = xtrimogene.XTrimoGeneConfig(num_genes=len(genes), **SIZES)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow  # a fine-tuning
def test_a_fine_tuned_model_in_bfloat16_names_cells_alike_and_says_that_nothing_is_calibrated(
    pbmc, pretrained, tmp_path
):
    labels = pbmc.obs["bulk_labels"]
    cells = pbmc[labels.isin(labels.value_counts().index[:4])][::3].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    annotator = tmp_path / "annotator"
    recipe = build(Finetuning, {"label_key": "bulk_labels", "epochs": 3, "device": "cpu"})
    finetune_file(tmp_path / "cells.h5ad", pretrained, annotator, recipe, say=str)
    found = compare(str(annotator), cells.copy(), "cpu")
    assert found["cells"] == cells.n_obs
    assert found["labels equal"] >= 0.97
    assert 0 <= found["unknown by the calibration made in float32"][0] < 50

    exact = xtrimogene.tl.annotate(cells, annotator, device="cpu", copy=True)
    assert exact.obs["xtrimogene_unknown"].dtype == bool
    with pytest.warns(UserWarning, match="holds for float32, and this is bfloat16"):
        half = xtrimogene.tl.annotate(cells, annotator, device="cpu", dtype="bfloat16", copy=True)
    assert "xtrimogene_unknown" not in half.obs
    assert "choose float32" in half.uns["xtrimogene"]["unknown"]["note"]
    assert half.uns["xtrimogene"]["dtype"] == "bfloat16"


@pytest.mark.slow  # the model runs in two precisions
def test_the_command_writes_what_it_measures(pbmc, pretrained, tmp_path):
    pbmc[:60].write_h5ad(tmp_path / "cells.h5ad")
    arguments = [pretrained, str(tmp_path / "cells.h5ad"), "-o", str(tmp_path / "precision.json"), "--device", "cpu"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "precision.json").read_text())
    assert json.loads(done.output[done.output.index("{") :]) == found
    assert found["cells"] == 60
    assert 0 < found["error of the embedding, in standard deviations of cells"] < 0.5
    assert found["15 neighbours shared"] > 0.8
    size, error = found["predicted values: root mean square, and of the error"]
    assert 0 < error < 0.02 * size


def test_neighbours_of_another_order_are_not_shared():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(200, 5))
    assert neighbors_shared(cells, 3 * cells + 1) == 1.0
    assert neighbors_shared(cells, cells[rng.permutation(200)]) < 0.2
