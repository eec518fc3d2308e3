"""A pre-training as a recipe: its options reach the Trainer, and it leaves where its cells lie."""

import numpy as np
import pandas as pd

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining, XTrimoGeneTokenizer
from xtrimogene.inference import familiarity
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.options import build
from xtrimogene.recipes import pretrain
from xtrimogene.recipes.options import Pretraining
from xtrimogene.recipes.pretrain import trainer_arguments
from xtrimogene.training.data.cells import Cells
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.options import FirstModel


def test_options_reach_the_trainer_and_its_defaults_follow_from_the_size(tmp_path):
    recipe = build(Pretraining, {"max_steps": 7, "schedule": "linear", "accumulate": 3, "seed": 5, "batch_size": 4})
    found = trainer_arguments(recipe, FirstModel(config="tiny"), tmp_path, "cpu")
    assert (found.max_steps, found.lr_scheduler_type, found.gradient_accumulation_steps) == (7, "linear", 3)
    assert (found.seed, found.per_device_train_batch_size, found.learning_rate) == (5, 4, 2e-3)
    longer = trainer_arguments(Pretraining(), FirstModel(config="3M"), tmp_path, "cpu")
    assert (longer.num_train_epochs, longer.max_steps, longer.learning_rate) == (10, -1, 1e-4)


def test_it_leaves_where_its_cells_lie_as_inference_places_them(tmp_path, monkeypatch):
    genes = ["CD3E", "MS4A1", "NKG7", "LYZ"]
    tokenizer = XTrimoGeneTokenizer.from_genes(genes, tmp_path)
    counts = tokenizer.read_counts(pd.DataFrame(np.random.default_rng(0).poisson(3, (50, 4)) + 1, columns=genes))
    model = XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny", num_genes=4))
    cells = Cells(cells_dataset(counts), np.arange(30), np.arange(30, 50), [("a.h5ad", 50)])
    pretrain.save_familiarity(tmp_path, model, tokenizer, cells, 0)
    assert familiarity.Familiarity.load(tmp_path) is None  # 20 held-out cells are few
    for module in (pretrain, familiarity):
        monkeypatch.setattr(module, "LEAST_HELD_OUT", 20)
    pretrain.save_familiarity(tmp_path, model, tokenizer, cells, 0)
    found = familiarity.Familiarity.load(tmp_path)
    assert (found.kept.shape, found.source) == ((30, 64), "30 cells of a.h5ad")
    embedding = CellModel(model, tokenizer).embed(counts)
    expected = familiarity.distances_to(embedding[:30], embedding[30:])
    np.testing.assert_allclose(found.distances, np.sort(expected), atol=2e-3)
