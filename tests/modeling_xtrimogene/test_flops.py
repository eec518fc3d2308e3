"""FLOPs of batches, and what a device reaches; that the formula is right is in tests/eval/cost/test_flops.py."""

import pytest
import torch

from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from xtrimogene.modeling_xtrimogene.flops_xtrimogene import step_flops


@pytest.mark.parametrize("fields", [{}, {"num_latents": 8}, {"num_latents": 8, "xpressor_decoder": "decoder"}])
@pytest.mark.parametrize("preset", ["tiny", "100M"])  # decoders of non-zero genes, and of all
def test_a_batch_costs_what_its_cells_cost(preset, fields):
    config = XTrimoGeneConfig.preset(preset, **fields)
    seen, masked, expressed = [3, 1402, 9000], [0, 1117, 2500], [3, 2002, 11_000]
    numbers = seen, masked, expressed
    flops = step_flops(config, *map(torch.tensor, numbers))
    assert flops.tolist() == [step_flops(config, *cell) for cell in zip(*numbers, strict=True)]
