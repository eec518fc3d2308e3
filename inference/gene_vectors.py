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
from .saved import Saved

if TYPE_CHECKING:
    from pandas import DataFrame

Table = Literal["encoder", "decoder"]
COMPONENTS: dict[Table, int] = {"encoder": 32, "decoder": 256}  # of TxFM


def gene_vectors(
    model: str | os.PathLike | Any,
    table: Table | None = None,
    genes: Sequence[str] | None = None,
    num_components: int | None = None,
) -> "DataFrame":
    """Return the vectors of genes: principal components of what a model learned of them, one row a gene.

    Relations of genes are cosines between rows. Genes that no training cell measured keep random vectors: name the
    others by `genes`, such as the columns of the training cells, since columns are standardised over the genes given.

    Args:
        model: Checkpoint folder or Hub name; or a loaded model.
        table: `decoder`: the rows by which a TxFM or an anchored model predicts genes. `encoder`: the vectors by which
            the encoder knows genes; after a short pre-training of such a model they are still nearly random
            (docs/evaluation.md). Unless given, those of the decoder if the model has them, else those of the encoder.
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

    if table is not None and table not in COMPONENTS:
        raise ValueError(f"table is {table!r}: give 'encoder' or 'decoder'")
    loaded = CellModel.load(model, Running(device="cpu"), task=task_of(model))
    tables = gene_tables(loaded)
    chosen = table or ("decoder" if "decoder" in tables else "encoder")
    if chosen not in tables:
        raise ValueError(
            f"{type(loaded.model).__name__} predicts genes by no rows of their own: give table='encoder', or the "
            f"folder of a pre-trained TxFM or anchored model"
        )
    rows = tables[chosen]
    names = loaded.tokenizer.genes if genes is None else list(genes)
    rows = rows[ids_of(loaded.tokenizer, names)].astype(np.float64)
    spread = rows.std(axis=0)
    vectors = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)
    number = COMPONENTS[chosen] if num_components is None else num_components
    if number:
        vectors = PCA(min(number, *vectors.shape), svd_solver="full").fit_transform(vectors)
    return pd.DataFrame(vectors.astype(np.float32), index=pd.Index(names, name="gene"))


def task_of(model: str | os.PathLike | Any) -> Literal["embed", "reconstruct"]:
    """Return what a checkpoint or model is loaded for, so that it has all of its tables of genes."""
    if isinstance(model, str | os.PathLike):
        able = families.abilities(Saved.of(model).config().architectures or ())
    else:
        able = families.abilities_of(model)
    return "reconstruct" if "gene_rows" in able else "embed"


def gene_tables(loaded: CellModel) -> dict[Table, np.ndarray]:
    """Return the tables of genes `(G, D)` that a model has: of the encoder, and of the decoder if that has rows."""
    tables: dict[Table, np.ndarray] = {"encoder": loaded.gene_table()}
    has_rows = "gene_rows" in families.abilities_of(loaded.model)
    if has_rows and (rows := loaded.model.decoder_gene_embeddings()) is not None:
        tables["decoder"] = rows.detach().float().cpu().numpy()
    return tables
