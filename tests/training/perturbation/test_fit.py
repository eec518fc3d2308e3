"""Training learns, repeats and travels; pairs are what they say."""

import dataclasses

import numpy as np
import pytest

from xtrimogene.modeling_xtrimogene.modeling_perturbation import XTrimoGeneForPerturbationPrediction
from xtrimogene.training.perturbation import fit
from xtrimogene.training.perturbation.anchoring import additive_weights, set_members
from xtrimogene.training.perturbation.fit import (
    PerturbationArguments,
    fit_perturbation,
    perturbation_model,
    perturbation_pairs,
    predict_profiles,
    training_helps,
)
from xtrimogene.training.perturbation.gene_graphs import gene_graphs, read_relations
from xtrimogene.training.perturbation.screens import CONTROL, doubles_split, gene_split, perturbed_genes


@pytest.fixture(scope="module")
def graphs(screen, tokenizer, tmp_path_factory):
    pairs = tmp_path_factory.mktemp("relations") / "pairs.tsv"
    pairs.write_text("KLF1\tGATA1\nMAPK1\tMAP2K3\nMAPK1\tMAP2K6\n")
    graphs = gene_graphs(screen, relations=read_relations([pairs], tokenizer), further_genes=["TP53"])
    features = np.random.default_rng(0).normal(size=(len(graphs.gene_ids), 6)).astype(np.float32)
    return dataclasses.replace(graphs, features=features)


