"""The same cells come out of every format, however their matrix lies in the file."""

import gzip

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from xtrimogene.tokenization import stored_cells as sources


def write_old_lists(adata, folder):
    """Write cells as our own corpus has them, lists of ids and counts beside `genes.txt`."""
    import datasets

    folder.mkdir()
    (folder / "genes.txt").write_text("\n".join(adata.var_names) + "\n")
    rows = np.split(adata.X.indices, adata.X.indptr[1:-1]), np.split(adata.X.data, adata.X.indptr[1:-1])
    columns = {"input_ids": rows[0], "values": rows[1], "batch": adata.obs["batch"].to_list()}
    datasets.Dataset.from_dict(columns | {"cell_id": list(adata.obs_names)}).to_parquet(folder / "cells.parquet")


@pytest.mark.parametrize("kind", ["zarr", "csc", "dense", "layer", "raw", "csv", "tsv.gz", "R", "mtx", "lists"])
def test_the_same_cells_in_every_format(assert_same_cells, blood, to_corpus, tmp_path, tokenizer, kind, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 1 << 14)  # several blocks and buckets, as for large files
    monkeypatch.setattr(sources, "BUCKET_ROWS", 100)
    adata = blood[1]
    other = adata.copy()
    made = tmp_path / f"made.{kind if kind in ('zarr', 'csv', 'tsv.gz') else 'h5ad'}"
    if kind == "zarr":
        other.write_zarr(made)
    elif kind == "csc":
        other.X = sparse.csc_matrix(other.X)
        other.write_h5ad(made)
    elif kind == "dense":
        other.X = other.X.toarray()
        other.write_h5ad(made)
    elif kind == "layer":
        other.layers["counts"] = sparse.csc_matrix(other.X)
        sc.pp.log1p(other)
        other.write_h5ad(made)
    elif kind == "raw":
        other.raw = other.copy()
        other = other[:, :100].copy()
        other.X = other.X.toarray() * 0.37 - 1  # scaled
        other.write_h5ad(made)
    elif kind in ("csv", "tsv.gz"):
        other.to_df().to_csv(made, sep="," if kind == "csv" else "\t")
    elif kind == "R":  # one title fewer than columns
        made = tmp_path / "made.csv"
        other.to_df().to_csv(made)
        made.write_text(made.read_text().removeprefix(","))
    elif kind == "mtx":
        made = tmp_path / "made"
        made.mkdir()
        entries = sparse.coo_matrix(other.X.T)
        order = np.random.default_rng(0).permutation(entries.nnz)  # in no order at all
        with gzip.open(made / "matrix.mtx.gz", "wt") as file:
            file.write("%%MatrixMarket matrix coordinate integer general\n%\n")
            file.write(f"{entries.shape[0]} {entries.shape[1]} {entries.nnz}\n")
            for row, column, value in zip(entries.row[order], entries.col[order], entries.data[order], strict=True):
                file.write(f"{row + 1} {column + 1} {int(value)}\n")
        pd.DataFrame({"id": other.var_names, "name": other.var_names, "kind": "Gene Expression"}).to_csv(
            made / "features.tsv.gz", sep="\t", header=False, index=False
        )
        pd.Series(other.obs_names).to_csv(made / "barcodes.tsv.gz", sep="\t", header=False, index=False)
    elif kind == "lists":
        made = tmp_path / "lists"
        write_old_lists(other, made)
    to_corpus(made, shard_cells=256, strict=True)
    assert_same_cells(tmp_path / "corpus", adata, tokenizer)
