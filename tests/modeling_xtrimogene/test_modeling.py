"""The model and its heads: shapes, invariances, losses, initial values, and what transformers' tools need of them."""

import importlib
import json
import warnings

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from xtrimogene import XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification, XTrimoGeneModel

FORMS = [
    {},
    {"depth_tokens": True},
    {"norm_first": True},
    {"value_embedding": "rounded_bin"},
    {"value_embedding": "linear"},
    {"objective": "classification", "num_value_classes": 9},
    {"favor_stabilizer": "batch"},
    {"decoder_num_hidden_layers": 1},
    {"decoder_num_hidden_layers": 3},
    {"decoder_context": "nonzero"},
]


def encoder_inputs(batch):
    return {key: batch[key] for key in ("input_ids", "values", "attention_mask")}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_trains_all_its_parameters(tiny_config, make_batch, form):
    torch.manual_seed(0)
    config = tiny_config(**form)
    model = XTrimoGeneForPreTraining(config).train()
    batch = make_batch(config)
    is_hidden = torch.zeros_like(batch["masked_ids"], dtype=torch.bool)
    is_hidden[:, ::2] = True
    batch |= {"is_hidden": is_hidden, "masked_values": batch["labels"].clamp(min=0)}
    out = model(**batch)
    assert out.logits.shape == batch["masked_ids"].shape
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name == "model.embeddings.padding_vector":  # nothing attends to padding, so nothing can depend on it
            continue
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("form", [{}, {"anchored": True}, {"num_latents": 2, "pooling": "xpressor"}], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_classifier_gives_every_weight_a_gradient(tiny_config, make_batch, form, attention):
    """Processes that train together wait for each, such as for the vector of masks, which a classifier never uses."""
    config = tiny_config(num_labels=3, **form)
    model = XTrimoGeneForSequenceClassification._from_config(config, attn_implementation=attention).train()
    model(**encoder_inputs(make_batch(config)), labels=torch.tensor([0, 2, 1])).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []


@torch.no_grad()
@pytest.mark.parametrize("form", [{}, {"depth_tokens": True}, {"encoder_attention": "criss_cross"}], ids=str)
def test_states_of_padding_are_0_on_every_path(tiny_config, make_batch, form):
    config = tiny_config(**form)
    batch = encoder_inputs(make_batch(config))
    is_padding = batch["attention_mask"] == 0
    assert is_padding.any()
    for attention in ("sdpa", "eager"):
        model = XTrimoGeneModel._from_config(config, attn_implementation=attention).eval()
        for is_padded in (False, True):
            with torch.set_grad_enabled(is_padded):  # states that are asked for and have gradients are not packed
                states = model(**batch, output_hidden_states=is_padded).last_hidden_state
            assert (states[is_padding] == 0).all()
            assert (states[~is_padding] != 0).any(-1).all()


@torch.no_grad()
@pytest.mark.parametrize(
    "form",
    [*FORMS[:3], {"decoder_context": "nonzero"}, {"pooling": "all"}, {"depth_tokens": True, "pooling": "S"}],
    ids=str,
)
def test_a_cell_does_not_depend_on_batch_order_or_padding(tiny_config, make_batch, form):
    config = tiny_config(**form)
    model = XTrimoGeneForPreTraining(config).eval()
    batch = make_batch(config, lengths=(1, 9, 4, 30))
    pooled = model.model(**encoder_inputs(batch)).pooler_output
    predicted = model(**batch).logits
    for row in range(4):
        length = int(batch["attention_mask"][row].sum())
        alone = {key: batch[key][row : row + 1, :length] for key in ("input_ids", "values", "attention_mask")}
        torch.testing.assert_close(model.model(**alone).pooler_output, pooled[row : row + 1], atol=1e-5, rtol=0)
        masked = {"masked_ids": batch["masked_ids"][row : row + 1]}
        torch.testing.assert_close(model(**alone, **masked).logits, predicted[row : row + 1], atol=1e-5, rtol=0)
    flipped = {key: value.flip(0) for key, value in batch.items()}
    torch.testing.assert_close(model(**flipped).logits.flip(0), predicted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_cell_without_genes_gives_nan_and_leaves_the_others_alone(tiny_config, make_batch):
    config = tiny_config(pooling="all")
    model = XTrimoGeneModel(config).eval()
    batch = encoder_inputs(make_batch(config, lengths=(5, 3)))
    with_empty = {key: torch.cat([value, torch.zeros_like(value[:1])]) for key, value in batch.items()}
    with_empty["input_ids"][2] = config.pad_token_id
    out = model(**with_empty)
    assert out.pooler_output[2].isnan().all()
    assert out.last_hidden_state.isfinite().all()
    torch.testing.assert_close(out.pooler_output[:2], model(**batch).pooler_output)


@torch.no_grad()
def test_pooling_by_hand(tiny_config, make_batch):
    config = tiny_config(depth_tokens=True)
    model = XTrimoGeneModel(config).eval()
    batch = encoder_inputs(make_batch(config, lengths=(6, 2)))
    hidden = model(**batch).last_hidden_state
    for row, genes in enumerate((6, 2)):
        cell = hidden[row]
        parts = {
            "S": cell[genes + 1],
            "T": cell[genes],
            "max": cell[: genes + 2].amax(0),  # over T and S too, as released
            "mean": cell[:genes].mean(0),
            "all": torch.cat([cell[genes + 1], cell[genes], cell[:genes].amax(0), cell[:genes].mean(0)]),
        }
        for pooling, expected in parts.items():
            model.config.pooling = pooling
            torch.testing.assert_close(model(**batch).pooler_output[row], expected)


@torch.no_grad()
@pytest.mark.parametrize("context", ["all", "nonzero"])
def test_decoder_gives_the_same_rows_asked_for_one_by_one_or_all_together(tiny_config, make_batch, context):
    for layers in (1, 2):
        config = tiny_config(decoder_num_hidden_layers=layers, decoder_context=context)
        model = XTrimoGeneForPreTraining(config).eval()
        batch = make_batch(config)
        hidden = model.model(**encoder_inputs(batch)).last_hidden_state
        inputs = (hidden, batch["input_ids"], batch["attention_mask"], batch["masked_ids"])
        every = model.model.decode(*inputs)
        some = torch.tensor([[4, 49, 0]]).expand(3, -1)
        torch.testing.assert_close(model.model.decode(*inputs, positions=some), every[:, [4, 49, 0]], atol=1e-5, rtol=0)
        genes = model.model.contextual_gene_embeddings(**encoder_inputs(batch), gene_ids=torch.tensor([7, 3]))
        whole = model.model.contextual_gene_embeddings(**encoder_inputs(batch))
        assert whole.shape == (3, config.num_genes, config.decoder_hidden_size)
        torch.testing.assert_close(genes, whole[:, [7, 3]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_zero_genes_as_context_only_visible_and_masked_ones_are_attended_to(tiny_config, make_batch):
    config = tiny_config(decoder_num_hidden_layers=2)
    model = XTrimoGeneForPreTraining(config).eval().model
    batch = make_batch(config, lengths=(12, 5))
    inputs = (model(**encoder_inputs(batch)).last_hidden_state, batch["input_ids"], batch["attention_mask"])
    # The rows of all genes written out, with the keys of zero genes left out.
    rows = []
    model.decoder.forward = lambda given, *args: rows.append(given.at()) or given.at()
    model.decode(*inputs, batch["masked_ids"])
    del model.decoder.forward
    is_nonzero = torch.zeros(2, config.num_genes + 1, dtype=torch.bool)
    is_nonzero.scatter_(1, batch["input_ids"], batch["attention_mask"].bool()).scatter_(1, batch["masked_ids"], True)
    expected = model.decoder(rows[0], None, is_nonzero[:, :-1])

    model.config.decoder_context = "nonzero"
    torch.testing.assert_close(model.decode(*inputs, batch["masked_ids"]), expected, atol=1e-5, rtol=0)
    at_masked = expected[torch.arange(2)[:, None], batch["masked_ids"].clamp(max=config.num_genes - 1)]
    found = model.decode(*inputs, batch["masked_ids"], positions="masked")
    is_there = batch["masked_ids"] < config.num_genes
    torch.testing.assert_close(found[is_there], at_masked[is_there], atol=1e-5, rtol=0)
    assert (model.decode(*inputs) - expected).abs().max() > 1e-3  # masked genes are attended to as well


@torch.no_grad()
def test_masked_genes_are_hidden_and_shown_values_are_seen(tiny_config, make_batch):
    config = tiny_config()
    model = XTrimoGeneForPreTraining(config).eval()
    batch = make_batch(config)
    batch.pop("labels")
    shown = torch.full(batch["masked_ids"].shape, 3.0)
    hidden = torch.ones_like(batch["masked_ids"], dtype=torch.bool)
    plain = model(**batch).logits
    torch.testing.assert_close(model(**batch, masked_values=shown, is_hidden=hidden).logits, plain)
    assert (model(**batch, masked_values=shown, is_hidden=~hidden).logits - plain).abs().max() > 1e-4


def test_loss_is_the_sum_over_masked_genes_divided_by_their_number_everywhere(tiny_config, make_batch):
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = XTrimoGeneForPreTraining(config)
    batch = make_batch(config)
    out = model(**batch)
    counted = batch["labels"] != -100
    expected = (out.logits - batch["labels"])[counted].square().mean()
    torch.testing.assert_close(out.loss, expected)
    parts = [model(**{key: value[i : i + 1] for key, value in batch.items()}, num_items_in_batch=counted.sum()).loss
             for i in range(3)]  # fmt: skip
    torch.testing.assert_close(sum(parts), out.loss)


def test_classification_objective_predicts_the_expectation_over_bins(tiny_config, make_batch):
    config = tiny_config(objective="classification", num_value_classes=11, max_value=10.0)
    model = XTrimoGeneForPreTraining(config).eval()
    scores = torch.full((1, 1, 11), -50.0)
    scores[..., 3] = 50.0
    torch.testing.assert_close(model.predicted_values(scores), torch.tensor([[3.0]]))
    assert model.masked_loss(scores, torch.tensor([[3.2]]), None) < 1e-6
    assert model.masked_loss(scores, torch.tensor([[4.2]]), None) > 50


@torch.no_grad()
@pytest.mark.parametrize("how", ["dynamic int8", "8 bit", "4 bit"])
def test_quantised_weights_give_nearly_the_same_cells(tiny_config, make_batch, tmp_path, how):
    torch.manual_seed(0)
    model = XTrimoGeneForPreTraining(tiny_config(hidden_size=64, num_bins=64, decoder_hidden_size=64)).eval()
    batch = encoder_inputs(make_batch(model.config, lengths=(31, 40, 45)))
    if how == "dynamic int8":
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    else:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed, which has 8-bit and 4-bit weights")
        model.save_pretrained(tmp_path)
        settings = BitsAndBytesConfig(load_in_8bit=how == "8 bit", load_in_4bit=how == "4 bit")
        quantised = XTrimoGeneForPreTraining.from_pretrained(
            tmp_path, quantization_config=settings, dtype=torch.float32, device_map="cpu"
        ).eval()
    mixing = quantised.model.embeddings.value_embedding.mixing
    assert type(mixing) is not nn.Linear
    least = 0.9 if how == "4 bit" else 0.99
    for outputs in (lambda m: m.model(**batch).pooler_output, lambda m: m(**batch).logits):
        exact, rounded = outputs(model), outputs(quantised)
        assert not torch.equal(exact, rounded)
        assert nn.functional.cosine_similarity(exact, rounded).min() > least


def test_initial_values_follow_the_table(tiny_config):
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64, num_attention_heads=2, num_bins=100, initializer_range=0.05)
    model = XTrimoGeneForPreTraining(config)
    value = model.model.embeddings.value_embedding
    for tensor in (model.model.embeddings.gene_embedding.weight, value.bins):
        assert abs(tensor.std().item() - 0.05) < 0.005
    glorot = (6 / (64 + 256)) ** 0.5
    assert 0.95 * glorot < model.model.encoder.layers[0].fc1.weight.abs().max() <= glorot
    for tensor in (value.weight, value.bias):
        assert 0.5 < tensor.abs().max() <= 1
    assert 0.05 < value.mixing.weight.abs().max() <= 0.1
    assert not model.head.bias.any()
    assert (model.model.encoder.norm.weight == 1).all()
    projections = [layer.self_attn.projection for layer in model.model.decoder.layers]
    assert not torch.equal(*projections)  # every layer has its own
    # Values must be told apart by a fresh model: with weights of `initializer_range` all would look the same.
    spread = value(torch.tensor([0.0, 1.0, 6.0])).std(0).mean()
    assert spread > 0.1 * value.bins.std()


def test_redrawn_projections_follow_seed_and_number(tiny_config):
    first, second = (XTrimoGeneForPreTraining(tiny_config(favor_seed=5)) for _ in range(2))
    projection = first.model.decoder.layers[1].self_attn.projection
    initial = projection.clone()
    first.redraw_projections(3)
    assert not torch.equal(projection, initial)
    second.redraw_projections(3)
    assert torch.equal(projection, second.model.decoder.layers[1].self_attn.projection)
    first.redraw_projections(0)
    assert torch.equal(projection, initial)


@torch.no_grad()
@pytest.mark.parametrize("cls", [XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification])
def test_heads_pass_states_and_attention_on(tiny_config, make_batch, cls):
    model = cls(tiny_config(num_labels=3)).eval()
    model.set_attn_implementation("eager")
    batch = encoder_inputs(make_batch(model.config))
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert len(out.attentions) == model.config.num_hidden_layers
    assert out.loss is None
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], out.logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_config, make_batch, reentrant):
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = XTrimoGeneForPreTraining(config).train()
    batch = make_batch(config)
    model(**batch).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], msg=name)


