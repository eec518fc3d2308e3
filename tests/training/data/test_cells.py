"""Files that pre-training reads without a corpus."""

import anndata
import numpy as np

from xtrimogene.tokenization.collators import DataCollatorForMaskedExpression
from xtrimogene.tokenization.reading import TrainingInput
from xtrimogene.training.data.cells import read_files


def test_cells_of_files_with_other_genes_are_masked_by_what_their_own_file_measured(pbmc, tokenizer, tmp_path):
    adata = anndata.AnnData(pbmc.raw.X, pbmc.obs[[]], pbmc.raw.var[[]])
    files = [tmp_path / "all.h5ad", tmp_path / "few.h5ad"]
    adata[:40].write_h5ad(files[0])
    adata[40:80, -300:].write_h5ad(files[1])
    dataset, numbers = read_files(files, tokenizer, TrainingInput(), lambda line: None)
    assert numbers == [("all.h5ad", 40), ("few.h5ad", 40)]
    batch = DataCollatorForMaskedExpression(tokenizer, zero_ratio=0.2)([dataset[row] for row in range(80)])
    for path, cells in zip(files, (slice(0, 40), slice(40, 80)), strict=True):
        measured = tokenizer.read_counts(path).match.rows
        ids = batch["masked_ids"][cells][batch["labels"][cells] == 0].numpy()
        assert len(ids) > 100
        assert np.isin(ids, measured).all()
        assert len(np.unique(ids)) > 0.9 * len(np.unique(measured[measured >= 0]))
