import pytest
import torch

from xtrimogene.eval.cost.flops import (
    count_flops,
    count_step_flops,
    decoder_flops,
    main,
    paper_table,
    performer_flops,
    performer_forward,
    transformer_forward,
)
from xtrimogene.modeling_xtrimogene.configuration_xtrimogene import XTrimoGeneConfig
from xtrimogene.modeling_xtrimogene.flops_xtrimogene import encoder_flops, step_flops, transformer_flops


def test_counter_sees_two_flops_for_a_multiply_add():
    left, right = torch.empty(5, 3, device="meta"), torch.empty(3, 7, device="meta")
    assert count_flops(lambda: left @ right) == 2 * 5 * 3 * 7


def test_table_of_the_paper():
    transformer, performer, xtrimogene = paper_table()
    for row, paper in ((transformer, 9.86e12), (performer, 1.06e12), (xtrimogene, 3.35e11)):
        assert row.paper == paper
        assert row.formula == pytest.approx(paper, rel=0.02)
        assert row.counted == row.formula
    assert round(xtrimogene.formula / transformer.formula, 3) <= 0.034
    assert xtrimogene.formula <= performer.formula / 3


@pytest.mark.parametrize(("tokens", "heads", "width", "layers"), [(1, 1, 8, 1), (101, 3, 48, 2)])
def test_transformer_formula_is_what_the_counter_sees(tokens, heads, width, layers):
    hidden = torch.empty(tokens, width, device="meta")
    counted = count_flops(lambda: transformer_forward(hidden, heads, layers))
    assert counted == transformer_flops(tokens, width, layers)


def test_performer_formula_is_what_the_counter_sees():
    hidden = torch.empty(97, 40, device="meta")
    counted = count_flops(lambda: performer_forward(hidden, heads=3, head_dim=16, features=44, layers=2))
    assert counted == performer_flops(97, 40, heads=3, head_dim=16, features=44, layers=2)


def test_released_size_costs_what_the_specification_says():
    # 100M: encoder 12 x 768 on 2,002 tokens, decoder 6 x 512 on 19,266.
    assert encoder_flops(2002, 768, 12) == pytest.approx(4.9e11, rel=0.01)
    assert decoder_flops(19_266, 768, 512, 8, 64, 266, 6) == pytest.approx(8.7e11, rel=0.01)


@pytest.mark.parametrize("preset", ["tiny", "3M"])
def test_formula_of_our_step_is_what_the_counter_sees(preset):
    config = XTrimoGeneConfig.preset(preset, attention_probs_dropout_prob=0.0)
    counted = count_step_flops(config, num_seen=1402, num_masked=1117)
    assert counted == pytest.approx(step_flops(config, 1402, 1117), rel=0.03)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_latents": 8},
        {"num_latents": 8, "xpressor_decoder": "decoder", "latent_bottleneck": "gaussian"},
        {"num_latents": 8, "xpressor_decoder": "shared", "latent_bottleneck": "fsq"},
        {"anchored": True, "num_batches": 3},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
@pytest.mark.parametrize("numbers", [(150, 90), (900, 700)])
def test_formula_of_what_latents_and_anchors_add_is_what_the_counter_sees(fields, numbers):
    sizes = {"num_genes": 2500, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "anchored": False}
    plain, other = (XTrimoGeneConfig.preset("tiny", **{**sizes, **more}) for more in ({}, fields))
    counted = count_step_flops(other, *numbers) - count_step_flops(plain, *numbers)
    # The formula leaves out the mean over genes, whose gradient an anchored model needs: 2 %.
    assert counted == pytest.approx(step_flops(other, *numbers) - step_flops(plain, *numbers), rel=0.03)


@pytest.mark.slow  # a process of its own
def test_the_command_prints_the_table(capsys):
    main()
    printed = capsys.readouterr().out
    assert "9.85e+12" in printed
    assert "3.4%" in printed
