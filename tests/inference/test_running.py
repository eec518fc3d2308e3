"""A model runs over cells: every cell comes out, and the model is left as it was."""

import numpy as np
import pytest
import torch

from xtrimogene.inference import running
from xtrimogene.inference.cell_model import CellModel
from xtrimogene.inference.options import Running
from xtrimogene.tokenization.cell_batch import CellBatch


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


@pytest.fixture
def as_on_a_gpu(checkpoint, monkeypatch):
    """A model that believes to be on a GPU with so many bytes of free memory; batches stay where they are."""

    def make(free):
        loaded = CellModel.load(checkpoint, Running(device="cpu"))
        monkeypatch.setattr(type(loaded.model), "device", torch.device("cuda"))
        monkeypatch.setattr(CellBatch, "to", lambda batch, device, non_blocking: batch)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
        return loaded

    pinned: list[torch.Tensor] = []
    make.pinned = pinned
    return make


def test_a_gpu_gets_pinned_batches_that_fit_into_its_memory_and_computes_while_results_are_fetched(
    checkpoint, real_cells, monkeypatch, as_on_a_gpu
):
    loaded = CellModel.load(checkpoint, Running(device="cpu"))
    cells = loaded.read(real_cells)
    expected = loaded.embed(cells)
    tokens = 2_000
    loaded = as_on_a_gpu(free=4 * running.NUMBERS_OF_A_TOKEN * loaded.model.config.hidden_size * tokens)
    forward, done = loaded.model.forward, []

    def note(**batch):
        assert batch["input_ids"].numel() <= tokens or len(batch["input_ids"]) == 1
        done.append("launched")
        return forward(**batch)

    monkeypatch.setattr(loaded.model, "forward", note)
    found = loaded.embed(cells, Running(progress=lambda number: done.append("fetched")))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert len(done) >= 6
    assert done[:4] == ["launched", "launched", "fetched", "launched"]
    assert done[-2:] == ["fetched", "fetched"]
    assert len(as_on_a_gpu.pinned) == 3 * len(done) // 2
