"""How fast a training runs is measured of all processes, and of training alone."""

from types import SimpleNamespace

import torch

from xtrimogene.modeling_xtrimogene.flops_xtrimogene import step_flops
from xtrimogene.training.objectives import MaskedExpression
from xtrimogene.training.throughput import Throughput, matmul_rate


def test_speed_is_of_all_processes_and_of_training_alone(tiny_config, monkeypatch):
    now = [10.0]
    monkeypatch.setattr("xtrimogene.training.throughput.perf_counter", lambda: now[0])
    throughput = Throughput(MaskedExpression().flops(tiny_config()))
    throughput.peak = 1e9
    mask, labels = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1.5, 0], [0, -100]])
    for _ in range(4):
        throughput.count({"attention_mask": mask, "labels": labels})
    now[0] += 6
    throughput.pause(2)
    three = SimpleNamespace(device=torch.device("cpu"), reduce=lambda counts: 3 * counts)
    figures = throughput.figures(three)
    assert (figures["cells_per_second"], figures["tokens_per_second"]) == (3 * 8 / 4, 3 * 20 / 4)
    flops = 4 * (step_flops(tiny_config(), 2, 2) + step_flops(tiny_config(), 3, 1))
    assert figures["mfu"] == round(flops / 4 / 1e9, 6) > 0  # of the reach of three as well
    now[0] += 1
    assert throughput.figures(three)["cells_per_second"] == 0


def test_what_a_device_reaches_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32, seconds=0) < 1e15
    assert torch.equal(torch.get_rng_state(), before)
