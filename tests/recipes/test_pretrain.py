"""A pre-training: where cells come from, what model begins, how it is trained."""

import numpy as np
import pytest

from xtrimogene.options import build
from xtrimogene.recipes.options import NewModel, Pretraining
from xtrimogene.recipes.pretrain import by_length, check_source, new_model, open_files, trainer_arguments


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "one is needed"),
        (["a.h5ad"], {"corpus": "corpus"}, "exclude each other"),
        (["a.h5ad"], {"validation_by": "donor"}, "name columns of a corpus"),
        (["a.h5ad"], {"balance_by": "study"}, "name columns of a corpus"),
    ],
)
def test_cells_come_from_files_or_a_corpus(files, options, message):
    with pytest.raises(ValueError, match=message):
        check_source(files, build(Pretraining, options))


def test_files_or_a_corpus_alone_are_fine():
    check_source(["a.h5ad"], Pretraining())
    check_source([], build(Pretraining, {"corpus": "corpus", "validation_by": "donor", "balance_by": "study"}))


def test_a_new_model_is_of_its_size_with_what_was_chosen():
    model, tokenizer = new_model(NewModel(dropout=0.3, depth_tokens=True, decoder_context="all"), "tiny")
    config = model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.3, 0.3)
    assert (config.decoder_context, config.depth_tokens, tokenizer.depth_tokens) == ("all", True, True)
    assert config.num_genes == tokenizer.num_genes


def test_cells_held_out_are_a_share_of_all_files_and_none_is_on_both_sides(tmp_path, pbmc, tokenizer):
    for name, rows in {"a": slice(0, 30), "b": slice(30, 70)}.items():
        pbmc[rows].write_h5ad(tmp_path / f"{name}.h5ad")
    files, lines = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"], []
    cells = open_files(files, build(Pretraining, {"validation_share": 0.1}), tokenizer, lines.append)
    assert cells.sources == [("a.h5ad", 30), ("b.h5ad", 40)]
    assert len(cells.held_out) == 7
    np.testing.assert_array_equal(np.sort(np.concatenate([cells.train, cells.held_out])), np.arange(70))
    assert (np.diff(cells.dataset["length"][:][cells.held_out]) >= 0).all()
    assert lines[0].startswith("a.h5ad: 30 cells; counts")
    other = open_files(files, build(Pretraining, {"validation_share": 0.1, "seed": 1}), tokenizer, lines.append)
    assert set(other.held_out) != set(cells.held_out)
    pbmc[:1].write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(ValueError, match="1 of 1 cells held out leave none to train on"):
        open_files([tmp_path / "one.h5ad"], Pretraining(), tokenizer, lines.append)


def test_cells_of_like_length_stand_side_by_side():
    lengths = {"length": np.array([5, 1, 3, 1, 9])}
    np.testing.assert_array_equal(by_length(lengths, np.array([0, 1, 3, 4])), [1, 3, 0, 4])


def test_options_reach_the_trainer_and_its_defaults_follow_from_the_size(tmp_path):
    recipe = build(Pretraining, {"max_steps": 7, "schedule": "linear", "accumulate": 3, "seed": 5, "batch_size": 4})
    found = trainer_arguments(recipe, tmp_path, "cpu", "tiny")
    assert (found.max_steps, found.lr_scheduler_type, found.gradient_accumulation_steps) == (7, "linear", 3)
    assert (found.seed, found.per_device_train_batch_size, found.learning_rate) == (5, 4, 2e-3)
    longer = trainer_arguments(Pretraining(), tmp_path, "cpu", "3M")
    assert (longer.num_train_epochs, longer.max_steps, longer.learning_rate) == (10, -1, 1e-4)
    assert trainer_arguments(Pretraining(checkpoint="there"), tmp_path, "cpu", "tiny").learning_rate == 1e-4
