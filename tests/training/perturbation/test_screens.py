"""Screens are read whole and in order, and splits do not leak."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from xtrimogene.training.perturbation.screens import CONTROL, PerturbationSplit, doubles_split, gene_split, read_screen


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


def test_profiles_are_means_of_log_normalised_cells(screen_cells, screen):
    assert len(screen.sets) == 33
    assert sum(len(genes) == 2 for genes in screen.sets.values()) == 15
    symbols = {gene: column for column, gene in enumerate(screen_cells.var_names)}
    for name in (CONTROL, "KLF1", "KLF1+MAP2K6"):
        counts = screen_cells[screen_cells.obs["perturbation"] == name].X.toarray().astype(float)
        values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
        profile = screen.profiles([name])[0]
        shared_genes = [(row, symbols[gene]) for row, gene in enumerate(screen.genes) if gene in symbols]
        assert len(shared_genes) > 400
        rows, columns = np.array(shared_genes).T
        np.testing.assert_allclose(profile[rows], values.mean(axis=0)[columns], rtol=1e-5, atol=1e-6)


def test_totals_may_be_those_of_all_genes(screen_cells, tokenizer, screen, recwarn):
    whole = read_screen(screen_cells, tokenizer, total_key="total_counts_all_genes")
    cell, gene = 5, int(screen.values[5].indices[0])
    count = np.expm1(screen.values[cell, gene]) * screen_cells.X[cell].sum() / 1e4
    expected = np.log1p(count / screen_cells.obs["total_counts_all_genes"].iloc[cell] * 1e4)
    assert whole.values[cell, gene] == pytest.approx(expected, rel=1e-4)
    assert not [warning for warning in recwarn if "total_key" in str(warning.message)]


def test_top_genes_are_those_of_a_welch_test(screen):
    for name in ("KLF1", "CNN1+MAPK1"):
        t, _ = ttest_ind(screen.cells(name).toarray(), screen.cells(CONTROL).toarray(), equal_var=False)
        order = np.argsort(-np.nan_to_num(np.abs(t.astype(float))), kind="stable")
        assert screen.top_genes(name).tolist() == order[:20].tolist()


@pytest.mark.parametrize("spelling", ["KLF1", " KLF1 ", "KLF1+ctrl", "ctrl+KLF1", "KLF1+control", "EKLF"])
def test_spellings_of_a_perturbation(screen_cells, tokenizer, spelling):
    screen = read_screen(named(screen_cells, KLF1=spelling, control="ctrl"), tokenizer)
    assert [*screen.sets] == ["KLF1", "MAPK1"]
    assert screen.cells("KLF1").shape[0] == screen.cells(CONTROL).shape[0] == 12


def test_order_and_old_names_do_not_make_another_perturbation(screen_cells, tokenizer):
    few = some(screen_cells, "KLF1", number=24)
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
def test_names_that_say_nothing_are_refused(screen_cells, tokenizer, change, message):
    few = named(screen_cells)
    change(few)
    with pytest.raises(ValueError, match=message):
        read_screen(few, tokenizer)


def rename(few, **new):
    few.obs["perturbation"] = few.obs["perturbation"].replace(new)


def test_a_rare_perturbation_is_left_out_with_a_warning(screen_cells, tokenizer):
    few = named(screen_cells)
    few = few[(few.obs["perturbation"] != "MAPK1").to_numpy() | (np.arange(36) % 2 == 0)].copy()
    with pytest.warns(UserWarning, match=r"1 of 3 perturbations have fewer than 10 cells: MAPK1 \(6\); .* left out"):
        screen = read_screen(few, tokenizer)
    assert [*screen.sets] == ["KLF1"]
    assert screen.cells("KLF1").shape[0] == screen.cells(CONTROL).shape[0] == 12


def test_cells_that_make_no_mean_are_refused(screen_cells, tokenizer):
    few = named(screen_cells)
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
    with pytest.raises(ValueError, match=r"no perturbation 'MAP2K6\+KLF1' among its 33 \(.*alphabetical order"):
        screen.profiles(["MAP2K6+KLF1"])
