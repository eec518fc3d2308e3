"""Tools for AnnData, as in scanpy: they take `adata` and write their result into it.

>>> import xtrimogene
>>> xtrimogene.tl.embed(adata, "checkpoint")                            # doctest: +SKIP
>>> xtrimogene.tl.annotate(adata, "annotator")                          # doctest: +SKIP
"""

from .inference.annotation import annotate
from .inference.embedding import DEFAULT_KEY, embed
from .inference.genes import embed_genes, enhance

__all__ = ["DEFAULT_KEY", "annotate", "embed", "embed_genes", "enhance"]
