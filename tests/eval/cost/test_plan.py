import pytest

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
from xtrimogene.eval.cost.flops import masked_numbers
from xtrimogene.eval.cost.plan import Accelerator, measure, new_model, plan
from xtrimogene.modeling_xtrimogene.flops_xtrimogene import step_flops


def test_twice_the_devices_take_half_the_time_for_the_same_cost():
    accelerator = Accelerator(teraflops=100.0, share=0.5, memory=16.0, price=2.0)
    (found,) = plan(["tiny"], cells=1e6, accelerator=accelerator, numbers=(1, 2), expressed=500)
    flops = step_flops(new_model("tiny").config, *masked_numbers(500))
    assert found.cells_per_second[1] == pytest.approx(50e12 / flops)
    assert found.hours[1] == pytest.approx(2 * found.hours[2])
    assert found.hours[1] == pytest.approx(1e6 / found.cells_per_second[1] / 3600)
    assert found.cost == pytest.approx(2.0 * found.hours[1])


def test_cells_that_fit_follow_from_what_a_cell_keeps():
    def cells(expressed: int, memory: float) -> tuple[float, int]:
        (found,) = plan(["tiny"], 1.0, Accelerator(memory=memory), expressed=expressed)
        return found.cell, found.batch

    (small, many), (large, few), (_, more) = cells(200, 1.0), cells(2000, 1.0), cells(2000, 2.0)
    assert 0 < small < large
    assert few < many
    # What is not taken by weights, their gradients and the optimizer is divided among cells.
    weights = 16 * XTrimoGeneForPreTraining(XTrimoGeneConfig.preset("tiny")).num_parameters() / 2**20
    assert few * large == pytest.approx(1024 - weights, rel=0.03)
    assert more == pytest.approx(few + 1024 / large, abs=1)


def test_steps_are_slower_than_plain_products():
    (found,) = measure(["tiny"], expressed=300, repeats=1).values()
    assert 0 < found["share of peak"] < 1
