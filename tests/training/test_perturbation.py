"""Screens are read whole and in order, splits do not leak, graphs and features are what they say, training repeats."""

import dataclasses
import gzip

import anndata
import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind

from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
from xtrimogene.modeling_xtrimogene.perturbation_xtrimogene import XTrimoGeneForPerturbationPrediction
from xtrimogene.training import perturbation
from xtrimogene.training.perturbation import (
    CONTROL,
    PerturbationSplit,
    context_features,
    doubles_split,
    fit_perturbation,
    gene_graphs,
    gene_split,
    perturbation_arguments,
    perturbation_pairs,
    perturbed_genes,
    predict_profiles,
    read_relations,
    read_screen,
)

PAIRS = [("KLF1", "GATA1"), ("KLF1", "GATA2"), ("MAPK1", "MAP2K3"), ("MAPK1", "MAP2K6"), ("MAP2K3", "MAP2K6")]


@pytest.fixture(scope="module")
def cells(shared):
    """K562 cells of Norman et al. 2019, 500 genes: control, 18 single and 15 double perturbations."""
    adata = anndata.read_h5ad(shared / "data/perturbseq_norman_mcfaline500/perturbseq_norman_mcfaline500.h5ad")
    return adata[adata.obs["batch"] == "norman19"].copy()


@pytest.fixture(scope="module")
def screen(cells, tokenizer):
    with pytest.warns(UserWarning, match=r"the screen has 500 columns, .* give total_key"):
        return read_screen(cells, tokenizer)


@pytest.fixture(scope="module")
def relations(tokenizer, tmp_path_factory):
    file = tmp_path_factory.mktemp("relations") / "pairs.tsv"
    file.write_text("".join(f"{first}\t{second}\n" for first, second in PAIRS))
    return read_relations([file], tokenizer)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the folder of a small model with random weights, on the whole panel."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", hidden_size=16, decoder_hidden_size=12)).save_pretrained(folder)
    return folder


def some(cells, *names, number=12):
    """Return the first cells of some perturbations."""
    rows = [np.flatnonzero(cells.obs["perturbation"] == name)[:number] for name in (CONTROL, *names)]
    return cells[np.concatenate(rows)].copy()


def named(cells, **new):
    """Return control, KLF1 and MAPK1 cells, with perturbations renamed."""
    few = some(cells, "KLF1", "MAPK1")
    few.obs["perturbation"] = few.obs["perturbation"].astype(str).replace(new)
    return few


# -- reading ----------------------------------------------------------------------------------------------------------


def test_profiles_are_means_of_log_normalised_cells(cells, screen):
    assert len(screen.sets) == 33
    assert sum(len(genes) == 2 for genes in screen.sets.values()) == 15
    symbols = {gene: column for column, gene in enumerate(cells.var_names)}
    for name in (CONTROL, "KLF1", "KLF1+MAP2K6"):
        counts = cells[cells.obs["perturbation"] == name].X.toarray().astype(float)
        values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
        profile = screen.profiles([name])[0]
        shared_genes = [(row, symbols[gene]) for row, gene in enumerate(screen.genes) if gene in symbols]
        assert len(shared_genes) > 400
        rows, columns = np.array(shared_genes).T
        np.testing.assert_allclose(profile[rows], values.mean(axis=0)[columns], rtol=1e-5, atol=1e-6)


def test_totals_may_be_those_of_all_genes(cells, tokenizer, screen, recwarn):
    whole = read_screen(cells, tokenizer, total_key="total_counts_all_genes")
    cell, gene = 5, int(screen.values[5].indices[0])
    count = np.expm1(screen.values[cell, gene]) * cells.X[cell].sum() / 1e4
    expected = np.log1p(count / cells.obs["total_counts_all_genes"].iloc[cell] * 1e4)
    assert whole.values[cell, gene] == pytest.approx(expected, rel=1e-4)
    assert not [warning for warning in recwarn if "total_key" in str(warning.message)]


