"""Every way of attending within the cells of a packed row gives the same, and none makes the host wait for a GPU."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from xtrimogene import (
    TxFMConfig,
    TxFMForPreTraining,
    TxFMForSequenceClassification,
    XTrimoGeneForDrugSynergy,
    XTrimoGeneForPerturbationPrediction,
    XTrimoGeneForPreTraining,
    XTrimoGeneForSequenceClassification,
    XTrimoGeneModel,
    XTrimoGenePerturbationConfig,
    XTrimoGeneSynergyConfig,
)
from xtrimogene.modeling_xtrimogene import host_xtrimogene, pretrained_xtrimogene
from xtrimogene.modeling_xtrimogene import varlen_xtrimogene as varlen
from xtrimogene.modeling_xtrimogene.packed_xtrimogene import Packing
from xtrimogene.tokenization.collators import DataCollatorForMaskedExpression

WAYS = ["by cell", "varlen", "flash", "padded"]


def segments(query, key, value, starts_q, starts_k, longest_q, longest_k, *, scale=None, num_splits=None):
    """Stand for torch's kernel, which CPUs do not have: attend within segments of `(T, A, K)`."""
    assert starts_q.dtype is starts_k.dtype is torch.int32
    assert longest_q == longest_k == starts_q.diff().max()
    assert num_splits == 1
    found = []
    for start, stop in zip(starts_q[:-1].tolist(), starts_q[1:].tolist(), strict=True):
        cell = (part[start:stop].transpose(0, 1) for part in (query, key, value))
        found.append(torch.nn.functional.scaled_dot_product_attention(*cell, scale=scale).transpose(0, 1))
    return torch.cat(found)


def flash(module, query, key, value, attention_mask, *, scaling, dropout, is_causal, cu_seq_lens_q, cu_seq_lens_k,
          max_length_q, max_length_k):  # fmt: skip
    """Stand for transformers' flash-attention, which takes all four names or looks for padding itself."""
    assert attention_mask is None
    assert not is_causal
    rows = (part[0].transpose(0, 1) for part in (query, key, value))
    longest = max_length_q, max_length_k
    found = segments(*rows, cu_seq_lens_q, cu_seq_lens_k, *longest, scale=scaling, num_splits=1)
    return found.unsqueeze(0), None


@pytest.fixture
def take(monkeypatch):
    """Make all models attend in one way."""

    def take(way):
        monkeypatch.setattr(varlen, "varlen_attn", segments)
        monkeypatch.setitem(varlen.ALL_ATTENTION_FUNCTIONS, "sdpa", flash) if way == "flash" else None
        monkeypatch.setattr(varlen, "kernel_for", lambda module, query, dropout: way)

    return take


def inputs(config, make_batch, *names, **changes):
    batch = make_batch(config, **changes)
    return {name: batch[name] for name in ("input_ids", "values", "attention_mask", *names)}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_outputs_and_gradients_of_padded_batches(tiny_config, make_batch, take, way):
    torch.manual_seed(0)
    config = tiny_config(pooling="all", attention_probs_dropout_prob=0.0)
    model = XTrimoGeneModel(config).double().eval()
    batch = inputs(config, make_batch, lengths=(4, 0, 13, 13))
    batch["values"] = batch["values"].double()
    plain = model(**batch, output_hidden_states=True)  # whoever asks for hidden states sees padding
    take(way)
    lengths = batch["attention_mask"].sum(1).tolist()
    results = [[plain.last_hidden_state, *gradients(model, plain)]]
    for given in (None, lengths, lengths[:2]):  # without lengths, and with those of another batch, tokens are counted
        found = model(**batch, lengths=given)
        assert found.pooler_output[1].isnan().all()
        results.append([found.last_hidden_state, *gradients(model, found)])
    for found in results[1:]:
        for one, other in zip(found, results[0], strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


def gradients(model, output):
    pooled = output.pooler_output
    return torch.autograd.grad(pooled[~pooled.isnan()].square().sum(), list(model.encoder.parameters()))


def test_txfm_attends_in_every_way(make_batch, take):
    torch.manual_seed(0)
    model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=50)).eval()
    batch = inputs(model.config, lambda config, **changes: make_batch(with_depth(config), **changes))
    expected = model(**batch).cell_embedding
    for way in WAYS:
        take(way)
        found = model(**batch, lengths=batch["attention_mask"].sum(1).tolist()).cell_embedding
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def with_depth(config):
    return SimpleNamespace(num_genes=config.num_genes, pad_token_id=config.pad_token_id, depth_tokens=False)