def test_pairs_are_profiles_or_means_of_drawn_cells(screen, tokenizer):
    names = ["KLF1", "KLF1+MAP2K6"]
    whole = perturbation_pairs(screen, names)
    np.testing.assert_allclose(np.stack(whole["labels"][:]), screen.profiles(names), rtol=1e-6)
    np.testing.assert_allclose(np.stack(whole["control_values"][:]), screen.profiles([CONTROL] * 2), rtol=1e-6)
    ids = [[gene for gene in row.tolist() if gene != tokenizer.pad_token_id] for row in whole["perturbation_ids"][:]]
    assert [{tokenizer.genes[gene] for gene in row} for row in ids] == [{"KLF1"}, {"KLF1", "MAP2K6"}]
    drawn = [perturbation_pairs(screen, names, cells=5, repeats=200, seed=seed) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 400
    first, again, other = (np.stack(pairs["labels"][:]) for pairs in drawn)
    assert (first == again).all()
    assert not (first == other).all()
    error = screen.cells("KLF1").toarray().std(axis=0) / np.sqrt(5 * 200)
    assert (np.abs(first[::2].mean(axis=0) - screen.profiles(["KLF1"])[0]) <= 6 * error + 1e-6).all()


def test_training_learns_repeats_and_travels(screen, graphs, tokenizer, tmp_path):
    train = gene_split(screen.sets, 0).train
    control, truth = screen.profiles([CONTROL])[0], screen.profiles(train)
    sets = [screen.sets[name] for name in train]

    def fit(seed, epochs=60):
        arguments = PerturbationArguments(tmp_path / "run", seed=seed, num_train_epochs=epochs)
        return fit_perturbation(screen, train, graphs, arguments=arguments, dropout=0.1)

    trainer = fit(0)
    predicted = predict_profiles(trainer.model, control, sets)
    mean_error = np.mean((truth - truth.mean(axis=0)) ** 2)
    assert np.mean((predicted - truth) ** 2) < 0.5 * mean_error
    assert (predict_profiles(fit(0).model, control, sets) == predicted).all()
    assert not (predict_profiles(fit(1).model, control, sets) == predicted).all()
    untrained = predict_profiles(fit(0, epochs=0).model, control, sets)
    np.testing.assert_allclose(untrained, np.tile(truth.mean(axis=0), (len(train), 1)), atol=1e-5)

    trainer.save_model(tmp_path / "saved")
    loaded = XTrimoGeneForPerturbationPrediction.from_pretrained(tmp_path / "saved")
    assert (predict_profiles(loaded, control, sets) == predicted).all()
    assert (loaded.gene_ids.numpy() == graphs.gene_ids).all()
    # A gene that no cell of the screen has lost or gained, alone and together with a known one.
    unseen = [genes for _, genes in perturbed_genes(["TP53", "TP53+KLF1"], tokenizer)]
    alone, together = predict_profiles(loaded, control, unseen)
    assert np.isfinite(alone).all()
    assert not np.allclose(alone, together)


@pytest.mark.parametrize("with_features", [True, False])
def test_an_anchored_model_begins_as_the_additive_model(screen, graphs, with_features):
    split = gene_split(screen.sets, 0)
    graphs = graphs if with_features else dataclasses.replace(graphs, features=None)
    model = perturbation_model(screen, split.train, graphs, anchored=True)
    control = screen.profiles([CONTROL])[0]
    changes = screen.profiles(split.train) - control
    weights = additive_weights(
        set_members([screen.sets[name] for name in split.train], graphs.gene_ids), changes, graphs.features
    )
    for names in (list(split.train), list(split.test)):
        sets = [screen.sets[name] for name in names]
        expected = control + set_members(sets, graphs.gene_ids) @ weights @ changes
        np.testing.assert_allclose(predict_profiles(model, control, sets), expected, atol=1e-5)


def test_an_anchored_model_is_trained_only_where_held_out_training_perturbations_gain(
    screen, graphs, tmp_path, monkeypatch
):
    split = gene_split(screen.sets, 0)
    control, sets = screen.profiles([CONTROL])[0], [screen.sets[name] for name in split.test]
    arguments = PerturbationArguments(tmp_path, num_train_epochs=10, eval_strategy="epoch", save_strategy="epoch")

    def predicted():
        trainer = fit_perturbation(
            screen, split.train, graphs, arguments=arguments, eval_names=list(split.test), anchored=True
        )
        return trainer.state.global_step, predict_profiles(trainer.model, control, sets)

    steps, kept = predicted()
    assert steps == 0
    assert not list(tmp_path.iterdir())
    begun = perturbation_model(screen, split.train, graphs, anchored=True)
    assert (kept == predict_profiles(begun, control, sets)).all()
    # An anchor that knows nothing is easily improved on.
    monkeypatch.setattr(fit, "additive_weights", lambda members, *_: np.zeros(members.shape[::-1]))
    steps, learned = predicted()
    assert steps == 10
    assert not np.allclose(learned, control)


def test_with_two_perturbations_it_cannot_be_told_whether_training_helps(screen, graphs):
    assert not training_helps(screen, ["KLF1", "MIDN"], graphs, arguments=None, anchored=True)


def test_sets_are_filled_up_with_the_padding_of_the_tokenizer(screen, graphs, depth_tokenizer):
    train = gene_split(screen.sets, 0).train
    of_depth = dataclasses.replace(screen, tokenizer=depth_tokenizer)
    pad_token_ids = [perturbation_model(each, train, graphs).config.pad_token_id for each in (screen, of_depth)]
    assert pad_token_ids == [screen.tokenizer.pad_token_id, depth_tokenizer.pad_token_id]


def test_held_out_loss_is_logged_and_features_may_be_learned(screen, graphs, tmp_path):
    split = doubles_split(screen.sets)
    trainer = fit_perturbation(
        screen,
        split.train,
        dataclasses.replace(graphs, features=None),
        arguments=PerturbationArguments(tmp_path, num_train_epochs=2, eval_strategy="epoch"),
        eval_names=list(split.test),
        pairs=perturbation_pairs(screen, split.train, cells=20, repeats=3),
    )
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    predicted = predict_profiles(
        trainer.model, screen.profiles([CONTROL])[0], [screen.sets[name] for name in split.test]
    )
    assert len(losses) == 2
    expected = np.mean((predicted - screen.profiles(list(split.test))) ** 2)
    assert losses[-1] == pytest.approx(expected, rel=1e-3)
    assert trainer.model.features.requires_grad


def test_held_out_perturbations_are_not_trained_on(screen, graphs):
    with pytest.raises(ValueError, match="1 of 1 test perturbations are among"):
        fit_perturbation(screen, ["KLF1", "MIDN"], graphs, arguments=None, eval_names=["KLF1"])
