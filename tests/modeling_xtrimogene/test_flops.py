"""FLOPs of batches, and what a device reaches; that the formula is right is in tests/eval/cost/test_flops.py."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from xtrimogene import TxFMConfig, TxFMForPreTraining
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from xtrimogene.modeling_xtrimogene.flops_xtrimogene import reconstruction_flops, step_flops


@pytest.mark.parametrize("fields", [{}, {"num_latents": 8}, {"num_latents": 8, "xpressor_decoder": "decoder"}])
@pytest.mark.parametrize("preset", ["tiny", "100M"])  # decoders of non-zero genes, and of all
def test_a_batch_costs_what_its_cells_cost(preset, fields):
    config = XTrimoGeneConfig.preset(preset, **fields)
    seen, masked, expressed = [3, 1402, 9000], [0, 1117, 2500], [3, 2002, 11_000]
    numbers = seen, masked, expressed
    flops = step_flops(config, *map(torch.tensor, numbers))
    assert flops.tolist() == [step_flops(config, *cell) for cell in zip(*numbers, strict=True)]


@pytest.mark.parametrize("changes", [{"decoder_num_hidden_layers": 0}, {}, {"anchored": True}])
def test_the_formula_of_txfm_agrees_with_torchs_counter(changes):
    config = TxFMConfig(num_genes=900, hidden_size=32, num_attention_heads=2, num_hidden_layers=2, drop_path_rate=0,
                        **changes)  # fmt: skip
    model = TxFMForPreTraining(config)
    model.set_attn_implementation("eager")  # torch's counter does not know the fused attention of a CPU
    ids, values = torch.arange(63)[None], torch.rand(1, 63)
    with FlopCounterMode(display=False) as counter:
        model(ids, values, expressed_ids=ids, expressed_values=values).loss.backward()
    assert reconstruction_flops(config, 63) == pytest.approx(counter.get_total_flops(), rel=0.05)
