"""Where and in what precision a model computes."""

import pytest
import torch

import xtrimogene
from xtrimogene import XTrimoGeneConfig, XTrimoGeneModel
from xtrimogene.inference.devices import pick_device


def embedding(adata, checkpoint, **options):
    return xtrimogene.tl.embed(adata, checkpoint, device="cpu", copy=True, **options).obsm["X_xtrimogene"]


def test_device_auto_finds_one():
    assert pick_device("auto").type in {"cpu", "cuda", "mps"}


def test_bfloat16_is_close_and_said(sizes, tmp_path, pbmc, tokenizer):
    torch.manual_seed(0)
    XTrimoGeneModel(XTrimoGeneConfig(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    cells = pbmc[:40].copy()
    exact = embedding(cells, tmp_path)
    half = xtrimogene.tl.embed(cells, tmp_path, device="cpu", dtype="bfloat16", copy=True)
    assert half.uns["X_xtrimogene"]["dtype"] == "bfloat16"
    rows = torch.from_numpy(exact), torch.from_numpy(half.obsm["X_xtrimogene"])
    assert torch.nn.functional.cosine_similarity(*rows).min() > 0.999
    assert not torch.equal(*rows)
    assert xtrimogene.tl.embed(cells, tmp_path, device="cpu", copy=True).uns["X_xtrimogene"]["dtype"] == "float32"
    with torch.autocast("cpu", torch.bfloat16):
        mixed = xtrimogene.tl.embed(cells, tmp_path, device="cpu", copy=True)
    assert mixed.uns["X_xtrimogene"]["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype is 'float8': give 'auto', 'float32', 'bfloat16'"):
        embedding(cells, tmp_path, dtype="float8")
