"""performer-pytorch in the place of our FAVOR+: the same model, and one clear error where it cannot be."""

import sys

import pytest
import torch
from transformers.dynamic_module_utils import get_imports

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneModel

PERFORMER = {"favor_backend": "performer-pytorch", "favor_stabilizer": "head"}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "decoder_num_hidden_layers": 3}


def model_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    return XTrimoGeneForPreTraining(config).to(dtype)


@pytest.fixture
def without_performer(monkeypatch):
    for name in ("performer_pytorch", "performer_pytorch.performer_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def calls(monkeypatch):
    """Note the shapes `(B, A, N, F)` of the key features that performer-pytorch attends to."""
    module = pytest.importorskip("performer_pytorch.performer_pytorch", reason="needs performer-pytorch")
    noted, attend = [], module.linear_attention
    monkeypatch.setattr(module, "linear_attention", lambda q, k, v: noted.append(k.shape) or attend(q, k, v))
    return noted


@pytest.mark.parametrize("context", ["all", "nonzero"])
@pytest.mark.parametrize("lengths", [(4,), (1, 7), (1, 7, 13, 30)])  # from three cells on ours share zero genes
def test_outputs_and_gradients_equal_those_of_performer_pytorch(tiny_config, make_batch, calls, context, lengths):
    found = []
    for backend in ("native", "performer-pytorch"):
        config = tiny_config(**WITHOUT_DROPOUT, **PERFORMER | {"favor_backend": backend}, decoder_context=context)
        model = model_of(config, torch.float64)
        batch = make_batch(config, lengths)
        out = model(**batch | {"values": batch["values"].double()})
        out.loss.backward()
        found.append((out.logits, {name: part.grad for name, part in model.named_parameters()}))
        assert bool(calls) == (backend == "performer-pytorch")
    (logits, gradients), (their_logits, their_gradients) = found
    torch.testing.assert_close(logits, their_logits, atol=1e-12, rtol=0)
    assert sum(grad is not None and bool(grad.any()) for grad in gradients.values()) > 60
    for name, grad in gradients.items():
        torch.testing.assert_close(grad, their_gradients[name], atol=1e-10, rtol=1e-9, msg=name)
    if context == "all":
        assert {shape[:3] for shape in calls} == {(len(lengths), 2, config.num_genes)}
    else:  # each cell alone, with its visible and masked genes
        masked = [5 - row % 2 for row in range(len(lengths))]
        assert [shape[2] for shape in calls[: len(lengths)]] == [n + m for n, m in zip(lengths, masked, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("context", ["all", "nonzero"])
def test_float32_agrees_to_rounding_at_masked_and_at_all_genes(tiny_config, make_batch, calls, context):
    native, other = (
        model_of(tiny_config(**PERFORMER | {"favor_backend": backend}, decoder_context=context)).eval()
        for backend in ("native", "performer-pytorch")
    )
    batch = make_batch(native.config)
    torch.testing.assert_close(other(**batch).logits, native(**batch).logits, atol=1e-5, rtol=0)
    cells = {key: batch[key] for key in ("input_ids", "values", "attention_mask")}
    torch.testing.assert_close(
        other.model.contextual_gene_embeddings(**cells), native.model.contextual_gene_embeddings(**cells),
        atol=1e-5, rtol=0,
    )  # fmt: skip
    assert calls


@torch.no_grad()
def test_half_precision_is_computed_in_float32(tiny_config, make_batch, calls):
    config = tiny_config(**PERFORMER)
    exact = model_of(config).eval()
    batch = make_batch(config)
    half = XTrimoGeneForPreTraining.from_pretrained(
        None, config=config, state_dict=exact.state_dict(), dtype=torch.bfloat16
    ).eval()
    assert half.model.decoder.layers[0].self_attn.q_proj.weight.dtype is torch.bfloat16
    native = XTrimoGeneForPreTraining.from_pretrained(
        None, config=tiny_config(favor_stabilizer="head"), state_dict=exact.state_dict(), dtype=torch.bfloat16
    ).eval()
    apart = (half(**batch).logits - native(**batch).logits).abs().max()
    assert apart <= 0.1 * (half(**batch).logits - exact(**batch).logits).abs().max()


@torch.no_grad()
def test_the_backend_is_saved_and_either_one_loads_the_weights(tiny_config, make_batch, calls, tmp_path):
    model = model_of(tiny_config(**PERFORMER)).eval()
    batch = make_batch(model.config)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    again = XTrimoGeneForPreTraining.from_pretrained(tmp_path).eval()
    assert again.config.favor_backend == "performer-pytorch"
    calls.clear()
    torch.testing.assert_close(again(**batch).logits, expected, atol=1e-6, rtol=0)
    assert calls
    calls.clear()
    native = XTrimoGeneForPreTraining.from_pretrained(tmp_path, favor_backend="native").eval()
    torch.testing.assert_close(native(**batch).logits, expected, atol=1e-5, rtol=0)
    assert not calls


@torch.no_grad()
def test_new_random_features_reach_performer_pytorch(tiny_config, make_batch, calls):
    native, other = (
        model_of(tiny_config(**PERFORMER | {"favor_backend": backend})).eval()
        for backend in ("native", "performer-pytorch")
    )
    batch = make_batch(native.config)
    before = other(**batch).logits
    for model in (native, other):
        model.redraw_projections(1)
    assert (other(**batch).logits - before).abs().max() > 1e-3
    torch.testing.assert_close(other(**batch).logits, native(**batch).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stabilizer", ["cell", "batch"])
def test_a_stabilizer_that_performer_pytorch_lacks_is_refused(tiny_config, tmp_path, stabilizer):
    message = f"favor_stabilizer is '{stabilizer}': set favor_stabilizer='head'"
    with pytest.raises(Exception, match=message):
        tiny_config(favor_backend="performer-pytorch", favor_stabilizer=stabilizer)
    model_of(tiny_config(favor_stabilizer=stabilizer)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        XTrimoGeneForPreTraining.from_pretrained(tmp_path, favor_backend="performer-pytorch")
    model = XTrimoGeneForPreTraining.from_pretrained(tmp_path, **PERFORMER)
    assert model.model.decoder.layers[0].self_attn.backend == "performer-pytorch"


@torch.no_grad()
@pytest.mark.usefixtures("without_performer")
def test_without_the_package_only_the_decoder_fails_and_says_what_to_install(tiny_config, make_batch, tmp_path):
    model_of(tiny_config(**PERFORMER)).save_pretrained(tmp_path)
    model = XTrimoGeneModel.from_pretrained(tmp_path).eval()
    batch = make_batch(model.config)
    cells = {key: batch[key] for key in ("input_ids", "values", "attention_mask")}
    assert model(**cells).pooler_output.isfinite().all()
    with pytest.raises(ImportError, match=r"pip install 'performer-pytorch>=1\.1\.4'.*favor_backend='native'"):
        model.contextual_gene_embeddings(**cells)
    native = XTrimoGeneModel.from_pretrained(tmp_path, favor_backend="native").eval()
    assert native.contextual_gene_embeddings(**cells).isfinite().all()
    # transformers asks this of the files of a folder before it runs them.
    assert not any("performer_pytorch" in get_imports(path) for path in tmp_path.glob("*.py"))
