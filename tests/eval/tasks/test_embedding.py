"""Zero-shot scores: against independent computations, on real cells, and on what must and must not score."""

import shutil

import anndata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import xtrimogene
from xtrimogene.eval.measures import baselines, probes
from xtrimogene.eval.measures.corpus_pca import CorpusPCA
from xtrimogene.eval.measures.trained_on import save_trained_on
from xtrimogene.eval.tasks import embedding
from xtrimogene.eval.tasks.run import Run
from xtrimogene.training.data.convert import convert_files
from xtrimogene.training.data.dataset import cells_dataset

pytestmark = pytest.mark.usefixtures("quick_umap")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1, "decoder_head_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def cells():
    """240 real blood cells with raw values, and two made-up batches."""
    import scanpy as sc

    adata = sc.datasets.pbmc68k_reduced()
    obs = adata.obs[["bulk_labels"]].assign(batch=[f"batch{row % 2}" for row in range(adata.n_obs)])
    return anndata.AnnData(adata.raw.X.copy(), obs=obs, var=adata.raw.var[[]])[:240].copy()


@pytest.fixture(scope="module")
def checkpoint(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    default = xtrimogene.XTrimoGeneTokenizer.default()
    rows = np.unique(default.matcher.match(list(cells.var_names)).rows)
    genes = [default.genes[row] for row in rows if row >= 0]
    torch.manual_seed(0)
    config = xtrimogene.XTrimoGeneConfig(num_genes=len(genes), pooling="all", **SIZES)
    xtrimogene.XTrimoGeneForPreTraining(config).save_pretrained(folder)
    xtrimogene.XTrimoGeneTokenizer.from_genes(genes, folder).save_pretrained(folder)
    return str(folder)


def test_scib_metrics_agrees():
    scib_metrics = pytest.importorskip("scib_metrics", reason="needs the judge: pip install scib-metrics")
    rng = np.random.default_rng(0)
    labels, batches = np.repeat(["a", "b", "c"], 60), np.tile(["one", "two"], 90)
    centres = {"a": 0.0, "b": 1.5, "c": 3.0, "one": 0.0, "two": 0.7}
    shifts = np.array([[centres[label], centres[batch]] for label, batch in zip(labels, batches, strict=True)])
    embedding = np.hstack([shifts, np.zeros((180, 6))]) + rng.normal(size=(180, 8))
    found = probes.embedding_statistics(embedding, labels, batches, 0)
    everything = np.arange(180)
    judged = scib_metrics.silhouette_label(embedding, labels, rescale=False)
    assert found["ASW of labels"](everything) == pytest.approx(float(judged), abs=1e-5)
    # Theirs is the mean over labels, ours over cells: the same where labels are equally frequent.
    judged = scib_metrics.silhouette_batch(embedding, labels, batches)
    assert found["ASW of batches"](everything) == pytest.approx(float(judged), abs=1e-5)
    judged = scib_metrics.nmi_ari_cluster_labels_kmeans(embedding, labels)
    for name, key in (("ARI", "ari"), ("NMI", "nmi")):  # k-means starts elsewhere
        assert found[name](everything) == pytest.approx(float(judged[key]), abs=0.1)


def test_scvi_tells_types_apart_and_is_told_batches():
    pytest.importorskip("scvi", reason="needs this baseline: pip install scvi-tools")
    rng = np.random.default_rng(0)
    labels, batches = np.repeat(["a", "b"], 60), np.tile(["one", "two"], 60)
    rates = rng.gamma(1.0, size=(2, 300))[(labels == "b").astype(int)] * np.where(batches == "two", 3, 1)[:, None]
    counts = csr_matrix(rng.poisson(rates).astype(np.float32))
    found = baselines.scvi_latent(counts, batches, 0, torch.device("cpu"))
    assert found.shape == (120, 10)
    np.testing.assert_array_equal(found, baselines.scvi_latent(counts, batches, 0, torch.device("cpu")))
    everything = np.arange(120)
    statistics = probes.embedding_statistics(found, labels, batches, 0, standardize=False)
    assert statistics["k-NN macro-F1"](everything) > 0.95
    assert statistics["mixing of batches"](everything) > 0.9


def test_labels_that_an_embedding_holds_are_found_and_shuffled_ones_are_not(cells):
    labels = cells.obs["bulk_labels"].astype(str).to_numpy()
    labels = np.where(np.isin(labels, ["CD19+ B", "CD14+ Monocyte", "Dendritic"]), labels, "other")
    names, ids = np.unique(labels, return_inverse=True)
    embedding = np.eye(len(names))[ids] + np.random.default_rng(0).normal(scale=0.1, size=(len(ids), len(names)))
    every = np.arange(len(ids))
    for values, floor, ceiling in ((labels, 0.95, 1), (np.random.default_rng(1).permutation(labels), 0, 0.4)):
        for statistic in probes.probe_statistics(embedding, values, None, 0).values():
            assert floor <= statistic(every) <= ceiling


def test_probes_are_tested_on_batches_that_they_have_not_seen(cells):
    """An embedding that tells cells only within a batch is worth nothing across batches."""
    labels, batches = cells.obs["bulk_labels"].astype(str).to_numpy(), cells.obs["batch"].to_numpy()
    ids = np.unique(labels, return_inverse=True)[1]
    # Labels lie in another place in each batch.
    embedding = np.eye(20)[(ids + 10 * (batches == "batch1")) % 20]
    every = np.arange(len(ids))
    within = probes.probe_statistics(embedding, labels, None, 0)["k-NN macro-F1"](every)
    across = probes.probe_statistics(embedding, labels, batches, 0)["k-NN macro-F1"](every)
    assert within > 0.9
    assert across < 0.3


def test_a_checkpoint_is_scored_beside_baselines_and_controls(cells, checkpoint, monkeypatch):
    def latent(counts, batches, seed, device):  # the real one trains for minutes
        assert counts.shape[0] == len(batches) == keep.sum()
        np.testing.assert_array_equal(counts.data, counts.data.round())
        return baselines.variable_components(counts, seed)

    keep = probes.columns(cells, "bulk_labels", "batch")[2]
    monkeypatch.setattr(embedding, "scvi_version", lambda: "1.0")
    monkeypatch.setattr(embedding, "scvi_latent", latent)
    options = embedding.EmbeddingOptions(label_key="bulk_labels", batch_key="batch")
    run = Run(seeds=(0, 1), say=len)
    result = embedding.evaluate_embedding(cells, "blood", {"ours": checkpoint}, options, run)
    methods = list(dict.fromkeys(each.method for each in result.scores))
    assert methods == [
        "ours", "ours, not trained", "PCA of variable genes", "scVI", "random numbers", "ours, shuffled labels"
    ]  # fmt: skip
    value = {(each.method, each.metric): each for each in result.scores}
    assert value["PCA of variable genes", "linear probe macro-F1"].low > 0.3
    assert value["random numbers", "linear probe macro-F1"].high < 0.3
    assert value["ours, shuffled labels", "k-NN macro-F1"].value < 0.25
    assert all(each.low <= each.value <= each.high and each.seeds == 2 for each in result.scores)
    assert list(result.pictures) == ["UMAP, coloured by labels", "UMAP, coloured by batches"]
    assert result.settings["scvi-tools"] == "1.0"
    assert result.settings["left out"] == sum(n for n in cells.obs["bulk_labels"].value_counts() if n < 10)
    seen = {each.method: each.seen for each in result.scores}
    assert seen == dict.fromkeys(["ours", "ours, shuffled labels"], "not known") | dict.fromkeys(
        ["PCA of variable genes", "scVI"], "all, without labels"
    ) | dict.fromkeys(["ours, not trained", "random numbers"], "none")


def test_pca_of_the_corpus_is_a_row_and_tells_which_cells_it_was_fitted_to(cells, checkpoint, tmp_path):
    tokenizer = xtrimogene.XTrimoGeneTokenizer.from_pretrained(checkpoint)
    with_corpus = shutil.copytree(checkpoint, tmp_path / "with_corpus")
    trained = cells_dataset(tokenizer.read_counts(cells)).select(range(100))
    save_trained_on(with_corpus, trained, tokenizer)
    CorpusPCA.fit(trained, tokenizer).save(with_corpus)
    cells[150:].write_h5ad(tmp_path / "others.h5ad")
    convert_files([tmp_path / "others.h5ad"], tmp_path / "corpus", tokenizer=tokenizer, min_genes=1, say=len)
    checkpoints = {"ours": checkpoint, "known": str(with_corpus)}
    found = embedding.cell_embeddings(
        cells[:150].copy(), checkpoints, None, str(tmp_path / "corpus"), Run(seeds=(0,), say=len)
    )
    assert {method: each.seen for method, each in found.items() if "not trained" not in method} == {
        "ours": "not known", "known": "100 of 150", "PCA of the corpus": "0 of 150",
        "PCA of the corpus of known": "100 of 150", "PCA of variable genes": "all, without labels",
        "random numbers": "none",
    }  # fmt: skip
    of_corpora = [found["PCA of the corpus"], found["PCA of the corpus of known"]]
    assert [(each.values.shape, each.is_scaled) for each in of_corpora] == [((150, 50), False)] * 2
    # Labels of cells that it has not seen: the components are of these genes in this order.
    labels = cells.obs["bulk_labels"][:150].to_numpy(str)
    keep = np.isin(labels, [name for name in np.unique(labels) if (labels == name).sum() >= 10])
    scores = probes.probe_statistics(of_corpora[0].values[keep], labels[keep], None, 0, standardize=False)
    assert scores["k-NN macro-F1"](np.arange(keep.sum())) > 0.5


@pytest.mark.parametrize(
    ("label_key", "batch_key", "message"),
    [
        (None, None, "give --label-key, --batch-key or both"),
        ("type", None, "'type' is not in obs; its columns are bulk_labels, batch"),
        ("same", None, r"obs\['same'\] has 1 value with at least 10 cells in 240 cells"),
    ],
)
def test_columns_that_cannot_score_are_refused(cells, label_key, batch_key, message):
    adata = cells.copy()
    if label_key == "same":
        adata.obs["same"] = "a"
    with pytest.raises(ValueError, match=message):
        probes.columns(adata, label_key, batch_key)


def test_batches_that_are_the_labels_are_refused(cells):
    with pytest.raises(ValueError, match="is in a single batch of obs"):
        probes.columns(cells, "bulk_labels", "bulk_labels")


def test_cells_that_are_there_twice_are_refused(cells):
    counts = cells.X.tocsr()
    probes.refuse_twins(counts)
    with pytest.raises(ValueError, match=r"4 of 240 cells have the counts of another cell \(cells 3 and 7 first\)"):
        probes.refuse_twins(counts[[*range(3), 3, *range(4, 7), 3, 8, 8, *range(10, 240)]])


def test_cells_without_counts_are_named(cells, checkpoint):
    empty = cells.copy()
    counts = empty.X.tolil()
    counts[np.flatnonzero(cells.obs["bulk_labels"] == "Dendritic")[0]] = 0
    empty.X = counts.tocsr()
    options = embedding.EmbeddingOptions(label_key="bulk_labels")
    with pytest.raises(ValueError, match="1 of 218 cells have no counts on the panel of ours"):
        embedding.evaluate_embedding(empty, "blood", {"ours": checkpoint}, options, Run(say=len))
