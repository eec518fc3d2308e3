"""Tools for AnnData, as in scanpy: they take `adata` and write their result into it.

    xtrimogene.tl.embed(adata)                                   # by a checkpoint that comes with the package
    xtrimogene.tl.embed(adata, "checkpoint", device="cpu")

The functions are those of `inference/`, `recipes/adapt.py` and `eval/report/annotation.py`, whose groups of options
become keyword arguments here.
"""

from .eval.report.annotation import annotation_report as _annotation_report
from .inference.annotation import annotate as _annotate
from .inference.attention import attention as _attention
from .inference.embedding import DEFAULT_KEY
from .inference.embedding import embed as _embed
from .inference.explanation import explain as _explain
from .inference.genes import embed_genes as _embed_genes
from .inference.genes import enhance as _enhance
from .options import spelled_out
from .recipes.adapt import adapt as _adapt

embed = spelled_out(_embed, model=None)
embed_genes = spelled_out(_embed_genes)
enhance = spelled_out(_enhance)
annotate = spelled_out(_annotate, model=None)
annotation_report = spelled_out(_annotation_report)
explain = spelled_out(_explain, model=None)
attention = spelled_out(_attention)
adapt = spelled_out(_adapt, model=None, output="adapted")
for _tool in (embed, embed_genes, enhance, annotate, annotation_report, explain, attention, adapt):
    _tool.__module__ = __name__  # where pickle finds it, for other processes

__all__ = [
    "DEFAULT_KEY",
    "adapt",
    "annotate",
    "annotation_report",
    "attention",
    "embed",
    "embed_genes",
    "enhance",
    "explain",
]
