"""FLOPs of batches, and what a device reaches; that the formula is right is in tests/eval/cost/test_flops.py."""

import pytest
import torch

from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from xtrimogene.modeling_xtrimogene.flops_xtrimogene import step_flops


@pytest.mark.parametrize("preset", ["tiny", "100M"])  # decoders of non-zero genes, and of all
def test_a_batch_costs_what_its_cells_cost(preset):
    config = XTrimoGeneConfig.preset(preset)
    seen, masked = [3, 1402, 9000], [0, 1117, 2500]
    flops = step_flops(config, torch.tensor(seen), torch.tensor(masked))
    assert flops.tolist() == [step_flops(config, *numbers) for numbers in zip(seen, masked, strict=True)]
