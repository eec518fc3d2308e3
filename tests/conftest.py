"""Fixtures that several test files use."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may ask the network
# numba, which draws UMAPs, sets the number of OpenMP threads of the whole process. With OMP_NUM_THREADS=1 and two
# processes on two cores, the tests after a UMAP then took up to ten times as long.
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import xtrimogene
from xtrimogene.cli import app
from xtrimogene.cli.process import keep_freed_memory

keep_freed_memory()
# The repository's root is the package, and pytest would import it once more under the name of its folder: there would
# be two of each class.
sys.modules.setdefault(Path(__file__).resolve().parents[1].name, xtrimogene)
SHARED = Path(__file__).resolve().parents[1].parent / "shared"

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_head_dim": 6,
    "num_bins": 7,
}


@pytest.fixture(scope="session")
def shared():
    """The folder with real cells and reference outputs that lies beside the repository on development machines."""
    if not SHARED.exists():
        pytest.skip(f"needs the development data in {SHARED.name}/ beside the repository, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    from xtrimogene import XTrimoGeneTokenizer

    return XTrimoGeneTokenizer.default()


@pytest.fixture(scope="session")
def measured_genes(tokenizer):
    """Give the genes of the panel that some names reach, in the panel's order: models of these alone are quick."""

    def genes(names):
        rows = np.unique(tokenizer.matcher.match(list(names)).rows)
        return [tokenizer.genes[row] for row in rows if row >= 0]

    return genes


@pytest.fixture(scope="session")
def depth_tokenizer():
    from xtrimogene import XTrimoGeneTokenizer

    return XTrimoGeneTokenizer.default(depth_tokens=True)


@pytest.fixture
def tiny_config():
    """Make a small configuration; keyword arguments change it."""
    from xtrimogene import XTrimoGeneConfig

    def make(**changes):
        return XTrimoGeneConfig(**{**TINY, "num_genes": 50, **changes})

    return make


