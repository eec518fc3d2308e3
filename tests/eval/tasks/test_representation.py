"""Embeddings of a screen: splits, what a good and a useless embedding score, baselines, and what is refused."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import xtrimogene
from xtrimogene.eval.measures import representation as measures
from xtrimogene.eval.tasks import embedding, representation
from xtrimogene.eval.tasks.run import Run

GENES, NAMES = 60, ["KLF1", "GATA1", "TP53", "CD3D", "LYZ", "SPI1"]


@pytest.fixture(scope="module")
def cells():
    """A screen of four batches, each with 16 control cells and ten cells of six perturbations."""
    rng = np.random.default_rng(0)
    of_batch = np.repeat(["non-targeting", *NAMES], [16, *[10] * 6])
    obs = pd.DataFrame({"perturbation": np.tile(of_batch, 4), "gem": np.repeat(list("abcd"), len(of_batch))})
    obs.index = [f"cell{row}" for row in range(len(obs))]
    kinds = np.unique(obs["perturbation"], return_inverse=True)[1]
    batches = np.unique(obs["gem"], return_inverse=True)[1]
    rates = np.exp(rng.normal(size=(7, GENES)))[kinds] * np.exp(0.5 * rng.normal(size=(4, GENES)))[batches]
    genes = xtrimogene.XTrimoGeneTokenizer.default().genes[:GENES]
    adata = anndata.AnnData(rng.poisson(3 * rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=genes))
    adata.obsm["X_good"] = np.eye(7)[kinds] + rng.normal(scale=0.1, size=(len(obs), 7))
    adata.obsm["X_shifted"] = adata.obsm["X_good"] + np.eye(7)[batches] * 8
    adata.obsm["X_noise"] = rng.normal(size=(len(obs), 7))
    return adata


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measures, "EPOCHS", 60)
    monkeypatch.setattr(measures, "NEIGHBORS", 15)


def screen_of(cells, **options):
    options = representation.RepresentationOptions(**options)
    tokenizer = xtrimogene.XTrimoGeneTokenizer.default()
    return representation.read_screen(cells, tokenizer, options, len)[1]


@pytest.mark.parametrize("batch_key", ["gem", None])
def test_what_tests_was_not_trained_on(cells, batch_key):
    screen = screen_of(cells, batch_key=batch_key)
    parts = [representation.split_of(screen, seed) for seed in (0, 0, 1)]
    assert all(np.array_equal(getattr(parts[0], name), getattr(parts[1], name)) for name in vars(parts[0]))
    assert not np.array_equal(parts[0].train, parts[2].train)
    train, probed, decoded = (set(rows.tolist()) for rows in vars(parts[0]).values())
    assert not train & (probed | decoded)
    names = [set(screen.perturbations[list(rows)]) - {"control"} for rows in (train, probed, decoded)]
    assert names[0] == names[1]
    assert (len(names[0]), len(names[2])) == (4, 2)  # 70 % of six
    assert not names[0] & names[2]
    batches = [set(screen.batches[list(rows)]) for rows in (train, probed, decoded)]
    if batch_key:
        assert batches[1] == batches[2]
        assert not batches[0] & batches[1]
        assert (len(batches[0]), len(batches[1])) == (2, 2)
    for rows in (train, probed, decoded):  # control cells are in each
        assert (screen.perturbations[list(rows)] == "control").sum() >= 10


def test_two_batches_test_where_there_are_three(cells):
    three = cells[cells.obs["gem"] != "d"].copy()
    parts = representation.split_of(screen_of(three, batch_key="gem"), 0)
    screen = screen_of(three, batch_key="gem")
    assert len(set(screen.batches[parts.train])) == 1
    assert len(set(screen.batches[parts.probed])) == 2


def test_embeddings_of_obsm_are_scored_beside_baselines_without_a_checkpoint(cells, monkeypatch, tmp_path):
    monkeypatch.setattr(embedding, "scvi_version", lambda: None)
    said = []
    options = representation.RepresentationOptions(obsm=["X_good", "X_shifted", "X_noise"], batch_key="gem")
    run = Run(seeds=(0,), device="cpu", say=said.append)
    result = representation.evaluate_representation(cells, "screen", {}, options, run)
    assert list(dict.fromkeys(each.method for each in result.scores)) == [
        "obsm X_good", "obsm X_shifted", "obsm X_noise", "PCA of variable genes", "random numbers",
        "log-normalised counts",
    ]  # fmt: skip
    value = {(each.method, each.data.removeprefix("screen, "), each.metric): each.value for each in result.scores}
    good = {
        metric: value["obsm X_good", "as it is", metric] for metric in ("k-NN", "perturbation consistency", "iLISI")
    }
    assert good["k-NN"] > 0.9
    assert good["perturbation consistency"] == 1
    assert value["obsm X_noise", "as it is", "perturbation consistency"] == 0
    assert value["random numbers", "centred", "k-NN"] < 0.75  # the best five of five labels are half of it
    # Batches that lie apart are put on top of each other by their control cells.
    assert value["obsm X_shifted", "as it is", "iLISI"] < 0.05
    assert value["obsm X_shifted", "centred", "iLISI"] > 0.5
    assert value["obsm X_shifted", "as it is", "k-NN"] < value["obsm X_shifted", "centred", "k-NN"]
    counts = value["log-normalised counts", "as it is", "invertibility, Spearman"]
    assert counts > 0.9 > value["obsm X_noise", "as it is", "invertibility, Spearman"] + 0.5
    assert value["obsm X_noise", "as it is", "structural integrity"] == pytest.approx(0.5, abs=0.05)
    tables = ["as it is", "centred", "centre-scaled", "TVN"]
    for method, _, metric in value:
        assert value[method, "best of these", metric] == max(value[method, name, metric] for name in tables)
    assert "scvi-tools is not installed" in result.settings["scVI"]
    assert sum("scvi-tools is not installed" in line for line in said) == 1
    found = result.settings["consistency as it is"]["obsm X_good"]
    assert set(found["perturbations"]) == set(NAMES)
    assert all(each["p"] < 0.01 for each in found["perturbations"].values())
    assert found["null"]["99 %"] < min(each["cosine"] for each in found["perturbations"].values())
    (picture,) = result.pictures.values()
    assert len(picture.axes) == 4


def test_a_checkpoint_and_scvi_are_rows_and_one_batch_has_no_ilisi(cells, monkeypatch, tmp_path):
    monkeypatch.setattr(embedding, "scvi_version", lambda: "1.0")
    monkeypatch.setattr(representation, "scvi_version", lambda: "1.0")
    monkeypatch.setattr(embedding, "scvi_latent", lambda counts, batches, seed, device: counts[:, :5].toarray())
    torch.manual_seed(0)
    tokenizer = xtrimogene.TxFMTokenizer.from_genes(list(cells.var_names), tmp_path / "panel")
    config = xtrimogene.TxFMConfig.preset("txfm-tiny", num_genes=GENES, num_hidden_layers=1, hidden_size=16)
    xtrimogene.TxFMForPreTraining(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(representation, "POST_PROCESSING", {"as it is": lambda embedding, *_: embedding})
    run = Run(seeds=(0,), device="cpu", say=len)
    options = representation.RepresentationOptions()
    result = representation.evaluate_representation(cells, "screen", {"ours": str(tmp_path / "model")}, options, run)
    assert result.scores[0].method == "ours"
    assert {"ours, not trained", "scVI", "log-normalised counts"} <= {each.method for each in result.scores}
    assert {each.metric for each in result.scores} == {
        "linear probe", "k-NN", "perturbation consistency", "invertibility, Spearman", "structural integrity",
    }  # fmt: skip
    assert result.settings["scvi-tools"] == "1.0"
    assert "There is one batch" in result.protocol
    seen = {each.method: each.seen for each in result.scores}
    assert (seen["ours"], seen["log-normalised counts"]) == ("not known", "none")


def test_known_pairs_of_perturbed_genes_are_recalled(cells, monkeypatch, tmp_path):
    from xtrimogene.eval.tasks import relations

    monkeypatch.setattr(relations, "LEAST_PAIRS", 1)
    (tmp_path / "pairs.csv").write_text("a,b\nSPI1,KLF1\nTP53,CD3D\nTP53,GAPDH\n")
    screen = screen_of(cells, relations=[tmp_path / "pairs.csv"])
    perturbed, pairs = screen.related["pairs"]
    assert sorted(perturbed) == sorted(NAMES)
    assert {frozenset(perturbed[row] for row in pair) for pair in pairs} == {
        frozenset({"SPI1", "KLF1"}), frozenset({"TP53", "CD3D"})
    }  # fmt: skip
    directions = {"SPI1": [1, 0, 0], "KLF1": [1, 0, 0.01], "TP53": [0, 1, 0], "CD3D": [-0.7, 0.7, 0]}
    others = {"LYZ": [0, 0.3, 1], "GATA1": [0.4, -0.2, 1], "control": [0.1, 0, 0]}
    embedded = np.array([(directions | others)[name] for name in screen.perturbations])
    found = representation.Found()
    parts = representation.split_of(screen, 0)
    embedded = embedded + np.random.default_rng(0).normal(scale=0.01, size=embedded.shape)
    representation.judge(found, "as it is", "ours", embedded, screen, parts, 0, Run(device="cpu"))
    ((statistic, number),) = found.statistics["as it is", "ours", "relation recall, pairs"]
    assert number == 6
    assert statistic(np.arange(6)) == 0.5  # the nearest of 15 pairs is one of the two


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation_key": "gene"}, "'gene' is not in obs; its columns are perturbation, gem"),
        ({"batch_key": "plate"}, "'plate' is not in obs"),
        ({"control": "DMSO"}, "batch all has 0 control cells among its 304"),
        ({"perturbation_key": "gem", "control": "a"}, None),
        ({"perturbation_key": "gem", "control": "a", "batch_key": "gem"}, "batch b has 0 control cells among its 76"),
    ],
)
def test_screens_that_cannot_be_judged_are_refused(cells, options, message):
    if message is None:
        assert set(screen_of(cells, **options).perturbations) == {"control", "b", "c", "d"}
        return
    with pytest.raises(ValueError, match=message):
        screen_of(cells, **options)


def test_rare_perturbations_and_cells_without_a_name_are_left_out(cells):
    adata = cells.copy()
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(object)
    adata.obs.iloc[16:20, 0] = ["rare", "rare", None, "nan"]
    said = []
    options = representation.RepresentationOptions()
    kept, screen, number = representation.read_screen(
        adata, xtrimogene.XTrimoGeneTokenizer.default(), options, said.append
    )
    assert number == adata.n_obs - kept.n_obs == len(adata) - len(screen.batches) == 4
    assert said == ["4 of 304 cells are left out: they have no perturbation or batch, or one of few"]
    few = adata[adata.obs["perturbation"].isin(["non-targeting", "KLF1", "GATA1"])].copy()
    with pytest.raises(ValueError, match=r"has 2 perturbations of 10 cells besides the control cells \(control, ctrl"):
        representation.read_screen(few, xtrimogene.XTrimoGeneTokenizer.default(), options, len)


def test_embeddings_that_are_not_there_or_not_finite_are_refused(cells):
    with pytest.raises(ValueError, match="obsm has no 'X_pca', it holds X_good, X_shifted, X_noise"):
        embedding.stored(cells, "X_pca")
    adata = cells.copy()
    adata.obsm["X_good"][:3, 0] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['X_good'\] is not finite in 3 of 304 cells"):
        embedding.stored(adata, "X_good")
