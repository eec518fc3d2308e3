"""Tools for AnnData, as in scanpy: they take `adata` and write their result into it.

    xtrimogene.tl.embed(adata)                                   # by a checkpoint that comes with the package
    xtrimogene.tl.embed(adata, "checkpoint", device="cpu")

The functions are those of `inference/` and `recipes/adapt.py`, whose groups of options become keyword arguments here.
"""

from .inference.annotation import annotate as _annotate
from .inference.embedding import DEFAULT_KEY
from .inference.embedding import embed as _embed
from .inference.genes import embed_genes as _embed_genes
from .inference.genes import enhance as _enhance
from .options import spelled_out
from .recipes.adapt import adapt as _adapt

embed = spelled_out(_embed, model=None)
embed_genes = spelled_out(_embed_genes)
enhance = spelled_out(_enhance)
annotate = spelled_out(_annotate, model=None)
adapt = spelled_out(_adapt, model=None, output="adapted")
for _tool in (embed, embed_genes, enhance, annotate, adapt):
    _tool.__module__ = __name__  # where pickle finds it, for other processes

__all__ = ["DEFAULT_KEY", "adapt", "annotate", "embed", "embed_genes", "enhance"]
