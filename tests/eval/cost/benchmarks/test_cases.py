"""The benchmarks compare equal work: the reference agrees with us, and what does not agree is not timed."""

import pytest
import torch

pytest.importorskip("performer_pytorch", reason="needs performer-pytorch, the peer of the benchmarks")

from xtrimogene.eval.cost.benchmarks import cases

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


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("B2", "B2-4", "B4")]  # the longest


@pytest.mark.parametrize("name", ["B1", *SLOW, "B5", "B6-1000"])
def test_variants_run_and_agree(name):
    make = {
        "B2": lambda: cases.gene_embedding([60]),
        "B2-4": lambda: cases.gene_embedding(cases.RAGGED),
        "B5": lambda: cases.collating(2, 4, 100),
    }
    case = make.get(name, cases.CASES[name])()
    assert case.peer in case.variants
    assert name in ("B5", "B6-1000") or case.agreement
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
