"""The embedding of values."""

import torch
from torch import nn

from xtrimogene.modeling_xtrimogene.value_embedding_xtrimogene import AutoDiscretization


def test_value_embedding_equals_the_equations(tiny_config):
    config = tiny_config(bin_alpha=0.7)
    module = AutoDiscretization(config).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = 1.7
    a = [w * x + b for w, b in zip(module.weight.tolist(), module.bias.tolist(), strict=True)]
    a = torch.tensor([v if v > 0 else 0.1 * v for v in a], dtype=torch.float64)
    z = module.mixing.weight @ a + module.mixing.bias + 0.7 * a
    expected = (z.exp() / z.exp().sum()) @ module.bins
    torch.testing.assert_close(module(torch.tensor([[x]], dtype=torch.float64))[0, 0], expected)