def test_top_genes_are_those_of_a_welch_test(screen):
    for name in ("KLF1", "CNN1+MAPK1"):
        t, _ = ttest_ind(screen.cells(name).toarray(), screen.cells(CONTROL).toarray(), equal_var=False)
        order = np.argsort(-np.nan_to_num(np.abs(t.astype(float))), kind="stable")
        assert screen.top_genes(name).tolist() == order[:20].tolist()


@pytest.mark.parametrize("spelling", ["KLF1", " KLF1 ", "KLF1+ctrl", "ctrl+KLF1", "KLF1+control", "EKLF"])
def test_spellings_of_a_perturbation(cells, tokenizer, spelling):
    screen = read_screen(named(cells, KLF1=spelling, control="ctrl"), tokenizer)
    assert [*screen.sets] == ["KLF1", "MAPK1"]
    assert screen.cells("KLF1").shape[0] == screen.cells(CONTROL).shape[0] == 12


def test_order_and_old_names_do_not_make_another_perturbation(cells, tokenizer):
    few = some(cells, "KLF1", number=24)
    few.obs["perturbation"] = [CONTROL] * 24 + ["MAP3K21+KLF1", "KLF1+KIAA1804"] * 12
    screen = read_screen(few, tokenizer)
    assert [*screen.sets] == ["KLF1+MAP3K21"]
    assert screen.cells("KLF1+MAP3K21").shape[0] == 24


@pytest.mark.parametrize(("change", "message"), [
    (lambda few: few.obs.rename(columns={"perturbation": "guide"}, inplace=True), "no column 'perturbation'.*guide"),
    (lambda few: rename(few, KLF1="NOGENE7", MAPK1="KLF1+NOGENE8"), "2 of 3 perturbed genes are .*NOGENE7, NOGENE8"),
    (lambda few: rename(few, KLF1=""), "1 of 3 names are empty or have an empty part: ''"),
    (lambda few: rename(few, KLF1=None), "1 of 3 names are empty or have an empty part: ''"),
    (lambda few: rename(few, KLF1="KLF1+"), "1 of 3 names are empty or have an empty part: 'KLF1\\+'"),
    (lambda few: rename(few, KLF1="KLF1+EKLF"), "1 names have a gene twice: KLF1\\+EKLF"),
    (lambda few: rename(few, control="CBL"), "names no control cells among 36 cells .*called control, ctrl"),
    (lambda few: rename(few, KLF1="ctrl", MAPK1="control"), "names no perturbed cells among 36 cells"),
])  # fmt: skip
def test_names_that_say_nothing_are_refused(cells, tokenizer, change, message):
    few = named(cells)
    change(few)
    with pytest.raises(ValueError, match=message):
        read_screen(few, tokenizer)


def rename(few, **new):
    few.obs["perturbation"] = few.obs["perturbation"].replace(new)


def test_cells_that_make_no_mean_are_refused(cells, tokenizer):
    few = named(cells)
    with pytest.raises(ValueError, match=r"3 of 3 perturbations have fewer than 13 cells: KLF1 \(12\), MAPK1 \(12\)"):
        read_screen(few, tokenizer, min_cells=13)
    few.X = few.X.multiply(np.arange(36)[:, None] != 3).tocsr()
    with pytest.raises(ValueError, match="1 of 36 cells have no counts on the panel"):
        read_screen(few, tokenizer)
    few.obs["n"] = 1.0
    with pytest.raises(ValueError, match=r"obs\['n'\] is missing or smaller than the sum of the columns in 35 of 36"):
        read_screen(few, tokenizer, total_key="n")
    with pytest.raises(ValueError, match="obs has no column 'depth'"):
        read_screen(few, tokenizer, total_key="depth")


# -- splits -----------------------------------------------------------------------------------------------------------


