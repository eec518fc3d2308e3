"""Pipelines for cells: every cell gets a result, in order; what is no cells is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import pipeline

import xtrimogene

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]
LENGTHS = (3, 1, 5, 0, 2)  # expressed genes of the cells; one has none


@pytest.fixture(scope="module")
def cells():
    """Five cells of different lengths, one of which is empty."""
    import anndata

    counts = np.zeros((5, 6), np.float32)
    for row, length in enumerate(LENGTHS):
        counts[row, :length] = np.arange(1, length + 1)
    return anndata.AnnData(counts, pd.DataFrame(index=list("abcde")), pd.DataFrame(index=GENES))


@pytest.fixture(scope="module", params=["XTrimoGene", pytest.param("TxFM", marks=pytest.mark.slow)])
def folders(request, tmp_path_factory):
    """A pre-trained model and an annotator, each with its tokenizer."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("pipelines")
    name = request.param
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_genes": 6, "num_labels": 3}
    if name == "XTrimoGene":
        sizes |= {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = getattr(xtrimogene, f"{name}Config")(**sizes)
    for head, folder in (("ForPreTraining", "trained"), ("ForSequenceClassification", "types")):
        model = getattr(xtrimogene, name + head)(config)
        for weight in model.parameters():
            weight.data.normal_()
        model.save_pretrained(place / folder)
        getattr(xtrimogene, f"{name}Tokenizer").from_genes(GENES, place / folder).save_pretrained(place / folder)
    return place


def test_embeddings_are_those_of_tl_for_every_kind_of_input(folders, cells, tmp_path):
    embed = pipeline("cell-embedding", model=str(folders / "trained"), device="cpu")
    expected = xtrimogene.tl.embed(cells, folders / "trained", device="cpu", copy=True).obsm["X_xtrimogene"]
    found = embed(cells, return_tensors=True)
    torch.testing.assert_close(found, torch.from_numpy(expected), equal_nan=True)
    assert found.isnan().any(1).tolist() == [length == 0 for length in LENGTHS]
    one_by_one = embed(cells, return_tensors=True, batch_size=1)
    torch.testing.assert_close(one_by_one, found, equal_nan=True)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    torch.testing.assert_close(embed(str(tmp_path / "cells.h5ad"), return_tensors=True), found, equal_nan=True)
    dictionaries = [dict(zip(GENES, row, strict=True)) for row in cells.X.tolist()]
    torch.testing.assert_close(embed(dictionaries, return_tensors=True), found, equal_nan=True)
    plain = embed(cells)
    assert len(plain) == 5
    assert np.array(plain).shape == expected.shape


def test_a_cell_in_a_list_does_not_depend_on_the_others(folders, cells):
    embed = pipeline("cell-embedding", model=str(folders / "trained"), device="cpu")
    some, others = {"CD3D": 3, "NKG7": 1}, {"MS4A1": 2, "LYZ": 4, "GNLY": 1}
    together = embed([some, others, {"NKG7": 1, "CD3D": 3}], return_tensors=True)
    torch.testing.assert_close(together[0], embed([some], return_tensors=True)[0])
    torch.testing.assert_close(together[1], embed([others], return_tensors=True)[0])
    torch.testing.assert_close(together[2], together[0])


def test_annotation_labels_every_cell_with_its_probability(folders, cells):
    annotate = pipeline("cell-annotation", model=str(folders / "types"), device="cpu")
    adata = cells[[0, 1, 2, 4]].copy()
    expected = xtrimogene.tl.annotate(adata, folders / "types", device="cpu", copy=True).obs
    found = annotate(cells)
    assert found[3] == {"label": None, "score": None}
    del found[3]
    assert [cell["label"] for cell in found] == expected["xtrimogene_label"].tolist()
    np.testing.assert_allclose([cell["score"] for cell in found], expected["xtrimogene_probability"], rtol=1e-5)
    every = annotate(cells, top_k=None)
    assert [len(cell) for cell in every] == [3, 3, 3, 1, 3]
    assert sum(label["score"] for label in every[0]) == pytest.approx(1)
    assert [cell[0] for cell in annotate(adata, top_k=2)] == found


def test_what_is_no_cells_is_refused_in_a_sentence(folders, cells):
    embed = pipeline("cell-embedding", model=str(folders / "trained"), device="cpu")
    with pytest.raises(ValueError, match=r"absent\.h5ad does not exist: give an AnnData"):
        embed("absent.h5ad")
    with pytest.raises(TypeError, match="cells are a int: give an AnnData"):
        embed(3)
    with pytest.raises(TypeError, match="cell 1 of 2 is a str"):
        embed([{"CD3D": 3}, "CD3D"])
    with pytest.raises(ValueError, match="cell 0 of 1 names no genes"):
        embed([{}])
    with pytest.raises(TypeError, match="cell-embedding has no option 'top_k': it has layer, "):
        embed(cells, top_k=2)
    assert embed([]) == []
    annotate = pipeline("cell-annotation", model=str(folders / "types"), device="cpu")
    with pytest.raises(ValueError, match="top_k is 0"):
        annotate(cells, top_k=0)


def test_a_model_that_knows_no_types_names_none(folders):
    with pytest.raises(ValueError, match=r"ForPreTraining and knows no cell types: fine-tune it first"):
        pipeline("cell-annotation", model=str(folders / "trained"), device="cpu")


@pytest.mark.parametrize(
    ("task", "ours"), [("text-classification", "cell-annotation"), ("feature-extraction", "cell-embedding")]
)
def test_pipelines_for_text_are_refused_and_name_ours(folders, task, ours):
    with pytest.raises(ValueError, match=rf"pipeline\('{task}'\) takes text.* use pipeline\('{ours}'\)"):
        pipeline(task, model=str(folders / "types"), device="cpu")


def test_a_saved_folder_says_where_its_pipelines_are(folders):
    of = {
        name: json.loads((folders / name / "config.json").read_text())["custom_pipelines"]
        for name in ("trained", "types")
    }
    assert set(of["trained"]) == {"cell-embedding"}
    assert set(of["types"]) == {"cell-embedding", "cell-annotation"}
    assert (folders / "types" / "pipelines_xtrimogene.py").is_file()