@torch.no_grad()
def test_bfloat16_is_close_to_float32(tiny_config, make_batch):
    torch.manual_seed(0)
    config = tiny_config(hidden_size=32)
    model = XTrimoGeneForPreTraining(config).eval()
    batch = make_batch(config)
    exact = model.model(**encoder_inputs(batch)).pooler_output
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.model(**encoder_inputs(batch)).pooler_output
        assert model(**batch).loss.isfinite()
    half = model.to(torch.bfloat16).model(**encoder_inputs(batch)).pooler_output
    for other in (mixed, half):
        assert nn.functional.cosine_similarity(other.float(), exact).min() > 0.999


@torch.no_grad()
@pytest.mark.parametrize(
    "form",
    [{}, {"attn_implementation": "eager"}, {"pooling": "all", "depth_tokens": True}, {"decoder_context": "nonzero"},
     {"sentinel_values": True}, {"pool_includes_padding": True}, {"vocab_size": 60, "pad_token_id": 57}],
    ids=str,
)  # fmt: skip
def test_padding_is_known_by_its_id_where_no_mask_is_given(tiny_config, make_batch, form):
    config = tiny_config(num_labels=3, **form)
    batch = encoder_inputs(make_batch(config))
    without = {name: rows for name, rows in batch.items() if name != "attention_mask"}
    masked = {"masked_ids": make_batch(config)["masked_ids"]}
    model = XTrimoGeneForPreTraining(config).eval()
    classifier = XTrimoGeneForSequenceClassification(config).eval()
    for outputs in (
        lambda given: model.model(**given).last_hidden_state,
        lambda given: model.model(**given).pooler_output,
        lambda given: model.model.contextual_gene_embeddings(**given),
        lambda given: model(**given).logits,
        lambda given: model(**given, **masked).logits,
        lambda given: classifier(**given).logits,
    ):
        assert torch.equal(outputs(batch), outputs(without))


