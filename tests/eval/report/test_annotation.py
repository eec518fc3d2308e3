"""The page about annotated cells: what it counts, says and escapes."""

import re

import numpy as np
import pytest

import xtrimogene
from xtrimogene.eval.report.annotation import (
    Labelled,
    annotation_report,
    certainty,
    marker_genes,
    summary,
    why_unknown,
)
from xtrimogene.inference.annotation import judge
from xtrimogene.inference.calibration import Calibration
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.options import Labelling, Running
from xtrimogene.released import KNOWS
from xtrimogene.tokenization.reading import CellInput

NASTY = """<script>alert("1")</script> & http://example.org"""


@pytest.fixture(autouse=True)
def quick(quick_umap, monkeypatch):
    """Pictures are small: the tests of the pictures look at them."""
    monkeypatch.setattr("xtrimogene.eval.report.pages.PICTURE_DPI", 30)


@pytest.fixture(scope="module")
def annotated(pbmc, blood_annotator):
    """60 cells with labels, one of them without counts."""
    cells = pbmc.raw.to_adata()[:60].copy()
    cells.X.data[cells.X.indptr[3] : cells.X.indptr[4]] = 0
    cells.X.eliminate_zeros()
    xtrimogene.tl.annotate(cells, blood_annotator, device="cpu")
    return cells


def page_of(cells, path, **options):
    before = cells.copy()
    annotation_report(cells, path, CellInput(), Running(device="cpu"), **options)
    assert cells.obs.equals(before.obs)
    assert list(cells.obsm) == list(before.obsm)
    return path.read_text(encoding="utf-8")


def test_cells_that_were_judged_already_are_not_computed_anew(annotated, blood_annotator, tmp_path, monkeypatch):
    anew = page_of(annotated, tmp_path / "anew.html")
    judged = judge(annotated, blood_annotator, CellInput(), Labelling(), Running(device="cpu"))
    monkeypatch.setattr(CellModel, "classify", None)
    same = page_of(annotated, tmp_path / "same.html", judged=judged)
    figures = [re.sub(r"data:image[^\"]*|\d{4}-\d\d-\d\d \d\d:\d\d", "", html) for html in (anew, same)]
    assert figures[0] == figures[1]


def test_a_page_tells_counts_genes_and_where_they_come_from_and_loads_nothing(annotated, blood_annotator, tmp_path):
    html = page_of(annotated, tmp_path / "page.html", title="My cells", command="xtrimogene annotate")
    text = " ".join(re.sub(r"<[^>]*>", " ", html).split())
    counts = annotated.obs["xtrimogene_label"].value_counts()
    counts = counts[counts > 0]
    assert f"60 cells were read, and 59 of them (98.3%) are named, as {len(counts)} types" in text
    assert "1 cells have no counts" in text
    for name, count in counts.items():
        assert f"{name} {count} {count / 60:.1%}" in text
    assert "genes that decide the type" in text
    of_types = re.findall(r'<td class="genes">([^<]*)</td>', html)
    assert len(of_types) == len(counts)
    assert all(len(genes.split(", ")) == 5 for genes in of_types)
    assert "The probabilities are not calibrated" in text
    assert str(blood_annotator) in text
    assert f"{annotated.uns['xtrimogene']['genes']['n_matched']:,} of the" in text
    assert "xtrimogene annotate" in text

    assert "default-src 'none'" in html
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 2  # map and genes
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"<script|<link|<iframe|@import|url\(|\bon\w+=|href=", html)
    colours = re.findall(r"background: (#\w{6})", html)  # of the bars, as on the map
    assert len(set(colours)) == len(colours) == len(counts)


def test_labels_are_text_and_other_labels_than_the_model_knows_get_markers(annotated, tmp_path):
    cells = annotated.copy()
    old = cells.obs["xtrimogene_label"].cat.categories[0]
    cells.obs["xtrimogene_label"] = cells.obs["xtrimogene_label"].cat.rename_categories({old: NASTY})
    html = page_of(cells, tmp_path / "page.html", title=NASTY, command=NASTY)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 4  # title twice, command, row
    assert "genes that are higher in the type" in html


