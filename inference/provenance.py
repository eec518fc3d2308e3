"""Provenance of a result: model, counts, genes, versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..records import VERSION
from ..released import FOLDER
from .cell_model import CellModel

if TYPE_CHECKING:
    from anndata import AnnData


def describe(adata: "AnnData", key: str, loaded: CellModel, cells: Any) -> None:
    """Write for the embedding `obsm[key]` which cells are empty, into `obs`, and its provenance, into `uns`."""
    adata.obs[f"{key}_empty"] = np.isnan(adata.obsm[key]).any(axis=1)
    adata.uns[key] = provenance(loaded, cells)


def named(path: str) -> str:
    """Return the name of a checkpoint that comes with the package for its folder; another path as it is.

    >>> named("checkpoint"), named(str(FOLDER / "small"))
    ('checkpoint', 'small')
    """
    return Path(path).name if path and Path(path).parent == FOLDER else path


def provenance(loaded: CellModel, cells: Any) -> dict[str, Any]:
    """Return the entries of `uns`: model, counts, genes, versions."""
    import torch
    import transformers

    from ..modeling_xtrimogene.precision_xtrimogene import dtype_of_products

    config, target_depth = loaded.model.config, loaded.depth_of(cells)
    return {
        "model": named(config.name_or_path),
        "adapter": loaded.adapter,
        "revision": getattr(config, "_commit_hash", None) or "",
        "pooling": getattr(config, "pooling", ""),
        "dtype": str(dtype_of_products(loaded.model)).removeprefix("torch."),
        "target_depth": "cell" if target_depth is None else target_depth,
        "input_type": cells.input_type,
        "parity": loaded.parity,
        "counts": cells.description,
        "genes": cells.match.to_dict(),
        "xtrimogene": VERSION,
        "transformers": transformers.__version__,
        "torch": str(torch.__version__),  # AnnData cannot write torch's own class of version
    }
