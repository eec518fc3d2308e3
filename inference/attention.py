"""Which genes attend to which in the encoder: the strongest weights of each gene as a table, never a whole matrix.

    states before a layer (1, N, D)  ->  weights of some queries (A, Q, N)  ->  the strongest  ->  rows of a table

A cell of 2,000 genes has four million weights in each head of each layer. Cells are looked at one by one, and weights
are computed for a part of the queries at a time.

Letters: N tokens of a cell, D width, A heads, H heads that are told (A, or 1 for their mean), Q queries, T told keys.
"""

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..tokenization.reading import CellInput
from .cell_model import CellModel
from .options import Attending, Running

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame

QUERY_ROWS = 256  # at a time
CLS = "CLS"  # the token that some models put before the genes
MEAN = "mean"  # of all heads


def attention(
    adata: "AnnData", model: str | os.PathLike | Any, cells: CellInput, how: Attending, running: Running
) -> "DataFrame":
    """Return the genes that each gene of a cell attends to most, in every layer of the encoder.

    A weight says how much of the state of the key gene goes into the state of the query gene in this layer. It does not
    say that one gene regulates another, nor that a prediction depends on the pair: compare with `explain`.

    Args:
        adata: Cells x genes with counts in `layers["counts"]`, `raw.X` or `X`; log1p-normalised values are undone.
        model: Checkpoint folder or Hub name, or a loaded model.
        cells: Where the counts are.
        how: Which cells and genes, how many keys, whether each head is told.
        running: Device, precision. Cells are computed one by one.

    Returns:
        A row for each cell, layer, head, query gene and one of its strongest keys, with the columns `cell`, `layer`
        (from 0), `head` (its number, or `mean`), `query_gene`, `key_gene` and `weight`. The weights of a query sum to 1
        over all keys of the cell, of which the strongest are here. `T`, `S` and `CLS` are tokens that are no genes.

    Raises:
        ValueError: If the encoder has no attention between genes, or the model cannot be loaded.

    Example:
        >>> table = xtrimogene.tl.attention(adata, "checkpoint", num_cells=1, num_keys=2, genes=["CD3D", "CST3"])
        >>> list(table.columns)
        ['cell', 'layer', 'head', 'query_gene', 'key_gene', 'weight']
    """
    import pandas as pd

    from .running import batches

    loaded = CellModel.load(model, running)
    kind = loaded.model._can_record_outputs["attentions"].target_class  # of the layers that transformers records
    layers = [module for module in loaded.model.modules() if isinstance(module, kind)]
    if not layers:
        raise ValueError(
            f"{loaded.model.config.name_or_path} has no attention of genes to genes in its encoder (criss-cross "
            f"attention goes through latents): take a checkpoint with encoder_attention='full'"
        )
    first = adata[: how.num_cells]
    counts = loaded.read(first.to_memory() if first.isbacked else first.copy(), cells)
    found: list[tuple[Any, Any]] = []
    hooks = [
        layer.register_forward_pre_hook(partial(keep, found, how.num_keys, how.per_head), with_kwargs=True)
        for layer in layers
    ]
    tables = []
    was_training = [module for module in loaded.model.modules() if module.training]
    loaded.model.eval()
    try:
        with torch.inference_mode():
            for rows, batch in batches(loaded.tokenizer, counts, loaded.model.device.type, 1, None):
                names = token_names(loaded.tokenizer, batch["input_ids"][0].numpy())
                if not names:
                    continue  # a cell without counts
                found.clear()
                loaded.model.base_model(**{name: part.to(loaded.model.device) for name, part in batch.items()})
                cell = str(first.obs_names[rows[0]])
                for number, (weights, keys) in enumerate(found):
                    tables.append(rows_of(cell, number, weights, keys, names, how))
                if running.progress:
                    running.progress(1)
    finally:
        for hook in hooks:
            hook.remove()
        for module in was_training:
            module.training = True
    if not tables:
        raise ValueError("no cell has counts on the panel of the model, so there is no attention to tell")
    table = pd.concat(tables, ignore_index=True)
    return table.astype(dict.fromkeys(("cell", "query_gene", "key_gene"), "category"))