@pytest.fixture
def make_batch():
    """Make a random batch of ragged cells for a configuration, with masked genes."""

    def make(config, lengths=(1, 7, 13), num_masked=5, seed=0):
        generator = np.random.default_rng(seed)
        longest = max(lengths) + 2 * config.depth_tokens
        input_ids = torch.full((len(lengths), longest), config.pad_token_id)
        masked_ids = torch.full((len(lengths), num_masked), config.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, length in enumerate(lengths):
            genes = generator.permutation(config.num_genes)
            ids = np.sort(genes[:length])
            if config.depth_tokens:
                ids = np.concatenate([ids, [config.target_token_id, config.source_token_id]])
            input_ids[row, : len(ids)] = torch.from_numpy(ids)
            attention_mask[row, : len(ids)] = 1
            masked = np.sort(genes[length : length + num_masked - row % 2])
            masked_ids[row, : len(masked)] = torch.from_numpy(masked)
        is_masked = masked_ids != config.pad_token_id
        values = torch.from_numpy(generator.uniform(0.5, 6, input_ids.shape).astype(np.float32)) * attention_mask
        labels = torch.from_numpy(generator.uniform(0, 6, masked_ids.shape).astype(np.float32))
        return {
            "input_ids": input_ids,
            "values": values,
            "attention_mask": attention_mask,
            "masked_ids": masked_ids,
            "labels": labels.masked_fill(~is_masked, -100),
        }

    return make


@pytest.fixture(scope="session")
def screen_cells(shared):
    """K562 cells of Norman et al. 2019, 500 genes: control, 18 single and 15 double perturbations."""
    import anndata

    adata = anndata.read_h5ad(shared / "data/perturbseq_norman_mcfaline500/perturbseq_norman_mcfaline500.h5ad")
    return adata[adata.obs["batch"] == "norman19"].copy()


@pytest.fixture(scope="session")
def screen(screen_cells, tokenizer):
    from xtrimogene.training.perturbation.screens import read_screen

    with pytest.warns(UserWarning, match=r"the screen has 500 columns, .* give total_key"):
        return read_screen(screen_cells, tokenizer)


@pytest.fixture(scope="session")
def pbmc():
    """700 real blood cells with 10 labelled types, from the scanpy wheel."""
    import scanpy as sc

    return sc.datasets.pbmc68k_reduced()


@pytest.fixture(scope="session")
def run():
    """Run the program with arguments, and give typer's result."""

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def succeed(run):
    """Run the program, which has to end well."""

    def succeed(*arguments):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        return result

    return succeed


@pytest.fixture(scope="session")
def fail(run):
    """Run the program, and give its error, which has to be one line and no traceback."""

    def fail(*arguments, code=1):
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("Error: ")
        assert "Traceback" not in result.output
        return lines[0]

    return fail


@pytest.fixture(scope="session")
def blood_annotator(pbmc, measured_genes, tmp_path_factory):
    """A folder with an untrained annotator: the regression on `pbmc`, and a network of random weights added to it."""
    from xtrimogene import XTrimoGeneConfig, XTrimoGeneTokenizer
    from xtrimogene.training.data.dataset import cells_dataset
    from xtrimogene.training.data.splits import encode_labels
    from xtrimogene.training.finetuning import annotation_model, begin_head

    folder = tmp_path_factory.mktemp("annotator")
    tokenizer = XTrimoGeneTokenizer.from_genes(measured_genes(pbmc.raw.var_names), folder)
    ids, names = encode_labels(pbmc.obs["bulk_labels"], "bulk_labels")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = annotation_model(XTrimoGeneConfig.preset("tiny", num_genes=tokenizer.num_genes, **sizes), names)
    begin_head(model, tokenizer, cells_dataset(tokenizer.read_counts(pbmc), ids))
    torch.nn.init.normal_(model.classifier.out_proj.weight, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback, to which huggingface_hub and transformers of this process speak, with a token and no cache."""
    from huggingface_hub import constants

    from xtrimogene.tests.hub_server import TOKEN, running_hub

    with running_hub() as hub:
        changes = {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }
        for name, value in changes.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made once, for one address
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def quick_umap(monkeypatch):
    """Draw the first two features of an embedding in the place of its UMAP, whose compilation takes half a minute.

    The tests of the pictures draw a real one.
    """
    monkeypatch.setattr("xtrimogene.eval.report.maps.umap_places", lambda embedding, seed=0: embedding[:, :2])


@pytest.fixture
def quick_bag(monkeypatch):
    """Fit the bag of genes of a new anchored model in one pass over the cells, for tests of what stands around it."""
    monkeypatch.setattr("xtrimogene.training.anchoring.PASSES", 1)


@pytest.fixture
def to_corpus(tmp_path, tokenizer):
    """Convert into a folder of the test; all cells with counts are kept unless asked otherwise."""
    from xtrimogene.training.data.convert import convert_files

    def make(*files, output="corpus", **options):
        options = {"min_genes": 0, "say": lambda line: None, **options}
        return convert_files(files, tmp_path / output, tokenizer=tokenizer, **options)

    return make


@pytest.fixture
def blood(tmp_path):
    """600 real blood cells of two batches as a file, and as AnnData."""
    import anndata
    import pandas as pd
    import scanpy as sc

    from xtrimogene.tokenization.counts_xtrimogene import find_counts

    adata = sc.datasets.pbmc68k_reduced()[:600]
    obs = pd.DataFrame({"batch": [f"b{i % 2}" for i in range(600)], "age": np.arange(600.0)}, index=adata.obs_names)
    obs.loc[obs.index[3], "age"] = np.nan
    adata = anndata.AnnData(adata.raw.X.copy(), obs=obs, var=adata.raw.var[[]])
    counts = find_counts(adata).rows(0, 600)  # the file holds their logarithms
    adata.X = counts
    adata.write_h5ad(tmp_path / "blood.h5ad")
    return tmp_path / "blood.h5ad", adata


@pytest.fixture(scope="session")
def stored():
    """Give the rows of a corpus, with counts as CSR on the panel."""
    import pyarrow.parquet as pq
    from scipy import sparse

    def stored(folder):
        table = pq.read_table(folder / "data")
        lengths = table["length"].to_numpy()
        starts = np.concatenate([[0], np.cumsum(lengths)])
        ids = table["input_ids"].combine_chunks().flatten().to_numpy()
        counts = table["counts"].combine_chunks().flatten().to_numpy()
        return sparse.csr_matrix((counts, ids, starts), shape=(len(table), 19264)), table

    return stored


@pytest.fixture(scope="session")
def assert_same_cells(stored):
    """Compare a corpus of one file with AnnData in memory, cell by cell, through the tokenizer's own reading."""

    def check(folder, adata, tokenizer):
        expected, totals = tokenizer.read_counts(adata).read()
        found, table = stored(folder)
        rows = table["source_row"].to_numpy()
        np.testing.assert_array_equal(rows, np.flatnonzero(np.diff(expected.indptr)))
        assert found.has_canonical_format
        assert (found != expected[rows]).nnz == 0
        np.testing.assert_array_equal(np.diff(found.indptr), np.diff(expected.indptr)[rows])
        np.testing.assert_array_equal(table["total"].to_numpy(), totals[rows])
        np.testing.assert_array_equal(table["cell_index"].to_numpy(), np.arange(len(rows)))
        assert table["cell_name"].to_pylist() == [str(adata.obs_names[row]) for row in rows]

    return check
