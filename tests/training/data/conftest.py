"""A corpus of real cells."""

import anndata
import numpy as np
import pandas as pd
import pytest

from xtrimogene.training.data.convert import convert_files
from xtrimogene.training.data.corpus import read_corpus
from xtrimogene.training.data.dataset import cells_dataset


@pytest.fixture(scope="session")
def made(tmp_path_factory, pbmc, tokenizer):
    """Make a corpus of three files of 200, 300 and 60 real cells; return its folder and the same cells as a Dataset."""
    folder = tmp_path_factory.mktemp("made")
    donors = [f"donor{number}" for number in np.arange(700) % 7]
    adata = anndata.AnnData(pbmc.raw.X, pd.DataFrame({"donor": donors}, index=pbmc.obs_names), pbmc.raw.var[[]])
    for name, cells in {"a": slice(0, 200), "b": slice(200, 500), "c": slice(500, 560)}.items():
        adata[cells].write_h5ad(folder / f"{name}.h5ad")
    convert_files(
        [folder / f"{name}.h5ad" for name in "abc"],
        folder / "corpus",
        tokenizer=tokenizer,
        min_genes=0,
        obs=["donor"],
        shard_cells=64,
        say=lambda line: None,
    )
    return folder / "corpus", cells_dataset(tokenizer.read_counts(adata[:560].copy()))


@pytest.fixture(scope="session")
def corpus(made, tokenizer, tmp_path_factory):
    return read_corpus(made[0], tokenizer, cache_dir=str(tmp_path_factory.mktemp("cache")))
