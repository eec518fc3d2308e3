"""Fixtures that several test files use."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may ask the network

import numpy as np
import pytest
import torch

import xtrimogene
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
