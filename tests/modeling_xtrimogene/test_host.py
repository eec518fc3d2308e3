"""What lies on a CPU is checked at once; what lies elsewhere is checked there, and the host goes on."""

import pytest
import torch

from xtrimogene.modeling_xtrimogene import host_xtrimogene as host


def test_a_cpu_says_at_once_what_is_wrong():
    assert host.found_wrong(torch.tensor([1, 2]).min() > 1) is True
    assert host.found_wrong(torch.tensor([1, 2]).min() > 0) is False


def test_another_device_raises_its_own_error(monkeypatch):
    monkeypatch.setattr(host, "AT_HAND", ())
    assert host.found_wrong(torch.tensor(True)) is False
    with pytest.raises(RuntimeError, match="got zero"):
        host.found_wrong(torch.tensor(False))


def test_numbers_are_sent_from_pinned_memory_where_there_is_a_gpu(monkeypatch):
    made = torch.tensor
    pins = []

    def tensor(numbers, dtype, pin_memory):
        pins.append(pin_memory)
        return made(numbers, dtype=dtype)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda part, device, non_blocking: part if non_blocking else None)
    found = [host.sent([0.5, 2], torch.device(name), torch.float32).tolist() for name in ("cpu", "cuda")]
    assert found == [[0.5, 2.0]] * 2
    assert pins == [False, True]
