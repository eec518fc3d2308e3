"""How the cost of a step grows."""

import pytest

from xtrimogene.eval.cost.benchmarks.growth import training_step
from xtrimogene.eval.cost.flops import count_flops

pytest.importorskip("performer_pytorch", reason="needs performer-pytorch, the peer of the benchmarks")


def test_growth_counts_what_grows():
    small, large = (
        count_flops(training_step(genes=400, expressed=40, cells=3, width=width, attention="eager"))
        for width in (64, 128)
    )
    assert 2 < large / small < 4