def test_gene_split_leaves_genes_out_and_says_how_many_were_seen(screen):
    tested = set()
    for seed in range(5):
        split = gene_split(screen.sets, seed)
        assert {*split.train, *split.test} == set(screen.sets)
        assert not set(split.train) & set(split.test)
        seen = {gene for name in split.train for gene in name.split("+")}
        for name, kind in split.test.items():
            genes = name.split("+")
            assert kind == ("single" if len(genes) == 1 else f"seen{sum(gene in seen for gene in genes)}")
        assert not any(kind == "single" and name in seen for name, kind in split.test.items())
        assert split == gene_split(reversed(list(screen.sets)), seed)
        tested.add(tuple(split.test))
    assert len(tested) == 5


def test_doubles_split_trains_on_singles(screen):
    split = doubles_split(screen.sets)
    assert len(split.train) == 18
    assert [sum(kind == f"seen{number}" for kind in split.test.values()) for number in range(3)] == [7, 3, 5]


def test_leaked_splits_are_refused(screen):
    with pytest.raises(ValueError, match=r"1 of 2 test perturbations are among the 2 training ones: B\+A"):
        PerturbationSplit.of(["A", "A+B"], ["B+A", "C"])
    with pytest.raises(ValueError, match="2 training and 0 test perturbations"):
        PerturbationSplit.of(["A", "B"], [])
    with pytest.raises(ValueError, match="0 training and 1 test perturbations"):
        doubles_split(["A+B"])
    with pytest.raises(ValueError, match="1 of 1 test perturbations are among"):
        fit_perturbation(screen, ["KLF1", "MIDN"], gene_graphs(screen), arguments=None, eval_names=["KLF1"])
    with pytest.raises(ValueError, match=r"no perturbation 'MAP2K6\+KLF1' among its 33 \(.*alphabetical order"):
        screen.profiles(["MAP2K6+KLF1"])


# -- graphs and features ----------------------------------------------------------------------------------------------


def test_relations_of_pairs_and_sets(tokenizer, tmp_path):
    pairs, sets = tmp_path / "pairs.csv.gz", tmp_path / "sets.gmt"
    with gzip.open(pairs, "wt") as file:
        file.write("entity1,entity2,score\nKLF1,GATA1,0.5\nEKLF,NOGENE,1\nMAPK1,KLF1,1\n")
    sets.write_text("FIRST\thttp://x\tKLF1\tGATA1\tNOGENE\tMAPK1\nSECOND\t\tKLF1\n")
    relations = read_relations([pairs, sets], tokenizer)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("KLF1", "GATA1", "MAPK1")}
    members = [set(relations[:, column].nonzero()[0].tolist()) for column in range(relations.shape[1])]
    assert members == [{ids["KLF1"], ids["GATA1"]}, {ids["MAPK1"], ids["KLF1"]}, set(ids.values())]


@pytest.mark.parametrize("name", ["Reactome.txt.gz", "StringDB.txt.gz", "human_hallmark_v2025.gmt.gz"])
def test_published_relations_are_read(shared, tokenizer, name):
    relations = read_relations([shared / "data/gene_relations" / name], tokenizer)
    sizes = np.asarray(relations.sum(axis=0)).ravel()
    assert relations.shape[0] == tokenizer.num_genes
    assert (sizes >= 2).all()
    if not name.endswith("gmt.gz"):
        assert (sizes == 2).all()
        assert relations.shape[1] > 15_000


@pytest.mark.parametrize(("text", "message"), [
    ("", "no line names a gene"),
    ("KLF1 GATA1\nMAPK1 MAP2K3\n", "has 2 lines and none with two genes of the panel: a line is a pair"),
    ("Klf1,Gata1\n", "has 1 lines and none with two genes of the panel"),
])  # fmt: skip
def test_files_without_relations_are_refused(tokenizer, tmp_path, text, message):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_relations([tmp_path / "bad.txt"], tokenizer)


