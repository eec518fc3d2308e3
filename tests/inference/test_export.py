"""An exported encoder gives what the model gives, for batches of other sizes than the one it was exported with."""

import numpy as np
import pytest
import torch

from xtrimogene import TxFMConfig, TxFMModel, XTrimoGeneConfig, XTrimoGeneModel
from xtrimogene.inference.export import NAMES, export_encoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = XTrimoGeneModel(XTrimoGeneConfig.preset("tiny", num_genes=60, num_hidden_layers=1), add_decoder=False)
    torch.nn.init.normal_(model.bag.from_encoder.weight, std=0.1)  # else the encoder adds nothing to the bag of genes
    return model.eval()


def batch(model, cells, genes):
    ids = torch.stack([torch.randperm(60)[:genes].sort().values for _ in range(cells)])
    mask = torch.ones_like(ids)
    mask[-1, genes // 2 :] = 0
    return ids.masked_fill(mask == 0, model.config.pad_token_id), torch.rand(cells, genes) * 4, mask


@pytest.mark.slow
@torch.no_grad()
def test_an_archive_gives_what_the_model_gives(model, tmp_path):
    export_encoder(model, tmp_path / "encoder.pt2")
    encode = torch.export.load(tmp_path / "encoder.pt2").module()
    for cells, genes in ((1, 2), (3, 40)):
        given = batch(model, cells, genes)
        torch.testing.assert_close(encode(*given), model(*given).pooler_output, atol=1e-5, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.pt2"]


@pytest.mark.slow
@torch.no_grad()
def test_an_onnx_file_gives_what_the_model_gives(model, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export_encoder(model, tmp_path / "encoder.onnx")
    session = runtime.InferenceSession(tmp_path / "encoder.onnx")
    for cells, genes in ((1, 2), (3, 40)):
        given = batch(model, cells, genes)
        found = session.run(None, {name: part.numpy() for name, part in zip(NAMES, given, strict=True)})[0]
        np.testing.assert_allclose(found, model(*given).pooler_output.numpy(), atol=1e-5)


def test_other_endings_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.pt: give a path that ends in \.pt2 or \.onnx"):
        export_encoder(model, tmp_path / "encoder.pt")


def test_encoders_that_torch_cannot_export_are_refused(tmp_path):
    model = TxFMModel(TxFMConfig.preset("txfm-tiny", num_genes=60, num_hidden_layers=1))
    with pytest.raises(ValueError, match="only encoders of xTrimoGene with full attention"):
        export_encoder(model, tmp_path / "encoder.pt2")
