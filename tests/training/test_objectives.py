"""What each family learns, and who says so."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import concatenate_datasets
from transformers import BertConfig, EvalPrediction

from xtrimogene import TxFMConfig, TxFMForPreTraining, TxFMTokenizer
from xtrimogene.modeling_xtrimogene.flops_xtrimogene import reconstruction_flops, step_flops
from xtrimogene.tokenization.collators import DataCollatorForExpression
from xtrimogene.tokenization.masking import Masking
from xtrimogene.training.callbacks import RedrawProjections
from xtrimogene.training.data.dataset import cells_dataset
from xtrimogene.training.objectives import MaskedExpression, mean_profile, objective_of
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


# -- TxFM -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def txfm(tmp_path):
    """A tokenizer of four genes, and four cells of files that measured three and two of them."""
    tokenizer = TxFMTokenizer.from_genes(["CD3E", "MS4A1", "NKG7", "LYZ"], tmp_path / "panel")
    three = pd.DataFrame([[6, 2, 0], [1, 1, 2]], columns=["CD3E", "MS4A1", "NKG7"])
    two = pd.DataFrame([[4, 0], [3, 1]], columns=["CD3E", "LYZ"])
    parts = [cells_dataset(tokenizer.read_counts(each), first_index=2 * row) for row, each in enumerate((three, two))]
    return tokenizer, concatenate_datasets(parts)


def small(tokenizer, **changes):
    sizes = {"num_genes": tokenizer.num_genes, "num_visible": 2, "anchored": False}
    return TxFMConfig.preset("txfm-tiny", **{**sizes, **changes})


def test_the_mean_profile_is_over_the_cells_in_which_a_gene_was_measured(txfm):
    found = np.expm1(mean_profile(txfm[1], txfm[0], seed=0))
    of_cells = np.array([[0.75, 0.25, 0, np.nan], [0.25, 0.25, 0.5, np.nan], [1, np.nan, np.nan, 0],
                         [0.75, np.nan, np.nan, 0.25]])  # fmt: skip
    np.testing.assert_allclose(found, 1e5 * np.nanmean(of_cells, axis=0), rtol=1e-5)


def test_txfm_begins_at_the_mean_profile_unless_a_run_is_resumed(txfm):
    tokenizer, dataset = txfm
    objective = objective_of(small(tokenizer))
    for fit in (True, False):
        model = TxFMForPreTraining(small(tokenizer))
        before = model.decoder.output.bias.clone()
        objective.begin(model, tokenizer, dataset, 0, fit)
        assert torch.equal(model.decoder.output.bias, before) is not fit
        if fit:
            model.decoder.output.weight.data.zero_()
            values = model.reconstruct(torch.zeros(1, 64))[0]
            np.testing.assert_allclose(values.detach(), mean_profile(dataset, tokenizer, 0), rtol=1e-4, atol=1e-4)


def test_an_anchored_txfm_begins_with_the_bag_of_genes_unless_a_run_is_resumed(txfm):
    tokenizer, dataset = txfm
    dataset = dataset.add_column("batch", [0, 0, 1, 1]).with_format("numpy")
    for fit in (True, False):
        config = small(tokenizer, anchored=True)
        model = TxFMForPreTraining(config)
        objective_of(config).begin(model, tokenizer, dataset, 0, fit)
        assert (model.config.num_batches, model.cell_decoder.is_set) == (2, fit)
        assert bool(model.cell_decoder.batch_bias.weight.any()) is fit


@pytest.mark.parametrize("anchored", [True, False])
def test_a_tokenizer_of_another_total_is_refused(txfm, anchored):
    config = small(txfm[0], anchored=anchored, library_size=1e4)
    message = r"normalises cells to target_sum 100,000.0, and the model reads values of library_size 10,000.0: give"
    with pytest.raises(ValueError, match=message):
        objective_of(config).begin(TxFMForPreTraining(config), *txfm, 0)


@pytest.mark.parametrize("anchored", [True, False])
def test_bulk_samples_are_learned_beside_cells_of_other_panels(txfm, anchored):
    """A bulk sample is a cell with many counts: of the same shares of the same genes comes the same embedding."""
    tokenizer, cells = txfm
    bulk = pd.DataFrame([[6e7, 2e7, 0], [1e7, 1e7, 2e7]], columns=["CD3E", "MS4A1", "NKG7"])
    dataset = concatenate_datasets([cells, cells_dataset(tokenizer.read_counts(bulk), first_index=len(cells))])
    dataset = dataset.with_format("numpy")
    torch.manual_seed(0)
    config = small(tokenizer, anchored=anchored, num_visible=3, layerscale_value=1.0)
    model, objective = TxFMForPreTraining(config), objective_of(config)
    objective.begin(model, tokenizer, dataset, 0)
    batch = objective.collator(tokenizer, 0)(dataset.__getitems__(list(range(len(dataset)))))
    assert batch["measured"].sum(1).tolist() == [3, 3, 2, 2, 3, 3]
    output = model.train()(**batch)
    output.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    embedding = model.eval()(**batch).cell_embedding
    torch.testing.assert_close(embedding[[0, 1]], embedding[[4, 5]], atol=1e-4, rtol=0)
    assert (embedding[0] - embedding[1]).abs().max() > 1e-3


def test_batches_of_txfm_show_as_many_genes_as_its_configuration_says(txfm):
    tokenizer, dataset = txfm
    objective = objective_of(small(tokenizer))
    examples = dataset.__getitems__([0, 1, 2, 3])
    training = objective.collator(tokenizer, 3)(examples)
    assert training["input_ids"].shape == (4, 2)
    assert "labels" not in training
    held_out = objective.eval_collator(tokenizer, 3, Masking(expressed_ratio=1.0, zero_ratio=0.0))(examples)
    assert held_out["labels"].shape == held_out["masked_ids"].shape
    assert not held_out["values"].any()  # all that is expressed is masked
    assert objective.recovery_collator(tokenizer, 3).current_epoch() == 0
    assert objective.task_collator(tokenizer, 3)(examples)["input_ids"].shape == (4, 2)
    assert isinstance(MaskedExpression().task_collator(tokenizer, 3), DataCollatorForExpression)


def test_a_card_tells_the_options_that_a_family_learns_by(txfm):
    masking = Masking(expressed_ratio=0.5, zero_ratio=0.1)
    shares = {"expressed_ratio": 0.5, "zero_ratio": 0.1, "unmeasured": "ignore"}
    assert MaskedExpression().settings(masking) == shares
    assert objective_of(small(txfm[0])).settings(masking) == {"visible genes": 2}  # it masks by none of them


def test_a_step_of_txfm_costs_what_its_tokens_cost(txfm):
    tokenizer, _ = txfm
    config = small(tokenizer)
    found = objective_of(config).flops(config)({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})
    torch.testing.assert_close(found, reconstruction_flops(config, torch.tensor([2, 3])))
    assert not objective_of(config).is_squared_error(config)