def test_relation_graph_is_the_jaccard_index_by_loops(screen, relations, tokenizer):
    graphs = gene_graphs(screen, relations=relations)
    names = [tokenizer.genes[gene] for gene in graphs.gene_ids]
    assert names[: len(screen.genes)] == screen.genes
    assert {"KLF1", "GATA1", "GATA2", "MAPK1"} <= set(names)
    groups = [set(pair) for pair in PAIRS]
    for first in ("KLF1", "MAPK1", "GATA1", "MIDN"):
        strength = {}
        for second in set(names) - {first}:
            either = sum(first in group or second in group for group in groups)
            both = sum({first, second} <= group for group in groups)
            if both:
                strength[second] = both / either
        row = graphs.relations[names.index(first)]
        found = {names[column]: weight for column, weight in zip(row.indices, row.data, strict=True)}
        total = sum(strength.values())
        assert found == pytest.approx({name: weight / total for name, weight in strength.items()})


def test_coexpression_graph_is_the_strongest_correlations(screen):
    dense = screen.cells(CONTROL).toarray().astype(float)
    varies = dense.std(axis=0) > 0
    correlation = np.zeros((dense.shape[1],) * 2)
    correlation[np.ix_(varies, varies)] = np.abs(np.corrcoef(dense[:, varies].T))
    np.fill_diagonal(correlation, 0)
    graph = perturbation.coexpression(screen.cells(CONTROL))
    assert graph.nnz > 50
    for gene in range(dense.shape[1]):
        close = [other for other in np.argsort(-correlation[gene]) if correlation[gene, other] >= 0.4][:20]
        assert sorted(graph[gene].indices) == sorted(close)
        if close:
            expected = correlation[gene, close] / correlation[gene, close].sum()
            np.testing.assert_allclose(graph[gene].toarray().ravel()[close], expected, rtol=1e-5)


def test_features_are_context_embeddings_averaged_over_control_cells(cells, checkpoint, tokenizer):
    few = named(cells)
    gene_ids = np.array([17, 3, 12_000, 800, 4_711])
    features = context_features(checkpoint, read_screen(few, tokenizer), gene_ids)
    model = XTrimoGeneModel.from_pretrained(checkpoint).eval()
    batch = tokenizer(few[few.obs["perturbation"] == CONTROL].copy())
    with torch.inference_mode():
        embedded = [
            model.contextual_gene_embeddings(ids[None], values[None], mask[None])[0, gene_ids]
            for ids, values, mask in zip(batch["input_ids"], batch["values"], batch["attention_mask"], strict=True)
        ]
    mean = torch.stack(embedded).double().mean(0).numpy()
    standard = (mean - mean.mean(axis=0)) / mean.std(axis=0)
    expected = standard / np.sqrt((standard**2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(features, expected, atol=2e-3)


def test_a_checkpoint_of_another_panel_is_refused(screen, tmp_path):
    XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=40)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 40 genes .* the screen was read with 19,264"):
        gene_graphs(screen, tmp_path)
    with pytest.raises(ValueError, match="further_genes: 1 of 1 perturbed genes are not among"):
        gene_graphs(screen, further_genes=["NOGENE"])


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(screen, relations):
    graphs = gene_graphs(screen, relations=relations, further_genes=["TP53"])
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
        arguments = perturbation_arguments(tmp_path / "run", seed=seed, num_train_epochs=epochs)
        return fit_perturbation(screen, train, graphs, arguments=arguments, perturbation_dropout=0.1)

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


def test_held_out_loss_is_logged_and_features_may_be_learned(screen, graphs, tmp_path):
    split = doubles_split(screen.sets)
    trainer = fit_perturbation(
        screen,
        split.train,
        dataclasses.replace(graphs, features=None),
        arguments=perturbation_arguments(tmp_path, num_train_epochs=2, eval_strategy="epoch"),
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
