"""A model runs over cells: every cell comes out, and the model is left as it was."""

import numpy as np
import pytest
import torch

from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.options import Running


def test_a_run_that_fails_leaves_the_training_mode(checkpoint, pbmc, monkeypatch):
    loaded = CellModel.load(checkpoint, Running(device="cpu"))
    model = loaded.model.train()
    model.embeddings.eval()

    def broken(**batch):
        assert not model.training
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "forward", broken)
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="broken"):
        loaded.embed(loaded.read(pbmc[:3].copy()))
    assert [module.training for module in model.modules()] == before


def test_running_out_of_memory_halves_the_batch(checkpoint, real_cells, monkeypatch):
    loaded = CellModel.load(checkpoint, Running(device="cpu"))
    cells = loaded.read(real_cells)
    expected = loaded.embed(cells)
    forward, sizes = loaded.model.forward, []

    def small_memory(**batch):
        sizes.append(len(batch["input_ids"]))
        if batch["input_ids"].numel() > 4000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**batch)

    monkeypatch.setattr(loaded.model, "forward", small_memory)
    np.testing.assert_allclose(loaded.embed(cells), expected, atol=1e-5, rtol=0)
    assert max(sizes) > 3
    with pytest.raises(torch.OutOfMemoryError):  # a size that was asked for is not changed behind one's back
        loaded.embed(cells, Running(batch_size=64))
