"""Tools for AnnData: the functions of `inference`, with their options as keywords."""

import inspect

import numpy as np
import pytest

from xtrimogene import eval, inference, recipes, tl
from xtrimogene.options import groups_of, leaves

FUNCTIONS = {
    "embed": inference.embedding.embed,
    "embed_genes": inference.genes.embed_genes,
    "enhance": inference.genes.enhance,
    "annotate": inference.annotation.annotate,
    "annotation_report": eval.report.annotation.annotation_report,
    "attention": inference.attention.attention,
    "explain": inference.explanation.explain,
    "adapt": recipes.adapt.adapt,
}


def test_these_are_all_tools():
    assert sorted([*FUNCTIONS, "DEFAULT_KEY"]) == tl.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_is_a_keyword_with_its_default_and_a_line_in_the_docstring(name):
    tool, signature = getattr(tl, name), inspect.signature(FUNCTIONS[name])
    options = [leaf for kind in groups_of(signature).values() for leaf in leaves(kind)]
    assert options
    for leaf in options:
        parameter = inspect.signature(tool).parameters[leaf.name]
        assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, leaf.default)
        assert f"{leaf.name}: {leaf.option.help.split()[0]}" in tool.__doc__


def test_what_a_tool_is_given_reaches_the_model(tmp_path, tiny_config, pbmc):
    from xtrimogene import XTrimoGeneModel, XTrimoGeneTokenizer

    genes = list(pbmc.raw.var_names[:50])
    XTrimoGeneModel(tiny_config()).save_pretrained(tmp_path)
    XTrimoGeneTokenizer.from_genes(genes, tmp_path).save_pretrained(tmp_path)
    cells = pbmc.raw.to_adata()[:8, genes]
    assert tl.embed(cells, tmp_path, device="cpu", pooling="max", key_added="mine") is None
    assert cells.obsm["mine"].shape == (8, 16)
    assert cells.uns["mine"]["pooling"] == "max"
    assert np.isfinite(cells.obsm["mine"]).any()
    with pytest.raises(ValueError, match="batch_size is 0: give at least 1"):
        tl.embed(cells, tmp_path, device="cpu", batch_size=0)
