"""A pre-training as a recipe: its options reach the Trainer."""

from xtrimogene.options import build
from xtrimogene.recipes.options import Pretraining
from xtrimogene.recipes.pretrain import trainer_arguments
from xtrimogene.training.options import FirstModel


def test_options_reach_the_trainer_and_its_defaults_follow_from_the_size(tmp_path):
    recipe = build(Pretraining, {"max_steps": 7, "schedule": "linear", "accumulate": 3, "seed": 5, "batch_size": 4})
    found = trainer_arguments(recipe, FirstModel(config="tiny"), tmp_path, "cpu")
    assert (found.max_steps, found.lr_scheduler_type, found.gradient_accumulation_steps) == (7, "linear", 3)
    assert (found.seed, found.per_device_train_batch_size, found.learning_rate) == (5, 4, 2e-3)
    longer = trainer_arguments(Pretraining(), FirstModel(config="3M"), tmp_path, "cpu")
    assert (longer.num_train_epochs, longer.max_steps, longer.learning_rate) == (10, -1, 1e-4)