@torch.no_grad()
def test_an_exported_encoder_takes_other_batches_and_any_length(tiny_config):
    model = XTrimoGeneModel(tiny_config(num_genes=3000), add_decoder=False).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    example = torch.arange(64).repeat(2, 1), torch.rand(2, 64)
    sizes = {name: {0: batch, 1: length} for name in ("input_ids", "values", "attention_mask")}
    mask = {"attention_mask": torch.ones(2, 64, dtype=torch.long)}
    exported = torch.export.export(model, example, mask, dynamic_shapes=sizes).module()
    ids = torch.stack([torch.randperm(3000)[:2900] for _ in range(3)])
    cells, mask = (ids, torch.rand(3, 2900)), torch.ones_like(ids)
    mask[1, 2000:] = 0
    found, expected = (each(*cells, attention_mask=mask).pooler_output for each in (exported, model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_encoder_compiles_without_graph_breaks(tiny_config, make_batch):
    config = tiny_config()
    model = XTrimoGeneModel(config).eval()
    batch = encoder_inputs(make_batch(config))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(**batch).pooler_output
    torch.testing.assert_close(compiled(**batch).pooler_output, expected)
    del batch["attention_mask"]
    torch.testing.assert_close(compiled(**batch).pooler_output, expected)


@pytest.mark.parametrize("num_cells", [1, pytest.param(4, marks=pytest.mark.slow)])  # 4 compile for half a minute
def test_decoder_compiles_without_graph_breaks(tiny_config, make_batch, num_cells):
    config = tiny_config()
    model = XTrimoGeneModel(config).eval()
    batch = {name: rows[:num_cells] for name, rows in encoder_inputs(make_batch(config)).items()}
    compiled = torch.compile(model.contextual_gene_embeddings, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**batch), model.contextual_gene_embeddings(**batch))


@pytest.mark.parametrize(("auto", "cls"), [
    (AutoModel, XTrimoGeneModel),
    (AutoModelForPreTraining, XTrimoGeneForPreTraining),
    (AutoModelForSequenceClassification, XTrimoGeneForSequenceClassification),
])  # fmt: skip
def test_save_and_load_keep_every_number(tiny_config, make_batch, tmp_path, auto, cls):
    config = tiny_config(num_labels=3, favor_seed=11)
    model = cls(config).eval()
    for buffer in model.buffers():
        if buffer.dtype.is_floating_point:
            buffer.add_(0.25)  # buffers must come from the file, not be made anew
    model.save_pretrained(tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is cls
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()


def test_a_checkpoint_without_projections_gets_those_of_its_seed(tiny_config, tmp_path):
    from safetensors.torch import load_file, save_file

    model = XTrimoGeneForPreTraining(tiny_config(favor_seed=4))
    model.save_pretrained(tmp_path)
    weights = {
        key: value for key, value in load_file(tmp_path / "model.safetensors").items() if "projection" not in key
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = XTrimoGeneForPreTraining.from_pretrained(tmp_path)
    for ours, theirs in zip(model.buffers(), loaded.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_pretrained_encoder_moves_into_the_classifier(tiny_config, make_batch, tmp_path):
    config = tiny_config()
    pretrained = XTrimoGeneForPreTraining(config).eval()
    pretrained.save_pretrained(tmp_path)
    classifier = XTrimoGeneForSequenceClassification.from_pretrained(tmp_path, num_labels=4).eval()
    batch = encoder_inputs(make_batch(config))
    torch.testing.assert_close(
        classifier.model(**batch).pooler_output, pretrained.model(**batch).pooler_output, atol=0, rtol=0
    )
    with pytest.raises(ValueError, match="was built without a decoder"):
        classifier.model.contextual_gene_embeddings(**batch)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_task_losses_equal_torchs_and_add_up_over_accumulation(tiny_config, make_batch, problem):
    config = tiny_config(num_labels=3, problem_type=problem)
    model = XTrimoGeneForSequenceClassification(config).eval()
    batch = encoder_inputs(make_batch(config))
    generator = torch.Generator().manual_seed(0)
    labels, loss = {
        "single_label_classification": (torch.tensor([2, 0, 1]), nn.functional.cross_entropy),
        "multi_label_classification": (
            torch.randint(2, (3, 3), generator=generator).float(),
            nn.functional.binary_cross_entropy_with_logits,
        ),
        "regression": (torch.randn(3, 3, generator=generator), nn.functional.mse_loss),
    }[problem]
    out = model(**batch, labels=labels)
    torch.testing.assert_close(out.loss, loss(out.logits, labels))
    parts = [
        model(
            **{k: v[i : i + 1] for k, v in batch.items()}, labels=labels[i : i + 1], num_items_in_batch=labels.numel()
        )
        for i in range(3)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), out.loss)


def test_class_weights_weigh_the_cells_of_their_class(tiny_config, make_batch):
    config = tiny_config(num_labels=3, class_weights=[0.5, 2.0, 0.0])
    model = XTrimoGeneForSequenceClassification(config).eval()
    batch = encoder_inputs(make_batch(config))
    labels = torch.tensor([1, 0, 2])
    out = model(**batch, labels=labels)
    each = nn.functional.cross_entropy(out.logits, labels, reduction="none")
    torch.testing.assert_close(out.loss, (2.0 * each[0] + 0.5 * each[1]) / 3)


def test_a_step_on_accumulated_batches_is_that_of_one_batch(tiny_config, make_batch):
    """Four cells at a time and all at once give the same loss and gradients: no batch decides how a cell is read."""
    torch.manual_seed(0)
    config = tiny_config(
        num_labels=3, classifier_dropout=0.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = XTrimoGeneForSequenceClassification(config).train()
    batch = encoder_inputs(make_batch(config, lengths=tuple(range(4, 20))))
    labels = torch.arange(16) % 3
    model.classifier.norm.set_statistics(model.model(**batch).pooler_output.detach())
    whole = model(**batch, labels=labels).loss
    whole.backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    total = 0.0
    for rows in (slice(start, start + 4) for start in range(0, 16, 4)):
        part = {name: values[rows] for name, values in batch.items()}
        loss = model(**part, labels=labels[rows], num_items_in_batch=16).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-6)
    again = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for gradient, other in zip(gradients, again, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)


def test_an_empty_cell_is_refused_in_training(tiny_config, make_batch):
    model = XTrimoGeneForSequenceClassification(tiny_config(num_labels=3)).train()
    batch = encoder_inputs(make_batch(model.config))
    batch["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="1 of 3 cells of a batch have no tokens"):
        model(**batch, labels=torch.tensor([0, 1, 2]))
    input_ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, model.config.pad_token_id)
    with pytest.raises(ValueError, match="1 of 3 cells of a batch have no tokens"):
        model(input_ids, batch["values"], labels=torch.tensor([0, 1, 2]))


@torch.no_grad()
def test_an_annotator_has_no_decoder_to_make_noise_with(tiny_config, make_batch, tmp_path):
    XTrimoGeneForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was built without a decoder"):
        model.contextual_gene_embeddings(**encoder_inputs(make_batch(model.config)))


@torch.no_grad()
def test_tuples_by_configuration(tiny_config, make_batch):
    for cls in (XTrimoGeneForPreTraining, XTrimoGeneForSequenceClassification):
        model = cls(tiny_config(num_labels=3, return_dict=False)).eval()
        assert isinstance(model(**encoder_inputs(make_batch(model.config))), tuple)


DERIVED = """
from xtrimogene import XTrimoGeneForSequenceClassification


class ReversedHead(XTrimoGeneForSequenceClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = -outputs.logits
        return outputs
"""


@torch.no_grad()
@pytest.mark.parametrize("place", ["users_head", "__main__"])
def test_a_derived_class_travels_with_its_file_or_says_that_it_does_not(
    tiny_config, make_batch, tmp_path, monkeypatch, place
):
    (tmp_path / "users_head.py").write_text(DERIVED)
    monkeypatch.syspath_prepend(tmp_path)
    derived = importlib.import_module("users_head").ReversedHead
    monkeypatch.setattr(derived, "__module__", place)
    model, folder = derived(tiny_config(num_labels=3)).eval(), tmp_path / "saved"
    model.save_pretrained(folder)
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert all((folder / f"{name.split('.')[0]}.py").exists() for name in auto_map.values())
    batch = encoder_inputs(make_batch(model.config))
    expected = model(**batch).logits
    if place == "__main__":
        assert list(auto_map) == ["AutoConfig"]
    else:
        travelled = get_class_from_dynamic_module(auto_map["AutoModelForSequenceClassification"], folder)
        assert torch.equal(travelled.from_pretrained(folder).eval()(**batch).logits, expected)
    with pytest.warns(UserWarning, match=r"saved by ReversedHead, and XTrimoGeneForSequenceClassification takes its"):
        own = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(own.eval()(**batch).logits, -expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(derived.from_pretrained(folder).eval()(**batch).logits, expected)
        own.save_pretrained(tmp_path / "own")
        AutoModel.from_pretrained(tmp_path / "own")


def test_save_pretrained_takes_what_transformers_does(tiny_config, tmp_path):
    XTrimoGeneModel(tiny_config()).save_pretrained(tmp_path, True)
    assert (tmp_path / "model.safetensors").exists()


def test_freezing_leaves_the_last_layers_and_the_head(tiny_config):
    model = XTrimoGeneForSequenceClassification(tiny_config(num_labels=3))
    model.freeze_encoder(1)
    trainable = {name.rsplit(".", 1)[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("model.encoder.layers.1.", "model.encoder.norm", "classifier.")) for name in trainable)
    assert any(name.startswith("model.encoder.layers.1.") for name in trainable)
    with pytest.raises(ValueError, match="trainable_layers is 3, the encoder has 2 layers"):
        model.freeze_encoder(3)


@pytest.mark.parametrize("head", ["pretraining", "annotation"])
def test_lora_gives_every_target_a_gradient(tiny_config, make_batch, head):
    from peft import LoraConfig, get_peft_model

    config = tiny_config(num_labels=3)
    batch = make_batch(config)
    if head == "pretraining":
        base = XTrimoGeneForPreTraining(config)
    else:
        base = XTrimoGeneForSequenceClassification(config)
        batch = encoder_inputs(batch) | {"labels": torch.tensor([0, 1, 2])}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    model = get_peft_model(base, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    model(**batch).loss.backward()
    adapters = [(name, parameter) for name, parameter in model.named_parameters() if "lora_" in name]
    layers = config.num_hidden_layers + (config.decoder_num_hidden_layers if head == "pretraining" else 0)
    assert len(adapters) == 2 * len(targets) * layers
    for name, parameter in adapters:
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("change", "message"), [
    (lambda b: b | {"values": b["values"][:, :-1]}, r"input_ids \(3, 13\) and values \(3, 12\) differ in shape"),
    (lambda b: {k: v for k, v in b.items() if k != "masked_ids"}, r"labels \(3, 5\) need masked_ids .* got none"),
    (lambda b: b | {"labels": b["labels"][:, :-1]}, r"labels \(3, 4\) need masked_ids of the same shape, got \(3, 5\)"),
])  # fmt: skip
def test_bad_batches_are_refused(tiny_config, make_batch, change, message):
    config = tiny_config()
    with pytest.raises(ValueError, match=message):
        XTrimoGeneForPreTraining(config)(**change(make_batch(config)))


def test_class_weights_of_another_length_are_refused(tiny_config):
    with pytest.raises(ValueError, match="class_weights has 2 entries for 3 labels"):
        XTrimoGeneForSequenceClassification(tiny_config(num_labels=3, class_weights=[1.0, 1.0]))


def test_a_few_steps_learn_a_batch_by_heart(tiny_config, make_batch):
    torch.manual_seed(0)
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = XTrimoGeneForPreTraining(config)
    batch = make_batch(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
