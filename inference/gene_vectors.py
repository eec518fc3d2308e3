"""The vectors that a model learned of genes, the same in every cell, as a table by gene.

    weights (G, D)  ->  columns standardised over the genes  ->  principal components  ->  DataFrame, one row a gene

Source: Kenyon-Dean et al. 2026, TxFM: its relations of genes are cosines between such rows, with 32 components of the
codebook and 256 of the decoder.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import families
from .cell_model import CellModel
from .genes import ids_of
from .options import Running

if TYPE_CHECKING:
    from pandas import DataFrame

COMPONENTS = {"encoder": 32, "decoder": 256}  # of TxFM


def gene_vectors(
    model: str | os.PathLike | Any,
    table: Literal["encoder", "decoder"] = "encoder",
    genes: Sequence[str] | None = None,
    num_components: int | None = None,
) -> "DataFrame":
    """Return the vectors of genes: principal components of what a model learned of them, one row a gene.

    Relations of genes are cosines between rows. Genes that no training cell measured keep random vectors: name the
    others by `genes`, such as the columns of the training cells, since columns are standardised over the genes given.

    Args:
        model: Checkpoint folder or Hub name; or a loaded model.
        table: `encoder`: the vectors by which the encoder knows genes; `decoder`: the rows of the last layer, by which
            TxFM predicts them.
        genes: Names of genes; all of the panel unless given.
        num_components: Number of principal components; 32 for the encoder and 256 for the decoder unless given, and as
            many as there are if there are fewer. With 0, the standardised vectors themselves.

    Raises:
        ValueError: If there is no such table, the model has no rows of the decoder, or genes are unknown.

    Example:
        >>> vectors = gene_vectors("checkpoint", genes=["CD3D", "CD3E", "LYZ", "NKG7"])
        >>> vectors.shape
        (4, 4)
    """
    import pandas as pd
    from sklearn.decomposition import PCA

    if table not in COMPONENTS:
        raise ValueError(f"table is {table!r}: give 'encoder' or 'decoder'")
    task: Literal["embed", "reconstruct"] = "embed" if table == "encoder" else "reconstruct"
    loaded = CellModel.load(model, Running(device="cpu"), task=task)
    if table == "decoder" and "gene_rows" not in families.abilities_of(loaded.model):
        raise ValueError(
            f"{type(loaded.model).__name__} predicts genes by no rows of their own: give table='encoder', or a TxFM"
        )
    rows = (
        loaded.gene_table()
        if table == "encoder"
        else loaded.model.decoder_gene_embeddings().detach().float().cpu().numpy()
    )
    names = loaded.tokenizer.genes if genes is None else list(genes)
    rows = rows[ids_of(loaded.tokenizer, names)].astype(np.float64)
    spread = rows.std(axis=0)
    vectors = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)
    number = COMPONENTS[table] if num_components is None else num_components
    if number:
        vectors = PCA(min(number, *vectors.shape), svd_solver="full").fit_transform(vectors)
    return pd.DataFrame(vectors.astype(np.float32), index=pd.Index(names, name="gene"))