def test_lengths_lead_to_the_places_that_the_mask_has():
    is_token = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    counted, told = Packing.of(is_token), Packing.of(is_token, [2, 0, 2])
    assert counted.index.tolist() == told.index.tolist() == [1, 2, 8, 11]
    assert counted.lengths == told.lengths
    assert told.starts.tolist() == [0, 2, 2, 4]


@pytest.mark.parametrize(("device", "dtype", "width", "dropout", "tokens", "expected"), [
    ("cpu", torch.bfloat16, 64, 0.0, 5, "by cell"),
    ("cuda", torch.bfloat16, 64, 0.0, 5, "varlen"),
    ("cuda", torch.bfloat16, 64, 0.1, 5, "varlen"),
    ("cuda", torch.float16, 192, 0.0, 5, "varlen"),
    ("cuda", torch.float32, 64, 0.0, 5, "padded"),  # torch's kernel is for half precision
    ("cuda", torch.bfloat16, 12, 0.0, 5, "padded"),
    ("cuda", torch.bfloat16, 200, 0.0, 5, "padded"),
    ("cuda", torch.bfloat16, 64, 0.0, 0, "padded"),
    ("mps", torch.bfloat16, 64, 0.0, 5, "padded"),
])  # fmt: skip
def test_the_device_and_what_is_computed_choose_the_way(monkeypatch, device, dtype, width, dropout, tokens, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(varlen, "varlen_attn", segments)  # torch before 2.10 has none
    query = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 2, tokens, width))
    module = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    assert varlen.kernel_for(module, query, dropout) == expected
    module.config._attn_implementation = "flash_attention_3"
    assert varlen.kernel_for(module, query, dropout) == "flash"
    module.config._attn_implementation = "sdpa"
    monkeypatch.setattr(varlen, "current_flash_attention_impl", lambda: "FA3")  # which has no dropout
    assert varlen.kernel_for(module, query, dropout) == ("padded" if dropout else expected)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert varlen.kernel_for(module, query, dropout) in ("by cell", "padded")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert varlen.kernel_for(module, query, dropout) in ("by cell", "padded")


def test_training_with_dropout_of_attention_takes_the_kernel_of_segments(tiny_config, make_batch, take, monkeypatch):
    calls = []

    def kernel(query, key, value, starts_q, starts_k, longest_q, longest_k, dropout, is_causal, debugs, *, scale):
        calls.append((dropout, is_causal, debugs))
        found = segments(query, key, value, starts_q, starts_k, longest_q, longest_k, scale=scale, num_splits=1)
        return found, None, None, None, None

    given = [argument.name for argument in varlen.flash_kernel.default._schema.arguments]
    assert given[:10] == ["query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal",
                          "return_debug_mask"]  # fmt: skip
    assert "scale" in given
    take("varlen")
    monkeypatch.setattr(varlen, "flash_kernel", kernel)
    config = tiny_config(attention_probs_dropout_prob=0.1, hidden_dropout_prob=0.0)
    model = XTrimoGeneModel(config)
    batch = inputs(config, make_batch)
    expected = model.eval()(**batch).pooler_output
    assert calls == []
    torch.testing.assert_close(model.train()(**batch).pooler_output, expected)
    assert calls == [(0.1, False, False)] * config.num_hidden_layers


def test_the_ways_have_a_name_among_the_attention_functions_of_transformers(tiny_config, make_batch):
    model = XTrimoGeneModel(tiny_config()).eval()
    batch = inputs(model.config, make_batch)
    expected = model(**batch).pooler_output
    model.set_attn_implementation(varlen.VARLEN)
    assert model.packs(torch.device("cuda"))
    assert torch.equal(model(**batch).pooler_output, expected)
    padded = model(**batch, output_hidden_states=True).pooler_output
    torch.testing.assert_close(padded, expected, atol=1e-5, rtol=0)


