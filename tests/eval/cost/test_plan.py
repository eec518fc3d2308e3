import json

import pytest

from xtrimogene import XTrimoGeneConfig, XTrimoGeneForPreTraining
from xtrimogene.eval.cost.flops import masked_numbers
from xtrimogene.eval.cost.plan import Accelerator, Measured, measure, new_model, plan
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


def results_of_a_gpu(folder, **changes):
    rows = [
        {"group": "pre-training step, tiny", "variant": "reference, bfloat16", "TFLOP/s": 90.0},
        {"group": "pre-training step, tiny", "variant": "ours, bfloat16", "TFLOP/s": 20.0, "GiB of a cell": 0.5},
        {"group": "pre-training step, tiny", "variant": "ours, bfloat16, compiled", "why not": "it failed"},
        {"group": "pre-training step, tiny", "variant": "ours, ragged", "TFLOP/s": 30.0, "GiB of a cell": 0.25},
    ]
    found = {
        "machine": {"device": "GPU", "memory GiB": 100.0},
        "peaks": {"bfloat16": 700.0},
        "parts": {"training": {"seconds": 1.0, "rows": rows}},
    }
    (folder / "results.json").write_text(json.dumps(found | changes))
    return folder / "results.json"


def test_what_was_measured_replaces_what_is_assumed(tmp_path):
    assumed = Accelerator(teraflops=100.0, share=0.5, memory=16.0, price=2.0)
    measured = Measured.read(results_of_a_gpu(tmp_path), assumed)
    assert measured.accelerator == Accelerator(teraflops=700.0, share=0.5, memory=100.0, price=2.0)
    flops = step_flops(new_model("tiny").config, *masked_numbers(2000))
    (found,) = plan(["tiny"], 1e6, measured.accelerator, (1,), measured=measured)
    assert found.cells_per_second[1] == pytest.approx(30e12 / flops)  # of the quickest of ours
    assert found.cell == pytest.approx(256)  # MiB
    assert found.batch == int((100 * 1024 - found.weights * 1024) / 256)
    (longer,) = plan(["tiny"], 1e6, measured.accelerator, (1,), expressed=3000, measured=measured)
    assert longer.cell > found.cell
    without = Measured("GPU", measured.accelerator)  # of a size that was not measured the share is assumed
    (other,) = plan(["tiny"], 1e6, measured.accelerator, (1,), expressed=2000, measured=without)
    assert other.cells_per_second[1] == pytest.approx(0.5 * 700e12 / flops)


def test_a_file_without_steps_of_ours_is_refused(tmp_path):
    path = results_of_a_gpu(tmp_path, parts={})
    with pytest.raises(ValueError, match=r"results\.json holds 0 rows of pre-training steps, .* --only training"):
        Measured.read(path, Accelerator())
    with pytest.raises(ValueError, match=r"results\.json was written with --tiny"):
        Measured.read(results_of_a_gpu(tmp_path, is_tiny=True), Accelerator())
