"""Labels that are missing, in whatever words, are no class; names that differ by blanks are pointed out."""

import anndata
import numpy as np
import pytest

from xtrimogene.eval.measures.probes import columns
from xtrimogene.inference import annotation as tl
from xtrimogene.tokenization.labels import every_label, label_text
from xtrimogene.training.data.splits import encode_labels

MISSING = [None, np.nan, "", "  ", "nan", "NaN", "<NA>", "N/A", "none", "NULL"]


def cells(labels):
    adata = anndata.AnnData(np.ones((len(labels), 1), np.float32))
    adata.obs["kind"] = labels
    return adata


def test_blanks_and_texts_for_missing_are_no_labels():
    found = label_text(["B", *MISSING, "NK", "unknown", 3], "kind")
    assert found.tolist() == ["B", *[None] * len(MISSING), "NK", "unknown", "3"]


def test_missing_labels_are_refused_with_what_they_are():
    message = r"kind has no label for 3 of 5 cells \(they hold '', 'nan'\): .* adata\[adata\.obs\['kind'\]\.notna\(\)"
    for use in (encode_labels, every_label):
        with pytest.raises(ValueError, match=message):
            use(["T", "nan", "", "nan", "B"], "kind")
    with pytest.raises(ValueError, match=r"kind has no label for 1 of 3 cells .* reference\[reference\.obs"):
        tl.reference_labels(cells(["T", " ", "B"]), "kind")


def test_the_advice_leaves_labelled_cells():
    adata = cells(["T", "nan", "", None, "B"])
    with pytest.raises(ValueError, match="keep labelled cells only") as error:
        encode_labels(adata.obs["kind"], "kind")
    kept = eval(str(error.value).split("e.g. ")[1], {"adata": adata})
    assert encode_labels(kept.obs["kind"], "kind")[1] == ["B", "T"]


@pytest.mark.parametrize("other", ["T cell ", " T cell", "T  cell", "T\u00a0cell"])
def test_names_that_differ_by_blanks_are_pointed_out(other):
    labels = ["T cell", other, "B", "B"]
    message = r"kind has 1 names in several spellings that differ by blanks only: 'T cell' \(1\) and .* make them one"
    uses = (
        lambda: encode_labels(labels, "kind"),
        lambda: tl.reference_labels(cells(labels), "kind"),
        lambda: columns(cells(labels), "kind", None),
    )
    for use in uses:
        with pytest.raises(ValueError, match=message):
            use()
    adata = cells(labels)
    adata.obs["kind"] = adata.obs["kind"].str.split().str.join(" ")  # the advice
    assert encode_labels(adata.obs["kind"], "kind")[1] == ["B", "T cell"]


def test_evaluation_leaves_out_cells_without_a_label():
    labels, _, keep = columns(cells(["T"] * 10 + ["nan"] * 12 + [""] * 12 + ["B"] * 10), "kind", None)
    assert sorted(set(labels)) == ["B", "T"]
    assert (keep.sum(), len(labels)) == (20, 20)