class Waits(TorchDispatchMode):
    """Collect the operations that make the host wait for a GPU, since their result or its size has to be known."""

    # `lift_fresh` makes a tensor of numbers of the host, and a copy to a GPU that is not pinned is waited for.
    ALWAYS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "lift_fresh"} | {
        "unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "_coalesce", "_sparse_addmm"
    }  # fmt: skip
    BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.name().split("::")[-1].split(".")[0], kwargs or {}
        masks = [part for part in args[1] if part is not None and part.dtype is torch.bool] if (
            name in self.BY_INDEX
        ) else []  # fmt: skip
        counts = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in self.ALWAYS or masks or counts:
            self.found.append(name)
        return func(*args, **kwargs)


def test_waits_are_seen():
    rows, is_in = torch.arange(4.0), torch.tensor([True, False, True, True])
    for run in (
        lambda: rows[is_in], lambda: rows.sum().item(), lambda: rows.tolist()[0] if rows.any() else 0,
        lambda: rows.masked_select(is_in), lambda: is_in.nonzero(), lambda: rows.unique(),
        lambda: rows.index_put((is_in,), rows[0]), lambda: rows.repeat_interleave(is_in.long()),
        lambda: torch.tensor([1, 2]), lambda: rows[[0, 2]],
        lambda: torch.sparse.mm(torch.eye(4).to_sparse(), rows.unsqueeze(1)),
    ):  # fmt: skip
        with Waits() as waits:
            run()
        assert waits.found


@pytest.fixture
def as_on_a_gpu(monkeypatch, take):
    """Take the ways of a GPU where a CPU has others of its own."""
    take("padded")
    monkeypatch.setattr(host_xtrimogene, "AT_HAND", ())

    def sent(numbers, device, dtype):
        with _disable_current_modes():  # its copy is pinned
            return host_xtrimogene.sent(numbers, device, dtype)

    monkeypatch.setattr(pretrained_xtrimogene, "sent", sent)


