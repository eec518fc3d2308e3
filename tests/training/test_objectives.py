"""What each family learns, and who says so."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, EvalPrediction

from xtrimogene.modeling_xtrimogene.flops_xtrimogene import step_flops
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training.callbacks import RedrawProjections
from xtrimogene.training.objectives import MaskedExpression, objective_of
from xtrimogene.training.scores import value_scores


def test_xtrimogene_learns_masked_values_and_other_models_need_an_objective(tiny_config):
    assert isinstance(objective_of(tiny_config()), MaskedExpression)
    with pytest.raises(ValueError, match=r"no objective is known for the model_type 'bert', only for xtrimogene"):
        objective_of(BertConfig())


def test_held_out_cells_are_masked_by_draws_of_their_own_and_all_that_is_masked_is_hidden(tokenizer):
    objective, options = MaskedExpression(), Masking(zero_ratio=0.2)
    training, held_out = objective.collator(tokenizer, 5, options), objective.eval_collator(tokenizer, 5, options)
    assert training.seed != held_out.seed
    assert training.masking == options
    assert held_out.masking == Masking(zero_ratio=0.2, hidden_ratio=1, random_ratio=0)


def test_a_step_costs_what_its_seen_and_masked_genes_cost(tiny_config, make_batch):
    config = tiny_config()
    batch = make_batch(config)
    found = MaskedExpression().flops(config)(batch)
    seen, masked = torch.tensor([1, 7, 13]), torch.tensor([5, 4, 5])
    torch.testing.assert_close(found, step_flops(config, seen, masked))
    latents = tiny_config(num_latents=2)
    batch["labels"][2, 0] = 0  # a zero gene is no more decoded from latents than others
    found = MaskedExpression().flops(latents)(batch)
    torch.testing.assert_close(found, step_flops(latents, seen, masked, seen + masked - torch.tensor([0, 0, 1])))


def test_scores_take_the_labels_first_and_baselines_stand_beside_a_squared_error_only(tiny_config):
    labels, predictions = np.array([[1.0, 2.0, -100]]), np.array([[1.5, 2.5, 9.0]])
    objective = MaskedExpression()
    for given in (labels, (labels, np.zeros((1, 3), int))):
        assert objective.scores(EvalPrediction(predictions, given)) == value_scores(labels, predictions)
    assert objective.is_squared_error(tiny_config())
    assert not objective.is_squared_error(tiny_config(objective="classification"))
    assert not objective.is_squared_error(tiny_config(num_latents=2))
    assert [type(each) for each in objective.callbacks()] == [RedrawProjections]
