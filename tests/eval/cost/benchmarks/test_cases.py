"""The benchmarks compare equal work: the reference agrees with us, and what does not agree is not timed."""

import pytest
import torch

pytest.importorskip("performer_pytorch", reason="needs performer-pytorch, the peer of the benchmarks")

from xtrimogene.eval.cost.benchmarks import cases, report
from xtrimogene.eval.cost.benchmarks.growth import training_step
from xtrimogene.eval.cost.flops import count_flops

SIZES = {"num_hidden_layers": 2, "decoder_num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two layers of everything, and short cells."""
    whole = cases.models
    monkeypatch.setattr(cases, "models", lambda preset, **changes: whole("3M", **SIZES | changes))
    monkeypatch.setattr(cases, "RAGGED", [40, 90])
    monkeypatch.setattr(cases, "EXPRESSED", 60)
    monkeypatch.setattr(cases, "MASKED", 50)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["B1", "B2", "B2-4", "B4", "B5"])
def test_variants_run_and_agree(name):
    make = {
        "B2": lambda: cases.gene_embedding([60]),
        "B2-4": lambda: cases.gene_embedding(cases.RAGGED),
        "B5": lambda: cases.collating(2, 4, 100),
    }
    case = make.get(name, cases.CASES[name])()
    assert case.peer in case.variants
    assert name == "B5" or case.agreement
    with torch.inference_mode(name in cases.IN_INFERENCE):
        for run in case.variants.values():
            run()


def test_attention_agrees_and_keeps_less():
    found = cases.favor(tokens=3000, backward=True).agreement
    assert found["output: largest difference"] < 1e-5
    assert found["kept for the backward pass, ours / performer-pytorch"] < 0.4


def test_what_does_not_agree_is_not_timed():
    with pytest.raises(RuntimeError, match=r"ours: results differ by 1\.0e\+00"):
        cases.difference(torch.ones(3), torch.zeros(3), "ours")
    with pytest.raises(RuntimeError, match="smallest cosine is 0"):
        cases.cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), "ours")


def test_growth_counts_what_grows():
    small, large = (
        count_flops(training_step(genes=400, expressed=40, cells=3, width=width, attention="eager"))
        for width in (64, 128)
    )
    assert 2 < large / small < 4


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
