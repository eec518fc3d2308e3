"""Measured times as a table and a picture."""

import pytest

from xtrimogene.eval.cost.benchmarks import report

pytest.importorskip("performer_pytorch", reason="needs performer-pytorch, the peer of the benchmarks")


def test_table_and_picture_show_every_variant(tmp_path):
    found = {
        "title": "work",
        "peer": "peer",
        "seconds": {"peer": 2.0, "ours": 1.0},
        "times as fast as the peer": {"peer": 1.0, "ours": 2.0},
        "gigaflops as written": 100.0,
        "ceiling": {"float32": 200.0},
        "GiB": {"peer": 4.0, "ours": 1.0},
    }
    points = [{"genes": 1000, "seconds": 1.0, "gigaflops": 20.0}]
    growth = {"genes": {"points": points, "exponents": {"seconds": 0.9, "gigaflops": 1.0}}}
    growth["others"] = [{"dense": 3000.0, "Performer": 40.0}]
    results = {"B4 default": found, "B4 tuned": found, "growth tuned": growth}
    table = report.table(results)
    assert "| B4: work | ours | 1 | 2.00 | 2.00 | 100, 50% | 1.00 |" in table
    assert "| genes | 0.90 | 1.00 |" in table
    assert "| 1,000 | 20 | 40 | 3,000 |" in table
    report.picture(results, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 10_000