def test_a_few_cells_have_no_map_and_cells_without_labels_are_refused(annotated, tmp_path):
    assert "There is no map: 4 cells have counts" in page_of(annotated[:5].copy(), tmp_path / "page.html")
    with pytest.raises(ValueError, match="obs has no other_label and other_probability of an annotation"):
        annotation_report(annotated, tmp_path / "page.html", CellInput(), Running(), key_added="other")


def test_unknown_cells_are_counted_and_told_why(pbmc, annotated, blood_annotator, tmp_path):
    """Cells far from all types, and others that fit none of them."""
    loaded = CellModel.load(blood_annotator, Running(device="cpu"), task="classify")
    probabilities, embeddings = loaded.classify(loaded.read(annotated), Running(device="cpu"))
    rows = np.flatnonzero(~np.isnan(embeddings).any(axis=1))
    probabilities, embeddings = probabilities[rows], embeddings[rows]
    names = list(loaded.model.config.id2label.values())
    calibration = Calibration.fit(
        probabilities, probabilities.argmax(1), embeddings, embeddings, probabilities.argmax(1), names, "59 cells"
    )
    calibration.save(tmp_path)
    for file in blood_annotator.iterdir():
        (tmp_path / file.name).symlink_to(file)
    loaded = CellModel.load(tmp_path, Running(device="cpu"), task="classify")
    about = {"threshold": 0.05, "calibrated on": "59 cells", "accuracy on these cells": 0.9}
    unknown = np.arange(4) < 3
    said = Labelled(np.array([names[0]] * 4), np.array([0.3, 0.4, 0.9, 0.9]), unknown, {"unknown": about})
    far = embeddings[:4] + np.array([[1e3], [0], [0], [0]])
    unsure = np.full((4, len(names)), 1 / len(names))
    assert why_unknown(loaded, said, np.arange(4), unsure, far) == (2, 1)
    text = " ".join(certainty(said, (2, 1), {}))
    assert "90.0% got the right type" in text
    assert "It knows T cells." in certainty(said, None, {KNOWS: "It knows T cells."})
    assert "1 lie far from all types" in text
    assert why_unknown(loaded, Labelled(said.labels, said.probabilities, None, {}), np.arange(4), unsure, far) is None


def test_named_cells_are_counted_before_unknown_ones_and_without_them():
    unknown = np.array([True, True, True, False, False, False])
    said = Labelled(np.array(["B", "B", "B", "B", "T", ""]), np.full(6, 0.9), unknown, {})
    assert summary(said) == (
        "6 cells were read, and 2 of them (33.3%) are named, as 2 types. The largest is B, with 1 cells (16.7%). 3 "
        "cells (60.0%) are called unknown. 1 cells have no counts and get no type."
    )
    none = Labelled(np.array(["B"]), np.ones(1), np.ones(1, bool), {})
    assert summary(none).startswith("1 cells were read, and 0 of them (0.0%) are named. 1 cells (100.0%) are called")


def test_labels_of_a_reference_are_explained_by_markers_though_the_model_is_a_classifier(
    pbmc, blood_annotator, tmp_path
):
    cells = pbmc.raw.to_adata()[:60].copy()
    xtrimogene.tl.annotate(cells, blood_annotator, reference=pbmc, label_key="bulk_labels", device="cpu")
    assert "genes that are higher in the type" in page_of(cells, tmp_path / "page.html")
    xtrimogene.tl.annotate(cells, blood_annotator, device="cpu")
    assert "genes that decide the type" in page_of(cells, tmp_path / "page.html")


def test_markers_are_higher_in_their_type(pbmc, tokenizer):
    cells = tokenizer.read_counts(pbmc)
    found = marker_genes(cells.values(1e4)[0], pbmc.obs["bulk_labels"].astype(str).to_numpy(), tokenizer.genes)
    assert {"CD79A", "CD79B"} <= set(found["CD19+ B"][0])
    assert {"GNLY", "NKG7"} <= set(found["CD56+ NK"][0])
    assert min(found["CD19+ B"][1]) > 0