KINDS = {
    "plain": {},
    "depth": {"depth_tokens": True, "pooling": "all"},
    "nonzero": {"decoder_context": "nonzero"},
    "anchored": {"anchored": True, "num_batches": 2},
    "classes": {"objective": "classification"},
    "criss_cross": {"encoder_attention": "criss_cross"},
    "latents": {"num_latents": 3, "latent_size": 8, "mixing_weight": 1.0},
    "mixed": {"anchored": True, "num_batches": 2, "mixing_weight": 1.0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_cells", [2, 4])  # from three cells on, zero genes are computed once for all
def test_no_step_of_a_pretraining_waits(tiny_config, make_batch, as_on_a_gpu, kind, num_cells):
    model = XTrimoGeneForPreTraining(tiny_config(attention_probs_dropout_prob=0.1, **KINDS[kind])).train()
    batch = make_batch(model.config, lengths=(1, 13, 7, 4)[:num_cells])
    batch["lengths"] = batch["attention_mask"].sum(1).tolist()
    if kind in ("anchored", "latents", "mixed"):
        batch["batch_ids"] = torch.tensor([0, 1, 1, 0])[:num_cells]
    with Waits() as waits:
        model(**batch).loss.backward()
    assert waits.found == []
    model.eval()
    with torch.no_grad(), Waits() as waits:
        model(**batch)
    assert waits.found == []


@pytest.mark.parametrize("anchored", [False, True])
def test_no_step_of_txfm_waits(make_batch, as_on_a_gpu, anchored):
    model = TxFMForPreTraining(TxFMConfig.preset("txfm-tiny", num_genes=50, anchored=anchored, drop_path_rate=0.1))
    batch = inputs(with_depth(model.config), make_batch)
    cells = {"expressed_ids": batch["input_ids"], "expressed_values": batch["values"]}
    for lengths in (batch["attention_mask"].sum(1).tolist(), [13, 13, 13]):
        mask = torch.arange(13) < torch.tensor(lengths).unsqueeze(1)
        with Waits() as waits:
            model.train()(**{**batch, "attention_mask": mask}, **cells, lengths=lengths).loss.backward()
        assert waits.found == []


def test_cells_that_txfm_encodes_in_parts_wait_for_nothing_and_are_the_same(make_batch, as_on_a_gpu):
    config = TxFMConfig.preset("txfm-tiny", num_genes=50, num_visible=4, inference_passes=3)
    model = TxFMForPreTraining(config).eval()
    batch = inputs(with_depth(config), make_batch, lengths=(0, 3, 7, 13, 8))
    with torch.no_grad():
        expected = model.predict_expression(**batch)
        with Waits() as waits:
            found = model.predict_expression(**batch, lengths=[0, 3, 7, 13, 8])
    assert waits.found == []
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_no_step_of_a_fine_tuning_waits(tiny_config, make_batch, as_on_a_gpu):
    one, several = torch.tensor([0, 2, 1]), torch.tensor([[0.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    txfm = TxFMConfig.preset("txfm-tiny", num_genes=50, num_labels=3, drop_path_rate=0.1)
    for model, labels in (
        (XTrimoGeneForSequenceClassification(tiny_config(num_labels=3, class_weights=[0.5, 2.0, 1.0])), one),
        (XTrimoGeneForSequenceClassification(tiny_config(num_labels=3, anchored=True)), several),
        (TxFMForSequenceClassification(txfm), one),
        (XTrimoGeneForSequenceClassification(tiny_config(num_labels=1)), torch.rand(3)),
    ):
        batch = inputs(with_depth(model.config), make_batch)
        lengths = batch["attention_mask"].sum(1).tolist()
        model.train()(**batch, lengths=lengths)  # the first step looks at the head
        with Waits() as waits:
            model(**batch, lengths=lengths, labels=labels).loss.backward()
        assert waits.found == []
    batch["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="1 of 3 cells of a batch have no tokens"):
        model(**batch, lengths=[1, 0, 13])


def test_no_step_of_a_model_of_perturbations_waits(as_on_a_gpu):
    config = XTrimoGenePerturbationConfig(
        pad_token_id=9, num_nodes=4, num_measured=3, num_expression_edges=5, num_relation_edges=5, features="learned"
    )
    model = XTrimoGeneForPerturbationPrediction(config).train()
    model.gene_ids.copy_(torch.tensor([1, 4, 5, 7]))
    ids, profiles = torch.tensor([[4, 9], [1, 7]]), torch.rand(2, 3)
    with Waits() as waits:
        model(ids, profiles, labels=profiles + 1).loss.backward()
    assert waits.found == []
    with pytest.raises(RuntimeError, match="Expected Tensor with single nonzero value"):  # the device's, later
        model(ids + 1, profiles)


def test_no_step_of_a_model_of_synergy_waits(tiny_config, make_batch, as_on_a_gpu):
    config = XTrimoGeneSynergyConfig(
        encoder_config=tiny_config(), drug_features=["a", "b"], problem_type="regression", num_labels=1
    )
    model = XTrimoGeneForDrugSynergy(config).train()
    batch = inputs(model.config.encoder_config, make_batch)
    lengths, drugs, labels = batch["attention_mask"].sum(1).tolist(), torch.rand(3, 2), torch.rand(3)
    with Waits() as waits:
        model(drugs, drugs.flip(0), **batch, lengths=lengths, labels=labels).loss.backward()
    assert waits.found == []


def test_from_the_collator_to_the_loss_nothing_waits(tiny_config, tokenizer, as_on_a_gpu):
    cells = [
        {"input_ids": list(range(number, 19_000, 900)), "counts": [3] * len(range(number, 19_000, 900)),
         "total": 4_000, "cell_index": number}
        for number in (5, 9_000, 400)
    ]  # fmt: skip
    collated = DataCollatorForMaskedExpression(tokenizer)(cells)
    model = XTrimoGeneForPreTraining(tiny_config(num_genes=tokenizer.num_genes)).train()
    lengths = collated.to("meta")["lengths"]  # a GPU gets them too; on a CPU they are not needed
    with Waits() as waits:
        moved = collated.to("cpu", non_blocking=True)
        model(**moved, lengths=lengths).loss.backward()
    assert waits.found == []