def keep(found: list[tuple[Any, Any]], num_keys: int, per_head: bool, layer: Any, given: Any, named: Any) -> None:
    """Append the strongest weights of a layer and their keys, `(H, N, T)` each; called before the layer runs."""
    hidden_1ND = given[0] if given else named["hidden_states"]
    found.append(strongest(layer, hidden_1ND, num_keys, per_head))


def strongest(layer: Any, hidden_states: Any, num_keys: int, per_head: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the strongest attention weights of each query, and the places of their keys, `(H, N, T)` each.

    Args:
        layer: The attention of a layer.
        hidden_states: What it gets, for one cell without padding, `(1, N, D)`.
        num_keys: T, or fewer if the cell has fewer tokens.
        per_head: Whether heads are told one by one.
    """
    from ..modeling_xtrimogene.precision_xtrimogene import for_products

    states = for_products(layer.q_proj, hidden_states)
    query_ANK, key_ANK = (
        project(states)[0].unflatten(-1, (-1, layer.head_dim)).transpose(0, 1)
        for project in (layer.q_proj, layer.k_proj)
    )
    weights, places = [], []
    for block_AQK in query_ANK.split(QUERY_ROWS, dim=1):
        weights_HQN = (block_AQK @ key_ANK.mT * layer.scaling).float().softmax(-1)
        if not per_head:
            weights_HQN = weights_HQN.mean(0, keepdim=True)
        top = weights_HQN.topk(min(num_keys, weights_HQN.shape[-1]), dim=-1)
        weights.append(top.values.cpu().numpy())
        places.append(top.indices.cpu().numpy())
    return np.concatenate(weights, axis=1), np.concatenate(places, axis=1)


def token_names(tokenizer: Any, input_ids: np.ndarray) -> list[str]:
    """Return the name of each token of a cell; none for padding."""
    special = ["T", "S"] if tokenizer.depth_tokens else []
    names = [*tokenizer.genes, *special]
    return [names[token] for token in input_ids if token < len(names)]


def rows_of(
    cell: str, number: int, weights: np.ndarray, places: np.ndarray, names: list[str], how: Attending
) -> "DataFrame":
    """Return the rows of one cell and layer.

    Args:
        cell: Name of the cell.
        number: Number of the layer.
        weights: The strongest weights, `(H, N, T)`.
        places: Places of their keys, `(H, N, T)`.
        names: Names of the tokens of the cell.
        how: Genes to tell, and whether heads are told one by one.

    Raises:
        ValueError: If the encoder saw other tokens, because it encodes the cell in parts.
    """
    import pandas as pd

    if weights.shape[1] == len(names) + 1:
        names = [CLS, *names]
    if weights.shape[1] != len(names):
        raise ValueError(
            f"{cell} has {len(names):,} tokens, and the encoder saw {weights.shape[1]:,}: it encodes cells in parts, "
            f"which have no attention in common; load the model with inference_passes=0"
        )
    tokens = np.array(names, dtype=object)
    told = np.arange(len(names)) if how.genes is None else np.flatnonzero(np.isin(tokens, list(how.genes)))
    weights, places = weights[:, told], places[:, told]
    num_heads, num_queries, num_keys = weights.shape
    heads = np.arange(num_heads) if how.per_head else np.array([MEAN])
    return pd.DataFrame(
        {
            "cell": cell,
            "layer": number,
            "head": np.repeat(heads, num_queries * num_keys),
            "query_gene": np.tile(np.repeat(tokens[told], num_keys), num_heads),
            "key_gene": tokens[places.ravel()],
            "weight": weights.ravel(),
        }
    )
