"""A batch that is moved tells the lengths of its cells; on a CPU it is what it was."""

import pickle

import torch
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.state import GradientState
from accelerate.utils import send_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from xtrimogene.tokenization.cell_batch import CellBatch
from xtrimogene.tokenization.collators import DataCollatorForMaskedExpression


def test_a_batch_of_a_collator_has_lengths_on_another_device_only(tokenizer):
    cells = [{"input_ids": [5, 700, 9], "counts": [3, 1, 2], "total": 4_000, "cell_index": 0}] * 2
    batch = DataCollatorForMaskedExpression(tokenizer)(cells)
    assert "lengths" not in batch
    assert "lengths" not in batch.to("cpu")
    moved = send_to_device(batch, torch.device("meta"), non_blocking=True)  # what accelerate's loaders call
    assert moved["lengths"] == batch["attention_mask"].sum(1).tolist()
    assert {part.device.type for part in moved.values() if isinstance(part, torch.Tensor)} == {"meta"}
    assert moved.to("meta")["lengths"] == moved["lengths"]


def test_a_batch_stays_one_on_its_way_from_a_worker_into_pinned_memory(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)  # which needs a GPU
    batch = pickle.loads(pickle.dumps(CellBatch(attention_mask=torch.ones(2, 3, dtype=torch.long))))
    assert pin_memory(batch).to("meta")["lengths"] == [3, 3]


def test_where_accelerate_divides_batches_among_processes_they_are_tensors_only(monkeypatch):
    loader = DataLoaderDispatcher.__new__(DataLoaderDispatcher)
    monkeypatch.setattr(GradientState, "active_dataloader", loader)
    batch = send_to_device(CellBatch(attention_mask=torch.ones(2, 3, dtype=torch.long)), torch.device("meta"))
    assert list(batch) == ["attention_mask"]
