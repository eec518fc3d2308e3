"""Cell lines: their expression on the panel, and their embeddings."""

import numpy as np
import pandas as pd
import pytest
import torch

from xtrimogene import XTrimoGeneModel, XTrimoGeneTokenizer
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.training.synergy.cell_lines import embed_cell_lines, read_expression, tokenize_expression

GENES = ["TP53", "CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


def test_tpm_become_log1p_of_ten_thousand_and_columns_are_matched_and_summed(tmp_path):
    tokenizer = XTrimoGeneTokenizer.from_genes(GENES, tmp_path)
    ensembl = {"ENSG00000141510.18": [250.0, 0], "CD3D": [0, 40.0], "NOGENE": [9.0, 9], "TP53": [50.0, 0]}
    batch = tokenize_expression(tokenizer, pd.DataFrame(ensembl, index=["X", "Y"]))
    assert batch["input_ids"].tolist() == [[0], [1]]
    # 1e6 TPM are 1e4 of the model's: 300 are 3. The sum over four columns is not the total.
    torch.testing.assert_close(batch["values"], torch.tensor([[300.0], [40.0]]).div(100).log1p())


def test_embeddings_are_those_of_the_model(tmp_path, tiny_config, folder):
    expression = read_expression(folder / "cell_features_954_ccle_tpm.csv.gz").iloc[:3, :300]
    tokenizer = XTrimoGeneTokenizer.default()
    torch.manual_seed(0)
    model = XTrimoGeneModel(tiny_config(num_genes=tokenizer.num_genes, hidden_dropout_prob=0.5)).train()
    embeddings = embed_cell_lines(CellModel(model, tokenizer), expression)
    assert model.training
    assert list(embeddings.index) == ["A2058", "A2780", "A375"]
    with torch.no_grad():
        together = model.eval()(**tokenize_expression(tokenizer, expression)).pooler_output
    np.testing.assert_allclose(embeddings, together, atol=1e-5)
    silent = pd.DataFrame({"TP53": [1.0, 0]}, index=["loud", "silent"])
    with pytest.raises(ValueError, match="1 of 2 cell lines express no gene of the panel: silent"):
        embed_cell_lines(CellModel(model, tokenizer), silent)


def test_unfit_expression_is_refused(write):
    with pytest.raises(ValueError, match="1 of 2 cell lines have missing or negative values: Y"):
        read_expression(write({"cell": ["X", "Y"], "TP53": [1.0, -0.5]}))
    with pytest.raises(ValueError, match="values: X"):
        read_expression(write({"cell": ["X", "Y"], "TP53": [None, 0.5]}))
    with pytest.raises(ValueError, match="1 cell lines occur more than once: X"):
        read_expression(write({"cell": ["X", "X"], "TP53": [1.0, 0.5]}))
    with pytest.raises(ValueError, match="1 of 2 columns hold no numbers: tissue"):
        read_expression(write({"cell": ["X"], "tissue": ["skin"], "TP53": [1.0]}))
